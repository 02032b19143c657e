import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk } from '../../../src/device/simulated.js';
import { DmError } from '../../../src/errors.js';
import { sniffMagic } from '../../../src/formats/bow-log.js';
import { dumpLog, inspectLog, restore, type UndoProgress } from '../../../src/targets/bow/undo.js';
import {
  blocksLost,
  type Logged,
  LogWriter,
  loggedImage,
  naiveChecksum,
  randomContent,
  runWorkload,
  type Shape,
  voldRestorePart,
} from './log-writer.js';

const SHAPES: readonly Shape[] = [
  { blockSize: 512, blocks: 64, steps: 60 },
  { blockSize: 1024, blocks: 48, steps: 90 },
  { blockSize: 2048, blocks: 40, steps: 150 },
  { blockSize: 4096, blocks: 40, steps: 250 },
];
/** Short logs, for tests that go through every cut. */
const SMALL: readonly Shape[] = [
  { blockSize: 512, blocks: 40, steps: 40 },
  { blockSize: 1024, blocks: 32, steps: 50 },
  { blockSize: 4096, blocks: 24, steps: 40 },
];
const each = (shapes: readonly Shape[]) => shapes.map((shape) => [shape.blockSize, shape] as const);
const about = ({ seed, blockSize }: Logged, more = '') => `seed ${seed}, block ${blockSize}${more}`;

/** Restores a copy; everything that was promised must be back, and a second restore must find no log. */
function expectRestored(logged: Logged, image: Uint8Array, where: string): void {
  const device = new MemoryDevice(image);
  restore(device);
  expect(blocksLost(logged, device.bytes), where).toEqual([]);
  expect(restore(device).state, where).toBe('no-log');
}

/** Draws the first: a writer with it takes free blocks in ascending order. */
class FirstFree extends Prng {
  override pick<T>(items: readonly T[]): T {
    return items[0] as T;
  }
}

