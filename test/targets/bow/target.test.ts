import { describe, expect, it, vi } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk } from '../../../src/device/simulated.js';
import { RangeMap } from '../../../src/shared/range-map.js';
import { bow } from '../../../src/targets/bow/index.js';
import { State, BlockType as T } from '../../../src/targets/bow/state.js';
import { BowTarget } from '../../../src/targets/bow/target.js';
import { inspectLog, restore } from '../../../src/targets/bow/undo.js';
import { codeOf, contentOf, expectSameBytes, makeRig, readBytes, withoutUnmap } from '../harness.js';
import { naiveChecksum } from './log-writer.js';
import {
  type BowRig,
  blockRange,
  blocksOf,
  expectAtRest,
  logBlockProblem,
  makeBow,
  readLogBlock,
  trimBlocks,
  typesOf,
} from './rig.js';

const BLOCK_SIZES = [512, 1024, 2048, 4096];

/** A device of random bytes, block 0 beginning with 0. */
function randomDisk(blocks: number, blockSize: number, tail = 0): MemoryDevice {
  const content = new Prng(blocks).bytes(blocks * blockSize + tail);
  content[0] = 0;
  return new MemoryDevice(content);
}

/** In state 1, with these blocks trimmed. */
async function checkpointed(disk: MemoryDevice, blockSize: number, free: readonly number[]): Promise<BowRig> {
  const rig = await makeBow(disk, blockSize);
  trimBlocks(rig, blockSize, free);
  rig.write('state', '1');
  return rig;
}

/** Every block that was not free is as it was; restores a copy. */
function expectRollsBack(
  disk: MemoryDevice,
  before: Uint8Array,
  blockSize: number,
  free: readonly number[],
): void {
  const copy = new MemoryDevice(disk.bytes.slice());
  expect(restore(copy).state).toBe('restored');
  const expected = before.slice();
  for (const block of free) {
    const at = block * blockSize;
    expected.set(copy.bytes.subarray(at, at + blockSize), at);
  }
  expectSameBytes(copy.bytes, expected, 'bow-I1: the roll back');
}

const block = (disk: MemoryDevice, blockSize: number, index: number) =>
  disk.bytes.subarray(index * blockSize, (index + 1) * blockSize);

describe("Android's BowTest (the format document's section 7)", () => {
  const blockSize = 512;
  const sectors = 4096;

  it('`ranges` shows what was discarded', async () => {
    const rig = await makeBow(new MemoryDevice(sectors * 512), blockSize);
    expect(rig.read('ranges')).toBe('Unchanged: 0\nTop: 4096\n');
    for (const sector of [8, 16, 12, 4]) rig.target.discard(sector * 512, 512);
    expect(rig.read('ranges')).toBe(
      'Unchanged: 0\nFree: 4\nUnchanged: 5\nFree: 8\nUnchanged: 9\nFree: 12\nUnchanged: 13\nFree: 16\n' +
        'Unchanged: 17\nTop: 4096\n',
    );
    expect(rig.read('free')).toBe('2048\n');
  });

  it('three free blocks are enough', async () => {
    const rig = await checkpointed(new MemoryDevice(sectors * 512), blockSize, [1, 3, 4]);
    expect(rig.read('ranges')).toBe(
      'Sector0: 0\nSector0_current: 1\nUnchanged: 2\nBackup: 3\nFree: 4\nUnchanged: 5\nTop: 4096\n',
    );
    expect(rig.read('free')).toBe('512\n');
  });

  const types = ['Sector0', 'Sector0_current', 'Unchanged', 'Backup', 'Free'];
  it.each(types.flatMap((type) => [[type, 'state 2'] as const, [type, 'restore'] as const]))(
    'a write to the first block of type %s, then %s',
    async (type, then) => {
      const disk = randomDisk(sectors, blockSize);
      const before = disk.bytes.slice();
      const rig = await makeBow(disk, blockSize);
      rig.target.discard(1 * 512, 512);
      rig.target.discard(3 * 512, 2 * 512);
      rig.write('state', '1');
      const sector = Number(new RegExp(`^${type}: (\\d+)$`, 'm').exec(rig.read('ranges'))![1]);
      const data = Buffer.from('written!');
      rig.target.write(sector * 512, data);
      expect([...readBytes(rig.target, sector * 512, 8)]).toEqual([...data]);
      if (then === 'state 2') rig.write('state', '2');
      else expect(restore(disk).state).toBe('restored');

      const expected = before.slice();
      if (then === 'state 2') expected.set(data, sector * 512);
      for (const trimmed of [1, 3, 4]) {
        if (then === 'state 2' && trimmed === sector)
          expected.fill(0, trimmed * 512 + 8, (trimmed + 1) * 512);
        else expected.set(block(disk, blockSize, trimmed), trimmed * 512);
      }
      expectSameBytes(disk.bytes, expected, 'the device below');
    },
  );
});

