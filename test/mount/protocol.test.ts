/**
 * Requests as no kernel sends them, for the parts that serve a mount. Each gets the one reply that the kernel would take, none may end
 * the lane or throw on the main thread, and devices hold what valid writes have left there.
 */
import { rmSync } from 'node:fs';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Opcode } from '../../mount/fuse/opcodes.js';
import {
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  IN_HEADER_BYTES,
  REQUEST_BUFFER_BYTES,
  WRITE_IN_BYTES,
} from '../../mount/fuse/wire.js';
import { deviceNode } from '../../mount/tree/nodes.js';
import { DmError, messageOf } from '../../src/errors.js';
import { expectSameBytes, fuzz } from '../targets/harness.js';
import { LaneRig, type Reply, type SentRequest } from './lane-rig.js';
import { DISK_BYTES, scratchFolder, smallDisks } from './small-disks.js';

/** Requests at a time, and how often. */
const BATCH = 25;
const BATCHES = 480;
/** The kernel's largest READ and WRITE, and more handles than are open. */
const U32_MAX = 2 ** 32 - 1;
const HANDLES = 200;

const folder = scratchFolder();
let rig: LaneRig;
/** What each device holds, by its node. */
const models = new Map<number, Buffer>();
/** Ids of folders: those with a device, one without, and that of the snapshots. */
let ids: number[] = [];

beforeAll(async () => {
  rig = new LaneRig();
  const { registry, tree } = rig.mount;
  for (const { name, table } of await smallDisks(folder)) {
    const slot = registry.add(name);
    await registry.load(slot, table);
    const node = deviceNode(slot.id);
    models.set(node, await readDevice(node));
  }
  // One that is held answers nothing.
  registry.suspend = async () => {
    throw new DmError('EBUSY', 'not in this test');
  };
  registry.add('empty');
  for (const { id, name } of registry.all()) {
    ids.push(id);
    // So that no hostile rmdir takes it away.
    if (name !== 'empty') tree.open(deviceNode(id), 2);
  }
  ids = [rig.mount.snapshots.folder.id, ...ids];
});

afterAll(async () => {
  await rig.close();
  rmSync(folder, { recursive: true });
});

async function readDevice(node: number): Promise<Buffer> {
  const body = pack([
    [8, 0],
    [8, 0],
    [4, DISK_BYTES],
    [4, 0],
    [8, 0],
    [8, 0],
  ]);
  const [[reply]] = (await rig.exchange([{ opcode: Opcode.READ, node, body }])) as [[Reply]];
  expect(reply.errno).toBe(0);
  expect(reply.body).toHaveLength(DISK_BYTES);
  return reply.body;
}

/** Numbers of so many bytes each, one behind the other. */
function pack(fields: readonly (readonly [bytes: number, value: number | bigint])[]): Buffer {
  const out = Buffer.alloc(fields.reduce((sum, [bytes]) => sum + bytes, 0));
  let at = 0;
  for (const [bytes, value] of fields) {
    if (bytes === 8) out.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)), at);
    else out.writeUInt32LE(Number(BigInt.asUintN(32, BigInt(value))), at);
    at += bytes;
  }
  return out;
}

