import { crc32 } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Prng } from '../../src/device/prng.js';
import {
  dataOffset,
  decodeSuperblock,
  encodeSuperblock,
  groupsOf,
  interleavedCapacity,
  newerOf,
  orderVote,
  type Placement,
  pairOffset,
  type Superblock,
  sectorsIn,
  separateCapacity,
  Table,
  type Volume,
} from '../../src/formats/csum.js';
import { naiveCrc, naiveDataSector, naiveTableSector } from '../targets/csum/naive-volume.js';
import { codeOf } from '../targets/harness.js';

const PLACEMENTS: readonly Placement[] = ['interleaved', 'separate-r', 'separate-c'];
const volumeOf = (placement: Placement, sectors = 2 ** 40, dataStart = 0, imdStart = 0): Volume => ({
  placement,
  order: 'be',
  sectors,
  dataStart: dataStart * 512,
  imdStart: imdStart * 512,
});
/** Sectors of the device: the one with data sector `rel`, and M1 of its group. */
const places = (volume: Volume, rel: number) => [
  dataOffset(volume, Math.floor(rel / 62)) / 512 + (rel % 62),
  pairOffset(volume, Math.floor(rel / 62)) / 512,
];

describe('mapping, section 4', () => {
  it.each([
    [0, 1, 3],
    [61, 1, 64],
    [62, 65, 67],
    [1000, 1025, 1035],
    [61_999, 63_937, 64_000],
    [2_097_151, 2_164_801, 2_164_804],
  ])('interleaved: sector %i has M1 at %i and lies at %i', (rel, m1, data) => {
    expect(places(volumeOf('interleaved'), rel)).toEqual([data, m1]);
  });

  it.each([
    [0, 1, 3, 1],
    [61, 62, 3, 1],
    [62, 63, 5, 3],
    [1000, 1001, 35, 33],
    [61_999, 62_000, 2001, 1999],
  ])('separate: sector %i lies at %i, has M1 (R) at %i, M1 (C) at %i', (rel, data, r, c) => {
    expect(places(volumeOf('separate-r'), rel)).toEqual([data, r]);
    expect(places(volumeOf('separate-c'), rel)).toEqual([data, c]);
  });

  it('is the naive one, also with offsets', () => {
    const anyPlace = fc.tuple(fc.constantFrom(...PLACEMENTS), fc.nat(2 ** 38), fc.nat(1e6), fc.nat(1e6));
    fc.assert(
      fc.property(anyPlace, ([placement, rel, dataStart, imdStart]) => {
        const shape = { placement, order: 'be' as const, sectors: 2 ** 40, dataStart, imdStart };
        expect(places(volumeOf(placement, 2 ** 40, dataStart, imdStart), rel)).toEqual([
          naiveDataSector(shape, rel),
          naiveTableSector(shape, Math.trunc(rel / 62)),
        ]);
      }),
      { numRuns: 2000 },
    );
  });

  it('sizes and capacities: those of the document', () => {
    expect([2048, 204_800, 2_097_152].map(interleavedCapacity)).toEqual([1983, 198_399, 2_031_615]);
    for (const [sectors, area] of [
      [62, 65],
      [63, 68],
      [2048, 2117],
      [2_097_152, 2_164_805],
    ] as const) {
      expect(interleavedCapacity(area)).toBe(sectors);
      expect(interleavedCapacity(area - 1)).toBeLessThan(sectors);
    }
  });

  it('capacity is the most sectors that fit, for every small area', () => {
    const needs = (n: number) => 1 + n + 2 * Math.ceil(n / 62);
    for (let area = 0, most = 0; area < 3000; area++) {
      while (needs(most + 1) <= area) most++;
      expect([area, interleavedCapacity(area)]).toEqual([area, most]);
    }
    for (const [placement, lead] of [
      ['separate-r', 3],
      ['separate-c', 1],
    ] as const) {
      for (let imd = 0; imd < 60; imd++) {
        for (const data of [0, 1, 2, 62, 63, 64, 1000, 5000]) {
          let most = 0;
          while (most + 2 <= data && 2 * Math.ceil((most + 1) / 62) + lead <= imd) most++;
          expect([imd, data, separateCapacity(data, imd, placement)]).toEqual([imd, data, most]);
        }
      }
    }
  });

  it('groups, and the sectors of each', () => {
    for (const [sectors, groups, last] of [
      [1, 1, 1],
      [62, 1, 62],
      [63, 2, 1],
      [1983, 32, 61],
    ] as const) {
      const volume = volumeOf('interleaved', sectors);
      expect([groupsOf(volume), sectorsIn(volume, groups - 1)]).toEqual([groups, last]);
      if (groups > 1) expect(sectorsIn(volume, 0)).toBe(62);
    }
  });
});

