/** The layout of a cow bitmap, by the document's table and by a model that works in the document's words. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  bitmapLayout,
  COW_MAGIC,
  decodeMagicBlock,
  encodeMagicBlock,
  stackLengths,
} from '../../src/formats/cow-bitmap.js';

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const block = (magic: bigint, length: bigint) => {
  const bytes = Buffer.alloc(16);
  bytes.writeBigUInt64LE(magic, 0);
  bytes.writeBigUInt64LE(length, 8);
  return bytes;
};

describe('cow-L1: the layout', () => {
  // Section 3 of the document: len, bmap_len, magic sector, magic byte, block no. at 512 / 1024 / 4096.
  it.each([
    [8, 1, 192, 98_304, [192, 96, 24]],
    [204_800, 51, 192, 98_304, [192, 96, 24]],
    [258_047, 63, 192, 98_304, [192, 96, 24]],
    [258_048, 64, 256, 131_072, [256, 128, 32]],
    [262_144, 65, 256, 131_072, [256, 128, 32]],
    [2_097_152, 513, 704, 360_448, [704, 352, 88]],
    [8_385_866, 2048, 2240, 1_146_880, [2240, 1120, 280]],
    [20_971_520, 5121, 5312, 2_719_744, [5312, 2656, 664]],
  ])('a stack of %i sectors', (sectors, storedLength, magicSector, magicOffset, blocks) => {
    expect(bitmapLayout(sectors)).toEqual({
      sectors,
      bitsBytes: Math.ceil(sectors / 8),
      storedLength,
      magicOffset,
      minimumBytes: magicOffset + 16,
    });
    expect(magicSector * 512).toBe(magicOffset);
    expect([512, 1024, 4096].map((size) => magicOffset / size)).toEqual(blocks);
  });

  it('the magic block is behind the bits of every stack with its stored length, at a multiple of 32 KiB', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 2 ** 43 }), (sectors) => {
        const layout = bitmapLayout(sectors);
        const { least, most } = stackLengths(layout.storedLength);
        expect(least).toBeLessThanOrEqual(sectors);
        expect(most).toBeGreaterThanOrEqual(sectors);
        expect(layout.magicOffset % 32_768).toBe(0);
        expect(Math.ceil(most / 8)).toBeLessThanOrEqual(layout.storedLength * 512);
        expect(layout.storedLength * 512).toBeLessThan(layout.magicOffset);
        for (const length of [least, most]) {
          expect(bitmapLayout(length)).toMatchObject({
            storedLength: layout.storedLength,
            magicOffset: layout.magicOffset,
          });
        }
        expect(bitmapLayout(most + 1).storedLength).toBe(layout.storedLength + 1);
        if (least > 1) expect(bitmapLayout(least - 1).storedLength).toBe(layout.storedLength - 1);
      }),
    );
  });

  it('the magic block moves with every 128 MiB', () => {
    const step = 262_144;
    for (let steps = 1; steps < 50; steps++) {
      const [before, after] = [steps * step - 4097, steps * step - 4096].map(bitmapLayout);
      expect(after!.magicOffset - before!.magicOffset).toBe(32_768);
      expect(bitmapLayout((steps + 1) * step - 4097).magicOffset).toBe(after!.magicOffset);
    }
  });

  it.each([0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53])('refuses %d sectors', (sectors) => {
    expect(() => bitmapLayout(sectors)).toThrow('cow-L1');
  });
});

describe('cow-L2: the magic block', () => {
  it('is these bytes', () => {
    expect(hex(encodeMagicBlock(bitmapLayout(20_971_520)))).toBe('11bebaaa0ebeba00' + '0114000000000000');
    expect(COW_MAGIC).toBe(0x00babe0eaababe11n);
  });

  it('comes back', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }), (storedLength) => {
        expect(decodeMagicBlock(encodeMagicBlock({ storedLength }))).toEqual({
          kind: 'stored',
          storedLength,
        });
      }),
    );
  });

  it.each([
    [block(0n, 0n), { kind: 'none' }],
    [block(COW_MAGIC, 1n), { kind: 'stored', storedLength: 1 }],
    [block(COW_MAGIC, 2n ** 53n - 1n), { kind: 'stored', storedLength: 2 ** 53 - 1 }],
    [
      block(COW_MAGIC, 2n ** 53n),
      { kind: 'unknown', problem: 'the stored length is 9007199254740992 sectors, expected 1..2^53 - 1' },
    ],
    [
      block(COW_MAGIC, 2n ** 64n - 1n),
      { kind: 'unknown', problem: 'the stored length is 18446744073709551615 sectors, expected 1..2^53 - 1' },
    ],
    [
      block(COW_MAGIC, 0n),
      { kind: 'unknown', problem: 'the stored length is 0 sectors, expected 1..2^53 - 1' },
    ],
    [
      block(1n, 1n),
      { kind: 'unknown', problem: 'the magic is 0x0000000000000001, expected 0x00babe0eaababe11' },
    ],
    [
      block(0n, 1n),
      { kind: 'unknown', problem: 'the magic is 0x0000000000000000, expected 0x00babe0eaababe11' },
    ],
  ])('%o', (bytes, expected) => {
    expect(decodeMagicBlock(bytes)).toEqual(expected);
  });

  it('every bit counts', () => {
    const good = encodeMagicBlock(bitmapLayout(204_800));
    for (let bit = 0; bit < 128; bit++) {
      const bytes = good.slice();
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      const found = decodeMagicBlock(bytes);
      expect(found).not.toEqual({ kind: 'stored', storedLength: 51 });
      if (bit < 64) expect(found.kind).toBe('unknown');
    }
  });

  it('any 16 bytes are one of three things', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), fc.boolean(), (bytes, withMagic) => {
        if (withMagic) bytes.set(encodeMagicBlock({ storedLength: 1 }).subarray(0, 8));
        const found = decodeMagicBlock(bytes);
        if (found.kind === 'stored') expect(hex(encodeMagicBlock(found))).toBe(hex(bytes));
        else expect(found.kind === 'none').toBe(bytes.every((byte) => byte === 0));
      }),
    );
  });

  it('does not read past its bytes, and refuses what does not fit', () => {
    const inside = Buffer.concat([Buffer.alloc(3, 0xff), block(COW_MAGIC, 7n), Buffer.alloc(3, 0xff)]);
    expect(decodeMagicBlock(inside.subarray(3))).toEqual({ kind: 'stored', storedLength: 7 });
    expect(() => decodeMagicBlock(new Uint8Array(15))).toThrow('cow-L2');
    for (const storedLength of [0, -1, 0.5, 2 ** 53])
      expect(() => encodeMagicBlock({ storedLength })).toThrow('cow-L2');
  });
});