const u64 = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: 0, max: DISK_BYTES + 600 }).map(BigInt) },
  { weight: 2, arbitrary: fc.integer({ min: 0, max: HANDLES }).map(BigInt) },
  fc.constantFrom(2n ** 31n, 2n ** 32n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n),
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
);
const u32 = fc.oneof(
  { weight: 3, arbitrary: fc.integer({ min: 0, max: 70_000 }) },
  { weight: 3, arbitrary: fc.integer({ min: 0, max: 35 }) },
  fc.constantFrom(2 ** 31 - 1, 2 ** 31, U32_MAX, 0o10000, 0o4000),
  fc.integer({ min: 0, max: U32_MAX }),
);
/** Bytes of the fields of a struct, by the names of <linux/fuse.h>; all but these have none. */
const structs: Readonly<Record<number, readonly (4 | 8)[]>> = {
  [Opcode.FORGET]: [8],
  [Opcode.GETATTR]: [4, 4, 8],
  [Opcode.SETATTR]: Array.from({ length: 22 }, () => 4 as const),
  [Opcode.MKDIR]: [4, 4],
  [Opcode.RENAME]: [8],
  [Opcode.RENAME2]: [8, 4, 4],
  [Opcode.OPEN]: [4, 4],
  [Opcode.READ]: [8, 8, 4, 4, 8, 4, 4],
  [Opcode.WRITE]: [8, 8, 4, 4, 8, 4, 4],
  [Opcode.RELEASE]: [8, 4, 4, 8],
  [Opcode.FSYNC]: [8, 4, 4],
  [Opcode.FLUSH]: [8, 4, 4, 8],
  [Opcode.INIT]: Array.from({ length: 16 }, () => 4 as const),
  [Opcode.OPENDIR]: [4, 4],
  [Opcode.READDIR]: [8, 8, 4, 4, 8, 4, 4],
  [Opcode.RELEASEDIR]: [8, 4, 4, 8],
  [Opcode.INTERRUPT]: [8],
  [Opcode.IOCTL]: [8, 4, 4, 8, 4, 4],
  [Opcode.POLL]: [8, 8, 4, 4],
  [Opcode.BATCH_FORGET]: [4, 4],
  [Opcode.FALLOCATE]: [8, 8, 8, 4, 4],
  [Opcode.LSEEK]: [8, 8, 4, 4],
};
const NAMED: readonly number[] = [Opcode.LOOKUP, Opcode.MKDIR, Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2];
const NO_REPLY: readonly number[] = [Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT];
/** A read of events waits, a load of a table takes a while, and lock-free waits for a release go before a removal. */
const MAY_WAIT: readonly number[] = [Opcode.READ, Opcode.WRITE, Opcode.RMDIR];

const names = fc
  .oneof(
    fc.constantFrom(
      'empty',
      'device',
      'table',
      'events',
      'snapshots',
      '.',
      '..',
      '',
      '/',
      'a/b',
      '@x',
      '.dmfuse',
    ),
    fc.string({ maxLength: 20 }),
    fc.integer({ min: 120, max: 4000 }).map((length) => 'n'.repeat(length)),
    fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
  )
  .chain((name) =>
    fc
      .constantFrom('\0', '', '\0behind\0')
      .map((end) => Buffer.concat([Buffer.from(name as string), Buffer.from(end)])),
  );
const words = fc.constantFrom(
  '0 1\n',
  '1\n',
  'none',
  'blksnap',
  'linear /nowhere 0',
  '0 99999999999999999999 bow x',
);
const data = fc.oneof(
  { weight: 3, arbitrary: fc.uint8Array({ maxLength: 3000 }).map((bytes) => Buffer.from(bytes)) },
  {
    weight: 1,
    arbitrary: fc.integer({ min: 1, max: 40 }).map((sectors) => Buffer.alloc(512 * sectors, sectors)),
  },
  { weight: 1, arbitrary: words.map((text) => Buffer.from(text)) },
);

const opcodes = fc.oneof(
  { weight: 12, arbitrary: fc.constantFrom(...Object.values(Opcode)) },
  { weight: 8, arbitrary: fc.constantFrom(Opcode.READ, Opcode.WRITE, Opcode.FALLOCATE, Opcode.LSEEK) },
  fc.integer({ min: 0, max: 70 }),
  fc.integer({ min: 0, max: U32_MAX }),
);
const nodes = fc.oneof(
  {
    weight: 8,
    arbitrary: fc
      .tuple(fc.nat(), fc.oneof(fc.constant(1), fc.integer({ min: 0, max: 14 })))
      .map(([which, file]) => ids[which % ids.length]! * 256 + file),
  },
  fc.constantFrom(0, 1, 2, 3, 255, 300, 2 ** 32, 2 ** 40 + 1, 2 ** 53, 2 ** 63),
);

