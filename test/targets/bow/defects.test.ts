/** The eighteen defects of the seed's dm-bow (the format document's section 9): each with the behaviour that is wanted. */
import { describe, expect, it, vi } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk } from '../../../src/device/simulated.js';
import { RwLock } from '../../../src/shared/rwlock.js';
import { bow } from '../../../src/targets/bow/index.js';
import { BlockType as T } from '../../../src/targets/bow/state.js';
import { inspectLog, restore } from '../../../src/targets/bow/undo.js';
import { codeOf, contentOf, expectSameBytes, FaultyDisk, makeRig, readBytes } from '../harness.js';
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

function randomContent(blocks: number, blockSize: number): Uint8Array {
  const content = new Prng(blocks).bytes(blocks * blockSize);
  content[0] = 0;
  return content;
}

/** A target of this many blocks, in state 1 unless nothing is free. */
async function made(blocks: number, blockSize: number, free: readonly number[]) {
  const disk = new SimulatedDisk(randomContent(blocks, blockSize));
  const rig = await makeBow(disk, blockSize);
  trimBlocks(rig, blockSize, free);
  const before = disk.content();
  if (free.length > 0) rig.write('state', '1');
  return { disk, rig, before, target: rig.target };
}

/**
 * Whatever of the unflushed is on the medium: the roll back brings all blocks back but `free`. `committed` is what may be
 * there instead when it has no log.
 */
function expectRollsBack(
  disk: SimulatedDisk,
  before: Uint8Array,
  blockSize: number,
  free: readonly number[],
  where: string,
  committed = before,
): void {
  const rng = new Prng(disk.operations);
  for (const survivors of ['none', 'all', rng, rng] as const) {
    const image = disk.crashImage(survivors);
    const expected = restore(new MemoryDevice(image)).state === 'restored' ? before : committed;
    expect(inspectLog(new MemoryDevice(image)), where).toBeUndefined();
    expectSameBlocks(image, expected, blockSize, free, `${where}, roll back`);
  }
}

function expectSameBlocks(
  found: Uint8Array,
  before: Uint8Array,
  blockSize: number,
  except: readonly number[],
  where: string,
): void {
  const expected = before.slice();
  for (const block of except) {
    expected.set(found.subarray(block * blockSize, (block + 1) * blockSize), block * blockSize);
  }
  expectSameBytes(found, expected, where);
}

/** Tells of every operation on a device before it is done. */
function watched(device: BlockDevice, onOperation: (kind: string, offset: number) => void): BlockDevice {
  return {
    size: device.size,
    read: (offset, into) => {
      onOperation('read', offset);
      device.read(offset, into);
    },
    write: (offset, from) => {
      onOperation('write', offset);
      device.write(offset, from);
    },
    flush: () => {
      onOperation('flush', 0);
      device.flush();
    },
    discard: (offset, length) => {
      onOperation('discard', offset);
      device.discard(offset, length);
    },
    writeZeroes: (offset, length, options) => {
      onOperation('writeZeroes', offset);
      device.writeZeroes(offset, length, options);
    },
  };
}

const filled = (length: number, value: number) => new Uint8Array(length).fill(value);