describe('restore of what a writer left', () => {
  it.each(each(SHAPES))('brings back every block that was not free (block %i)', (_, shape) => {
    let logs = 0;
    for (let seed = 0; seed < 150; seed++) {
      const logged = loggedImage(seed, shape);
      const { image } = logged;
      const report = inspectLog(new MemoryDevice(image));
      expect(report, about(logged)).toMatchObject({ restoring: false, logs: logged.logs, findings: [] });
      const device = new MemoryDevice(image.slice());
      const { blockSize: _, restoring: __, findings: ___, logs: sequences, ...totals } = report!;
      expect(restore(device)).toEqual({ state: 'restored', sequences, ...totals });
      expect(blocksLost(logged, device.bytes), about(logged)).toEqual([]);
      expect(restore(device)).toEqual({ state: 'no-log' });
      logs = Math.max(logs, logged.logs);
    }
    expect(logs).toBeGreaterThan(1);
  });

  it('follows long runs that were moved on whole, in part, and over an earlier move', () => {
    const blockSize = 512;
    const device = new MemoryDevice(new Prng(1).bytes(12_000 * blockSize));
    device.bytes[0] = 0;
    const writer = new LogWriter(device, blockSize, new FirstFree(1));
    const write = (first: number, last: number) => {
      expect(writer.write(first, new Uint8Array((last - first + 1) * blockSize).fill(first))).toBe(true);
    };
    for (let block = 2500; block < 12_000; block++) writer.trim(block);
    const before = device.bytes.slice();
    const free = new Set([...writer.types.keys()].filter((block) => block >= 2500));
    // 2500 is the live block 0, 2501 the backup of block 0.
    writer.checkpoint();
    write(100, 2299); // to 2502..4701
    write(3000, 3100); // the backup of 598..698, to 4702..4802
    for (let block = 3000; block <= 3100; block++) writer.trimAfter(block);
    write(2300, 2400); // to 3000..3100
    write(2502, 4701); // all backups but those in 4702..4802, to 4803..7002
    write(5000, 6500); // and part of them once more
    const sizes = dumpLog(device)!.logs.flatMap(({ entries }) =>
      entries.map(({ sizeBytes }) => sizeBytes / blockSize),
    );
    expect(sizes).toEqual([1, 2200, 101, 101, 2200, 1501]);
    restore(device);
    expect(
      blocksLost({ seed: 1, before, free, blockSize, blocks: 12_000, steps: 0, logs: 1 }, device.bytes),
    ).toEqual([]);
  });

  it('works after a cut at any point of the writer, before and after the log exists', () => {
    let images = 0;
    for (const shape of SMALL) {
      for (let seed = 100; seed < 105; seed++) {
        const disk = new SimulatedDisk(randomContent(seed, shape));
        let start = 0;
        const logged = runWorkload(seed, shape, disk, () => {
          start = disk.operations;
        });
        const rng = new Prng(seed);
        for (let cut = start; cut <= disk.operations; cut++, images++) {
          const device = new MemoryDevice(disk.imageAt(cut, rng));
          restore(device);
          expect(blocksLost(logged, device.bytes), `seed ${seed}, cut ${cut}`).toEqual([]);
        }
      }
    }
    expect(images).toBeGreaterThan(1000);
  });

  it('reports progress up to the total', () => {
    const { image } = loggedImage(1, SHAPES[0]!);
    const seen: UndoProgress[] = [];
    const result = restore(new MemoryDevice(image), { onProgress: (progress) => seen.push(progress) });
    expect(result.state).toBe('restored');
    const last = seen.at(-1)!;
    expect(last).toMatchObject({ phase: 'restore', bytes: last.bytesTotal });
    expect(seen.filter(({ phase }) => phase === 'check').at(-1)!.bytes).toBe(last.bytes);
  });

  it('copies in pieces of at most 1 MiB', () => {
    const blockSize = 4096;
    const blocks = 1500;
    const content = new Prng(7).bytes(blocks * blockSize);
    const before = content.slice();
    const at = (block: number) => (block * blockSize) / 512;
    const big = 700 * blockSize;
    content.copyWithin(1 * blockSize, 0, blockSize);
    content.copyWithin(2 * blockSize, 800 * blockSize, 800 * blockSize + big);
    content.fill(0, 800 * blockSize, 800 * blockSize + big);
    const moved = content.subarray(2 * blockSize, 2 * blockSize + big);
    content.set(
      rawLog({ blockSize, sector0: at(1500 - 1) }, [
        { dest: at(1), size: blockSize, checksum: naiveChecksum(0, before.subarray(0, blockSize)) },
        { source: at(800), dest: at(2), size: big, checksum: naiveChecksum(800, moved) },
      ]),
    );
    const device = new MemoryDevice(content);
    let largest = 0;
    const watched = watch(device, (_, length) => {
      largest = Math.max(largest, length);
    });
    restore(watched);
    expect(largest).toBe(1 << 20);
    expect(Buffer.compare(device.bytes.subarray(at(800) * 512), before.subarray(at(800) * 512))).toBe(0);
    expect(Buffer.compare(device.bytes.subarray(0, blockSize), before.subarray(0, blockSize))).toBe(0);
  });

  it.each([0, 1, 3, 511, 512, 4096])(
    'bow-R1: a device of %i bytes without a log is not written to',
    (size) => {
      const device = new SimulatedDisk(size);
      expect(inspectLog(device)).toBeUndefined();
      expect(dumpLog(device)).toBeUndefined();
      expect(restore(device)).toEqual({ state: 'no-log' });
      expect(device.operations).toBe(0);
    },
  );
});