describe('the log on the medium', () => {
  it("is the format document's worked example (section 4)", async () => {
    const disk = randomDisk(64, 512);
    const before = disk.bytes.slice();
    const rig = await checkpointed(disk, 512, [1, 3, 4]);
    rig.target.write(10 * 512, new Uint8Array(512));
    // Which free block holds what is the target's choice: 1 the live block 0, 3 its backup, 4 the backup of block 10.
    const crc = (index: number) => {
      const bytes = Buffer.alloc(4);
      bytes.writeUInt32LE(naiveChecksum(index, before.subarray(index * 512, (index + 1) * 512)));
      return bytes.toString('hex');
    };
    const header = `424f570000011c000002000002000000${'00000000'}${'0100000000000000'}`;
    const entry0 = `0000000000000000${'0300000000000000'}00020000${crc(0)}`;
    const entry1 = `0a00000000000000${'0400000000000000'}00020000${crc(10)}`;
    const log = Buffer.from(block(disk, 512, 0)).toString('hex');
    expect(log).toBe(`${header}${entry0}${entry1}`.padEnd(1024, '0'));
    expectSameBytes(block(disk, 512, 4), before.subarray(10 * 512, 11 * 512), 'the backup');
    expectSameBytes(block(disk, 512, 1), before.subarray(0, 512), 'the live block 0');
  });

  it.each(BLOCK_SIZES)(
    'bow-I6: it is right after every write, over several logs (block %i)',
    async (blockSize) => {
      const blocks = 900;
      const disk = randomDisk(blocks, blockSize);
      const before = disk.bytes.slice();
      const free = blockRange(400, blocks);
      const rig = await checkpointed(disk, blockSize, free);
      for (let index = 1; index < 400; index += 2) {
        rig.target.write(index * blockSize, new Uint8Array(blockSize).fill(index));
        expect(logBlockProblem(block(disk, blockSize, 0), blockSize, blocks)).toBeUndefined();
        expectSameBytes(block(disk, blockSize, 0), rig.target.state.logImage, `after block ${index}`);
      }
      const capacity = Math.floor((blockSize - 28) / 24);
      // Entry 0 of each log is a backup of its own: of block 0, or of the log before.
      const logs = Math.ceil(200 / (capacity - 1));
      expect(readLogBlock(block(disk, blockSize, 0))).toMatchObject({ sequence: logs - 1 });
      expect(inspectLog(disk)).toMatchObject({ findings: [], logs, entries: 200 + logs });
      expectRollsBack(disk, before, blockSize, free);
    },
  );

  it.each(BLOCK_SIZES)(
    'one write fills several logs, in batches of one sector each (block %i)',
    async (blockSize) => {
      const capacity = Math.floor((blockSize - 28) / 24);
      for (const entries of [2, 19, 20, 21, capacity - 5, capacity - 1, capacity]) {
        if (entries > capacity) continue;
        const blocks = 1200;
        const disk = randomDisk(blocks, blockSize);
        const before = disk.bytes.slice();
        const free = blockRange(650, blocks);
        const rig = await checkpointed(disk, blockSize, free);
        const { target } = rig;
        for (let index = 1; index < entries; index++) target.write(index * 2 * blockSize, new Uint8Array(1));
        expect(target.state.logCount).toBe(entries);
        // Of two types in turns, so that each block takes an entry of its own.
        for (let index = 401; index < 600; index += 2) target.discard(index * blockSize, blockSize);
        target.write(400 * blockSize + 10, new Uint8Array(200 * blockSize - 20).fill(1));
        expect(inspectLog(disk)).toMatchObject({ findings: [], logs: target.state.logSequence + 1 });
        const { entries: last } = readLogBlock(block(disk, blockSize, 0));
        expect(last.length).toBe(target.state.logCount);
        // "A writer should put zeros there": after the last entry, as far as its sector goes.
        const end = 28 + 24 * last.length;
        const rest = block(disk, blockSize, 0).subarray(end, Math.ceil(end / 512) * 512);
        expectSameBytes(rest, new Uint8Array(rest.length), `${entries} entries: after the last one`);
        expectRollsBack(disk, before, blockSize, free);
        const content = contentOf(target);
        rig.write('state', '2');
        expectSameBytes(disk.bytes, content, `${entries} entries: committed`);
      }
    },
  );

  it('one entry speaks of at most 1 MiB, and of a whole run otherwise', async () => {
    const blockSize = 4096;
    const disk = randomDisk(2048, blockSize);
    const before = disk.bytes.slice();
    const free = blockRange(1024, 2048);
    const rig = await checkpointed(disk, blockSize, free);
    rig.target.write(blockSize, new Uint8Array(600 * blockSize));
    const { entries } = readLogBlock(block(disk, blockSize, 0));
    expect(entries.map(({ size }) => size)).toEqual([4096, 1 << 20, 1 << 20, 88 * 4096]);
    expectRollsBack(disk, before, blockSize, free);
  });
});

