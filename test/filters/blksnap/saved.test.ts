/** A saved change map: what is written is read again, and nothing else is. */
import crc32 from 'crc-32';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decodeTracker, encodeTracker, type SavedTracker } from '../../../src/filters/blksnap/saved.js';
import { codeOf } from '../../targets/harness.js';

const trackers: fc.Arbitrary<SavedTracker> = fc
  .record({
    identity: fc.string({ unit: 'grapheme', maxLength: 40 }),
    blocks: fc.integer({ min: 1, max: 200 }),
    short: fc.integer({ min: 1, max: 512 }),
    active: fc.integer({ min: 1, max: 255 }),
    seed: fc.infiniteStream(fc.nat(254)),
    generation: fc.uint8Array({ minLength: 16, maxLength: 16 }),
  })
  .map(({ identity, blocks, short, active, seed, generation }) => {
    const next = () => seed.next().value as number;
    const writeMap = Uint8Array.from({ length: blocks }, () => next() % (active + 1));
    const readMap = Uint8Array.from({ length: blocks }, () => next() % active);
    const size = (blocks - 1) * 512 + short;
    return { identity, map: { size, shift: 9, active, previous: active - 1, generation, writeMap, readMap } };
  });

const EXAMPLE: SavedTracker = {
  identity: 'disk é',
  map: {
    size: 1024,
    shift: 9,
    active: 3,
    previous: 2,
    generation: Uint8Array.from({ length: 16 }, (_, i) => i),
    writeMap: Uint8Array.of(1, 3),
    readMap: Uint8Array.of(1, 2),
  },
};

/** The example with some bytes changed, and a checksum that is right for them. */
function forged(change: (bytes: Buffer) => void): Uint8Array {
  const bytes = Buffer.from(encodeTracker(EXAMPLE));
  change(bytes);
  bytes.writeInt32LE(crc32.buf(bytes.subarray(0, -4)), bytes.length - 4);
  return bytes;
}

describe('a saved change map', () => {
  it('is read as it was written', () => {
    fc.assert(
      fc.property(trackers, (saved) => {
        expect(decodeTracker(encodeTracker(saved))).toEqual(saved);
      }),
    );
  });

  it('has the layout that stands in the source', () => {
    const bytes = Buffer.from(encodeTracker(EXAMPLE));
    expect(bytes.subarray(0, -4).toString('hex')).toBe(
      '444d464342540d0a' + // magic
        '0100000007000000' + // version, identity bytes
        '0004000000000000' + // size
        '0903020000000000' + // shift, active, previous
        '000102030405060708090a0b0c0d0e0f' +
        '6469736b20c3a9' +
        '01030102',
    );
    expect(bytes.length).toBe(63);
  });

  it('is refused when it is cut short, longer, or has one bit flipped', () => {
    const bytes = encodeTracker(EXAMPLE);
    for (let length = 0; length < bytes.length; length++) {
      expect(codeOf(() => decodeTracker(bytes.subarray(0, length)))).toBe('EINVAL');
    }
    expect(codeOf(() => decodeTracker(Buffer.concat([bytes, Buffer.alloc(1)])))).toBe('EINVAL');
    for (let bit = 0; bit < 8 * bytes.length; bit++) {
      const flipped = bytes.slice();
      flipped[bit >> 3]! ^= 1 << (bit & 7);
      expect(codeOf(() => decodeTracker(flipped))).toBe('EINVAL');
    }
  });

  it.each<[string, (bytes: Buffer) => void]>([
    ['version', (bytes) => bytes.writeUInt32LE(2, 8)],
    ['whole head|bytes', (bytes) => bytes.writeUInt32LE(0xffffffff, 12)],
    ['bytes, but', (bytes) => bytes.writeUInt32LE(8, 12)],
    ['bytes, but', (bytes) => bytes.writeBigUInt64LE(1025n, 16)],
    ['bytes, but', (bytes) => bytes.writeBigUInt64LE(2n ** 52n, 16)],
    ['device of', (bytes) => bytes.writeBigUInt64LE(0n, 16)],
    ['device of', (bytes) => bytes.writeBigUInt64LE(2n ** 63n, 16)],
    ['tracking blocks', (bytes) => bytes.writeUInt8(8, 24)],
    ['tracking blocks', (bytes) => bytes.writeUInt8(31, 24)],
    ['do not follow', (bytes) => bytes.writeUInt8(4, 25)],
    ['do not follow', (bytes) => bytes.writeUInt16LE(0, 25)],
    ['nothing is known', (bytes) => bytes.writeUInt8(1, 31)],
    ['never reached', (bytes) => bytes.writeUInt8(4, 55)],
    ['never reached', (bytes) => bytes.writeUInt8(3, 57)],
    ['no UTF-8', (bytes) => bytes.writeUInt8(0xff, 50)],
  ])('is refused for its %s, and says so', (what, change) => {
    expect(() => decodeTracker(forged(change))).toThrow(new RegExp(what));
    expect(codeOf(() => decodeTracker(forged(change)))).toBe('EINVAL');
  });
});
