/** Bitmaps of the reference: written here as its code did, taken as the document's section 4 says. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { bitmapLayout, encodeMagicBlock } from '../../../src/formats/cow-bitmap.js';
import type { WorkDone } from '../../../src/progress.js';
import { type Imported, importSeedBits, type SeedLayer } from '../../../src/targets/cow/import.js';
import { expectSameBytes } from '../harness.js';
import { bitsOf } from './rig.js';

/** Byte and bit of a sector in a bitmap of the reference, as its code has it. */
function aliasedBit(sector: number, blockSize: number): { byte: number; bit: number } {
  const block = Math.floor(sector / (8 * blockSize));
  return { byte: block * blockSize + Math.floor((sector % blockSize) / 8), bit: sector % 8 };
}

/** The bitmap that the reference has after writing these sectors. */
function referenceBitmap(sectors: number, blockSize: number, written: Iterable<number>): MemoryDevice {
  const layout = bitmapLayout(sectors);
  const device = new MemoryDevice(layout.minimumBytes);
  for (const sector of written) {
    const { byte, bit } = aliasedBit(sector, blockSize);
    device.bytes[byte]! |= 1 << bit;
  }
  device.write(layout.magicOffset, encodeMagicBlock(layout));
  return device;
}

interface Case extends SeedLayer {
  readonly sectors: number;
  readonly data: MemoryDevice;
  readonly below: MemoryDevice;
  readonly old: MemoryDevice;
}

function makeCase(sectors: number, blockSize: number, written: Iterable<number>): Case {
  const old = referenceBitmap(sectors, blockSize, written);
  return {
    sectors,
    blockSize,
    old,
    oldBitmap: { device: old, path: 'old' },
    data: new MemoryDevice(sectors * 512 + 300),
    below: new MemoryDevice(sectors * 512),
  };
}

async function run(layer: Case): Promise<{ imported: Imported; bits: Uint8Array }> {
  const bitmap = new MemoryDevice(bitmapLayout(layer.sectors).minimumBytes);
  const imported = await importSeedBits(layer, bitmap);
  return { imported, bits: bitmap.bytes };
}

/** Marks a sector as not zero. */
function mark(device: MemoryDevice, sector: number, value = 1): void {
  device.bytes[sector * 512 + (sector % 512)] = value;
}

function isZeroSector(device: MemoryDevice, sector: number): boolean {
  return device.bytes.subarray(sector * 512, (sector + 1) * 512).every((byte) => byte === 0);
}

describe('the reference`s bitmap, by the document`s table', () => {
  it.each([
    [0, '0.0', '0.0'],
    [512, '64.0', '0.0'],
    [4095, '511.7', '63.7'],
    [4096, '0.0', '512.0'],
    [8192, '0.0', '1024.0'],
    [32_767, '511.7', '3647.7'],
    [32_768, '4096.0', '4096.0'],
  ])('sector %i: %s with 4096, %s with 512', (sector, with4096, with512) => {
    const name = ({ byte, bit }: { byte: number; bit: number }) => `${byte}.${bit}`;
    expect(name(aliasedBit(sector, 4096))).toBe(with4096);
    expect(name(aliasedBit(sector, 512))).toBe(with512);
  });
});