describe('`state`', () => {
  it('goes 0, 1, 2 and nowhere else', async () => {
    const rig = await makeBow(randomDisk(20, 512), 512);
    trimBlocks(rig, 512, [3, 4, 5]);
    const refused = (texts: string[]) => {
      for (const text of texts)
        expect(
          codeOf(() => rig.write('state', text)),
          text,
        ).toBe('EINVAL');
    };
    expect(rig.read('state')).toBe('0\n');
    refused(['0', '2', '3', '-1', '', ' ', '1.0', '01', '+1', '1 1', 'one', '1\n1']);
    rig.write('state', ' 1\n');
    expect(rig.read('state')).toBe('1\n');
    refused(['0', '1', '3', '']);
    rig.write('state', '2');
    expect(rig.read('state')).toBe('2\n');
    refused(['0', '1', '2', '3']);
    expect(rig.events).toEqual(['state from=0 to=1', 'state from=1 to=2']);
    expectAtRest(rig);
  });

  it('the message says what can be written', async () => {
    const rig = await makeBow(randomDisk(20, 512), 512);
    expect(() => rig.write('state', '2')).toThrow('state is 0 and `2` was written: only 1 can be written');
    trimBlocks(rig, 512, [3, 4]);
    rig.write('state', '1');
    rig.write('state', '2');
    expect(() => rig.write('state', '2')).toThrow('state is 2 and `2` was written: it is final');
  });

  it('all views see the change', async () => {
    const rig = await makeBow(randomDisk(20, 512), 512);
    const lane = rig.openView();
    trimBlocks(rig, 512, [3, 4, 5]);
    rig.write('state', '1');
    lane.write(0, new Uint8Array(512).fill(1));
    lane.write(10 * 512, new Uint8Array(512).fill(2));
    expect(lane.statusArgs()).toBe('state:1 free:0 sequence:0 entries:2');
    expect(rig.target.statusArgs()).toBe(lane.statusArgs());
    expect(readBytes(rig.target, 0, 1)).toEqual(new Uint8Array([1]));
  });

  it('2 lets the kernel do the I/O, where the device is a whole file', async () => {
    const passthrough = async (length?: number) => {
      const rig = await makeBow(randomDisk(20, 512), 512, length === undefined ? {} : { length });
      trimBlocks(rig, 512, [3, 4, 5]);
      const found = [rig.target.passthrough()?.path];
      for (const state of ['1', '2']) {
        rig.write('state', state);
        found.push(rig.target.passthrough()?.path);
      }
      return found;
    };
    expect(await passthrough()).toEqual([undefined, undefined, 'disk']);
    expect(await passthrough(19)).toEqual([undefined, undefined, undefined]);
  });
});

describe('`free`', () => {
  it('356352: two blocks for the checkpoint, eleven for two writes, of a hundred', async () => {
    const blockSize = 4096;
    const rig = await makeBow(randomDisk(200, blockSize), blockSize);
    rig.target.discard(100 * blockSize, 100 * blockSize);
    expect(rig.read('free')).toBe('409600\n');
    rig.write('state', '1');
    expect(rig.read('free')).toBe('401408\n');
    rig.target.write(10 * blockSize, new Uint8Array(blockSize));
    rig.target.write(20 * blockSize, new Uint8Array(10 * blockSize));
    expect(rig.read('free')).toBe('356352\n');
    rig.target.write(150 * blockSize, new Uint8Array(1));
    expect(rig.read('free')).toBe('352256\n');
    rig.write('state', '2');
    expect(rig.read('free')).toBe('0\n');
  });
});

