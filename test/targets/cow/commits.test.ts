/**
 * Commits against disks that know what is durable: whenever a bit reaches the bitmap device, its sector must be durable on
 * the data device (cow-I3); whenever a flush has returned, so must the bits of all that was written before it.
 */
import { describe, expect, it, vi } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { Prng } from '../../../src/device/prng.js';
import { DmError } from '../../../src/errors.js';
import { bitmapLayout } from '../../../src/formats/cow-bitmap.js';
import { RwLock } from '../../../src/shared/rwlock.js';
import { cow } from '../../../src/targets/cow/index.js';
import { codeOf, makeRig, seeds, underSeed } from '../harness.js';

const PAGE_SECTORS = 32_768;

/** Remembers which sectors were written and which of them are durable, not what they hold. */
class DataDisk implements BlockDevice {
  readonly cached = new Set<number>();
  readonly durable = new Set<number>();
  flushes = 0;
  /** Comes while the device flushes: what was written before is durable, what is written now is not. */
  duringFlush: () => void = () => {};
  isBroken = false;

  constructor(readonly size: number) {}

  read(_offset: number, into: Uint8Array): void {
    into.fill(0);
  }

  write(offset: number, from: Uint8Array): void {
    for (let at = 0; at < from.length; at += 512) this.cached.add((offset + at) / 512);
  }

  flush(): void {
    this.flushes++;
    if (this.isBroken) throw new DmError('EIO', 'the data device is broken');
    const covered = [...this.cached];
    this.cached.clear();
    this.duringFlush();
    for (const sector of covered) this.durable.add(sector);
  }

  discard(): void {}
  writeZeroes(): void {}
}

/** Keeps the bytes that are not zero; fails the test when a bit comes before its data. */
class BitmapDisk implements BlockDevice {
  readonly cached = new Map<number, number>();
  readonly durable = new Map<number, number>();
  /** Page and number of pages of each write. */
  readonly writes: [number, number][] = [];
  flushes = 0;
  breaks: 'write' | 'flush' | undefined;

  constructor(
    readonly size: number,
    private readonly magicOffset: number,
    private readonly data: DataDisk,
  ) {}

  read(_offset: number, into: Uint8Array): void {
    into.fill(0);
  }

  write(offset: number, from: Uint8Array): void {
    if (offset < this.magicOffset) {
      expect(offset % 4096).toBe(0);
      expect(offset + from.length).toBeLessThanOrEqual(this.magicOffset);
      this.writes.push([offset / 4096, Math.ceil(from.length / 4096)]);
      for (const [index, byte] of from.entries()) if (byte !== 0) this.take(offset + index, byte);
    }
    if (this.breaks === 'write') throw new DmError('EIO', 'the bitmap device is broken');
  }

  flush(): void {
    this.flushes++;
    if (this.breaks === 'flush') throw new DmError('EIO', 'the bitmap device is broken');
    for (const [at, byte] of this.cached) this.durable.set(at, byte);
    this.cached.clear();
  }

  has(sector: number): boolean {
    return ((this.durable.get(Math.floor(sector / 8)) ?? 0) & (1 << (sector % 8))) !== 0;
  }

  discard(): void {}
  writeZeroes(): void {}

  private take(at: number, byte: number): void {
    this.cached.set(at, byte);
    for (let bit = 0; bit < 8; bit++) {
      const sector = at * 8 + bit;
      if ((byte & (1 << bit)) !== 0 && !this.data.durable.has(sector)) {
        expect.fail(`cow-I3: the bit of sector ${sector} is written before its data is durable`);
      }
    }
  }
}

async function made(sectors: number) {
  const layout = bitmapLayout(sectors);
  const data = new DataDisk(sectors * 512);
  const bitmap = new BitmapDisk(layout.minimumBytes, layout.magicOffset, data);
  const rig = await makeRig(
    cow,
    'base 0 bitmap data 0',
    { base: new DataDisk(sectors * 512), bitmap, data },
    {},
  );
  const write = (sector: number, target = rig.target) => target.write(sector * 512, new Uint8Array(512));
  bitmap.flushes = 0;
  return { rig, target: rig.target, data, bitmap, write };
}