describe('bow-R3, bow-R4, bow-R5, bow-R6: restore cut at every operation', () => {
  it.each(each(SMALL))('ends the same (block %i)', (_, shape) => {
    let images = 0;
    let records = 0;
    for (let seed = 200; seed < 216; seed++) {
      const logged = loggedImage(seed, shape);
      const disk = new SimulatedDisk(logged.image);
      restore(disk);
      const headers = disk.trace.filter(({ kind, offset }) => kind === 'write' && offset === 0).length;
      // For each log one before entry 0 and the replacement, for the first also the mark; more are bow-R3's.
      records += headers - 2 * logged.logs - 1;
      const rng = new Prng(seed);
      for (let cut = 0; cut <= disk.operations; cut++) {
        const where = about(logged, `, cut ${cut}`);
        for (const survivors of ['none', 'all', rng, rng] as const) {
          const image = disk.imageAt(cut, survivors);
          // Cut the second restore too, somewhere, and finish with a third.
          const second = new SimulatedDisk(image);
          restore(second);
          const again = second.imageAt(rng.below(second.operations + 1), rng);
          expectRestored(logged, image, where);
          expectRestored(logged, again, `${where}, cut again`);
          images += 2;
        }
      }
    }
    expect(images).toBeGreaterThan(2000);
    expect(records, 'no workload made a record because of bow-R3').toBeGreaterThan(0);
  });

  it.each(each(SMALL))('bow-R4, bow-R6: never BOW again after the first record (block %i)', (_, shape) => {
    for (let seed = 250; seed < 262; seed++) {
      const disk = new SimulatedDisk(loggedImage(seed, shape).image);
      restore(disk);
      const changes = disk.trace.filter(({ kind }) => kind !== 'flush');
      const block0 = changes.filter(({ offset }) => offset === 0).map(({ sectors }) => sectors);
      // The first write of all is the record, and the one before the last is one too.
      expect(changes[0]!.offset).toBe(0);
      expect(block0.map((sectors) => sectors.length)).toEqual(block0.map(() => 512));
      expect(block0.map(sniffMagic)).toEqual([...Array(block0.length - 1).fill('restoring'), 'none']);
    }
  });

  it('bow-R3: a log that needs records, with only one change of many on the medium', () => {
    let images = 0;
    for (let seed = 300; seed < 306; seed++) {
      const logged = loggedImage(seed, SMALL[0]!);
      const disk = new SimulatedDisk(logged.image);
      restore(disk);
      for (let cut = 0; cut <= disk.operations; cut++) {
        for (let only = 0; only < disk.unflushedAt(cut); only++, images++) {
          expectRestored(logged, disk.imageAt(cut, { only }), about(logged, `, cut ${cut}, only ${only}`));
        }
      }
    }
    expect(images).toBeGreaterThan(200);
  });

  it('bow-R4: what is seen is made durable first, also when another restore was killed', () => {
    for (const shape of SMALL) {
      for (let seed = 400; seed < 408; seed++) {
        const logged = loggedImage(seed, shape);
        const total = new SimulatedDisk(logged.image);
        restore(total);
        const rng = new Prng(seed);
        for (let round = 0; round < 12; round++) {
          // The killed process leaves its changes in the cache; the next restore runs on that same cache.
          const disk = new SimulatedDisk(logged.image);
          const kill = rng.below(total.operations);
          let changes = 0;
          const killed = watch(disk, () => {
            if (changes++ >= kill) throw new Error('killed');
          });
          expect(() => restore(killed)).toThrow('killed');
          const start = disk.operations;
          restore(disk);
          for (let cut = start; cut <= disk.operations; cut += 1 + rng.below(4)) {
            expectRestored(logged, disk.imageAt(cut, rng), about(logged, `, killed ${kill}, cut ${cut}`));
          }
        }
      }
    }
  });

  it('goes on after an I/O error at any operation', () => {
    let failures = 0;
    for (const shape of SMALL) {
      const logged = loggedImage(500, shape);
      for (const op of ['read', 'write', 'flush'] as const) {
        for (let at = 1; ; at++) {
          const disk = new SimulatedDisk(logged.image);
          disk.injectError({ op, at, landed: at % 3 === 0 ? 'some' : at % 3 === 1 });
          try {
            restore(disk);
            break;
          } catch (error) {
            expect((error as DmError).code).toBe('EIO');
          }
          failures++;
          expectRestored(logged, disk.crashImage(new Prng(at)), `${op} ${at}, cut`);
          expectRestored(logged, disk.content(), `${op} ${at}`);
        }
      }
    }
    expect(failures).toBeGreaterThan(200);
  });

  it('bow-R5: header_size over 488, so that entry 0 lies outside the first sector', () => {
    const blockSize = 4096;
    const before = new Prng(9).bytes(16 * blockSize);
    before[0] = 0;
    const image = before.slice();
    const block = (n: number) => before.subarray(n * blockSize, (n + 1) * blockSize);
    image.set(block(0), 4 * blockSize);
    image.set(block(9), 5 * blockSize);
    image.fill(0, 9 * blockSize, 10 * blockSize);
    const log = rawLog({ blockSize, headerSize: 600, sector0: 48 }, [
      { dest: 32, size: blockSize, checksum: naiveChecksum(0, block(0)) },
      { source: 72, dest: 40, size: blockSize, checksum: naiveChecksum(9, block(9)) },
    ]);
    image.set(log);
    const logged = {
      seed: 9,
      blockSize,
      blocks: 16,
      steps: 0,
      before,
      image,
      free: new Set([4, 5, 6]),
      logs: 1,
    };
    const disk = new SimulatedDisk(image);
    restore(disk);
    const rng = new Prng(9);
    for (let cut = 0; cut <= disk.operations; cut++) {
      for (let i = 0; i < 50; i++) expectRestored(logged, disk.imageAt(cut, rng), `cut ${cut}`);
    }
  });
});

