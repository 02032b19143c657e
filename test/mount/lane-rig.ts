/**
 * A lane on one end of a socket, the test in the kernel's place on the other: so requests can be sent as no kernel sends them. Behind the
 * lane is a mount without a kernel (in-process.ts). The lane is the built one.
 */
import { closeSync, read, writeSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { MessageChannel, Worker } from 'node:worker_threads';
import { expect } from 'vitest';
import { MainRequests } from '../../mount/fuse/main-requests.js';
import { Opcode } from '../../mount/fuse/opcodes.js';
import { IN_HEADER_BYTES, MAX_IO_BYTES, OUT_HEADER_BYTES, putU64 } from '../../mount/fuse/wire.js';
import { Crew } from '../../mount/lanes/crew.js';
import { CONTROL_WORDS, type FromLane, type LaneData, REGISTRY_VERSION } from '../../mount/lanes/protocol.js';
import { libcFunction } from '../../src/libc.js';
import { DIST } from './harness.js';
import { type InProcessMount, inProcessMount } from './in-process.js';

const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const SOL_SOCKET = 1;
const SO_SNDBUFFORCE = 32;
/** All that a test sends before it looks at a reply, and all replies to that: nobody may wait. */
const SOCKET_BYTES = 256 << 20;
/** The largest errno that the kernel takes in a reply. */
const ERRNO_MAX = 511;
const ATTR_OUT_BYTES = 104;

const socketpair = libcFunction<[number, number, number, Int32Array]>(
  'int socketpair(int domain, int type, int protocol, int *pair)',
);
const setsockopt = libcFunction<[number, number, number, Int32Array, number]>(
  'int setsockopt(int fd, int level, int name, int *value, unsigned int length)',
);
const readFrom = promisify(read);

/** A request as the test puts it together. */
export interface SentRequest {
  readonly opcode: number;
  readonly node: number;
  readonly body: Uint8Array;
  /** Bytes of all that are really sent. */
  readonly length?: number | undefined;
  /** What the header says instead of that. */
  readonly declared?: number | undefined;
}

export interface Reply {
  readonly errno: number;
  readonly body: Buffer;
}

export class LaneRig {
  readonly mount: InProcessMount;
  /** What has ended the lane, or was thrown on the main thread. */
  readonly thrown: unknown[] = [];
  private readonly sockets = new Int32Array(2);
  private readonly worker: Worker;
  private readonly buffer = Buffer.alloc(OUT_HEADER_BYTES + 2 * MAX_IO_BYTES);
  private lastUnique = 0;

  constructor() {
    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, this.sockets);
    for (const socket of this.sockets)
      setsockopt(socket, SOL_SOCKET, SO_SNDBUFFORCE, Int32Array.of(SOCKET_BYTES), 4);
    const fuseFd = this.sockets[1]!;
    const control = new SharedArrayBuffer(CONTROL_WORDS * 4);
    const { port1, port2 } = new MessageChannel();
    this.mount = inProcessMount((message) => {
      port1.postMessage(message);
      Atomics.add(new Int32Array(control), REGISTRY_VERSION, 1);
    });
    const requests = new MainRequests(fuseFd, this.mount.tree);
    const crew = new SharedArrayBuffer(Crew.words(1) * 4);
    const workerData: LaneData = {
      fuseFd,
      lane: 0,
      control,
      crew,
      regulars: 1,
      port: port2,
      debug: false,
    };
    this.worker = new Worker(join(DIST, 'lane.js'), { workerData, transferList: [port2] });
    this.worker.on('error', (error) => this.thrown.push(error));
    this.worker.on('message', (message: FromLane) => {
      try {
        if (message.kind === 'request') requests.handle(message.bytes);
      } catch (error) {
        this.thrown.push(error);
      }
    });
    port1.unref();
  }

  async close(): Promise<void> {
    for (const socket of this.sockets) closeSync(socket);
    await this.worker.terminate();
    await this.mount.registry.close();
  }

  /**
   * Sends requests, and a GETATTR of the root after them: the replies that each got until that was answered. Every reply is one that the
   * kernel would take (fuse_dev_do_write in fs/fuse/dev.c). Late replies to earlier requests are only checked for that.
   */
  async exchange(requests: readonly SentRequest[]): Promise<Reply[][]> {
    const first = this.lastUnique + 1;
    for (const request of requests) this.send(request);
    const fence = this.send({ opcode: Opcode.GETATTR, node: 1, body: new Uint8Array(16) });
    const replies: Reply[][] = requests.map(() => []);
    for (;;) {
      const { buffer } = this;
      const { bytesRead } = await readFrom(this.sockets[0]!, buffer, 0, buffer.length, null);
      const errno = 0 - buffer.readInt32LE(4);
      const to = Number(buffer.readBigUInt64LE(8));
      if (to === 0) continue; // a notification
      expect(buffer.readUInt32LE(0)).toBe(bytesRead);
      expect(errno).toBeGreaterThanOrEqual(0);
      expect(errno).toBeLessThanOrEqual(ERRNO_MAX);
      if (errno !== 0) expect(bytesRead).toBe(OUT_HEADER_BYTES);
      if (to === fence) {
        expect([errno, bytesRead]).toEqual([0, OUT_HEADER_BYTES + ATTR_OUT_BYTES]);
        return replies;
      }
      expect(to).toBeLessThan(fence);
      replies[to - first]?.push({ errno, body: Buffer.from(buffer.subarray(OUT_HEADER_BYTES, bytesRead)) });
    }
  }

  /** The number it got. */
  private send({ opcode, node, body, length, declared }: SentRequest): number {
    const unique = ++this.lastUnique;
    const bytes = Buffer.alloc(IN_HEADER_BYTES + body.length);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    view.setUint32(0, declared ?? length ?? bytes.length, true);
    view.setUint32(4, opcode, true);
    putU64(view, 8, unique);
    putU64(view, 16, node);
    bytes.set(body, IN_HEADER_BYTES);
    writeSync(this.sockets[0]!, bytes.subarray(0, length));
    return unique;
  }
}