describe('a trim in state 1', () => {
  const blockSize = 1024;
  const free = blockRange(40, 80);

  it('gives CHANGED blocks back, and lets all others keep what the checkpoint needs', async () => {
    const disk = randomDisk(80, blockSize);
    const before = disk.bytes.slice();
    const rig = await checkpointed(disk, blockSize, free);
    const { target } = rig;
    target.write(10 * blockSize, new Uint8Array(4 * blockSize).fill(1));
    const bytesBefore = target.state.freeBytes;
    for (const index of blockRange(0, 80)) {
      const last = target.state.freeBytes;
      target.discard(index * blockSize, blockSize);
      expect(target.state.freeBytes, `block ${index}`).toBeGreaterThanOrEqual(last);
    }
    expect(target.state.freeBytes - bytesBefore).toBe(4 * blockSize);
    expect(blocksOf(rig, T.CHANGED)).toEqual([]);
    expect(blocksOf(rig, T.TRIMMED)).toEqual([...blockRange(1, 10), ...blockRange(14, 40)]);
    expectSameBytes(readBytes(target, 0, blockSize), before.subarray(0, blockSize), 'block 0');
    expectSameBytes(readBytes(target, blockSize, 79 * blockSize), new Uint8Array(79 * blockSize), 'trimmed');
    expect(rig.read('ranges')).not.toMatch(/Trimmed/);
    expectRollsBack(disk, before, blockSize, free);
  });

  it('of a part of a block changes nothing', async () => {
    const disk = randomDisk(80, blockSize);
    const rig = await checkpointed(disk, blockSize, free);
    const [types, bytes] = [typesOf(rig), contentOf(rig.target)];
    rig.target.discard(5 * blockSize + 1, 2 * blockSize - 2);
    expect(typesOf(rig)).toEqual(types);
    expectSameBytes(contentOf(rig.target), bytes, 'reads');
  });

  it('lets what was given back hold backups; the roll back copes', async () => {
    const disk = randomDisk(80, blockSize);
    const before = disk.bytes.slice();
    const few = [40, 41, 42, 43];
    const rig = await checkpointed(disk, blockSize, few);
    const { target } = rig;
    // 42 and 43 are left. Each round writes two blocks and gives them back, so that the next one has two again.
    for (let index = 1; index < 39; index += 2) {
      target.write(index * blockSize, new Uint8Array(2 * blockSize).fill(index));
      expect(target.state.freeBytes).toBe(0);
      target.discard(index * blockSize, 2 * blockSize);
      expect(target.state.freeBytes).toBe(2 * blockSize);
      expectRollsBack(disk, before, blockSize, few);
    }
    expect(
      typesOf(rig)
        .slice(1, 37)
        .every((type) => type === T.BACKUP),
    ).toBe(true);
  });

  it('a block trimmed before its first write is backed up all the same', async () => {
    const disk = randomDisk(80, blockSize);
    const before = disk.bytes.slice();
    const rig = await checkpointed(disk, blockSize, free);
    rig.target.discard(7 * blockSize, blockSize);
    rig.target.write(7 * blockSize + 100, new Uint8Array(5).fill(1));
    const expected = new Uint8Array(blockSize);
    expected.fill(1, 100, 105);
    expectSameBytes(readBytes(rig.target, 7 * blockSize, blockSize), expected, 'the written block');
    expectRollsBack(disk, before, blockSize, free);
    rig.write('state', '2');
    expectSameBytes(block(disk, blockSize, 7), expected, 'the written block below');
  });
});