describe('the defects of the seed', () => {
  it('defect 1: a discard that touches sector 0 counts for the rest of its range', async () => {
    const { rig, target } = await made(40, 1024, []);
    target.discard(0, 3 * 1024);
    target.discard(0, 100);
    expect(rig.read('ranges')).toBe('Unchanged: 0\nFree: 2\nUnchanged: 6\nTop: 80\n');
    target.discard(0, 40 * 1024);
    expect(rig.read('ranges')).toBe('Unchanged: 0\nFree: 2\nTop: 80\n');
    rig.write('state', '1');
    target.discard(0, 40 * 1024);
    expect(rig.read('ranges')).toBe('Sector0: 0\nSector0_current: 2\nBackup: 4\nFree: 6\nTop: 80\n');
  });

  it('defect 2: discards are rounded inward to blocks, and no part of a block is kept', async () => {
    const { rig, target, disk, before } = await made(40, 4096, []);
    const at = 10 * 4096;
    for (const [offset, length] of [
      [at + 512, 4096],
      [at + 1, 2 * 4096 - 2],
      [at, 4095],
      [at + 4096 - 512, 1024],
    ] as const) {
      target.discard(offset, length);
      expect(rig.read('free')).toBe('0\n');
    }
    target.discard(at - 1, 2 * 4096 + 2);
    target.discard(20 * 4096 + 7, 3 * 4096);
    expect(blocksOf(rig, T.FREE)).toEqual([10, 11, 21, 22]);
    rig.write('state', '1');
    target.write(5 * 4096 + 512, filled(512, 1));
    target.write(6 * 4096 + 512, filled(512, 1));
    expectRollsBack(disk, before, 4096, [10, 11, 21, 22], 'unaligned trims');
  });

  it('defect 3: `free` is exact whenever the front of a free range is taken', async () => {
    const { rig, target } = await made(100, 512, []);
    const free = () => Number(rig.read('free')) / 512;
    target.discard(50 * 512, 50 * 512);
    expect(free()).toBe(50);
    target.write(50 * 512, filled(1000, 1));
    expect([free(), blocksOf(rig, T.FREE).length]).toEqual([48, 48]);
    rig.write('state', '1');
    expect(free()).toBe(46);
    target.write(54 * 512, filled(1, 1));
    expect(free()).toBe(45);
    // 19 entries fill the log; the 20th needs a block to save it.
    for (let block = 1; block <= 19; block++) target.write(2 * block * 512, filled(1, 1));
    expect([free(), target.state.logCount, target.state.logSequence]).toEqual([26, 20, 0]);
    target.write(45 * 512, filled(1, 1));
    expect([free(), target.state.logCount, target.state.logSequence]).toEqual([24, 2, 1]);
    expect(free()).toBe(blocksOf(rig, T.FREE).length);
  });

  it('defect 4: a checkpoint without space is ENOSPC, changes nothing, and works after more trims', async () => {
    const { rig, target, disk, before } = await made(40, 1024, []);
    for (const trimmed of [0, 1]) {
      if (trimmed > 0) target.discard(20 * 1024, 1024);
      const types = typesOf(rig);
      const { operations } = disk;
      for (let attempt = 0; attempt < 3; attempt++) {
        expect(() => rig.write('state', '1')).toThrow('a checkpoint needs 2 free blocks of 1024 bytes');
        expect(codeOf(() => rig.write('state', '1'))).toBe('ENOSPC');
      }
      expect([rig.read('state'), typesOf(rig), disk.operations]).toEqual(['0\n', types, operations]);
    }
    expectSameBytes(disk.content(), before, 'the medium');
    target.discard(22 * 1024, 1024);
    rig.write('state', '1');
    expect(rig.read('state')).toBe('1\n');
    expect(rig.events).toEqual(['state from=0 to=1']);
  });

  it('defect 4: bow-I6: a checkpoint that failed and could not be undone at once harms nothing', async () => {
    const free = blockRange(30, 40);
    const { rig, target, disk, before } = await made(40, 1024, []);
    trimBlocks(rig, 1024, free);
    const fail = () => {
      // The log reaches the medium, what should take it back does not.
      disk.injectError({ op: 'write', at: 3, landed: true });
      disk.injectError({ op: 'write', at: 4 });
      expect(codeOf(() => rig.write('state', '1'))).toBe('EIO');
      expect([rig.events.at(-1), target.statusArgs()]).toEqual([
        'suspect errno=5',
        'state:0 free:10240 suspect',
      ]);
      expect(inspectLog(new MemoryDevice(disk.content()))).toBeDefined();
      expectRollsBack(disk, before, 1024, [20, ...free], 'while it is suspect');
    };
    fail();
    for (const [offset, length] of [
      [0, 4096],
      [100, 20],
      [100, 2000],
      [511, 2],
      [512, 100],
    ] as const) {
      expectSameBytes(
        readBytes(target, offset, length),
        before.subarray(offset, offset + length),
        `${offset}`,
      );
    }
    // Each of these makes block 0 what it was before it does anything else.
    const rest: [string, () => void][] = [
      ['a hole in a part of a trimmed block', () => target.writeZeroes(31 * 1024 + 5, 900, { unmap: true })],
      ['a trim', () => target.discard(20 * 1024, 1024)],
      ['a write', () => target.write(29 * 1024, before.subarray(29 * 1024, 30 * 1024))],
      ['a write to a trimmed block', () => target.write(30 * 1024, filled(5, 1))],
    ];
    for (const [what, request] of rest) {
      request();
      expect(target.state.suspect, what).toBe(false);
      expectRollsBack(disk, before, 1024, [20, ...free], what);
      target.flush();
      expectRollsBack(disk, before, 1024, [20, ...free], what);
      target.discard(30 * 1024, 10 * 1024);
      rig.events.length = 0;
      target.write(20 * 1024, filled(1, 1));
      fail();
    }
    rig.write('state', '1');
    expectRollsBack(disk, before, 1024, [20, ...free], 'the checkpoint');
  });

  it('defect 5: no space to save a full log: nothing changed, the block can be written later', async () => {
    const free = blockRange(60, 82);
    const { rig, target, disk, before } = await made(100, 512, free);
    for (let block = 1; block <= 19; block++) target.write(2 * block * 512, filled(1, 1));
    expect([target.state.logCount, rig.read('free')]).toEqual([20, '512\n']);
    const [types, content] = [typesOf(rig), disk.content()];
    for (let attempt = 0; attempt < 3; attempt++) {
      expect(codeOf(() => target.write(50 * 512, filled(512, 9)))).toBe('ENOSPC');
    }
    expect(typesOf(rig)).toEqual(types);
    expectSameBytes(disk.content(), content, 'the medium');
    target.discard(4 * 512, 512);
    target.write(50 * 512, filled(512, 9));
    expect([target.state.logSequence, target.state.logCount, rig.read('free')]).toEqual([1, 2, '0\n']);
    expectRollsBack(disk, before, 512, free, 'after the overflow');
  });

  it('defect 6: the log write that moves SECTOR0_CURRENT says so in its header', async () => {
    for (const blockSize of [512, 4096]) {
      const { rig, target, disk } = await made(100, blockSize, blockRange(30, 100));
      target.write(0, filled(blockSize, 7));
      for (let move = 0; move < 25; move++) {
        const current = target.state.sector0Block;
        const { operations } = disk;
        // The move, and others in the same request.
        target.write((current - (move % 3)) * blockSize, filled(3 * blockSize, move));
        const logs = disk.trace
          .slice(operations)
          .filter(({ kind, offset }) => kind === 'write' && offset === 0);
        let at = (current * blockSize) / 512;
        for (const { sectors } of logs) {
          const { entries, sector0 } = readLogBlock(sectors);
          const moved = entries.findLast(
            ({ source, size }) => source <= at && at * 512 < source * 512 + size,
          );
          if (moved !== undefined && moved.checksum === 0) at = moved.dest + at - moved.source;
          expect(sector0, `move ${move}`).toBe(at);
        }
        expect(at).toBe((target.state.sector0Block * blockSize) / 512);
        expect(at).not.toBe((current * blockSize) / 512);
        expect(logBlockProblem(disk.content().subarray(0, blockSize), blockSize, 100)).toBeUndefined();
        expectSameBytes(readBytes(target, 0, blockSize), filled(blockSize, 7), 'block 0');
        target.discard(current * blockSize, blockSize);
      }
      expectAtRest(rig);
    }
  });

  it('defect 7: writes to sector 0 are there after every move and after the commit', async () => {
    const { rig, target, disk } = await made(100, 1024, blockRange(30, 100));
    const expected = readBytes(target, 0, 1024);
    for (let round = 1; round < 30; round++) {
      const part = filled(1 + round * 7, round);
      target.write(round * 3, part);
      expected.set(part, round * 3);
      if (round % 2 === 0) target.write(target.state.sector0Block * 1024, filled(1024, 0xee));
      expectSameBytes(readBytes(target, 0, 1024), expected, `round ${round}`);
      expectSameBytes(rig.openView().state.logImage.subarray(0, 4), Buffer.from('BOW\0'), 'the log');
    }
    rig.write('state', '2');
    expectSameBytes(disk.crashImage('none').subarray(0, 1024), expected, 'the medium after the commit');
  });

  it('defect 8: a write that waited for its round while the commit went through makes no log', async () => {
    const { rig, target, disk } = await made(100, 512, blockRange(30, 100));
    const late = rig.openView();
    const { rounds } = late.state;
    const submit = rounds.submit.bind(rounds);
    vi.spyOn(rounds, 'submit').mockImplementationOnce((span, work) => {
      // What another thread may do before this one's round begins.
      rig.write('state', '2');
      submit(span, work);
    });
    late.write(5 * 512, filled(512, 1));
    expect(rig.read('state')).toBe('2\n');
    target.write(0, filled(512, 2));
    target.write(9 * 512, filled(512, 2));
    target.flush();
    const committed = disk.trace.findLastIndex(({ sectors }) => readable(sectors).startsWith('BOW'));
    expect(disk.trace.slice(committed + 1).some(({ offset }) => offset === 0)).toBe(true);
    expect(restore(new MemoryDevice(disk.content()))).toEqual({ state: 'no-log' });
    expectSameBytes(disk.content().subarray(5 * 512, 6 * 512), filled(512, 1), 'the late write');
    expectAtRest(rig);
  });

  it('bow-I2: a write to free space that waited for the lock looks again what became of that space', async () => {
    const disk = new SimulatedDisk(randomContent(100, 512));
    const before = disk.content();
    const rig = await makeBow(disk, 512);
    trimBlocks(rig, 512, blockRange(30, 100));
    const late = rig.openView();
    const { lock } = late.state;
    const lockExclusive = lock.lockExclusive.bind(lock);
    vi.spyOn(lock, 'lockExclusive').mockImplementationOnce(() => {
      // Block 30 holds the live block 0 from now on, block 31 its backup.
      rig.write('state', '1');
      lockExclusive();
    });
    late.write(30 * 512, filled(1024, 1));
    expectSameBytes(readBytes(rig.target, 0, 512), before.subarray(0, 512), 'block 0');
    expectSameBytes(readBytes(rig.target, 30 * 512, 1024), filled(1024, 1), 'the late write');
    const image = disk.content();
    expect(restore(new MemoryDevice(image)).state).toBe('restored');
    expectSameBytes(image.subarray(0, 30 * 512), before.subarray(0, 30 * 512), 'rolled back');
    expectAtRest(rig);
  });

  it('defect 9, defect 10: requests hold the lock across their I/O, changes of state have all locks alone', async () => {
    const disk = new SimulatedDisk(randomContent(100, 1024));
    let words: Int32Array = new Int32Array(1);
    const seen = new Set<string>();
    let doing = 'create';
    const rig = await makeBow(
      watched(disk, (kind) => {
        const round = words[RwLock.WORDS] === 1 ? 'in a round, ' : '';
        seen.add(`${doing}: ${round}${words[0] === -1 ? 'alone' : words[0]} ${kind}`);
      }),
      1024,
    );
    words = new Int32Array(rig.descriptor.shared);
    const { target } = rig;
    const during = (name: string, request: () => void) => {
      doing = name;
      request();
      return [...seen].filter((line) => line.startsWith(`${name}: `)).sort();
    };
    expect(during('write in 0', () => target.write(0, filled(5000, 1)))).toEqual(['write in 0: 1 write']);
    expect(during('read in 0', () => target.read(0, filled(5000, 1)))).toEqual(['read in 0: 1 read']);
    target.discard(50 * 1024, 50 * 1024);
    expect(during('to 1', () => rig.write('state', '1'))).toEqual([
      'to 1: in a round, alone flush',
      'to 1: in a round, alone read',
      'to 1: in a round, alone write',
    ]);
    expect(during('first touch', () => target.write(500, filled(5000, 1)))).toEqual([
      'first touch: 1 write',
      'first touch: in a round, 0 flush',
      'first touch: in a round, 0 read',
      'first touch: in a round, 0 write',
    ]);
    const current = target.state.sector0Block * 1024;
    expect(during('move of block 0', () => target.write(current, filled(1024, 1)))).toEqual([
      'move of block 0: alone write',
      'move of block 0: in a round, alone flush',
      'move of block 0: in a round, alone read',
      'move of block 0: in a round, alone write',
    ]);
    expect(during('write in 1', () => target.write(0, filled(5000, 1)))).toEqual(['write in 1: 1 write']);
    expect(during('read in 1', () => target.read(0, filled(5000, 1)))).toEqual(['read in 1: 1 read']);
    expect(during('trim', () => target.writeZeroes(0, 9000, { unmap: true }))).toContain(
      'trim: in a round, alone writeZeroes',
    );
    expect(during('to 2', () => rig.write('state', '2'))).toEqual([
      'to 2: in a round, alone flush',
      'to 2: in a round, alone read',
      'to 2: in a round, alone write',
      'to 2: in a round, alone writeZeroes',
    ]);
    expect(during('write in 2', () => target.write(0, filled(5000, 1)))).toEqual(['write in 2: 1 write']);
    expectAtRest(rig);
  });

  it('defect 11: any byte of block 0 is redirected, part blocks too', async () => {
    const { rig, target, disk, before } = await made(40, 4096, blockRange(20, 40));
    const expected = before.slice(0, 4096);
    for (let sector = 0; sector < 8; sector++) {
      expectSameBytes(
        readBytes(target, sector * 512, 512),
        expected.subarray(sector * 512, sector * 512 + 512),
        `${sector}`,
      );
      const part = filled(300, sector + 1);
      target.write(sector * 512 + 100, part);
      expected.set(part, sector * 512 + 100);
      expectSameBytes(readBytes(target, 0, 4096), expected, `after sector ${sector}`);
    }
    // Across its end.
    target.write(4096 - 10, filled(20, 99));
    expected.fill(99, 4086);
    expectSameBytes(readBytes(target, 0, 4096), expected, 'block 0');
    expect([...readBytes(target, 4096, 11)].slice(8)).toEqual([99, 99, before[4096 + 10]]);
    expect(inspectLog(new MemoryDevice(disk.content()))).toMatchObject({ findings: [], entries: 2 });
    expectRollsBack(disk, before, 4096, blockRange(20, 40), 'block 0');
    rig.write('state', '2');
    expectSameBytes(disk.content().subarray(0, 4096), expected, 'committed');
  });

  it('defect 12: a flush that failed inside is told to the next flush of the user, once', async () => {
    const { target, disk } = await made(100, 512, blockRange(30, 100));
    disk.injectError({ op: 'flush', at: 1 });
    expect(codeOf(() => target.write(5 * 512, filled(512, 1)))).toBe('EIO');
    target.write(5 * 512, filled(512, 1));
    expect(() => target.flush()).toThrow('an earlier flush of the backing device failed');
    expect(codeOf(() => target.flush())).toBe('none');
  });

  it('defect 13: a discard in state 1 takes no space, and is not passed down over backups', async () => {
    const free = blockRange(30, 100);
    const { rig, target, disk, before } = await made(100, 512, free);
    target.write(0, filled(512, 1));
    target.write(5 * 512, filled(3 * 512, 1));
    const freeBytes = target.state.freeBytes;
    const { operations } = disk;
    target.discard(0, 100 * 512);
    expect(disk.operations).toBe(operations);
    expect(target.state.freeBytes).toBe(freeBytes + 3 * 512);
    target.writeZeroes(512, 99 * 512, { unmap: true });
    const passedDown = disk.trace.slice(operations).map(({ kind, offset }) => `${kind} ${offset}`);
    expect(passedDown).toEqual([]);
    target.write(5 * 512, filled(3 * 512, 1));
    target.writeZeroes(512, 99 * 512, { unmap: true });
    expect(disk.trace.slice(operations).map(({ kind, offset }) => [kind, offset / 512])).toEqual([
      ['write', 5],
      ['writeZeroes', 5],
    ]);
    expectRollsBack(disk, before, 512, free, 'after the discards');
    expectAtRest(rig);
  });

  it('defect 14: committed, nothing is kept: `free` is 0 and discards pass', async () => {
    const { rig, target, disk } = await made(100, 512, blockRange(30, 100));
    target.write(5 * 512, filled(512, 1));
    rig.write('state', '2');
    expect([rig.read('free'), rig.read('ranges')]).toEqual(['0\n', 'Unchanged: 0\nTop: 100\n']);
    const { operations } = disk;
    target.discard(50 * 512, 700);
    target.discard(0, 512);
    expect(disk.trace.slice(operations).map(({ kind }) => kind)).toEqual(['discard', 'discard']);
    expect([rig.read('free'), target.statusArgs()]).toEqual(['0\n', 'state:2 free:0']);
  });

  it('defect 15: no checkpoint on a device whose log is not undone', async () => {
    const { disk } = await made(100, 512, blockRange(30, 100));
    const opened: string[] = [];
    await expect(makeRig(bow, 'disk', { disk }, { opened })).rejects.toMatchObject({ code: 'EBUSY' });
    expect(opened).toEqual(['disk']);
    for (const magic of ['BOW\0', 'WOB\0']) {
      const { rig, target, disk: other } = await made(100, 512, []);
      target.discard(50 * 512, 50 * 512);
      target.write(0, Buffer.from(magic, 'latin1'));
      const [content, { operations }] = [other.content(), other];
      expect(codeOf(() => rig.write('state', '1'))).toBe('EBUSY');
      expect([rig.read('state'), rig.read('free'), other.operations]).toEqual(['0\n', '25600\n', operations]);
      expectSameBytes(other.content(), content, 'the medium');
      target.write(0, new Uint8Array(4));
      rig.write('state', '1');
    }
  });

  it('defect 16: bow-I7: whatever is written to block 0, one write of 512 bytes commits it', async () => {
    for (const blockSize of [1024, 2048, 4096]) {
      const blocks = 500;
      const free = blockRange(250, blocks);
      const { rig, target, disk, before } = await made(blocks, blockSize, free);
      for (let block = 1; block < 245; block += 2) target.write(block * blockSize, filled(1, block));
      const content = contentOf(target);
      const committing = disk.operations;
      rig.write('state', '2');
      const log = disk.trace.filter(({ kind, offset }) => kind === 'write' && offset < blockSize);
      for (const [index, { offset, sectors }] of log.entries()) {
        const where = `write ${index} of ${sectors.length} bytes at ${offset}`;
        if (offset === 0) expect(sectors.length, where).toBe(512);
        else expect(offset, where).toBeGreaterThanOrEqual(512);
      }
      const rng = new Prng(blockSize);
      let undone = 0;
      for (let cut = committing; cut <= disk.operations; cut++) {
        for (let round = 0; round < 40; round++) {
          const image = disk.imageAt(cut, rng);
          if (restore(new MemoryDevice(image)).state === 'restored') {
            undone++;
            expectSameBlocks(image, before, blockSize, free, `block ${blockSize}, cut ${cut}`);
          } else
            expectSameBlocks(image, content, blockSize, free, `block ${blockSize}, cut ${cut}, committed`);
        }
      }
      expect(undone).toBeGreaterThan(0);
    }
  });

  it('defect 17: a failing `create` leaves only its claim, `open` does no I/O, `ranges` is read under the lock', async () => {
    const content = randomContent(40, 512);
    for (const args of ['disk 1 block_size:4096', 'disk 1 block_size:512']) {
      const disk = new SimulatedDisk(args.endsWith('4096') ? 4096 : content);
      disk.injectError({ op: 'read', at: 1 });
      const opened: string[] = [];
      await expect(makeRig(bow, args, { disk }, { opened })).rejects.toMatchObject({ name: 'DmError' });
      expect([opened, disk.operations]).toEqual([['disk'], 0]);
    }
    const opened: string[] = [];
    const disk = new SimulatedDisk(content);
    await expect(makeRig(bow, 'disk 1 block_size:7', { disk }, { opened })).rejects.toThrow();
    expect(opened, 'arguments are checked before anything is opened').toEqual([]);

    const operations: string[] = [];
    const rig = await makeBow(
      watched(disk, (kind) => operations.push(kind)),
      512,
    );
    expect(operations).toEqual(['read']);
    rig.openView();
    expect(operations).toEqual(['read']);
    const words = new Int32Array(rig.descriptor.shared, 0, 1);
    const { ranges } = rig.target.state;
    const forEach = ranges.forEach.bind(ranges);
    const readers: number[] = [];
    vi.spyOn(ranges, 'forEach').mockImplementation((visit) => {
      readers.push(words[0]!);
      forEach(visit);
    });
    rig.read('ranges');
    expect(readers).toEqual([1]);
    expectAtRest(rig);
  });

  it('defect 18: `sector0` has 8 bytes, beyond 2 TiB too', async () => {
    const blockSize = 4096;
    const blocks = 2 ** 31;
    const disk = new SparseDevice(blocks * blockSize);
    const rig = await makeBow(disk, blockSize);
    trimBlocks(rig, blockSize, blockRange(blocks - 4, blocks));
    rig.write('state', '1');
    rig.target.write(2 ** 30 * blockSize, filled(10, 1));
    const log = Buffer.from(readBytes(disk, 0, 512));
    expect(log.subarray(20, 28).toString('hex')).toBe('e0ffffff03000000');
    expect(readLogBlock(log)).toMatchObject({ headerSize: 28, sector0: (blocks - 4) * 8 });
    expect(readLogBlock(log).entries).toMatchObject([
      { source: 0, dest: (blocks - 3) * 8, size: 4096 },
      { source: 2 ** 33, dest: (blocks - 2) * 8, size: 4096 },
    ]);
    expect(logBlockProblem(readBytes(disk, 0, blockSize), blockSize, blocks)).toBeUndefined();
    expect(restore(disk)).toMatchObject({ state: 'restored', entries: 2 });
    expectSameBytes(readBytes(disk, 2 ** 30 * blockSize, 10), new Uint8Array(10), 'the roll back');
  });
});

