/** Words of bits against a model that looks at one bit after the other. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { BlockDevice, Extent } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { bitmapLayout } from '../../../src/formats/cow-bitmap.js';
import { maskOf, nextOne, nextZero, popCount } from '../../../src/shared/bitmap.js';
import { bitmapBytes, createBits, loadBits } from '../../../src/targets/cow/bits.js';
import { expectSameBytes } from '../harness.js';
import { bitOf, bitsOf } from './rig.js';

const word = fc.oneof(
  fc.constantFrom(0, -1, 1, 1 << 31, 0x55555555),
  fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
);
const words = fc.array(word, { minLength: 1, maxLength: 8 }).map((values) => {
  const shared = new Int32Array(new SharedArrayBuffer(4 * values.length));
  shared.set(values);
  return shared;
});
const range = words.chain((bits) =>
  fc.tuple(
    fc.constant(bits),
    fc.integer({ min: 0, max: bits.length * 32 }),
    fc.integer({ min: 0, max: bits.length * 32 }),
  ),
);

describe('words of bits', () => {
  it('nextOne and nextZero find what one finds bit by bit', () => {
    fc.assert(
      fc.property(range, ([bits, from, end]) => {
        const bytes = new Uint8Array(bits.buffer).slice();
        const next = (wanted: boolean) => {
          let at = from;
          while (at < end && bitOf(bytes, at) !== wanted) at++;
          return Math.max(at, from) < end ? at : end;
        };
        expect([nextOne(bits, from, end), nextZero(bits, from, end)]).toEqual([next(true), next(false)]);
      }),
      { numRuns: 3000 },
    );
  });

  it('maskOf has the bits of a range in a word, popCount counts them', () => {
    for (const start of [0, 32, 2 ** 33]) {
      for (let from = start - 3; from < start + 32; from++) {
        for (let end = Math.max(from, start) + 1; end < start + 40; end++) {
          const mask = maskOf(start / 32, from, end);
          let count = 0;
          for (let bit = 0; bit < 32; bit++) {
            const isIn = start + bit >= from && start + bit < end;
            if (((mask & (1 << bit)) !== 0) !== isIn) expect.fail(`bit ${bit} of sectors ${from} to ${end}`);
            if (isIn) count++;
          }
          if (popCount(mask) !== count) expect.fail(`${mask} has ${count} bits`);
        }
      }
    }
  });

  it('loadBits takes all bytes, whatever the extents, and counts the bits of the stack', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 90_000 }),
        fc.array(fc.tuple(fc.nat(12_000), fc.uint8Array({ maxLength: 700 })), { maxLength: 6 }),
        fc.boolean(),
        (sectors, patches, isSparse) => {
          const layout = bitmapLayout(sectors);
          const image = new Uint8Array(layout.minimumBytes);
          for (const [at, bytes] of patches) image.set(bytes, at);
          image.fill(0xff, bitmapBytes(layout));
          const bits = createBits(layout);
          const device = isSparse ? new Holes(image) : new MemoryDevice(image);
          const owned = loadBits(device, layout, bits);
          const loaded = new Uint8Array(bits).slice();
          const used = bitmapBytes(layout);
          expectSameBytes(loaded.subarray(0, used), image.subarray(0, used), 'the bits');
          expect(loaded.subarray(used).every((byte) => byte === 0)).toBe(true);
          expect(owned).toBe(bitsOf(image, sectors).length);
        },
      ),
      { numRuns: 150 },
    );
  });
});

/** Says exactly where its bytes are zero; a read of a hole fails the test. */
class Holes extends MemoryDevice implements BlockDevice {
  override read(offset: number, into: Uint8Array): void {
    expect(this.extentAt(offset)).toMatchObject({ data: true });
    super.read(offset, into);
  }

  extentAt(offset: number): Extent {
    const data = this.bytes[offset] !== 0;
    const length = this.bytes.subarray(offset).findIndex((byte) => (byte !== 0) !== data);
    return { data, end: length < 0 ? this.size : offset + length };
  }
}