/** A request of the right shape, with anything in its fields. */
const shaped = fc.tuple(opcodes, nodes).chain(([opcode, node]): fc.Arbitrary<SentRequest> => {
  const fields = fc.tuple(
    ...(structs[opcode] ?? []).map((bytes) => (bytes === 8 ? u64 : u32)),
  ) as fc.Arbitrary<(number | bigint)[]>;
  const tail = NAMED.includes(opcode) ? names : opcode === Opcode.WRITE ? data : fc.constant(Buffer.alloc(0));
  return fc.tuple(fields, tail, fc.integer({ min: 0, max: 5 })).map(([values, behind, honesty]) => {
    const body = Buffer.concat([
      pack((structs[opcode] ?? []).map((bytes, i) => [bytes, values[i]!])),
      behind,
    ]);
    // Most writes say how long their data is.
    if (opcode === Opcode.WRITE && honesty > 0) body.writeUInt32LE(behind.length, 16);
    return { opcode, node, body };
  });
});
/** Bytes of no shape at all. */
const shapeless = fc.record({ opcode: opcodes, node: nodes, body: fc.uint8Array({ maxLength: 200 }) });
/** One that is cut short, or whose length is a lie. */
const damaged = fc
  .tuple(shaped, fc.option(fc.nat(), { nil: undefined }), fc.option(u32, { nil: undefined }))
  .map(([request, cut, declared]) => ({
    ...request,
    length: cut === undefined ? undefined : cut % (IN_HEADER_BYTES + request.body.length + 1),
    declared,
  }));
const requests = fc.oneof({ weight: 6, arbitrary: shaped }, shapeless, { weight: 2, arbitrary: damaged });

/** What the device must hold after a request that was answered so; and what the answer must be. */
function judgeData({ opcode, node, body: sent, length }: SentRequest, { errno, body }: Reply): void {
  const model = models.get(node);
  const changesOrReads = [Opcode.READ, Opcode.WRITE, Opcode.FALLOCATE] as readonly number[];
  if (!model || errno !== 0 || !changesOrReads.includes(opcode)) return;
  const cut = Buffer.from(sent.subarray(0, length === undefined ? sent.length : length - IN_HEADER_BYTES));
  const offset = Number(cut.readBigUInt64LE(8));
  if (opcode === Opcode.READ) {
    const wanted = model.subarray(offset, offset + Math.min(cut.readUInt32LE(16), DISK_BYTES));
    expectSameBytes(
      body,
      offset < DISK_BYTES ? wanted : Buffer.alloc(0),
      `READ of node ${node} at ${offset}`,
    );
  } else if (opcode === Opcode.WRITE) {
    const written = body.readUInt32LE(0);
    expect(written).toBe(Math.max(0, Math.min(cut.readUInt32LE(16), DISK_BYTES - offset)));
    if (written > 0) cut.copy(model, offset, WRITE_IN_BYTES, WRITE_IN_BYTES + written);
  } else if (opcode === Opcode.FALLOCATE && cut.readUInt32LE(24) & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE)) {
    if (offset < DISK_BYTES)
      model.fill(0, offset, Math.min(DISK_BYTES, offset + Number(cut.readBigUInt64LE(16))));
  }
}

function judge(request: SentRequest, replies: readonly Reply[]): void {
  const { opcode, length, body, node } = request;
  if (length !== undefined && length < IN_HEADER_BYTES) {
    expect(replies).toEqual([]);
    return;
  }
  const isData = models.has(node) && opcode !== Opcode.RMDIR;
  if (NO_REPLY.includes(opcode)) expect(replies.filter(({ errno }) => errno === 0)).toEqual([]);
  else if (MAY_WAIT.includes(opcode) && !isData) expect(replies.length).toBeLessThanOrEqual(1);
  else expect(replies).toHaveLength(1);
  const [reply] = replies;
  if (!reply) return;
  // More than was asked for would be EINVAL for us, and a caller that waits for ever.
  const hasLimit = (opcode === Opcode.READ || opcode === Opcode.READDIR) && body.length >= 20;
  if (hasLimit) expect(reply.body.length).toBeLessThanOrEqual(Buffer.from(body).readUInt32LE(16));
  judgeData(request, reply);
}