function readable(bytes: Uint8Array): string {
  return Buffer.from(bytes.subarray(0, 4)).toString('latin1');
}

/** As big as it likes: holds the pages of 4096 bytes that were written, zeros at first. */
class SparseDevice implements BlockDevice {
  private readonly pages = new Map<number, Uint8Array>();
  constructor(readonly size: number) {}

  read(offset: number, into: Uint8Array): void {
    this.each(offset, into.length, (page, at, done, length) =>
      into.set(page.subarray(at, at + length), done),
    );
  }

  write(offset: number, from: Uint8Array): void {
    this.each(offset, from.length, (page, at, done, length) =>
      page.set(from.subarray(done, done + length), at),
    );
  }

  flush(): void {}
  discard(): void {}

  writeZeroes(offset: number, length: number): void {
    this.write(offset, new Uint8Array(length));
  }

  private each(
    offset: number,
    length: number,
    visit: (page: Uint8Array, at: number, done: number, length: number) => void,
  ): void {
    for (let done = 0; done < length; ) {
      const index = Math.floor((offset + done) / 4096);
      const at = offset + done - index * 4096;
      const part = Math.min(4096 - at, length - done);
      const page = this.pages.get(index) ?? new Uint8Array(4096);
      this.pages.set(index, page);
      visit(page, at, done, part);
      done += part;
    }
  }
}