describe('cow-I3: a bit is durable after its data is', () => {
  it('random writes by two views, also while a flush is under way', async () => {
    for (const seed of seeds((done) => done >= 30)) {
      await underSeed(seed, async () => {
        const rng = new Prng(seed);
        const sectors = rng.pick([100, PAGE_SECTORS * 3 + 5, PAGE_SECTORS * 70]);
        const { rig, data, bitmap, write } = await made(sectors);
        const views = [rig.target, rig.openView()];
        const written = new Set<number>();
        const writeSome = (most: number) => {
          for (let times = rng.below(most); times > 0; times--) {
            const sector = rng.chance(0.5) ? rng.below(Math.min(64, sectors)) : rng.below(sectors);
            write(sector, rng.pick(views));
            written.add(sector);
          }
        };
        data.duringFlush = () => writeSome(4);
        for (let step = 0; step < 60; step++) {
          writeSome(30);
          const before = [...written];
          if (rng.chance(0.2)) bitmap.breaks = rng.pick(['write', 'flush'] as const);
          data.isBroken = rng.chance(0.1);
          const code = codeOf(() => rng.pick(views).flush());
          const isBroken = data.isBroken || (bitmap.breaks !== undefined && bitmap.cached.size > 0);
          if (isBroken) expect(code).toBe('EIO');
          if (code === 'none') {
            for (const sector of before)
              if (!bitmap.has(sector)) expect.fail(`the bit of sector ${sector} is lost`);
          }
          bitmap.breaks = undefined;
          data.isBroken = false;
        }
        for (const view of views) {
          view.flush();
          // What was written during the last flush is for the next.
          data.duringFlush = () => {};
        }
        for (const sector of written)
          if (!bitmap.has(sector)) expect.fail(`the bit of sector ${sector} is lost`);
      });
    }
  });

  it('what is written while the data is flushed waits for the next commit', async () => {
    const { target, data, bitmap, write } = await made(1000);
    write(1);
    data.duringFlush = () => write(2);
    target.flush();
    expect([bitmap.has(1), bitmap.has(2)]).toEqual([true, false]);
    data.duringFlush = () => {};
    target.flush();
    expect(bitmap.has(2)).toBe(true);
  });

  it.each(['data', 'write', 'flush'] as const)('a commit whose %s fails is done again', async (what) => {
    const { target, data, bitmap, write } = await made(PAGE_SECTORS * 4);
    write(5);
    write(PAGE_SECTORS * 2 + 5);
    if (what === 'data') data.isBroken = true;
    else bitmap.breaks = what;
    expect(codeOf(() => target.flush())).toBe('EIO');
    expect([bitmap.has(5), bitmap.durable.size]).toEqual([false, 0]);
    data.isBroken = false;
    bitmap.breaks = undefined;
    target.flush();
    expect([bitmap.has(5), bitmap.has(PAGE_SECTORS * 2 + 5)]).toEqual([true, true]);
    const { flushes } = bitmap;
    target.flush();
    expect(bitmap.flushes).toBe(flushes);
  });
});

it('cow-I4: bits are set and their page is marked in one step; a commit waits for it first', async () => {
  const { rig, target, data, write } = await made(1000);
  const bits = new Int32Array(rig.descriptor.layers[0]!.bits);
  const dirty = new Int32Array(rig.descriptor.marks, 4 * RwLock.WORDS);
  const seen: string[] = [];
  for (const name of ['lockShared', 'unlockShared', 'lockExclusive', 'unlockExclusive'] as const) {
    vi.spyOn(RwLock.prototype, name).mockImplementation(() => {
      seen.push(`${name} bits=${bits[0]} dirty=${dirty[0]}`);
    });
  }
  const or = Atomics.or.bind(Atomics);
  vi.spyOn(Atomics, 'or').mockImplementation(((words: Int32Array, index: number, value: number) => {
    seen.push(words.buffer === dirty.buffer ? 'mark' : 'bits');
    return or(words, index, value);
  }) as typeof Atomics.or);
  write(3);
  // Twice: the target's lock, and inside it that of the marks.
  expect(seen.splice(0)).toEqual([
    'lockShared bits=0 dirty=0',
    'lockShared bits=0 dirty=0',
    'bits',
    'mark',
    'unlockShared bits=8 dirty=1',
    'unlockShared bits=8 dirty=1',
  ]);
  data.duringFlush = () => seen.push('data flush');
  target.flush();
  // The mutex of the commits, and inside it the lock of the marks, before the mark is taken.
  expect(seen).toEqual([
    'lockExclusive bits=8 dirty=1',
    'lockExclusive bits=8 dirty=1',
    'unlockExclusive bits=8 dirty=1',
    'data flush',
    'unlockExclusive bits=8 dirty=0',
  ]);
  vi.restoreAllMocks();
});

describe('what a commit costs', () => {
  it('neighbouring pages are one write, and none is written twice', async () => {
    const { target, data, bitmap, write } = await made(PAGE_SECTORS * 600);
    for (const page of [0, 1, 2, 5, 31, 32, 33, 599]) write(page * PAGE_SECTORS + page);
    target.flush();
    expect(bitmap.writes).toEqual([
      [0, 3],
      [5, 1],
      [31, 3],
      [599, 1],
    ]);
    expect([data.flushes, bitmap.flushes]).toEqual([1, 1]);
    // Bits that are set already.
    write(5 * PAGE_SECTORS + 5);
    target.flush();
    expect([bitmap.writes.length, data.flushes, bitmap.flushes]).toEqual([4, 2, 1]);
  });

  it('a run of pages is cut at a megabyte', async () => {
    const { target, bitmap, write } = await made(PAGE_SECTORS * 600);
    for (let page = 0; page < 600; page++) write(page * PAGE_SECTORS);
    target.flush();
    expect(bitmap.writes).toEqual([
      [0, 256],
      [256, 256],
      [512, 88],
    ]);
  });

  it('more pages than a snapshot takes go in several batches, each after a flush of the data', async () => {
    const { target, data, bitmap, write } = await made(PAGE_SECTORS * 5000);
    for (let page = 0; page < 5000; page++) write(page * PAGE_SECTORS + 3);
    // Between the batches.
    data.duringFlush = () => write(4999 * PAGE_SECTORS + 7);
    target.flush();
    expect([data.flushes, bitmap.flushes]).toEqual([3, 3]);
    for (let page = 0; page < 5000; page++) expect(bitmap.has(page * PAGE_SECTORS + 3)).toBe(true);
    expect(bitmap.writes.reduce((sum, [, pages]) => sum + pages, 0)).toBe(5000);
    target.flush();
    expect(bitmap.has(4999 * PAGE_SECTORS + 7)).toBe(true);
  });
});