describe('writeZeroes with unmap', () => {
  const blockSize = 2048;
  const free = blockRange(30, 60);

  it.each([0, 1, 2])('reads as zeros at once, and below after the commit (state %i)', async (state) => {
    const rng = new Prng(state);
    for (let round = 0; round < 40; round++) {
      const disk = randomDisk(60, blockSize, 512);
      const rig = await makeBow(disk, blockSize);
      trimBlocks(rig, blockSize, free);
      for (let next = 1; next <= state; next++) rig.write('state', `${next}`);
      if (state === 1) rig.target.write(10 * blockSize, new Uint8Array(8 * blockSize).fill(1));
      // In state 1 the short tail is read-only.
      const size = state === 1 ? 60 * blockSize : disk.size;
      const offset = round === 0 ? 0 : rng.below(size);
      const length = rng.below(rng.pick([blockSize, size])) % (size - offset + 1);
      const expected = contentOf(rig.target);
      expected.fill(0, offset, offset + length);
      rig.target.writeZeroes(offset, length, { unmap: true });
      expectSameBytes(contentOf(rig.target), expected, `${length} at ${offset}`);
      if (state === 0) continue;
      if (state === 1) rig.write('state', '2');
      expectSameBytes(contentOf(rig.target), expected, `${length} at ${offset}, committed`);
      expectSameBytes(disk.bytes, expected, `${length} at ${offset}, below`);
    }
  });

  it('counts whole blocks as free; the edges are zeros and stay in use', async () => {
    const disk = randomDisk(60, blockSize);
    const before = disk.bytes.slice();
    const rig = await makeBow(disk, blockSize);
    const from = 10 * blockSize - 700;
    const length = 3 * blockSize + 1500;
    rig.target.writeZeroes(from, length, { unmap: true });
    expect(blocksOf(rig, T.FREE)).toEqual([10, 11, 12]);
    before.fill(0, from, from + length);
    expectSameBytes(disk.bytes, before, 'below');
  });

  it('takes the edges of trimmed blocks as zeros already, and leaves them free', async () => {
    const disk = randomDisk(60, blockSize);
    const rig = await makeBow(disk, blockSize);
    trimBlocks(rig, blockSize, [9, 10, 11]);
    rig.target.writeZeroes(9 * blockSize + 5, 2 * blockSize, { unmap: true });
    expect(blocksOf(rig, T.FREE)).toEqual([9, 10, 11]);
    const zeros = new Uint8Array(2 * blockSize);
    expectSameBytes(readBytes(rig.target, 9 * blockSize + 5, zeros.length), zeros, 'the hole');
  });

  it('of block 0 is a write of zeros: it is never free', async () => {
    for (const state of [0, 1, 2]) {
      const disk = randomDisk(60, blockSize);
      const before = disk.bytes.slice();
      const rig = await makeBow(disk, blockSize);
      trimBlocks(rig, blockSize, free);
      for (let next = 1; next <= state; next++) rig.write('state', `${next}`);
      rig.target.writeZeroes(0, 2 * blockSize, { unmap: true });
      expectSameBytes(
        readBytes(rig.target, 0, 2 * blockSize),
        new Uint8Array(2 * blockSize),
        `state ${state}`,
      );
      expect(typesOf(rig)[0]).not.toBe(T.FREE);
      if (state === 1) expectRollsBack(disk, before, blockSize, free);
    }
  });

  it('works on a medium that cannot unmap, up to 16 MiB', async () => {
    const disk = randomDisk(60, blockSize);
    const rig = await makeBow(withoutUnmap(disk), blockSize);
    rig.target.writeZeroes(30 * blockSize, 30 * blockSize, { unmap: true });
    expectSameBytes(block(disk, blockSize, 40), new Uint8Array(blockSize), 'a trimmed block');
    rig.write('state', '1');
    rig.target.write(2 * blockSize, new Uint8Array(blockSize).fill(1));
    rig.target.writeZeroes(2 * blockSize, blockSize, { unmap: true });
    rig.target.writeZeroes(5 * blockSize, blockSize, { unmap: true });
    rig.write('state', '2');
    expect(rig.events).toEqual(['state from=0 to=1', 'state from=1 to=2']);
    expectSameBytes(
      contentOf(rig.target).subarray(30 * blockSize),
      new Uint8Array(30 * blockSize),
      'free blocks',
    );
    for (const index of [2, 5]) {
      expectSameBytes(block(disk, blockSize, index), new Uint8Array(blockSize), `block ${index}`);
    }
    // Committed, the device is the medium: it says what it cannot do.
    expect(codeOf(() => rig.target.writeZeroes(0, 512, { unmap: true }))).toBe('EOPNOTSUPP');
    expect(codeOf(() => rig.target.writeZeroes(0, 512))).toBe('none');
  });

  it('a trim that the medium fails after the commit is an event, not an error', async () => {
    const disk = new SimulatedDisk(randomDisk(60, blockSize).bytes);
    const rig = await makeBow(disk, blockSize);
    trimBlocks(rig, blockSize, free);
    rig.write('state', '1');
    disk.injectError({ op: 'writeZeroes', at: 1 });
    rig.write('state', '2');
    expect(rig.read('state')).toBe('2\n');
    expect(rig.events[1]).toMatch(/^trim_failed errno=5 reason="simulated disk: injected writeZeroes error/);
  });
});

describe('no space', () => {
  const blockSize = 1024;

  it('bow-I5: the write fails with nothing changed, and everything else goes on', async () => {
    const disk = randomDisk(60, blockSize);
    const before = disk.bytes.slice();
    const free = [50, 51, 52, 53, 54];
    const rig = await checkpointed(disk, blockSize, free);
    const { target } = rig;
    target.write(10 * blockSize, new Uint8Array(3 * blockSize).fill(1));
    expect(target.state.freeBytes).toBe(0);
    const [bytes, types] = [disk.bytes.slice(), typesOf(rig)];
    for (const [offset, length] of [
      [20 * blockSize, 10],
      [20 * blockSize, 5 * blockSize],
      [12 * blockSize, 2 * blockSize],
      [0, 2 * blockSize],
      [50 * blockSize, blockSize],
    ] as const) {
      expect(codeOf(() => target.write(offset, new Uint8Array(length).fill(9)))).toBe('ENOSPC');
      expect(codeOf(() => target.writeZeroes(offset, length))).toBe('ENOSPC');
      expectSameBytes(disk.bytes, bytes, 'the medium');
      expect(typesOf(rig)).toEqual(types);
      expectAtRest(rig);
    }
    expect(rig.events.filter((event) => event.startsWith('no_space'))).toEqual([
      'no_space sector=40 count=2 free=0',
    ]);
    target.write(10 * blockSize, new Uint8Array(3 * blockSize).fill(2));
    target.write(0, new Uint8Array(blockSize).fill(3));
    expect(readBytes(target, 12 * blockSize, 1)).toEqual(new Uint8Array([2]));
    expect(readBytes(target, 0, 1)).toEqual(new Uint8Array([3]));
    expectRollsBack(disk, before, blockSize, free);
    rig.write('state', '2');
    expect([disk.bytes[0], disk.bytes[12 * blockSize]]).toEqual([3, 2]);
  });

  it('is news again once a trim has given space back, and only then', async () => {
    const rig = await checkpointed(randomDisk(60, blockSize), blockSize, [50, 51, 52]);
    const { target } = rig;
    target.write(10 * blockSize, new Uint8Array(1));
    const told = () => rig.events.filter((event) => event.startsWith('no_space')).length;
    const fill = () => codeOf(() => target.write(20 * blockSize, new Uint8Array(2 * blockSize)));
    expect([fill(), fill(), told()]).toEqual(['ENOSPC', 'ENOSPC', 1]);
    target.discard(30 * blockSize, blockSize);
    target.discard(50 * blockSize, 2 * blockSize);
    expect([fill(), told()]).toEqual(['ENOSPC', 1]);
    target.discard(10 * blockSize, blockSize);
    expect([fill(), fill(), told()]).toEqual(['ENOSPC', 'ENOSPC', 2]);
  });

  it.each([512, 1024, 2048, 4096])('bow-I7: a full device can commit (block %i)', async (size) => {
    for (let trimmed = 2; trimmed < 30; trimmed++) {
      const disk = randomDisk(120, size);
      const before = disk.bytes.slice();
      const free = blockRange(120 - trimmed, 120);
      const rig = await checkpointed(disk, size, free);
      // Blocks of all types, until none can be written any more; every second one, so that each takes an entry.
      for (const index of [...blockRange(1, 60).map((half) => half * 2), ...free]) {
        codeOf(() => rig.target.write(index * size, new Uint8Array(size).fill(index)));
      }
      const { logCount, freeBytes } = rig.target.state;
      expect(freeBytes).toBe(logCount > 20 ? size : 0);
      expectRollsBack(disk, before, size, free);
      const content = contentOf(rig.target);
      rig.write('state', '2');
      expectSameBytes(disk.bytes, content, `${trimmed} blocks trimmed`);
    }
  });

  it('bow-I7: a log of more than 20 entries keeps one block back', async () => {
    const size = 4096;
    const disk = randomDisk(120, size);
    const rig = await checkpointed(disk, size, blockRange(80, 106));
    const { target } = rig;
    for (let index = 1; index < 47; index += 2) target.write(index * size, new Uint8Array(size));
    expect([target.state.logCount, blocksOf(rig, T.FREE)]).toEqual([24, [105]]);
    // Neither a backup nor the data of a write may take it.
    expect(codeOf(() => target.write(60 * size, new Uint8Array(1)))).toBe('ENOSPC');
    expect(codeOf(() => target.write(105 * size, new Uint8Array(1)))).toBe('ENOSPC');
    rig.write('state', '2');
    expect(rig.read('state')).toBe('2\n');
  });

  it('a map as fragmented as the device is no lack of space', async () => {
    const size = 512;
    const disk = randomDisk(40, size);
    const before = disk.bytes.slice();
    const free = blockRange(1, 20).map((half) => half * 2);
    const rig = await checkpointed(disk, size, free);
    for (const index of blockRange(2, 10)) rig.target.write((index * 2 + 1) * size, new Uint8Array(size));
    expectRollsBack(disk, before, size, free);
  });

  it('bow-I4, bow-I5: a range map without room fails before anything is written', async () => {
    const size = 512;
    const disk = randomDisk(400, size);
    const { descriptor, events } = await makeBow(disk, size);
    const context = { device: () => disk, raise: (event: string) => events.push(event) };
    const small = (capacity: number) => {
      const { buffer } = RangeMap.create(400, { initialType: T.UNCHANGED, capacity });
      return new BowTarget({ ...descriptor, ranges: buffer }, context);
    };
    const full = small(6);
    full.discard(300 * size, 50 * size);
    const state = (target: BowTarget, text: string) =>
      bow.files.find(({ name }) => name === 'state')!.write!(target, text);
    const before = disk.bytes.slice();
    expect(codeOf(() => state(full, '1'))).toBe('ENOSPC');
    expect(full.state.state).toBe(State.TRIM);
    expectSameBytes(disk.bytes, before, 'a checkpoint');

    const tight = small(30);
    tight.discard(300 * size, 50 * size);
    state(tight, '1');
    const log = disk.bytes.slice();
    const written: number[] = [];
    for (let index = 10; index < 200; index += 2) {
      if (codeOf(() => tight.write(index * size, new Uint8Array(size))) === 'none') written.push(index);
      else expectSameBytes(disk.bytes, log, `block ${index}`);
      log.set(disk.bytes);
    }
    expect(written.length).toBeGreaterThan(0);
    expect(inspectLog(disk)).toMatchObject({ findings: [] });
    restore(disk);
    expectSameBytes(disk.bytes.subarray(0, 300 * size), before.subarray(0, 300 * size), 'the roll back');
  });
});

describe('a short tail', () => {
  const blockSize = 4096;

  it('is read, never free, and in state 1 not written', async () => {
    const disk = randomDisk(20, blockSize, 1536);
    const before = disk.bytes.slice();
    const rig = await makeBow(disk, blockSize);
    const tail = 20 * blockSize;
    const { target } = rig;
    expect(target.statusArgs()).toBe('state:0 free:0 short_tail');
    target.discard(10 * blockSize, disk.size - 10 * blockSize);
    expect(target.state.freeBytes).toBe(10 * blockSize);
    target.write(tail + 5, new Uint8Array([1, 2, 3]));
    before.set([1, 2, 3], tail + 5);
    rig.write('state', '1');
    const image = disk.bytes.slice();
    for (const [offset, length] of [
      [tail, 1],
      [tail + 1535, 1],
      [19 * blockSize, blockSize + 1],
    ] as const) {
      expect(codeOf(() => target.write(offset, new Uint8Array(length)))).toBe('EIO');
      expect(rig.events.at(-1)).toBe(`short_tail_write sector=${Math.floor(offset / 512)}`);
      expectSameBytes(disk.bytes, image, 'the medium');
      expectAtRest(rig);
    }
    expect(() => target.writeZeroes(tail, 1)).toThrow(
      'bytes 81920 to 83456 are less than a block of 4096 bytes',
    );
    target.discard(tail, 1536);
    expectSameBytes(readBytes(target, tail, 1536), before.subarray(tail), 'the tail');
    expectRollsBack(disk, before, blockSize, blockRange(10, 20));
    rig.write('state', '2');
    target.write(tail, new Uint8Array(1536));
    expectSameBytes(disk.bytes.subarray(tail), new Uint8Array(1536), 'the tail, committed');
  });
});

describe('extents', () => {
  it('trimmed blocks are holes in state 1; committed, the medium answers', async () => {
    const size = 512;
    const disk = randomDisk(60, size);
    const medium = Object.assign(disk, { extentAt: () => ({ data: false, end: disk.size }) });
    const rig = await makeBow(medium, size, { length: 50 });
    const { target } = rig;
    trimBlocks(rig, size, blockRange(20, 30));
    expect(target.extentAt(20 * size)).toEqual({ data: true, end: 30 * size });
    rig.write('state', '1');
    expect(target.extentAt(21 * size + 5)).toEqual({ data: false, end: 22 * size });
    expect(target.extentAt(22 * size)).toEqual({ data: false, end: 30 * size });
    expect(target.extentAt(30 * size)).toEqual({ data: true, end: 50 * size });
    rig.write('state', '2');
    expect(target.extentAt(0), 'no further than the device').toEqual({ data: false, end: 50 * size });
  });
});

describe('stacked', () => {
  it('bow over bow: each rolls back to its own checkpoint', async () => {
    const size = 512;
    const disk = randomDisk(400, size);
    const before = disk.bytes.slice();
    const lower = await checkpointed(disk, size, blockRange(100, 400));
    const upper = await makeRig(bow, '@lower 1 block_size:1024', { '@lower': lower.target });
    upper.target.discard(30 * 1024, 20 * 1024);
    const upperBefore = contentOf(lower.target);
    upper.write('state', '1');
    // One request that makes both write backups.
    for (const index of [3, 9, 5]) upper.target.write(index * 1024 + 100, new Uint8Array(3000).fill(index));
    upper.target.write(0, new Uint8Array(700).fill(1));
    expect(upper.target.tableArgs()).toBe('@lower 1 block_size:1024');
    expect(restore(lower.target).state).toBe('restored');
    const expected = contentOf(lower.target);
    expected.set(upperBefore.subarray(0, 30 * 1024));
    expected.set(upperBefore.subarray(50 * 1024), 50 * 1024);
    expectSameBytes(contentOf(lower.target), expected, 'the upper roll back');
    expectRollsBack(disk, before, size, blockRange(100, 400));
  });
});

describe('making one', () => {
  const disk = randomDisk(20, 4096, 100);

  it('takes blocks of 4096 bytes unless told otherwise, and all whole sectors', async () => {
    const made = async (args: string, length?: number) => {
      const { target } = await makeRig(bow, args, { disk }, length === undefined ? {} : { length });
      return [target.size / 512, target.trimGranularity, target.tableArgs()];
    };
    expect(await made('disk')).toEqual([160, 4096, 'disk 1 block_size:4096']);
    expect(await made('disk 0')).toEqual([160, 4096, 'disk 1 block_size:4096']);
    expect(await made('disk 1 block_size:512', 100)).toEqual([100, 512, 'disk 1 block_size:512']);
    for (const size of BLOCK_SIZES) expect((await made(`disk 1 block_size:${size}`))[1]).toBe(size);
  });

  it.each([
    ['', 'EINVAL', /bow needs a device: bow <dev> \[<#opts> block_size:<bytes>\]/],
    ['disk 1 block_size:256', 'EINVAL', /block_size is 256 bytes: it must be 512, 1024, 2048 or 4096/],
    ['disk 1 block_size:8192', 'EINVAL', /block_size is 8192 bytes/],
    ['disk 1 block_size:1536', 'EINVAL', /block_size is 1536 bytes/],
    ['disk 1 block_size:0', 'EINVAL', /block_size is 0 bytes/],
    ['disk 1 block_size:', 'EINVAL', /block_size must be a decimal number, found ``/],
    ['disk 1 block_size:4k', 'EINVAL', /found `4k`/],
    ['disk 1 blocksize:512', 'EINVAL', /bow does not know `blocksize:512`/],
    ['disk block_size:512', 'EINVAL', /the number of options must be a decimal number/],
    ['disk 2 block_size:512', 'EINVAL', /promises 2 options and gives 1/],
    ['disk 0 block_size:512', 'EINVAL', /bow does not know `block_size:512`/],
    ['disk 1 block_size:512 block_size:512', 'EINVAL', /bow does not know `block_size:512`/],
    ['other', 'ENOENT', /other: no such file/],
    ['small', 'EINVAL', /small has 4096 bytes: bow needs 2 blocks of 4096 bytes at least/],
  ])('refuses `bow %s`', async (args, code, message) => {
    const devices = { disk, small: new MemoryDevice(4096 + 511) };
    await expect(makeRig(bow, args, devices)).rejects.toMatchObject({
      name: 'DmError',
      code,
      message: expect.stringMatching(message),
    });
  });

  it('refuses a LENGTH that the device does not have', async () => {
    await expect(makeRig(bow, 'disk', { disk }, { length: 161 })).rejects.toThrow(
      'disk has 160 sectors, the table wants 161',
    );
  });

  it('refuses an image with a log, begun or half restored, and names the remedy', async () => {
    const image = randomDisk(40, 512);
    const rig = await checkpointed(image, 512, [5, 6, 7]);
    rig.target.write(10 * 512, new Uint8Array(512));
    for (const magic of ['BOW\0', 'WOB\0']) {
      image.bytes.set(Buffer.from(magic, 'latin1'));
      const before = image.bytes.slice();
      await expect(makeBow(image, 512)).rejects.toMatchObject({
        code: 'EBUSY',
        message: expect.stringContaining('run `dmfuse bow restore disk` first'),
      });
      expectSameBytes(image.bytes, before, 'the refused image');
    }
    restore(image);
    expect((await makeBow(image, 512)).read('state')).toBe('0\n');
  });

  it('what throws holds no lock', async () => {
    const rig = await checkpointed(randomDisk(40, 512), 512, [5, 6, 7]);
    const { target } = rig;
    for (const request of [
      () => target.write(41 * 512, new Uint8Array(1)),
      () => target.write(40 * 512 - 1, new Uint8Array(5)),
      () => target.read(41 * 512, new Uint8Array(1)),
      () => target.writeZeroes(-1, 1),
      () => target.writeZeroes(50 * 512, 512, { unmap: true }),
      () => target.extentAt(41 * 512),
    ]) {
      expect(request).toThrow();
      expectAtRest(rig);
    }
    vi.spyOn(target.state.ranges, 'forEach').mockImplementation(() => {
      throw new Error('no map');
    });
    expect(() => rig.read('ranges')).toThrow('no map');
    vi.restoreAllMocks();
    expectAtRest(rig);
  });
});