/** A table with random tuples, flags, tags and counter, sealed by hand. */
function randomTable(order: 'be' | 'le', seed: number): Uint8Array {
  const bytes = new Prng(seed).bytes(512);
  const crc = naiveCrc(bytes.subarray(8));
  bytes[order === 'be' ? 2 : 3] = crc >> 8;
  bytes[order === 'be' ? 3 : 2] = crc & 255;
  return bytes;
}

const flip = (bytes: Uint8Array, bit: number) => {
  bytes[bit >> 3]! ^= 1 << (bit & 7);
};
/** The bits that the CRC covers, and its own. */
const COVERED = [...Array(4096).keys()].filter((bit) => (bit >= 16 && bit < 32) || bit >= 64);

describe('an imd sector, section 2', () => {
  it('has its CRC at byte 2 and tuple k at 8 + 8k, in the byte order of the volume', () => {
    for (const [order, high, low] of [
      ['be', 0, 1],
      ['le', 1, 0],
    ] as const) {
      for (const k of [0, 1, 30, 61]) {
        const table = new Table(order);
        table.setCrc(k, 0x2189);
        table.counter = 258;
        table.seal();
        const expected = new Uint8Array(512);
        expected[8 + 8 * k + high] = 0x21;
        expected[8 + 8 * k + low] = 0x89;
        const crc = naiveCrc(expected.subarray(8));
        expected[0] = 2;
        expected[2 + high] = crc >> 8;
        expected[2 + low] = crc & 255;
        expect(table.bytes).toEqual(expected);
        expect([table.crc(k), table.storedCrc, table.computedCrc, table.counter]).toEqual([
          0x2189,
          crc,
          crc,
          2,
        ]);
      }
    }
  });

  it('keeps flags, tags, slack and unused bytes', () => {
    const bytes = randomTable('be', 1);
    const table = new Table('be', bytes.slice());
    table.setCrc(61, 0xabcd);
    table.seal();
    const kept = (from: Uint8Array) => from.filter((_, i) => i !== 2 && i !== 3 && i !== 496 && i !== 497);
    expect(kept(table.bytes)).toEqual(kept(bytes));
    expect(table.isSound).toBe(true);
  });

  it('corrects each single flipped bit of tuples, slack and CRC to exactly what it was', () => {
    for (const order of ['be', 'le'] as const) {
      const bytes = randomTable(order, 2);
      expect(new Table(order, bytes).isSound).toBe(true);
      const table = new Table(order, bytes.slice());
      let wrong = 0;
      for (const bit of COVERED) {
        flip(table.bytes, bit);
        if (table.isSound || !table.correctBit() || Buffer.compare(table.bytes, bytes) !== 0) wrong++;
        table.bytes.set(bytes);
      }
      expect([COVERED.length, wrong]).toEqual([4048, 0]);
    }
  });

  it('never takes up to three flipped bits for sound, nor two for one', () => {
    // By the differences that flips make between stored and computed CRC: they add up.
    const differences = COVERED.map((bit) => {
      if (bit < 32) return 1 << (bit - 16);
      const bytes = new Uint8Array(512);
      flip(bytes, bit);
      return naiveCrc(bytes.subarray(8));
    });
    const ofOne = new Uint8Array(65536);
    for (const difference of differences) {
      expect(ofOne[difference]).toBe(0);
      ofOne[difference] = 1;
    }
    expect(ofOne[0]).toBe(0);
    let asOne = 0;
    for (let a = 0; a < differences.length; a++) {
      for (let b = 0; b < a; b++) asOne += ofOne[differences[a]! ^ differences[b]!]!;
    }
    expect(asOne).toBe(0);

    const rng = new Prng(3);
    const bytes = randomTable('le', 3);
    const table = new Table('le', bytes.slice());
    let [claims, changed] = [0, 0];
    for (let i = 0; i < 20_000; i++) {
      const bits = new Set<number>();
      while (bits.size < 2 + (i & 1)) bits.add(rng.pick(COVERED));
      for (const bit of bits) flip(table.bytes, bit);
      const flipped = table.bytes.slice();
      if (table.isSound) claims++;
      const corrected = table.correctBit();
      if (corrected && bits.size === 2) claims++;
      // Three may look like one: then the table is sound and wrong. The code cannot know.
      if (corrected !== table.isSound) claims++;
      if (!corrected && Buffer.compare(table.bytes, flipped) !== 0) changed++;
      table.bytes.set(bytes);
    }
    expect({ claims, changed }).toEqual({ claims: 0, changed: 0 });
  });
});