describe('bow-R7: together with vold', () => {
  it.each(each(SMALL))('finishes what vold left, vold finishes what this left (block %i)', (_, shape) => {
    let images = 0;
    for (let seed = 600; seed < 612; seed++) {
      const logged = loggedImage(seed, shape);
      const rng = new Prng(seed);
      for (let limit = 1; ; limit += 1 + rng.below(4)) {
        const device = new MemoryDevice(logged.image.slice());
        const state = voldRestorePart(device, limit);
        expectRestored(logged, device.bytes.slice(), about(logged, `, vold ${limit} entries`));
        images++;
        if (state === 'done') break;
        // vold, this one cut, vold again.
        const disk = new SimulatedDisk(device.bytes);
        restore(disk);
        const cut = rng.below(disk.operations + 1);
        const last = new MemoryDevice(disk.imageAt(cut, rng));
        for (let calls = 0; voldRestorePart(last, 2) === 'again'; calls++) expect(calls).toBeLessThan(10_000);
        expect(blocksLost(logged, last.bytes), about(logged, `, vold ${limit}, cut ${cut}`)).toEqual([]);
      }
      const disk = new SimulatedDisk(logged.image);
      restore(disk);
      for (let cut = 0; cut <= disk.operations; cut++, images++) {
        const device = new MemoryDevice(disk.imageAt(cut, rng));
        expect(voldRestorePart(device)).toBe('done');
        expect(blocksLost(logged, device.bytes), about(logged, `, cut ${cut}`)).toEqual([]);
        expect(inspectLog(device)).toBeUndefined();
      }
    }
    expect(images).toBeGreaterThan(300);
  });

  it('finishes a vold that a power cut stopped at any operation (block 512)', () => {
    for (let seed = 700; seed < 712; seed++) {
      const logged = loggedImage(seed, SMALL[0]!);
      const disk = new SimulatedDisk(logged.image);
      voldRestorePart(disk);
      const rng = new Prng(seed);
      for (let cut = 0; cut <= disk.operations; cut++) {
        expectRestored(logged, disk.imageAt(cut, rng), about(logged, `, cut ${cut}`));
      }
    }
  });
});

interface RawEntry {
  source?: number;
  dest?: number;
  size?: number;
  checksum?: number;
}

