/**
 * Requests as no kernel sends them, for the parts that serve a mount: a lane on one end of a socket, the test in the
 * kernel's place on the other. Each request gets the one reply that the kernel would take, and none may end the lane or
 * throw on the main thread.
 */
import { closeSync, mkdtempSync, read, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { MessageChannel, Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MainRequests } from '../../mount/fuse/main-requests.js';
import { Opcode } from '../../mount/fuse/opcodes.js';
import { IN_HEADER_BYTES, OUT_HEADER_BYTES, putU64 } from '../../mount/fuse/wire.js';
import { Crew } from '../../mount/lanes/crew.js';
import { CONTROL_WORDS, type FromLane, type LaneData, REGISTRY_VERSION } from '../../mount/lanes/protocol.js';
import { Registry } from '../../mount/registry.js';
import { MountedSnapshots } from '../../mount/snapshots.js';
import { deviceNode } from '../../mount/tree/nodes.js';
import { Passthrough } from '../../mount/tree/passthrough.js';
import { targetsFolder } from '../../mount/tree/targets-folder.js';
import { Tree } from '../../mount/tree/tree.js';
import { libcFunction } from '../../src/libc.js';
import { DIST } from './harness.js';

const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const DEVICE_BYTES = 65536;
/** The largest errno that the kernel takes in a reply. */
const ERRNO_MAX = 511;

const socketpair = libcFunction<[number, number, number, Int32Array]>(
  'int socketpair(int domain, int type, int protocol, int *pair)',
);
const readFrom = promisify(read);
const folder = mkdtempSync(join(tmpdir(), 'dmfuse-protocol-'));
const sockets = new Int32Array(2);
const thrown: unknown[] = [];
let worker: Worker;
let lastUnique = 0;

interface Reply {
  readonly errno: number;
  readonly body: Buffer;
}

beforeAll(async () => {
  writeFileSync(join(folder, 'disk.img'), '');
  truncateSync(join(folder, 'disk.img'), DEVICE_BYTES);
  socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets);
  const fuseFd = sockets[1]!;
  const control = new SharedArrayBuffer(CONTROL_WORDS * 4);
  const { port1, port2 } = new MessageChannel();
  const registry = new Registry({
    mountPoint: '/nowhere',
    mountDevice: async () => -1,
    lanes: 1,
    deviceNode,
    announce: (message) => {
      port1.postMessage(message);
      Atomics.add(new Int32Array(control), REGISTRY_VERSION, 1);
    },
    attend: () => {},
    dismiss: async () => {},
    attendFilter: () => {},
    settle: async () => {},
    isInSnapshot: () => false,
    isPassedThrough: () => false,
    raise: () => {},
    savedFilters: undefined,
    attributesChanged: () => {},
    nameGone: () => {},
  });
  for (const name of ['x', 'y']) registry.add(name);
  const snapshots = new MountedSnapshots({ registry, lanes: 1, announce: () => {} });
  const root = targetsFolder({
    registry,
    passthrough: new Passthrough(undefined),
    snapshots,
    inFlight: () => 0,
  });
  const folderById = (id: number) => root.byId(id) ?? snapshots.folderById(id);
  const tree = new Tree({ root, folderById, uid: 0, gid: 0, allowOther: false, daemonText: '' });
  const requests = new MainRequests(fuseFd, tree);

  const crew = new SharedArrayBuffer(Crew.words(1) * 4);
  const workerData: LaneData = { fuseFd, lane: 0, control, crew, regulars: 1, port: port2, debug: false };
  worker = new Worker(join(DIST, 'mount/lanes/lane.js'), { workerData, transferList: [port2] });
  worker.on('error', (error) => thrown.push(error));
  worker.on('message', (message: FromLane) => {
    try {
      if (message.kind === 'request') requests.handle(message.bytes);
    } catch (error) {
      thrown.push(error);
    }
  });
  port1.unref();
  await registry.load(registry.get('x')!, `linear ${join(folder, 'disk.img')} 0 1 no_passthrough`);
});

afterAll(async () => {
  for (const socket of sockets) closeSync(socket);
  await worker.terminate();
  rmSync(folder, { recursive: true });
});

