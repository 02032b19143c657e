import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Prng } from '../../src/device/prng.js';
import { PowerCut, PowerSupply, SimulatedDisk } from '../../src/device/simulated.js';
import { DmError } from '../../src/errors.js';

const SECTOR = 512;
const filled = (sectors: number, value: number) => new Uint8Array(sectors * SECTOR).fill(value);
/** The first byte of each sector: enough where sectors are filled with one value. */
const marks = (image: Uint8Array) =>
  Array.from({ length: Math.ceil(image.length / SECTOR) }, (_, sector) => image[sector * SECTOR]!);

/** Writes 1 to sectors 0 and 1, flushes, then 2 to sectors 1 and 2, then 3 to sector 2. */
function sample(): SimulatedDisk {
  const disk = new SimulatedDisk(4 * SECTOR);
  disk.write(0, filled(2, 1));
  disk.flush();
  disk.write(SECTOR, filled(2, 2));
  disk.write(2 * SECTOR, filled(1, 3));
  return disk;
}

function everyImage(disk: SimulatedDisk, position: number, rounds = 2000): Set<string> {
  const rng = new Prng(position);
  return new Set(Array.from({ length: rounds }, () => marks(disk.imageAt(position, rng)).join('')));
}

describe('without a fault', () => {
  it('reads what was written, at any alignment', () => {
    const operation = fc.tuple(
      fc.constantFrom('write', 'writeZeroes', 'flush'),
      fc.nat(4000),
      fc.nat(300),
      fc.nat(255),
    );
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 30 }), (operations) => {
        const disk = new SimulatedDisk(4301);
        const model = new Uint8Array(4301);
        for (const [kind, offset, length, value] of operations) {
          if (kind === 'flush') disk.flush();
          else if (kind === 'write') disk.write(offset, new Uint8Array(length).fill(value));
          else disk.writeZeroes(offset, length);
          if (kind !== 'flush') model.fill(kind === 'write' ? value : 0, offset, offset + length);
        }
        expect(Buffer.compare(disk.content(), model)).toBe(0);
        const read = new Uint8Array(333);
        disk.read(77, read);
        expect(Buffer.compare(read, model.subarray(77, 77 + 333))).toBe(0);
        expect(Buffer.compare(disk.crashImage('all'), model)).toBe(0);
        disk.flush();
        expect(Buffer.compare(disk.crashImage('none'), model)).toBe(0);
      }),
    );
  });

  it('copies its content and does not share it', () => {
    const content = Buffer.alloc(1024);
    const disk = new SimulatedDisk(content);
    disk.write(0, filled(1, 1));
    disk.imageAt(0, 'all')[0] = 9;
    disk.content()[0] = 9;
    expect([content[0], disk.content()[0], disk.imageAt(0, 'none')[0]]).toEqual([0, 1, 0]);
  });

  it('refuses what lies outside', () => {
    const disk = new SimulatedDisk(1000);
    expect(() => disk.read(999, new Uint8Array(2))).toThrow(RangeError);
    expect(() => disk.write(-1, new Uint8Array(1))).toThrow(RangeError);
    expect(() => disk.discard(0, 1001)).toThrow(RangeError);
    expect(disk.operations).toBe(0);
  });

  it('a discarded byte reads as one that nobody wrote', () => {
    const disk = new SimulatedDisk(filled(2, 1));
    disk.discard(0, SECTOR);
    expect(marks(disk.content())).toEqual([0xdd, 1]);
    disk.writeZeroes(0, SECTOR, { unmap: true });
    expect(marks(disk.content())).toEqual([0, 1]);
  });
});

