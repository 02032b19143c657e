/** A bitmap that becomes that of a longer stack: its bits stay, those that are new are zero, and at no instant is it nobody's. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { BlockDevice, Extent } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk, type Survivors } from '../../../src/device/simulated.js';
import { bitmapLayout, encodeMagicBlock, MAGIC_BLOCK_BYTES } from '../../../src/formats/cow-bitmap.js';
import { initialiseBitmap, inspectBitmap, isZero } from '../../../src/targets/cow/bitmap-device.js';
import { growBitmap } from '../../../src/targets/cow/grow.js';

const PAGE = 4096;
/** Sectors by which the magic block moves on; it stands about six of these before the end of the bits that it may be moved by. */
const MAGIC_STEP = 64 * 4096;
const LENGTHS_MAX = 2 ** 40;

/** A device of any size, of which only what was written takes memory. */
class SparseDevice implements BlockDevice {
  private readonly pages = new Map<number, Uint8Array>();

  constructor(readonly size: number) {}

  read(offset: number, into: Uint8Array): void {
    this.pieces(offset, into.length, (page, at, length, done) => {
      const bytes = this.pages.get(page);
      if (bytes) into.set(bytes.subarray(at, at + length), done);
      else into.fill(0, done, done + length);
    });
  }

  write(offset: number, from: Uint8Array): void {
    this.pieces(offset, from.length, (page, at, length, done) => {
      const bytes = this.pages.get(page) ?? new Uint8Array(PAGE);
      bytes.set(from.subarray(done, done + length), at);
      this.pages.set(page, bytes);
    });
  }

  flush(): void {}

  discard(offset: number, length: number): void {
    this.writeZeroes(offset, length);
  }

  writeZeroes(offset: number, length: number): void {
    for (const [page, bytes] of this.pages) {
      const from = Math.max(0, offset - page * PAGE);
      const to = Math.min(PAGE, offset + length - page * PAGE);
      if (from < to) bytes.fill(0, from, to);
    }
  }

  extentAt(offset: number): Extent {
    const page = Math.floor(offset / PAGE);
    if (this.pages.has(page)) return { data: true, end: Math.min(this.size, (page + 1) * PAGE) };
    const next = [...this.pages.keys()].filter((other) => other > page);
    return { data: false, end: Math.min(this.size, ...next.map((other) => other * PAGE)) };
  }

  /** Places and values of all bytes of [from, to) that are not zero. */
  set(from: number, to: number): [number, number][] {
    const found: [number, number][] = [];
    for (const [page, bytes] of [...this.pages].sort(([a], [b]) => a - b)) {
      bytes.forEach((byte, i) => {
        const at = page * PAGE + i;
        if (byte !== 0 && at >= from && at < to) found.push([at, byte]);
      });
    }
    return found;
  }

  private pieces(
    offset: number,
    length: number,
    visit: (page: number, at: number, length: number, done: number) => void,
  ): void {
    if (offset < 0 || offset + length > this.size)
      throw new RangeError(`${offset}+${length} of ${this.size}`);
    for (let done = 0; done < length; ) {
      const at = (offset + done) % PAGE;
      const piece = Math.min(PAGE - at, length - done);
      visit((offset + done - at) / PAGE, at, piece, done);
      done += piece;
    }
  }
}

function setBit(device: BlockDevice, sector: number): void {
  const byte = new Uint8Array(1);
  device.read(Math.floor(sector / 8), byte);
  byte[0]! |= 1 << (sector % 8);
  device.write(Math.floor(sector / 8), byte);
}

/** Bytes of the bitmap by the sectors whose bits are set: written down once more, without the code under test. */
function bytesOf(sectors: Iterable<number>): [number, number][] {
  const bytes = new Map<number, number>();
  for (const sector of sectors) {
    const at = Math.floor(sector / 8);
    bytes.set(at, (bytes.get(at) ?? 0) | (1 << (sector % 8)));
  }
  return [...bytes].sort(([a], [b]) => a - b);
}

/** A length near a place where something changes, or any. */
const length = fc.oneof(
  fc.integer({ min: 1, max: 10 * MAGIC_STEP }),
  fc
    .tuple(fc.integer({ min: 1, max: LENGTHS_MAX / MAGIC_STEP }), fc.integer({ min: -9, max: 9 }))
    .map(([step, beside]) => step * MAGIC_STEP + beside),
  fc.integer({ min: 1, max: LENGTHS_MAX }),
);
const growth = fc.oneof(
  fc.integer({ min: 1, max: 20 }),
  fc.integer({ min: 1, max: 2 * MAGIC_STEP }),
  fc.integer({ min: 1, max: 20 * MAGIC_STEP }),
);

