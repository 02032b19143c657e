import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { Pair } from '../../../src/targets/csum/pair.js';
import { PLACEMENTS } from './areas.js';
import { NaiveVolume } from './naive-volume.js';

const SHAPE = { placement: 'separate-r', order: 'be', sectors: 62 } as const;
const VOLUME = { ...SHAPE, dataStart: 0, imdStart: 0 };

/** Group 0 with the given counters; both tables tell what the data is, but M1 has CRC 0x1111 for sector 3, M2 0x2222. */
function group(m1: number, m2: number): NaiveVolume {
  const naive = NaiveVolume.random(SHAPE, 1);
  for (const [index, counter, crc] of [
    [0, m1, 0x1111],
    [1, m2, 0x2222],
  ] as const) {
    const table = naive.table(0, index);
    table[0] = counter;
    naive.store(table, 8 + 8 * 3, crc);
    naive.seal(table);
  }
  return naive;
}

function read(naive: NaiveVolume) {
  const pair = new Pair(VOLUME, new MemoryDevice(naive.imd));
  pair.read(0);
  const { newer, older, olderIndex, corrected, lost, isUnordered } = pair;
  return { newer: newer?.crc(3), older: older?.crc(3), olderIndex, corrected, lost, isUnordered };
}

describe('a pair', () => {
  it('has the newer and the older brother by their counters, all 65536 of them', () => {
    const naive = group(0, 0);
    const pair = new Pair(VOLUME, new MemoryDevice(naive.imd));
    for (let m1 = 0; m1 < 256; m1++) {
      for (let m2 = 0; m2 < 256; m2++) {
        naive.table(0, 0)[0] = m1;
        naive.table(0, 1)[0] = m2;
        pair.read(0);
        const [newer, older] =
          m1 === (m2 + 1) % 256 ? [0x1111, 0x2222] : m2 === (m1 + 1) % 256 ? [0x2222, 0x1111] : [];
        const right =
          pair.newer?.crc(3) === newer &&
          pair.older?.crc(3) === older &&
          pair.isUnordered === (newer === undefined) &&
          (newer === undefined || pair.olderIndex === (newer === 0x1111 ? 1 : 0));
        if (!right || pair.corrected || pair.lost) expect.fail(`counters ${m1}, ${m2}`);
      }
    }
  });

  it('puts a flipped bit right, and leaves the medium alone', () => {
    for (const [index, corrected] of [
      [0, 1],
      [1, 2],
    ] as const) {
      const naive = group(7, 8);
      naive.table(0, index)[8 + 8 * 3]! ^= 4;
      const before = naive.imd.slice();
      expect(read(naive)).toEqual({
        newer: 0x2222,
        older: 0x1111,
        olderIndex: 0,
        corrected,
        lost: 0,
        isUnordered: false,
      });
      expect(Buffer.compare(naive.imd, before)).toBe(0);
    }
  });

  it('with one brother lost is the other one; the next update goes over the lost one', () => {
    const counted: [number, number][] = [
      [7, 8],
      [8, 7],
      [7, 200],
    ];
    for (const counters of counted) {
      const m1 = group(...counters);
      m1.table(0, 0)[100]! ^= 3;
      const only = { older: undefined, corrected: 0, isUnordered: false };
      expect(read(m1)).toEqual({ ...only, newer: 0x2222, olderIndex: 0, lost: 1 });
      const m2 = group(...counters);
      m2.table(0, 1)[100]! ^= 3;
      expect(read(m2)).toEqual({ ...only, newer: 0x1111, olderIndex: 1, lost: 2 });
    }
  });

  it('with both lost has nothing', () => {
    const naive = group(7, 8);
    naive.table(0, 0)[100]! ^= 3;
    naive.table(0, 1)[200]! ^= 3;
    expect(read(naive)).toMatchObject({ newer: undefined, older: undefined, lost: 3, isUnordered: false });
  });

  it('never formatted has nothing either', () => {
    expect(read(new NaiveVolume(SHAPE))).toMatchObject({ newer: undefined, lost: 0, isUnordered: true });
  });

  it('counts an unreadable brother as lost, also a sound one, and forgets it with the next pair', () => {
    const naive = group(7, 8);
    const bytes = naive.imd.subarray(3 * 512, 5 * 512);
    const pair = new Pair(VOLUME, new MemoryDevice(naive.imd));
    for (const [unreadable, newer] of [
      [1, 0x2222],
      [2, 0x1111],
      [3, undefined],
    ] as const) {
      pair.take(bytes, unreadable);
      expect([pair.newer?.crc(3), pair.older, pair.lost]).toEqual([newer, undefined, unreadable]);
    }
    naive.table(0, 0)[100]! ^= 1;
    pair.take(bytes, 1);
    expect([pair.corrected, pair.lost]).toEqual([0, 1]);
    naive.table(0, 0)[100]! ^= 1;
    pair.take(bytes);
    expect([pair.newer?.crc(3), pair.older?.crc(3), pair.lost]).toEqual([0x2222, 0x1111, 0]);
  });

  it('is found where the document has it, in both byte orders', () => {
    const rng = new Prng(1);
    for (const placement of PLACEMENTS) {
      for (const order of ['be', 'le'] as const) {
        const shape = { placement, order, sectors: 300, dataStart: 5, imdStart: 2 };
        const naive = NaiveVolume.random(shape, 2, 50);
        const pair = new Pair(
          { ...shape, dataStart: 5 * 512, imdStart: 2 * 512 },
          new MemoryDevice(naive.imd),
        );
        for (let i = 0; i < 20; i++) {
          const at = rng.below(naive.groups);
          pair.read(at);
          const newer = naive.table(at, pair.olderIndex === 0 ? 1 : 0);
          expect(Buffer.from(pair.newer!.bytes).equals(newer)).toBe(true);
        }
      }
    }
  });
});