describe('crash images', () => {
  it('the extreme ones: nothing, everything, only the n-th', () => {
    const disk = sample();
    expect(marks(disk.imageAt(4, 'none'))).toEqual([1, 1, 0, 0]);
    expect(marks(disk.imageAt(4, 'all'))).toEqual([1, 2, 3, 0]);
    expect(disk.unflushedAt(4)).toBe(2);
    expect(marks(disk.imageAt(4, { only: 0 }))).toEqual([1, 2, 2, 0]);
    expect(marks(disk.imageAt(4, { only: 1 }))).toEqual([1, 1, 3, 0]);
    expect(marks(disk.crashImage('all'))).toEqual([1, 2, 3, 0]);
  });

  it('sim-I1: what a completed flush covers is in every image, in whatever order they are asked for', () => {
    const disk = sample();
    for (const position of [4, 2, 3, 0, 2]) {
      for (const image of everyImage(disk, position, 100))
        if (position >= 2) expect(image.startsWith('1')).toBe(true);
    }
    disk.flush();
    expect(everyImage(disk, 5)).toEqual(new Set(['1230']));
  });

  it('sim-I3: every combination of versions comes out, and sim-I2: no other', () => {
    const disk = sample();
    expect(everyImage(disk, 0)).toEqual(new Set(['0000', '1000', '0100', '1100']));
    expect(everyImage(disk, 1), 'cut in the flush').toEqual(new Set(['0000', '1000', '0100', '1100']));
    expect(everyImage(disk, 2)).toEqual(new Set(['1100', '1200', '1120', '1220']));
    const all = new Set(['1100', '1200', '1120', '1220', '1130', '1230']);
    expect(everyImage(disk, 3)).toEqual(all);
    expect(everyImage(disk, 4)).toEqual(all);
  });

  it('sim-I2: a change of part of a sector lands with the rest of that sector or not at all', () => {
    const disk = new SimulatedDisk(filled(2, 1));
    disk.write(100, new Uint8Array(600).fill(2));
    const versions = [filled(2, 1), disk.content()].map((image) => [
      image.subarray(0, 512),
      image.subarray(512),
    ]);
    const seen = new Set<string>();
    const rng = new Prng(1);
    for (let round = 0; round < 200; round++) {
      const image = disk.crashImage(rng);
      const which = [0, 1].map((sector) =>
        versions.findIndex((version) => {
          return (
            Buffer.compare(version[sector]!, image.subarray(sector * SECTOR, (sector + 1) * SECTOR)) === 0
          );
        }),
      );
      expect(which).not.toContain(-1);
      seen.add(which.join(''));
    }
    expect([...seen].sort()).toEqual(['00', '01', '10', '11']);
  });

  it('sim-I1, sim-I2: random traces against a naive model, at every position', () => {
    const operation = fc.tuple(fc.constantFrom('write', 'discard', 'zeroes', 'flush'), fc.nat(7), fc.nat(3));
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 20 }), fc.nat(), (operations, seed) => {
        const disk = new SimulatedDisk(8 * SECTOR);
        // For each position and sector the values that may be there.
        let versions = Array.from({ length: 8 }, () => new Set([0]));
        let cache = Array<number>(8).fill(0);
        const possible: Set<number>[][] = [];
        operations.forEach(([kind, first, more], index) => {
          const count = Math.min(8 - first, 1 + more);
          const value = kind === 'write' ? index + 1 : kind === 'discard' ? 0xdd : 0;
          if (kind === 'write') disk.write(first * SECTOR, filled(count, value));
          if (kind === 'discard') disk.discard(first * SECTOR, count * SECTOR);
          if (kind === 'zeroes') disk.writeZeroes(first * SECTOR, count * SECTOR);
          if (kind === 'flush') {
            disk.flush();
            possible.push(versions);
            versions = cache.map((now) => new Set([now]));
            return;
          }
          cache = cache.map((now, sector) => (sector >= first && sector < first + count ? value : now));
          versions = versions.map((set, sector) => new Set([...set, cache[sector]!]));
          possible.push(versions);
        });
        possible.push(versions);
        const rng = new Prng(seed);
        for (const [position, sets] of possible.entries()) {
          for (const survivors of ['none', 'all', rng, rng] as const) {
            const image = marks(disk.imageAt(position, survivors));
            for (const [sector, value] of image.entries()) expect(sets[sector]).toContain(value);
          }
        }
      }),
      { numRuns: 300 },
    );
  });

  it('one seed repeats a run', () => {
    const images = () => {
      const rng = new Prng(42);
      return Array.from({ length: 20 }, () => marks(sample().crashImage(rng)).join(''));
    };
    expect(images()).toEqual(images());
  });

  it('10,000 cuts of a device of 256 KiB take seconds', () => {
    const disk = new SimulatedDisk(256 * 1024);
    const rng = new Prng(1);
    for (let i = 0; i < 2500; i++) {
      disk.write(rng.below(60) * 4096, rng.bytes(4096));
      if (i % 5 === 0) disk.flush();
    }
    const start = performance.now();
    let images = 0;
    for (let cut = 0; cut <= disk.operations; cut++) {
      for (let i = 0; i < 4; i++, images++) disk.imageAt(cut, rng);
    }
    expect(images).toBeGreaterThan(10_000);
    expect(performance.now() - start).toBeLessThan(20_000);
  });
});