interface FaultCase {
  readonly name: string;
  readonly blockSize: number;
  /** Blocks trimmed, with a punch so that they read as zeros. */
  readonly free: readonly number[];
  /** Brings the target to the moment before. */
  readonly arrange: (rig: BowRig) => void;
  readonly act: (rig: BowRig) => void;
  /** The last operations of `act`, which write the data itself: [offset, length] is what they write. */
  readonly data?: { readonly offset: number; readonly length: number; readonly writes: number };
}

const BLOCKS = 100;
const write = (offset: number, length: number) => ({
  act: ({ target }: BowRig) => target.write(offset, filled(length, 0xaa)),
  data: { offset, length, writes: 1 },
});
/** In state 1, with so many entries in the log. */
const withEntries = (entries: number, blockSize: number) => (rig: BowRig) => {
  rig.write('state', '1');
  for (let block = 1; block < entries; block++) rig.target.write(block * 2 * blockSize, filled(10, block));
  // Live content of block 0 that is not that of the checkpoint.
  rig.target.write(5, filled(100, 1));
};

const FAULT_CASES: readonly FaultCase[] = [512, 4096].flatMap((blockSize) => {
  const free = blockRange(55, BLOCKS);
  const at = (block: number) => block * blockSize;
  const simple = withEntries(3, blockSize);
  const cases: Omit<FaultCase, 'blockSize' | 'free'>[] = [
    { name: '0 to 1', arrange: () => {}, act: (rig) => rig.write('state', '1') },
    { name: '1 to 2', arrange: simple, act: (rig) => rig.write('state', '2') },
    { name: 'first touch of a block', arrange: simple, ...write(at(31), blockSize) },
    { name: 'first touch of a part of a block', arrange: simple, ...write(at(31) + 100, 200) },
    { name: 'first touch of several', arrange: simple, ...write(at(31) + 100, 3 * blockSize) },
    {
      name: 'first touch of a trimmed block, in part',
      arrange: (rig) => {
        simple(rig);
        rig.target.discard(at(31), 4 * blockSize);
      },
      ...write(at(31) + 100, 3 * blockSize + 50),
    },
    // 55 is SECTOR0_CURRENT, 56 and 57 are backups.
    { name: 'a move of SECTOR0_CURRENT', arrange: simple, ...write(at(55), blockSize) },
    { name: 'a write over backups, in part', arrange: simple, ...write(at(55) + 100, 2 * blockSize) },
    {
      name: 'block 0 and a first touch',
      arrange: simple,
      ...write(100, 2 * blockSize),
      data: { offset: 100, length: 2 * blockSize, writes: 2 },
    },
  ];
  if (blockSize === 512) {
    cases.push(
      { name: 'overflow of the log', arrange: withEntries(20, blockSize), ...write(at(51), blockSize) },
      {
        name: 'overflow of the log between the batches of one write',
        arrange: (rig) => {
          withEntries(12, blockSize)(rig);
          // Alternating types: each block its own entry; some of them read as zeros.
          for (let block = 25; block < 45; block += 2) rig.target.discard(at(block), blockSize);
        },
        ...write(at(24) + 100, 20 * blockSize),
      },
    );
  } else {
    cases.push(
      {
        name: 'a log that grows past its first sector',
        arrange: withEntries(20, blockSize),
        ...write(at(51), blockSize),
      },
      {
        name: '1 to 2 with a log of more than a sector',
        arrange: withEntries(24, blockSize),
        act: (rig) => rig.write('state', '2'),
      },
    );
  }
  return cases.map((rest) => ({ ...rest, blockSize, free }));
});