describe('growBitmap', () => {
  it('keeps all bits, and only these, whatever lay behind them (cow-I7)', () => {
    const seen = { moved: 0, stayed: 0, severalSteps: 0 };
    fc.assert(
      fc.property(length, growth, fc.integer(), (from, more, seed) => {
        const to = from + more;
        const rng = new Prng(seed);
        const old = bitmapLayout(from);
        const grown = bitmapLayout(to);
        const device = new SparseDevice(grown.minimumBytes + rng.below(3 * PAGE));
        const owned = new Set(Array.from({ length: 30 }, () => rng.below(from)));
        for (const edge of [0, from - 1]) if (rng.chance(0.5)) owned.add(edge);
        for (const sector of owned) setBit(device, sector);
        // Behind the stack's end, and behind the magic block.
        for (let i = 0; i < 8; i++) setBit(device, from + rng.below(8 * old.magicOffset - from));
        setBit(device, from);
        for (let i = 0; i < 8; i++) {
          setBit(device, 8 * (old.minimumBytes + rng.below(device.size - old.minimumBytes)));
        }
        initialiseBitmap(device, old);
        growBitmap(device, from, to);

        expect(inspectBitmap(device, 'bm', to)).toBe('existing');
        expect(device.set(0, grown.magicOffset)).toEqual(bytesOf(owned));
        seen[old.magicOffset === grown.magicOffset ? 'stayed' : 'moved']++;
        if (to > 8 * old.magicOffset) seen.severalSteps++;
      }),
      { numRuns: 200 },
    );
    for (const [what, times] of Object.entries(seen)) expect(times, what).toBeGreaterThan(0);
  });

  it('step by step or at once: the same bytes', () => {
    const from = 100_001;
    const lengths = [100_003, 150_000, 3 * MAGIC_STEP, 3 * MAGIC_STEP + 1, 9 * MAGIC_STEP];
    const make = () => {
      const device = new MemoryDevice(bitmapLayout(lengths.at(-1)!).minimumBytes);
      for (let sector = 0; sector < from; sector += 777) setBit(device, sector);
      initialiseBitmap(device, bitmapLayout(from));
      return device;
    };
    const once = make();
    growBitmap(once, from, lengths.at(-1)!);
    const often = make();
    for (const [i, to] of lengths.entries()) growBitmap(often, lengths[i - 1] ?? from, to);
    expect(Buffer.compare(once.bytes, often.bytes)).toBe(0);
  });
});

/**
 * A device whose bitmap is about to grow, with bits and with what counts for nothing. None of the latter where another stack of the
 * same stored length would have its bits: a magic block does not tell these apart.
 */
function growing(from: number, to: number, rng: Prng): { content: Uint8Array; owned: Set<number> } {
  const device = new MemoryDevice(bitmapLayout(to).minimumBytes + 512);
  const owned = new Set(Array.from({ length: 20 }, () => rng.below(from)));
  for (const sector of owned) setBit(device, sector);
  const { magicOffset, storedLength } = bitmapLayout(from);
  const loose = rng.bytes(Math.min(3000, magicOffset - 512 * storedLength));
  device.write(512 * storedLength, loose);
  device.write(magicOffset - loose.length, loose);
  initialiseBitmap(device, bitmapLayout(from));
  if (device.size - magicOffset > 10_000) device.write(magicOffset + 2000, rng.bytes(3000));
  return { content: device.bytes, owned };
}

/** The length with which a medium opens: `wanted`, or one that the refusal names; `from` where it is among them. */
function openableLength(medium: MemoryDevice, wanted: number, [from, to]: readonly [number, number]): number {
  try {
    expect(inspectBitmap(medium, 'bm', wanted)).toBe('existing');
    return wanted;
  } catch (error) {
    const named = /length mismatch: the magic block .* of a stack of (\d+) to (\d+) sectors/.exec(`${error}`);
    if (!named) throw error;
    const [least, most] = [Number(named[1]), Number(named[2])];
    const found = least <= from && from <= most ? from : Math.min(most, to);
    expect(inspectBitmap(medium, 'bm', found)).toBe('existing');
    return found;
  }
}