describe('a power cut', () => {
  it('throws in the operation it hits and in every later one', () => {
    const disk = new SimulatedDisk(4 * SECTOR);
    disk.write(0, filled(1, 1));
    disk.cutAfter(2);
    disk.flush();
    disk.write(SECTOR, filled(1, 2));
    disk.read(0, new Uint8Array(1));
    expect(() => disk.write(2 * SECTOR, filled(2, 3))).toThrow(PowerCut);
    expect(() => disk.read(0, new Uint8Array(1))).toThrow(PowerCut);
    expect(() => disk.flush()).toThrow(PowerCut);
    expect(() => disk.discard(0, 1)).toThrow(PowerCut);
    expect(disk.operations).toBe(4);
    const rng = new Prng(1);
    const images = new Set(Array.from({ length: 500 }, () => marks(disk.crashImage(rng)).join('')));
    const torn = ['00', '30', '03', '33'];
    expect(images).toEqual(new Set(['0', '2'].flatMap((second) => torn.map((end) => `1${second}${end}`))));
  });

  it('in a flush leaves any subset', () => {
    const disk = new SimulatedDisk(2 * SECTOR);
    disk.write(0, filled(2, 1));
    disk.cutAfter(0);
    expect(() => disk.flush()).toThrow(PowerCut);
    const rng = new Prng(1);
    const images = new Set(Array.from({ length: 300 }, () => marks(disk.crashImage(rng)).join('')));
    expect(images).toEqual(new Set(['00', '01', '10', '11']));
  });
});

describe('injected errors', () => {
  const failing = (change: () => void) => {
    try {
      change();
    } catch (error) {
      expect(error).toBeInstanceOf(DmError);
      return (error as DmError).code;
    }
    return 'none';
  };

  it('hit the n-th operation of their kind from the call on, once', () => {
    const disk = new SimulatedDisk(4 * SECTOR);
    const write = () => failing(() => disk.write(0, filled(1, 1)));
    write();
    disk.injectError({ op: 'write', at: 2 });
    disk.injectError({ op: 'read', at: 1 });
    expect([write(), failing(() => disk.flush()), write(), write()]).toEqual(['none', 'none', 'EIO', 'none']);
    const read = () => failing(() => disk.read(0, new Uint8Array(1)));
    expect([read(), read()]).toEqual(['EIO', 'none']);
  });

  it.each([
    [false, ['00']],
    [true, ['11']],
    ['some' as const, ['00', '01', '10', '11']],
  ])('a failed write with landed = %s', (landed, expected) => {
    const seen = new Set<string>();
    for (let seed = 0; seed < 50; seed++) {
      const disk = new SimulatedDisk(2 * SECTOR, { rng: new Prng(seed) });
      disk.injectError({ op: 'write', at: 1, landed });
      expect(failing(() => disk.write(0, filled(2, 1)))).toBe('EIO');
      const cache = marks(disk.content()).join('');
      seen.add(cache);
      disk.flush();
      expect(marks(disk.crashImage('none')).join('')).toBe(cache);
    }
    expect([...seen].sort()).toEqual(expected);
  });

  it('a failed flush makes nothing durable unless it landed; the next one does', () => {
    for (const landed of [false, true]) {
      const disk = new SimulatedDisk(SECTOR);
      disk.write(0, filled(1, 1));
      disk.injectError({ op: 'flush', at: 1, landed });
      expect(failing(() => disk.flush())).toBe('EIO');
      expect(marks(disk.crashImage('none'))).toEqual([landed ? 1 : 0]);
      disk.flush();
      expect(marks(disk.crashImage('none'))).toEqual([1]);
    }
  });
});