/** A log block made without the encoder, so that it can be wrong. */
function rawLog(
  header: {
    magic?: string;
    version?: number;
    headerSize?: number;
    blockSize?: number;
    count?: number;
    sequence?: number;
    sector0?: number;
  },
  entries: readonly RawEntry[],
): Buffer {
  const { magic = 'BOW\0', version = 0x100, headerSize = 28, blockSize = 512 } = header;
  const { count = entries.length, sequence = 0, sector0 = 3 } = header;
  const bytes = Buffer.alloc(Math.max(headerSize, 28) + 24 * entries.length);
  bytes.write(magic, 0, 'latin1');
  bytes.writeUInt16LE(version, 4);
  bytes.writeUInt16LE(headerSize, 6);
  bytes.writeUInt32LE(blockSize, 8);
  bytes.writeUInt32LE(count, 12);
  bytes.writeUInt32LE(sequence, 16);
  bytes.writeBigUInt64LE(BigInt(sector0), 20);
  entries.forEach(({ source = 0, dest = 4, size = 512, checksum = 0 }, index) => {
    const at = Math.max(headerSize, 28) + 24 * index;
    bytes.writeBigUInt64LE(BigInt(source), at);
    bytes.writeBigUInt64LE(BigInt(dest), at + 8);
    bytes.writeUInt32LE(size, at + 16);
    bytes.writeUInt32LE(checksum, at + 20);
  });
  return bytes;
}

/** Calls `onChange` before every write and flush (length 0). */
function watch(device: BlockDevice, onChange: (offset: number, length: number) => void): BlockDevice {
  return {
    size: device.size,
    read: (offset, into) => device.read(offset, into),
    write: (offset, from) => {
      onChange(offset, from.length);
      device.write(offset, from);
    },
    flush: () => {
      onChange(0, 0);
      device.flush();
    },
    discard: () => expect.unreachable(),
    writeZeroes: () => expect.unreachable(),
  };
}

/** Restores, or is refused by a DmError and has written nothing. A MemoryDevice throws RangeError outside itself. */
function restoreOrRefuse(image: Uint8Array, where: string): string | undefined {
  const device = new MemoryDevice(image.slice());
  dumpLog(device);
  try {
    restore(device);
    return undefined;
  } catch (error) {
    if (!(error instanceof DmError)) throw new Error(`${where}: ${(error as Error).stack}`);
    expect(Buffer.compare(device.bytes, image), `bow-R1: ${where}`).toBe(0);
    expect(inspectLog(device)!.findings.length, where).toBeGreaterThan(0);
    return error.message;
  }
}

/** 32 blocks of 512 bytes, block 0 backed up in sector 4, block 10 in 11. */
function handMade(header: Parameters<typeof rawLog>[0] = {}, ...entries: RawEntry[]): Uint8Array {
  const image = new Uint8Array(32 * 512).fill(0x77);
  image.set(rawLog(header, entries.length > 0 ? entries : [{ dest: 4 }, { source: 10, dest: 11 }]));
  return image;
}

/** A log 1 whose log 0 lies in sector 4. */
function withSavedLog(saved: Parameters<typeof rawLog>[0], checksum = 0): Uint8Array {
  const image = handMade({ sequence: 1 }, { dest: 4, checksum });
  image.set(rawLog(saved, [{ dest: 5 }]), 4 * 512);
  return image;
}