/** Bytes that have set bits of a stack of `sectors`. */
function bitsOf(medium: MemoryDevice, sectors: number): [number, number][] {
  const found: [number, number][] = [];
  const whole = Math.floor(sectors / 8);
  for (let page = 0; page <= whole; page += PAGE) {
    const bytes = medium.bytes.subarray(page, Math.min(page + PAGE, whole + 1));
    if (isZero(bytes)) continue;
    bytes.forEach((byte, i) => {
      const own = page + i === whole ? byte & ((1 << (sectors % 8)) - 1) : byte;
      if (own !== 0) found.push([page + i, own]);
    });
  }
  return found;
}

describe('a power cut while a bitmap grows', () => {
  const LENGTHS: readonly (readonly [from: number, to: number])[] = [
    [1000, 1003],
    [3000, 9000],
    [MAGIC_STEP - 5, MAGIC_STEP + 5],
    [50_001, 3 * MAGIC_STEP],
    [20_000, 9 * MAGIC_STEP + 17],
  ];

  it.each(LENGTHS)(
    'leaves a bitmap of one length on the way, with the same bits: from %i to %i sectors',
    (from, to) => {
      const seen = new Set<number>();
      for (let seed = 1; seed <= 2; seed++) {
        const rng = new Prng(seed);
        const { content, owned } = growing(from, to, rng);
        const expected = bytesOf(owned);
        const disk = new SimulatedDisk(content);
        growBitmap(disk, from, to);
        for (let cut = 0; cut <= disk.operations; cut++) {
          const ways: Survivors[] = ['none', 'all', rng, rng];
          for (let only = 0; only < disk.unflushedAt(cut); only++) ways.push({ only });
          for (const survivors of ways) {
            for (const wanted of [from, to]) {
              const medium = new MemoryDevice(disk.imageAt(cut, survivors));
              const what = `seed ${seed}, cut ${cut} of ${disk.operations}, wanted ${wanted}`;
              const found = openableLength(medium, wanted, [from, to]);
              seen.add(found);
              expect(bitsOf(medium, found), what).toEqual(expected);
              if (found < to) growBitmap(medium, found, to);
              expect(inspectBitmap(medium, 'bm', to), what).toBe('existing');
              expect(bitsOf(medium, to), what).toEqual(expected);
            }
          }
        }
      }
      expect([...seen]).toEqual(expect.arrayContaining([from, to]));
    },
  );

  it('an error in its midst, another attempt, and the power goes in that one', () => {
    const [from, to] = [20_000, 9 * MAGIC_STEP];
    const rng = new Prng(7);
    const { content, owned } = growing(from, to, rng);
    const writes = (() => {
      const disk = new SimulatedDisk(content);
      growBitmap(disk, from, to);
      return disk.trace.filter(({ kind }) => kind === 'writeZeroes').length;
    })();
    for (let at = 1; at <= writes; at++) {
      const disk = new SimulatedDisk(content);
      disk.injectError({ op: 'writeZeroes', at, landed: at % 2 === 0 });
      expect(() => growBitmap(disk, from, to)).toThrow(/injected/);
      disk.flush();
      const again = disk.operations;
      growBitmap(disk, from, to);
      for (let cut = again; cut <= disk.operations; cut++) {
        for (const survivors of ['none', 'all', rng] as const) {
          const medium = new MemoryDevice(disk.imageAt(cut, survivors));
          expect(bitsOf(medium, openableLength(medium, to, [from, to]))).toEqual(bytesOf(owned));
        }
      }
    }
  });

  it('has a magic block of its length at the end, and no other', () => {
    const [from, to] = [20_000, 9 * MAGIC_STEP];
    const device = new MemoryDevice(growing(from, to, new Prng(1)).content);
    growBitmap(device, from, to);
    const block = Buffer.from(encodeMagicBlock(bitmapLayout(to)));
    const bytes = Buffer.from(device.bytes);
    expect(block).toHaveLength(MAGIC_BLOCK_BYTES);
    expect(bytes.indexOf(block)).toBe(bitmapLayout(to).magicOffset);
    expect(bytes.indexOf(block.subarray(0, 8))).toBe(bitmapLayout(to).magicOffset);
  });
});