/** Sends a request, and a GETATTR of the root after it: the replies to the first. */
async function exchange(opcode: number, node: number, body: Uint8Array, length?: number): Promise<Reply[]> {
  const unique = ++lastUnique;
  const fence = ++lastUnique;
  writeSync(sockets[0]!, encodeRequest(opcode, node, unique, body).subarray(0, length));
  writeSync(sockets[0]!, encodeRequest(Opcode.GETATTR, 1, fence, new Uint8Array(16)));
  const replies: Reply[] = [];
  for (;;) {
    const buffer = Buffer.alloc(OUT_HEADER_BYTES + (1 << 20));
    const { bytesRead } = await readFrom(sockets[0]!, buffer, 0, buffer.length, null);
    const errno = 0 - buffer.readInt32LE(4);
    const to = Number(buffer.readBigUInt64LE(8));
    // What the kernel demands of every reply: fuse_dev_do_write in fs/fuse/dev.c.
    expect(buffer.readUInt32LE(0)).toBe(bytesRead);
    expect(errno).toBeGreaterThanOrEqual(0);
    expect(errno).toBeLessThanOrEqual(ERRNO_MAX);
    if (errno !== 0) expect(bytesRead).toBe(OUT_HEADER_BYTES);
    if (to === fence) {
      expect([errno, bytesRead]).toEqual([0, OUT_HEADER_BYTES + 104]);
      return replies;
    }
    if (to === unique) replies.push({ errno, body: buffer.subarray(OUT_HEADER_BYTES, bytesRead) });
  }
}

function encodeRequest(opcode: number, node: number, unique: number, body: Uint8Array): Buffer {
  const bytes = Buffer.alloc(IN_HEADER_BYTES + body.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  view.setUint32(0, bytes.length, true);
  view.setUint32(4, opcode, true);
  putU64(view, 8, unique);
  putU64(view, 16, node);
  bytes.set(body, IN_HEADER_BYTES);
  return bytes;
}

const NO_REPLY: number[] = [Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT];

const opcodes = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(...Object.values(Opcode)) },
  fc.integer({ min: 0, max: 70 }),
  fc.integer({ min: 0, max: 2 ** 32 - 1 }),
);
const nodes = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(1, 2, 256, 257, 258, 259, 260, 261, 262, 263, 264, 512, 513, 514) },
  fc.constantFrom(0, 3, 255, 265, 300, 2 ** 32, 2 ** 40 + 1, 2 ** 53, 2 ** 63),
);
/** A file handle where most requests have one, then anything. */
const bodies = fc
  .tuple(fc.integer({ min: 0, max: 40 }), fc.uint8Array({ maxLength: 200 }), fc.boolean())
  .map(([handle, bytes, hasHandle]) => {
    if (!hasHandle || bytes.length < 8) return bytes;
    putU64(new DataView(bytes.buffer, bytes.byteOffset), 0, handle);
    return bytes;
  });

test('any bytes at all get an errno, and harm nothing', async () => {
  await fc.assert(
    fc.asyncProperty(opcodes, nodes, bodies, async (opcode, node, body) => {
      const replies = await exchange(opcode, node, body);
      expect(thrown).toEqual([]);
      // A read of events waits, a load of a table may take a while.
      const mayWait = opcode === Opcode.READ || opcode === Opcode.WRITE || opcode === Opcode.RMDIR;
      if (NO_REPLY.includes(opcode)) expect(replies.filter(({ errno }) => errno === 0)).toEqual([]);
      else if (!mayWait) expect(replies).toHaveLength(1);
      else expect(replies.length).toBeLessThanOrEqual(1);
      // More than was asked for would be EINVAL for us, and a caller that waits for ever.
      const hasLimit = (opcode === Opcode.READ || opcode === Opcode.READDIR) && body.length >= 20;
      const asked = hasLimit ? Buffer.from(body).readUInt32LE(16) : Number.POSITIVE_INFINITY;
      if (replies[0]) expect(replies[0].body.length).toBeLessThanOrEqual(asked);
    }),
    { numRuns: 2000 },
  );
}, 60_000);

test('a request that is cut short: EINVAL, or nothing where not even its header is there', async () => {
  for (const opcode of Object.values(Opcode).filter((known) => !NO_REPLY.includes(known))) {
    for (const length of [0, 1, 16, IN_HEADER_BYTES - 1]) {
      expect(await exchange(opcode, 1, new Uint8Array(0), length)).toEqual([]);
    }
    const replies = await exchange(opcode, deviceNode(1), new Uint8Array(0));
    expect(replies).toHaveLength(1);
    // These have no struct of their own.
    if (opcode !== Opcode.STATFS && opcode !== Opcode.DESTROY) expect(replies[0]!.errno).toBeGreaterThan(0);
  }
  expect(thrown).toEqual([]);
});

test('an unknown request is ENOSYS', async () => {
  for (const opcode of [5, 6, 8, 10, 12, 13, 21, 22, 35, 37, 41, 44, 45, 47, 48, 49, 50, 51, 52, 53, 4096]) {
    expect(await exchange(opcode, 1, new Uint8Array(64))).toEqual([{ errno: 38, body: Buffer.alloc(0) }]);
  }
});