describe('bow-R1, bow-R2: damaged and hostile logs', () => {
  it.each<[string, Uint8Array, RegExp]>([
    ['a higher version', handMade({ version: 0x200 }), /log 0: header_version is 0x0200/],
    [
      'a block longer than the device',
      handMade({ blockSize: 4096 }).subarray(0, 2048),
      /expected the device's 2048 at most/,
    ],
    ['count 0', handMade({ count: 0 }), /log 0: count is 0 entries, expected 1\.\.20/],
    ['count over capacity', handMade({ count: 21 }), /count is 21/],
    [
      'a huge sequence',
      handMade({ sequence: 2 ** 32 - 1 }),
      /log 4294967295: sequence is 4294967295, expected less than the 32/,
    ],
    ['an older log that is none', handMade({ sequence: 1 }), /log 0: magic is 0x77777777/],
    [
      'an older log with magic WOB',
      withSavedLog({ magic: 'WOB\0' }),
      /log 0: magic is WOB, expected BOW in a saved log/,
    ],
    [
      'an older log of another block size',
      withSavedLog({ blockSize: 1024 }),
      /log 0: block_size is 1024 bytes, expected 512 as in/,
    ],
    ['an older log of a wrong sequence', withSavedLog({ sequence: 5 }), /log 0: sequence is 5, expected 0/],
    ['an older log with a wrong checksum', withSavedLog({}, 1), /log 1, entry 0: checksum of 512 bytes/],
    ['sector0 outside', handMade({ sector0: 32 }), /log 0: sector0 is sector 32/],
    ['sector0 = 0', handMade({ sector0: 0 }), /sector0 is 0/],
    [
      'entry 0 elsewhere',
      handMade({}, { source: 1, dest: 4 }),
      /log 0, entry 0: source is sector 1, expected 0/,
    ],
    [
      'entry 0 of two blocks',
      handMade({}, { dest: 4, size: 1024 }),
      /entry 0: size is 1024 bytes, expected 512/,
    ],
    ['a second entry for block 0', handMade({}, { dest: 4 }, { dest: 5 }), /entry 1: source is sector 0/],
    ['size 0', handMade({}, { dest: 4, size: 0 }), /entry 0: size is 0/],
    [
      'a part of a block',
      handMade({}, { dest: 4 }, { source: 8, dest: 6, size: 768 }),
      /entry 1: size is 768/,
    ],
    [
      '4 GiB',
      handMade({}, { dest: 4 }, { source: 8, dest: 6, size: 2 ** 32 - 512 }),
      /entry 1: source is sector 8: 4294966784/,
    ],
    ['source outside', handMade({}, { dest: 4 }, { source: 31, dest: 6, size: 1024 }), /source is sector 31/],
    [
      'dest outside',
      handMade({}, { dest: 4 }, { source: 6, dest: 2 ** 52 }),
      /dest is sector 4503599627370496/,
    ],
    [
      'dest on the log',
      handMade({}, { dest: 4 }, { source: 6, dest: 0 }),
      /dest is sector 0, where the log lies/,
    ],
    ['overlap', handMade({}, { dest: 4 }, { source: 6, dest: 8, size: 1536 }), /source 6 and dest 8 overlap/],
    [
      'not aligned',
      handMade({ blockSize: 1024, sector0: 6 }, { dest: 5, size: 1024 }),
      /dest is sector 5, expected a multiple of 2/,
    ],
    [
      'a wrong checksum',
      handMade({}, { dest: 4, checksum: 1 }),
      /entry 0: checksum of 512 bytes at sector 4 is [0-9a-f]{8}, expected 00000001/,
    ],
    [
      'a log that is its own older log',
      handMade({ sequence: 1 }, { dest: 4 }, { source: 4, dest: 5 }),
      /log 0: magic/,
    ],
  ])('refuses %s and says what it found', (name, image, message) => {
    expect(restoreOrRefuse(image, name)).toMatch(message);
  });

  it('bow-R2: a chain cannot loop', () => {
    // Both saved logs are the same block: its sequence is right only once.
    const image = handMade({ sequence: 2 }, { dest: 4 });
    image.set(rawLog({ sequence: 1 }, [{ dest: 4 }]), 4 * 512);
    expect(restoreOrRefuse(image, 'loop')).toMatch(/log 0: sequence is 1, expected 0/);
  });

  it('bow-R2: a long history may move many times the device', () => {
    const image = new Uint8Array(512 * 1024);
    for (let i = 0; i < 100; i++) {
      const big = { source: 600, dest: 200, size: 400 * 512 };
      image.set(rawLog({ sequence: 99 - i }, [{ dest: i + 1 }, ...Array(19).fill(big)]), i * 512);
    }
    const report = inspectLog(new MemoryDevice(image))!;
    expect(report.findings).toEqual([]);
    expect(report.bytes).toBe(100 * (512 + 19 * 400 * 512));
    expect(restoreOrRefuse(image, 'chain')).toBeUndefined();
  });

  it('bow-R2: huge entries of a huge device cost little memory', () => {
    const log = new Uint8Array(512);
    const size = 2 ** 32 - 512;
    const at = (n: number) => 8 + n * 2 ** 23;
    log.set(rawLog({}, [{ dest: 4 }, ...[1, 3, 5].map((n) => ({ source: at(n), dest: at(n + 1), size }))]));
    const reads: number[] = [];
    const device: BlockDevice = {
      ...watch(new MemoryDevice(0), () => {}),
      size: 2 ** 50,
      read: (offset, into) => {
        reads.push(into.length);
        // Only the first megabyte is really looked at; the rest of the 12 GiB would be the test's own cost.
        if (reads.length > 2000) throw new Error('enough');
        if (offset === 0) into.set(log.subarray(0, into.length));
      },
    };
    const before = process.memoryUsage().arrayBuffers;
    expect(() => inspectLog(device)).toThrow('enough');
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(8 << 20);
    expect(Math.max(...reads)).toBe(1 << 20);
  });

  it('finds every wrong checksum, not only the first, and stops at the limit', () => {
    const wrong = Array.from({ length: 19 }, () => ({ source: 20, dest: 8, checksum: 5 }));
    const device = new MemoryDevice(handMade({}, { dest: 4, checksum: 5 }, ...wrong));
    expect(inspectLog(device)!.findings.map(({ entry }) => entry)).toEqual([...Array(20).keys()].reverse());
    expect(inspectLog(device, { maxFindings: 3 })!.findings).toHaveLength(3);
  });

  it('does not follow a saved log whose checksum is wrong', () => {
    const report = inspectLog(new MemoryDevice(withSavedLog({}, 1)))!;
    expect(report).toMatchObject({ logs: 0, entries: 1, findings: { length: 1 } });
  });

  it('any byte of any log block changed: restored, or refused and untouched', () => {
    let [refused, sound] = [0, 0];
    for (const [shape, seed] of [
      [SMALL[0]!, 800],
      [SMALL[0]!, 801],
      [SMALL[1]!, 802],
      [SMALL[2]!, 803],
    ] as const) {
      const { image, blockSize } = loggedImage(seed, shape);
      const rng = new Prng(seed);
      for (const { sector, count } of dumpLog(new MemoryDevice(image))!.logs) {
        const end = Math.min(blockSize, 28 + 24 * count + 30);
        for (let at = 0; at < end; at++) {
          for (const mask of [0xff, 0x01, 0x80, 1 + rng.below(255)]) {
            const mutated = image.slice();
            mutated[sector * 512 + at]! ^= mask;
            if (restoreOrRefuse(mutated, `seed ${seed}, sector ${sector}, byte ${at}, mask ${mask}`))
              refused++;
            else sound++;
          }
        }
      }
    }
    expect(refused).toBeGreaterThan(2000);
    expect(sound).toBeGreaterThan(100);
  });

  it('any bytes of the data changed: the checksum finds it or it was no backup', () => {
    const logged = loggedImage(810, SMALL[0]!);
    const rng = new Prng(810);
    for (let round = 0; round < 500; round++) {
      const image = logged.image.slice();
      image[512 + rng.below(image.length - 512)]! ^= 1 + rng.below(255);
      const device = new MemoryDevice(image);
      if (restoreOrRefuse(image, `round ${round}`) === undefined) {
        restore(device);
        // Only a block that no entry speaks of is taken as it is.
        expect(blocksLost(logged, device.bytes).length).toBeLessThanOrEqual(1);
      }
    }
  });

  it('any fields: restored, or refused and untouched', () => {
    const sector = fc.oneof(fc.nat(40), fc.nat(40), fc.maxSafeNat());
    const size = fc.oneof(
      fc.constantFrom(512, 1024, 4096, 2 ** 32 - 512, 0, 700),
      fc.nat(40).map((n) => n * 512),
    );
    const entry = fc.record({ source: sector, dest: sector, size, checksum: fc.constantFrom(0, 0, 0, 1) });
    const header = fc.record({
      magic: fc.constantFrom('BOW\0', 'BOW\0', 'WOB\0'),
      headerSize: fc.oneof(fc.constant(28), fc.nat(600)),
      blockSize: fc.constantFrom(512, 512, 512, 1024, 4096, 0, 513, 2 ** 31),
      sequence: fc.oneof(fc.constantFrom(0, 0, 1, 2), fc.nat(2 ** 32 - 1)),
      sector0: fc.oneof(fc.constant(8), sector),
    });
    const log = fc.tuple(header, fc.array(entry, { maxLength: 8 }), fc.boolean());
    const logs = fc.tuple(log, fc.array(fc.tuple(fc.nat(39), log), { maxLength: 4 }));
    let sound = 0;
    fc.assert(
      fc.property(logs, ([newest, older]) => {
        const image = new Uint8Array(40 * 512).fill(0x11);
        const put = ([fields, entries, regular]: typeof newest, block: number) => {
          const zeroth = {
            source: 0,
            dest: 8 * (1 + (entries.length % 4)),
            size: fields.blockSize % 2 ** 32,
          };
          const all = regular ? [zeroth, ...entries] : entries;
          image.set(rawLog(fields, all).subarray(0, image.length - block * 512), block * 512);
        };
        for (const [block, fields] of older) put(fields, block);
        put(newest, 0);
        if (restoreOrRefuse(image, 'fields') === undefined) sound++;
      }),
      { numRuns: 4000 },
    );
    expect(sound).toBeGreaterThan(0);
  });

  it('random bytes after a header: restored, or refused and untouched', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 512, maxLength: 9000 }),
        fc.integer({ min: 4, max: 28 }),
        (image, keep) => {
          image.set(rawLog({ count: 3 }, [{}]).subarray(0, keep));
          restoreOrRefuse(image, 'random');
        },
      ),
      { numRuns: 1000 },
    );
  });
});

