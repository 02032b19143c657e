/**
 * A lane: one worker thread that reads a request from /dev/fuse, serves it to its end and writes the reply, for ever.
 * No event loop, no promise and no callback on the data path. Requests that are not for a device's data go to main.
 *
 * It ends when the mount is gone: read(2) then fails with ENODEV, or once with ECONNABORTED.
 */
import { readSync, writeSync } from 'node:fs';
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { errnoOf } from '../../src/errors.js';
import { failDevice, type ServedDevice } from '../device-io.js';
import { Opcode, type Operation, operationOf } from '../fuse/opcodes.js';
import {
  IN_HEADER_BYTES,
  MAX_IO_BYTES,
  OUT_HEADER_BYTES,
  putReplyHeader,
  REQUEST_BUFFER_BYTES,
  Request,
} from '../fuse/wire.js';
import { Outputs } from '../outputs.js';
import { Crew } from './crew.js';
import { countTime, serveDevice } from './device-requests.js';
import {
  type DeviceDescription,
  type FromLane,
  type LaneData,
  REGISTRY_VERSION,
  type ToLane,
} from './protocol.js';
import { markIoFlusher } from './reclaim.js';
import { LaneStats } from './stats.js';

const { fuseFd, lane, control, crew: crewWords, regulars, port, debug } = workerData as LaneData;
const controlWords = new Int32Array(control);
const devicesByNode = new Map<number, ServedDevice>();
const outputs = new Outputs(raiseAt);
let held: ReadonlySet<number> = new Set();
let registryVersion = 0;

const crew = new Crew(new Int32Array(crewWords), lane, regulars);

// All of the data path's memory, before the first request.
const request = new Request(new Uint8Array(REQUEST_BUFFER_BYTES));
const reply = new Uint8Array(OUT_HEADER_BYTES + MAX_IO_BYTES);
const replyView = new DataView(reply.buffer);
const replyBody = reply.subarray(OUT_HEADER_BYTES);

markIoFlusher();
for (crew.rest(adoptChanges); readRequest(); crew.rest(adoptChanges)) serve();
crew.leave();

/** False when the mount is gone. */
function readRequest(): boolean {
  for (;;) {
    try {
      request.length = readSync(fuseFd, request.bytes, 0, REQUEST_BUFFER_BYTES, null);
      return true;
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      // ECONNABORTED: it went while this thread was taking a request, as a last close after a lazy umount can have it.
      if (code === 'ENODEV' || code === 'ECONNABORTED') return false;
      // ENOENT: the request was interrupted before we had it.
      if (code !== 'ENOENT' && code !== 'EINTR' && code !== 'EAGAIN') throw error;
    }
  }
}

function serve(): void {
  if (request.length < IN_HEADER_BYTES) return;
  const operation = operationOf(request.opcode);
  if (!operation) {
    answer(errnoOf({ code: 'ENOSYS' }), 0);
  } else if (request.length < IN_HEADER_BYTES + operation.structBytes) {
    answer(errnoOf({ code: 'EINVAL' }), 0);
  } else if (operation.served === 'data') {
    if (!serveData(operation)) handToMain();
  } else if (operation.served === 'main') {
    handToMain();
  }
  if (debug) trace(operation);
}

/** False for what is no `device`. */
function serveData(operation: Operation): boolean {
  crew.begin(request.node);
  let device: ServedDevice | undefined;
  let errno = 0;
  let bytes = 0;
  try {
    adoptChanges();
    device = devicesByNode.get(request.node);
    if (!device) return false;
    if (held.has(request.node)) {
      handToMain('held');
      // It is not served yet, so nothing is to be counted.
      device = undefined;
      return true;
    }
    // A flush waits for the disk, whatever came before.
    if (request.opcode === Opcode.FSYNC) crew.call();
    bytes = serveDevice(device, request, replyBody);
  } catch (error) {
    if (!device) throw error;
    const { id } = device;
    const offset = request.opcode === Opcode.FSYNC ? undefined : request.bodyU64(8);
    errno = failDevice(device, error, { operation: operation.name, offset }, (line) => raiseAt(id, line));
  } finally {
    const took = crew.end();
    // Before the answer: who has it finds itself counted.
    if (device && errno === 0) countTime(device, request, took);
  }
  answer(errno, bytes);
  return true;
}

function answer(errno: number, bodyBytes: number): void {
  const length = putReplyHeader(replyView, request.unique, errno, bodyBytes);
  try {
    writeSync(fuseFd, reply, 0, length);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    // ENOENT: the caller was killed while it waited. ENODEV: the mount went meanwhile; the next read says so again.
    if (code !== 'ENOENT' && code !== 'ENODEV') throw error;
  }
}

function handToMain(kind: 'request' | 'held' = 'request'): void {
  const bytes = request.bytes.slice(0, request.length);
  send({ kind, bytes }, bytes.buffer);
}

function adoptChanges(): void {
  if (Atomics.load(controlWords, REGISTRY_VERSION) === registryVersion) return;
  // Before the port is drained: a change that comes after this line is seen at the next request.
  registryVersion = Atomics.load(controlWords, REGISTRY_VERSION);
  for (let next = receiveMessageOnPort(port); next; next = receiveMessageOnPort(port)) {
    const message = next.message as ToLane;
    if (message.kind === 'add') add(message.device);
    else if (message.kind === 'filter') outputs.setFilter(message.id, message.filter);
    else if (message.kind === 'replace') outputs.replaceTarget(message.device);
    else if (message.kind === 'hold') held = new Set(message.nodes);
    else remove(message.id);
  }
}

function add(description: DeviceDescription): void {
  const { id, node, stats, kind } = description;
  const output = kind === 'target' ? outputs.addTarget(description) : outputs.openImage(description);
  devicesByNode.set(node, { id, output, stats: new LaneStats(stats, lane) });
}

function remove(id: number): void {
  for (const [node, device] of devicesByNode) {
    if (device.id === id) devicesByNode.delete(node);
  }
  outputs.remove(id);
}

function raiseAt(id: number, line: string): void {
  send({ kind: 'event', id, line });
}

function send(message: FromLane, transfer?: ArrayBuffer): void {
  parentPort!.postMessage(message, transfer ? [transfer] : []);
}

function trace(operation: Operation | undefined): void {
  const what = operation?.name ?? `opcode ${request.opcode}`;
  const where = `node ${request.node} offset ${request.length >= IN_HEADER_BYTES + 16 ? request.bodyU64(8) : 0}`;
  send({ kind: 'trace', line: `lane ${lane}: ${request.unique} ${what} ${where} ${request.length} bytes` });
}