describe('Prng', () => {
  it('gives the numbers of mulberry32', () => {
    const rng = new Prng(1);
    expect([rng.next(), rng.next(), rng.next()]).toEqual([2693262067, 11749833, 2265367787]);
    expect(new Prng(2 ** 32 + 1).next()).toBe(2693262067);
  });

  it('below, chance, pick and bytes stay in range and reach it all', () => {
    const rng = new Prng(5);
    expect(new Set(Array.from({ length: 200 }, () => rng.below(5)))).toEqual(new Set([0, 1, 2, 3, 4]));
    expect([rng.chance(0), rng.chance(1)]).toEqual([false, true]);
    expect(new Set(Array.from({ length: 50 }, () => rng.pick(['a', 'b']))).size).toBe(2);
    expect(new Set(rng.bytes(10_000)).size).toBe(256);
  });
});

describe('several disks on one power supply', () => {
  /** Two disks of two sectors; `operations` in order, `a1` writes 1 to all of disk a, `aF` flushes it. */
  function twoDisks(...operations: string[]): PowerSupply {
    const power = new PowerSupply();
    const disks = [new SimulatedDisk(SECTOR, { power }), new SimulatedDisk(SECTOR, { power })];
    for (const operation of operations) {
      const disk = disks['ab'.indexOf(operation[0]!)]!;
      if (operation[1] === 'F') disk.flush();
      else disk.write(0, filled(1, Number(operation[1])));
    }
    return power;
  }

  function imagesAt({ disks }: PowerSupply, instant: number): Set<string> {
    const rng = new Prng(instant);
    const image = () => disks.map((disk) => marks(disk.imageAt(instant, rng))).join('');
    return new Set(Array.from({ length: 300 }, image));
  }

  it('one instant for all: an operation of one disk has not begun while one before it on another is hit', () => {
    const power = twoDisks('a1', 'b1', 'a2', 'aF', 'b2');
    expect(power.operations).toBe(5);
    expect(power.disks.map(({ trace }) => trace.map(({ instant }) => instant))).toEqual([
      [0, 2, 3],
      [1, 4],
    ]);
    expect(imagesAt(power, 0)).toEqual(new Set(['00', '10']));
    expect(imagesAt(power, 1)).toEqual(new Set(['00', '10', '01', '11']));
  });

  it('sim-I1, sim-I3: a flush is of its own disk alone, and what survives on one says nothing about another', () => {
    const power = twoDisks('a1', 'b1', 'a2', 'aF', 'b2');
    const any = new Set(['00', '10', '20', '01', '11', '21']);
    expect(imagesAt(power, 2)).toEqual(any);
    expect(imagesAt(power, 3), 'cut in the flush').toEqual(any);
    expect(imagesAt(power, 4)).toEqual(new Set(['20', '21', '22']));
    expect(imagesAt(power, 5)).toEqual(new Set(['20', '21', '22']));
    expect(power.disks.map((disk) => disk.unflushedAt(5))).toEqual([0, 2]);
  });

  it('a cut stops every disk', () => {
    const power = twoDisks('a1');
    const [a, b] = power.disks as [SimulatedDisk, SimulatedDisk];
    power.cutAfter(1);
    b.write(0, filled(1, 1));
    expect(() => a.flush()).toThrow(PowerCut);
    expect(() => b.flush()).toThrow(PowerCut);
    expect(() => b.read(0, new Uint8Array(1))).toThrow(PowerCut);
    expect([a.crashImage('none'), a.crashImage('all'), b.crashImage('all')].map((image) => image[0])).toEqual(
      [0, 1, 1],
    );
  });
});