describe('dumpLog', () => {
  it('prints the example of section 4', () => {
    const image = handMade({}, { dest: 4, checksum: 0x11223344 }, { source: 10, dest: 1 });
    expect(dumpLog(new MemoryDevice(image))!.logs).toEqual([
      {
        sequence: 0,
        sector: 0,
        magic: 'BOW',
        headerVersion: 0x100,
        headerSize: 28,
        blockSize: 512,
        count: 2,
        sector0: 3,
        entries: [
          { sourceSector: 0, destSector: 4, sizeBytes: 512, checksum: '11223344' },
          { sourceSector: 10, destSector: 1, sizeBytes: 512, checksum: '00000000' },
        ],
      },
    ]);
  });

  it('prints the newest block first and says where the older ones lie', () => {
    const logged = loggedImage(3, SHAPES[0]!);
    const { logs, findings } = dumpLog(new MemoryDevice(logged.image))!;
    expect(findings).toEqual([]);
    expect(logs.map(({ sequence }) => sequence)).toEqual([...Array(logged.logs).keys()].reverse());
    for (const { sector } of logs) {
      expect(Buffer.from(logged.image.subarray(sector * 512, sector * 512 + 3)).toString()).toBe('BOW');
    }
  });

  it('prints what can be read of a damaged log', () => {
    const dump = dumpLog(new MemoryDevice(handMade({ count: 500, sector0: 2 ** 52 })))!;
    expect(dump.logs[0]).toMatchObject({ count: 500, sector0: 2 ** 52, entries: { length: 20 } });
    expect(dump.findings).toEqual([{ sequence: 0, what: 'count is 500 entries, expected 1..20' }]);
    const odd = dumpLog(new MemoryDevice(handMade({ headerSize: 3 })))!;
    expect(odd.logs[0]!.entries).toEqual([]);
    expect(odd.findings).toHaveLength(1);
  });
});