/** Not part of any case: unchanged until it is written. */
const OTHER_BLOCK = 53;

describe('defect 4, defect 12: an I/O error at any operation', () => {
  for (const fault of FAULT_CASES) {
    it(`${fault.name} (block ${fault.blockSize})`, async () => {
      const { faulty, rig } = await arranged(fault);
      faulty.repair();
      fault.act(rig);
      const total = faulty.operations;
      for (const lasting of [false, true]) {
        for (const landed of [false, true, 'some'] as const) {
          for (let at = 1; at <= total; at++) await failAt(fault, total, { at, landed, lasting });
        }
      }
    });
  }
});

async function arranged({ blockSize, free, arrange }: FaultCase, seed = 1) {
  const disk = new SimulatedDisk(randomContent(BLOCKS, blockSize), { rng: new Prng(seed) });
  const faulty = new FaultyDisk(disk);
  const rig = await makeBow(faulty, blockSize);
  for (const block of free) rig.target.writeZeroes(block * blockSize, blockSize, { unmap: true });
  rig.target.flush();
  const checkpoint = disk.content();
  arrange(rig);
  rig.target.flush();
  return { disk, faulty, rig, checkpoint };
}

/** `total`: the operations of `act` when nothing fails. */
async function failAt(
  fault: FaultCase,
  total: number,
  injected: { at: number; landed: boolean | 'some'; lasting: boolean },
): Promise<void> {
  const { name, blockSize, free, act, data } = fault;
  const { disk, faulty, rig, checkpoint } = await arranged(fault, injected.at);
  const { target } = rig;
  const where = `${name}, ${JSON.stringify(injected)}`;
  const before = contentOf(target);
  const types = typesOf(rig);
  const { state } = target.state;

  faulty.fail(injected);
  const code = codeOf(() => act(rig));
  expect(faulty.operations, where).toBeGreaterThanOrEqual(injected.at);
  faulty.repair();
  expectAtRest(rig);
  if (code === 'none') {
    // It was committed before; only a trim has failed.
    expect([state, rig.read('state')], where).toEqual([1, '2\n']);
    expect(rig.events.at(-2), where).toMatch(/^trim_failed errno=5 /);
    expect(restore(new MemoryDevice(disk.crashImage('none'))).state, where).toBe('no-log');
    return;
  }

  // Failed, and nothing is lost.
  expect([code, target.state.state], where).toEqual(['EIO', state]);
  const after = contentOf(target);
  if (data !== undefined && injected.at > total - data.writes) {
    after.set(before.subarray(data.offset, data.offset + data.length), data.offset);
  }
  // A failed checkpoint makes the trimmed blocks it used zeros again, if the device lets it.
  expectSameBlocks(after, before, blockSize, state === 0 && injected.lasting ? free : [], where);
  if (state === 0) expect(typesOf(rig), where).toEqual(types);
  // A commit that the device let neither finish nor undo may have happened.
  const unknown = state === 1 && data === undefined && target.state.suspect;
  expectRollsBack(disk, checkpoint, blockSize, free, where, unknown ? before : checkpoint);

  // The device works again.
  const other = OTHER_BLOCK * blockSize + 7;
  target.write(other, filled(20, 0x55));
  codeOf(() => target.flush());
  target.flush();
  expect([target.state.suspect, codeOf(() => act(rig))], `${where}, again`).toEqual([false, 'none']);
  const expected = before.slice();
  expected.fill(0x55, other, other + 20);
  if (data !== undefined) expected.fill(0xaa, data.offset, data.offset + data.length);
  expectSameBlocks(contentOf(target), expected, blockSize, state === 0 ? free : [], `${where}, again`);
  if (state === 0) checkpoint.fill(0x55, other, other + 20);
  if (target.state.state === 1) {
    expect(inspectLog(new MemoryDevice(disk.content()))!.findings, `${where}, again`).toEqual([]);
    expectRollsBack(disk, checkpoint, blockSize, free, `${where}, again`);
    rig.write('state', '2');
  }
  expectSameBytes(disk.crashImage('none'), contentOf(target), `${where}, committed`);
  expectAtRest(rig);
}
