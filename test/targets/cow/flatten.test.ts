/** One image of what a stack shows. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk } from '../../../src/device/simulated.js';
import { flatten } from '../../../src/targets/cow/flatten.js';
import { expectSameBytes, withoutUnmap } from '../harness.js';
import { fillLayers, fragments, makeCow, memoryFor, naiveContent } from './rig.js';

const MIB = 1 << 20;

/** A source of holes, data and zeros that are data; counts what is asked of it. */
class Patchwork implements BlockDevice {
  readonly size: number;
  reads = 0;
  readonly bytes: Uint8Array;

  /** `ends`: of the extents, which are data and holes in turn. */
  constructor(
    private readonly ends: readonly number[],
    rng: Prng,
  ) {
    this.size = ends.at(-1)!;
    this.bytes = new Uint8Array(this.size);
    ends.forEach((end, index) => {
      const start = ends[index - 1] ?? 0;
      if (index % 2 === 1 || rng.chance(0.2)) return;
      this.bytes.set(rng.bytes(Math.min(end - start, 9000)), start);
      this.bytes.set(rng.bytes(1), end - 1);
    });
  }

  read(offset: number, into: Uint8Array): void {
    this.reads++;
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  extentAt(offset: number): { data: boolean; end: number } {
    const index = this.ends.findIndex((end) => end > offset);
    return { data: index % 2 === 0, end: this.ends[index]! };
  }

  write(): void {
    throw new Error('written');
  }
  flush(): void {}
  discard(): void {}
  writeZeroes(): void {}
}

/** How many whole blocks of 4096 zeros were written. */
function zeroBlocks({ trace }: SimulatedDisk): number {
  let count = 0;
  for (const { kind, offset, sectors } of trace) {
    if (kind !== 'write') continue;
    for (let at = Math.ceil(offset / 4096) * 4096; at + 4096 <= offset + sectors.length; at += 4096) {
      if (sectors.subarray(at - offset, at - offset + 4096).every((byte) => byte === 0)) count++;
    }
  }
  return count;
}

describe('flatten', () => {
  it('gives what the stack shows, sector by sector, on a device of any content', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          layers: fc.integer({ min: 0, max: 4 }),
          sectors: fc.constantFrom(1, 9, 64, 700, 2048, 2049, 4100),
          seed: fc.integer({ min: 0, max: 2 ** 31 }),
          kind: fc.constantFrom('new', 'used', 'used, no unmap'),
        }),
        async ({ layers, sectors, seed, kind }) => {
          const rng = new Prng(seed);
          const devices = memoryFor(layers, sectors, rng);
          await fillLayers(layers, sectors, devices, ({ target }) => {
            fragments(sectors, rng, (first, count) => {
              if (rng.chance(0.5)) target.writeZeroes(first * 512, count * 512);
              else target.write(first * 512, rng.bytes(count * 512));
            });
          });
          const before = Object.values(devices).map(({ bytes }) => bytes.slice());
          const size = sectors * 512;
          const isOutZero = kind === 'new';
          const content = isOutZero ? new Uint8Array(size) : rng.bytes(size + 300);
          const out = new MemoryDevice(content.slice());
          const { target } = await makeCow(layers, sectors, devices);
          const flattened = await flatten(target, kind === 'used, no unmap' ? withoutUnmap(out) : out, {
            isOutZero,
          });
          expect(flattened.bytes).toBe(size);
          const shown = naiveContent(layers, sectors, (name) => devices[name]!.bytes);
          expectSameBytes(out.bytes.subarray(0, size), shown, 'the image');
          expectSameBytes(out.bytes.subarray(size), content.subarray(size), 'what is behind it');
          Object.values(devices).forEach(({ bytes }, index) => {
            expectSameBytes(bytes, before[index]!, 'a member');
          });
        },
      ),
      { numRuns: 100 },
    );
  });

  it('zeros become holes: no block of 4096 zeros is written, and each byte at most once', async () => {
    for (let seed = 1; seed <= 30; seed++) {
      const rng = new Prng(seed);
      let end = 0;
      const ends = Array.from({ length: 1 + rng.below(30) }, () => {
        end += 512 * (1 + rng.below(rng.pick([2, 20, 3000])));
        return end;
      });
      const source = new Patchwork(ends, rng);
      const out = new SimulatedDisk(source.size);
      const { writtenBytes } = await flatten(source, out, { isOutZero: true });
      expectSameBytes(out.content(), source.bytes, `seed ${seed}`);
      expect(zeroBlocks(out)).toBe(0);
      let last = 0;
      for (const { kind, offset, sectors } of out.trace.slice(0, -1)) {
        expect([kind, offset >= last]).toEqual(['write', true]);
        last = offset + sectors.length;
      }
      expect(out.trace.at(-1)!.kind).toBe('flush');
      expect(writtenBytes).toBe(out.trace.reduce((sum, { sectors }) => sum + sectors.length, 0));
    }
  });

  it('reads no holes, and small extents in one request a mebibyte', async () => {
    const rng = new Prng(4);
    const hole = new Patchwork([4096, 50 * MIB, 50 * MIB + 4096], rng);
    await flatten(hole, new MemoryDevice(hole.size), { isOutZero: true });
    expect(hole.reads).toBe(2);
    const small = new Patchwork(
      Array.from({ length: 3 * 256 }, (_, i) => (i + 1) * 4096),
      rng,
    );
    await flatten(small, new MemoryDevice(small.size), { isOutZero: true });
    expect(small.reads).toBe(3);
  });

  it('reports how far it is, and ends with what onProgress throws', async () => {
    const source = new MemoryDevice(3 * MIB + 512);
    const reports: number[] = [];
    await flatten(source, new MemoryDevice(source.size), {
      isOutZero: true,
      onProgress: ({ bytes, bytesTotal }) => {
        expect(bytesTotal).toBe(source.size);
        reports.push(bytes);
      },
    });
    expect(reports).toEqual([MIB, 2 * MIB, 3 * MIB, source.size]);
    const stop = new Error('enough');
    await expect(
      flatten(source, new MemoryDevice(source.size), {
        isOutZero: true,
        onProgress: () => Promise.reject(stop),
      }),
    ).rejects.toBe(stop);
  });
});