describe('brothers, sections 2 and 5', () => {
  it('only neighbours modulo 256 have an order', () => {
    for (let m1 = 0; m1 < 256; m1++) {
      for (let m2 = 0; m2 < 256; m2++) {
        const expected = m1 === (m2 + 1) % 256 ? 0 : m2 === (m1 + 1) % 256 ? 1 : undefined;
        if (newerOf(m1, m2) !== expected) expect.fail(`(${m1}, ${m2}) → ${newerOf(m1, m2)}`);
      }
    }
    expect([newerOf(0, 1), newerOf(254, 253), newerOf(254, 255), newerOf(0, 255), newerOf(0, 5)]).toEqual([
      1,
      0,
      1,
      0,
      undefined,
    ]);
  });

  it('vote for their byte order, unless it does not show', () => {
    const zeros = new Uint8Array(512);
    const palindrome = new Uint8Array(512);
    for (let i = 0; palindrome[2] === 0 || naiveCrc(palindrome.subarray(8)) >> 8 !== palindrome[2]; i++) {
      new DataView(palindrome.buffer).setUint32(8, i);
      palindrome[2] = palindrome[3] = naiveCrc(palindrome.subarray(8)) & 255;
    }
    const damaged = randomTable('be', 4);
    damaged[100]! ^= 1;
    for (const order of ['be', 'le'] as const) {
      expect(new Table(order, palindrome.slice()).isSound).toBe(true);
      const table = randomTable(order, 5);
      for (const silent of [zeros, palindrome, damaged]) {
        expect(orderVote(table, silent)).toBe(order);
        expect(orderVote(silent, table)).toBe(order);
      }
    }
    for (const a of [zeros, palindrome, damaged]) {
      for (const b of [zeros, palindrome, damaged]) expect(orderVote(a, b)).toBeUndefined();
    }
  });
});

const anySuperblock: fc.Arbitrary<Superblock> = fc
  .record({
    order: fc.constantFrom('be' as const, 'le' as const),
    placement: fc.constantFrom(...PLACEMENTS),
    state: fc.constantFrom('formatting' as const, 'in-use' as const, 'clean' as const),
    sectors: fc.integer({ min: 1, max: 2 ** 43 - 1 }),
    id: fc.uint8Array({ minLength: 16, maxLength: 16 }),
    done: fc.double({ min: 0, max: 1, noNaN: true }),
  })
  .map(({ done, ...rest }) => ({ ...rest, groupsFormatted: Math.floor(done * groupsOf(rest)) }));

const EXAMPLE: Superblock = {
  order: 'le',
  placement: 'separate-r',
  state: 'in-use',
  sectors: 0x1234567,
  groupsFormatted: 77,
  id: Uint8Array.from({ length: 16 }, (_, i) => 0xf0 + i),
};