test('any bytes at all get an errno, and harm nothing', async () => {
  const batches = fc.array(requests, { minLength: BATCH, maxLength: BATCH });
  const batch = fc.asyncProperty(batches, async (sent) => {
    const replies = await rig.exchange(sent);
    expect(rig.thrown).toEqual([]);
    for (const [i, request] of sent.entries()) {
      try {
        judge(request, replies[i]!);
      } catch (error) {
        throw new Error(`${JSON.stringify(request)}: ${messageOf(error)}`);
      }
    }
    for (const [node, model] of models) expectSameBytes(await readDevice(node), model, `node ${node}`);
  });
  await fuzz(batch, { runs: BATCHES, pure: false });
}, 120_000);

test('a request that is cut short at any byte: EINVAL, or nothing where not even its header is there', async () => {
  const known = Object.values(Opcode).filter(
    (opcode) => !NO_REPLY.includes(opcode) && opcode !== Opcode.INIT,
  );
  for (const opcode of known) {
    const fields = structs[opcode] ?? [];
    const full = IN_HEADER_BYTES + fields.reduce<number>((sum, bytes) => sum + bytes, 0);
    const body = pack(fields.map((bytes) => [bytes, 0]));
    const lengths = Array.from({ length: full }, (_, length) => length);
    const node = deviceNode(ids[1]!);
    const replies = await rig.exchange(lengths.map((length) => ({ opcode, node, body, length })));
    for (const length of lengths) {
      const errnos = replies[length]!.map(({ errno }) => errno);
      if (length < IN_HEADER_BYTES) expect([opcode, length, errnos]).toEqual([opcode, length, []]);
      else expect([opcode, length, errnos]).toEqual([opcode, length, [22]]);
    }
  }
  expect(rig.thrown).toEqual([]);
});

test('an unknown request is ENOSYS, INIT for the second time too', async () => {
  const unknown = [5, 6, 8, 10, 13, 21, 22, 35, 37, 41, 44, 47, 48, 49, 50, 51, 52, 53, 4096, Opcode.INIT];
  const replies = await rig.exchange(
    unknown.map((opcode) => ({ opcode, node: 1, body: new Uint8Array(64) })),
  );
  expect(replies).toEqual(unknown.map(() => [{ errno: 38, body: Buffer.alloc(0) }]));
});

test('a request that is as large as the buffer, and one that is larger', async () => {
  const node = deviceNode(ids[1]!);
  for (const bytes of [REQUEST_BUFFER_BYTES, REQUEST_BUFFER_BYTES + 1, 2 * REQUEST_BUFFER_BYTES]) {
    const body = Buffer.alloc(bytes - IN_HEADER_BYTES, 1);
    body.fill(0, 0, WRITE_IN_BYTES);
    body.writeUInt32LE(bytes - IN_HEADER_BYTES - WRITE_IN_BYTES, 16);
    const [[reply]] = (await rig.exchange([{ opcode: Opcode.WRITE, node, body }])) as [[Reply]];
    // What the device has room for is written; a request that did not fit contradicts its own length.
    const errno = bytes > REQUEST_BUFFER_BYTES ? 22 : 0;
    expect([bytes, reply.errno, reply.body.length]).toEqual([bytes, errno, errno ? 0 : 8]);
    if (errno === 0) models.get(node)!.fill(1);
    expectSameBytes(await readDevice(node), models.get(node)!, 'the device');
  }
});