describe('importSeedBits', () => {
  it('takes of a bit`s eight sectors those that differ from below or are not zero', async () => {
    const layer = makeCase(40_000, 4096, [5]);
    mark(layer.data, 5); // written
    mark(layer.data, 5 + 4096); // something else that the device held
    mark(layer.below, 5 + 2 * 4096); // zeros over data
    mark(layer.data, 5 + 3 * 4096); // the same as below, but not zero
    mark(layer.below, 5 + 3 * 4096);
    mark(layer.data, 6); // no bit
    mark(layer.data, 5 + 8 * 4096); // another block's
    const { imported, bits } = await run(layer);
    expect(bitsOf(bits, 40_000)).toEqual([5, 5 + 4096, 5 + 2 * 4096, 5 + 3 * 4096]);
    expect(imported).toEqual({ bits: 1, sectors: 4, uncertainSectors: 4, uncertainZeroSectors: 1 });
  });

  it('one sector of a bit that shows is not uncertain', async () => {
    const layer = makeCase(10_000, 512, [7, 9]);
    mark(layer.data, 7 + 512);
    const { imported, bits } = await run(layer);
    expect(bitsOf(bits, 10_000)).toEqual([7 + 512]);
    expect(imported).toEqual({ bits: 2, sectors: 1, uncertainSectors: 0, uncertainZeroSectors: 0 });
  });

  it('any bitmap: as a model sector by sector, and the stack reads as in the reference', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          blockSize: fc.constantFrom(512, 1024, 4096),
          sectors: fc.constantFrom(1, 500, 513, 4096, 5000, 12_345),
          seed: fc.integer({ min: 0, max: 2 ** 31 }),
        }),
        async ({ blockSize, sectors, seed }) => {
          const rng = new Prng(seed);
          const written = new Set<number>();
          for (let times = rng.below(20); times > 0; times--) {
            const first = rng.below(sectors);
            const count = 1 + rng.below(rng.pick([1, 10, 3000]));
            for (let s = first; s < Math.min(sectors, first + count); s++) written.add(s);
          }
          const layer = makeCase(sectors, blockSize, written);
          for (let sector = 0; sector < sectors; sector++) {
            if (rng.chance(0.5)) mark(layer.below, sector, 7);
            if (rng.chance(written.has(sector) ? 0.8 : 0.1)) mark(layer.data, sector, rng.pick([7, 8]));
          }
          const before = [layer.old, layer.data, layer.below].map(({ bytes }) => bytes.slice());
          const { imported, bits } = await run(layer);
          const aliases = new Map<string, number[]>();
          for (let sector = 0; sector < sectors; sector++) {
            const { byte, bit } = aliasedBit(sector, blockSize);
            if ((layer.old.bytes[byte]! & (1 << bit)) === 0) continue;
            const sharing = aliases.get(`${byte}.${bit}`) ?? [];
            aliases.set(`${byte}.${bit}`, sharing);
            if (!isZeroSector(layer.data, sector) || !isZeroSector(layer.below, sector)) sharing.push(sector);
          }
          const taken = [...aliases.values()].flat().sort((a, b) => a - b);
          const uncertain = [...aliases.values()].filter(({ length }) => length > 1).flat();
          expect(bitsOf(bits, sectors)).toEqual(taken);
          expect(imported).toEqual({
            bits: aliases.size,
            sectors: taken.length,
            uncertainSectors: uncertain.length,
            uncertainZeroSectors: uncertain.filter((sector) => isZeroSector(layer.data, sector)).length,
          });
          [layer.old, layer.data, layer.below].forEach(({ bytes }, index) => {
            expectSameBytes(bytes, before[index]!, 'cow-S2');
          });
        },
      ),
      { numRuns: 60 },
    );
  });

  it('nothing is written behind the bits of the stack', async () => {
    const layer = makeCase(5003, 512, [0, 5002]);
    for (let sector = 0; sector < 5003; sector++) mark(layer.data, sector);
    const { bits } = await run(layer);
    expect(bits.subarray(Math.ceil(5003 / 8)).every((byte) => byte === 0)).toBe(true);
    expect(bitsOf(bits, 5008).at(-1)).toBe(5002);
  });

  it.each<[string, () => Case, string]>([
    [
      'a linear bitmap',
      () => {
        const layer = makeCase(40_000, 4096, []);
        layer.old.bytes[512] = 1;
        return layer;
      },
      'old: byte 512 is not zero, where a bitmap of the reference with a block size of 4096 bytes has no bits',
    ],
    [
      'one of a smaller block size',
      () => ({ ...makeCase(40_000, 512, [4096]), blockSize: 4096 }),
      'old: byte 512 is not zero',
    ],
    [
      'one of a larger block size',
      () => ({ ...makeCase(40_000, 4096, [600]), blockSize: 512 }),
      'old: byte 75 is not zero',
    ],
    [
      'a bit of no sector in the stack',
      () => {
        const layer = makeCase(100, 512, []);
        layer.old.bytes[12] = 0x10;
        return layer;
      },
      'old: bit 4 of byte 12 is set, and none of its sectors is in a stack of 100',
    ],
    [
      'one that was never used',
      () => {
        const layer = makeCase(100, 512, []);
        layer.old.bytes.fill(0);
        return layer;
      },
      'old: all zero, no bitmap that was ever used',
    ],
    [
      'one of another length',
      () => {
        const layer = makeCase(100, 512, []);
        layer.old.bytes.set(encodeMagicBlock({ storedLength: 9 }), bitmapLayout(100).magicOffset);
        return layer;
      },
      'length mismatch',
    ],
    [
      'a block size that is none',
      () => ({ ...makeCase(100, 512, []), blockSize: 65_536 }),
      'a block size of 65536',
    ],
  ])('cow-S1: refuses %s', async (_name, make, problem) => {
    const layer = make();
    const bitmap = new MemoryDevice(bitmapLayout(layer.sectors).minimumBytes);
    await expect(importSeedBits(layer, bitmap)).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining(problem),
    });
  });

  it('tells how far it is, up to the whole stack', async () => {
    const layer = makeCase(12_345, 512, [3, 9000]);
    const bitmap = new MemoryDevice(bitmapLayout(layer.sectors).minimumBytes);
    const seen: WorkDone[] = [];
    await importSeedBits(layer, bitmap, { onProgress: (done) => void seen.push(done) });
    expect(seen.length).toBe(Math.ceil(12_345 / (8 * 512)));
    expect(seen.map(({ bytes }) => bytes)).toEqual(
      seen.map((_, i) => Math.min((i + 1) * 512 * 8, 12_345) * 512),
    );
    expect(seen.every(({ bytesTotal }) => bytesTotal === 12_345 * 512)).toBe(true);
  });
});