/** Puts the checksum right after a mutation. */
function reseal(bytes: Uint8Array): Uint8Array {
  new DataView(bytes.buffer).setUint32(508, crc32(bytes.subarray(0, 508)), true);
  return bytes;
}

describe('the superblock', () => {
  it('has its fields where the comment says', () => {
    const expected = Buffer.alloc(512);
    expected.write('dmfuseCS', 0, 'latin1');
    expected.writeUInt32LE(1, 8);
    expected.set([2, 2, 2], 12);
    expected.writeBigUInt64LE(0x1234567n, 16);
    expected.writeBigUInt64LE(77n, 24);
    expected.set(EXAMPLE.id, 32);
    expected.writeUInt32LE(crc32(expected.subarray(0, 508)), 508);
    expect(Buffer.from(encodeSuperblock('data', EXAMPLE)).toString('hex')).toBe(expected.toString('hex'));
    expect(Buffer.from(encodeSuperblock('imd', EXAMPLE).subarray(0, 8)).toString()).toBe('dmfuseCI');
  });

  it('comes back as it was, and only in its own area', () => {
    fc.assert(
      fc.property(anySuperblock, fc.constantFrom('data' as const, 'imd' as const), (superblock, area) => {
        const bytes = encodeSuperblock(area, superblock);
        expect(decodeSuperblock(area, bytes)).toEqual(superblock);
        expect(decodeSuperblock(area === 'data' ? 'imd' : 'data', bytes)).toBeUndefined();
      }),
    );
  });

  it('is not one with any byte changed to any value', () => {
    const bytes = encodeSuperblock('data', EXAMPLE);
    for (let at = 0; at < 512; at++) {
      const right = bytes[at]!;
      for (let value = 0; value < 256; value++) {
        bytes[at] = value;
        if (value !== right && decodeSuperblock('data', bytes) !== undefined)
          expect.fail(`byte ${at}: ${value}`);
      }
      bytes[at] = right;
    }
  });

  it('with any byte changed and the checksum right: one that makes sense, or none, or of a later version', () => {
    const seen = { whole: 0, none: 0, later: 0 };
    for (let at = 0; at < 508; at++) {
      for (const value of [0, 1, 2, 3, 4, 5, 0x1f, 0x20, 0x7f, 0x80, 0xff]) {
        const bytes = encodeSuperblock('data', EXAMPLE);
        bytes[at] = value;
        reseal(bytes);
        let superblock: Superblock | undefined;
        if (codeOf(() => (superblock = decodeSuperblock('data', bytes))) === 'EINVAL') {
          expect(at >= 8 && at < 12, `byte ${at}`).toBe(true);
          seen.later++;
        } else if (superblock === undefined) {
          seen.none++;
        } else {
          seen.whole++;
          const { order, placement, state, sectors, groupsFormatted } = superblock;
          expect(['be', 'le']).toContain(order);
          expect(PLACEMENTS).toContain(placement);
          expect(['formatting', 'in-use', 'clean']).toContain(state);
          expect(Number.isSafeInteger(sectors * 1024) && sectors > 0).toBe(true);
          expect(groupsFormatted).toBeLessThanOrEqual(groupsOf({ sectors }));
        }
      }
    }
    expect(Math.min(...Object.values(seen))).toBeGreaterThan(10);
  });

  it('10 000 random ones with the right magic and checksum: a sentence or nothing, never nonsense', () => {
    const rng = new Prng(9);
    for (let i = 0; i < 10_000; i++) {
      const bytes = encodeSuperblock('imd', EXAMPLE);
      const mutations = 1 + rng.below(6);
      for (let m = 0; m < mutations; m++) bytes[8 + rng.below(rng.chance(0.7) ? 24 : 500)] = rng.next();
      if (rng.chance(0.2)) bytes.set(rng.bytes(500), 8);
      reseal(bytes);
      codeOf(() => {
        const superblock = decodeSuperblock('imd', bytes);
        if (superblock)
          expect(decodeSuperblock('imd', encodeSuperblock('imd', superblock))).toEqual(superblock);
      });
    }
  });
});
