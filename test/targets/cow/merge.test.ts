/** Merging the top layer down: what it makes of every device, and that the stack shows the same whatever happens. */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { PowerCut, PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import type { ProgressOptions, WorkDone } from '../../../src/progress.js';
import { cow } from '../../../src/targets/cow/index.js';
import { type Merged, mergeTop } from '../../../src/targets/cow/merge.js';
import type { CreateContext } from '../../../src/targets/target.js';
import { contentOf, expectSameBytes, FaultyDisk, withHoles, withoutUnmap } from '../harness.js';
import { type Subject, testPowerCuts, type Workload } from '../power-cuts.js';
import {
  argsOf,
  bitmapSize,
  bitOf,
  bitsOf,
  type Devices,
  dataBytes,
  fillLayers,
  fragments,
  makeCow,
  memoryFor,
  naiveContent,
  offsetOf,
} from './rig.js';

type Contents = Record<string, Uint8Array>;

/** Merges as the command does: the stack is read from its devices first. */
async function merge(
  layers: number,
  sectors: number,
  devices: Devices,
  options: ProgressOptions = {},
): Promise<Merged> {
  const context = contextOf(devices);
  const stack = await cow.create(argsOf(layers).split(' '), { ...context, length: sectors });
  return await mergeTop(stack, context, options);
}

/** Of devices by their names; a target that is opened with it is more than these tests need. */
function contextOf(devices: Devices): CreateContext {
  return {
    length: undefined,
    device: ({ path }) => devices[path]!,
    openBacking: async (path) => ({ kind: 'file', fd: -1, path, size: devices[path]!.size }),
    raise: () => {},
  };
}

/** A stack whose layers hold random sectors each, some of them zeros: that many runs, or any number. */
async function someStack(
  layers: number,
  sectors: number,
  rng: Prng,
  runs?: number,
): Promise<{ devices: Record<string, MemoryDevice>; content: Uint8Array }> {
  const devices = memoryFor(layers, sectors, rng);
  await fillLayers(layers, sectors, devices, ({ target }) => {
    const write = (first: number, count: number) => {
      if (rng.chance(0.3)) target.writeZeroes(first * 512, count * 512);
      else target.write(first * 512, rng.bytes(count * 512));
    };
    if (runs === undefined) fragments(sectors, rng, write);
    for (let left = runs ?? 0; left > 0; left--) {
      const first = rng.below(sectors);
      write(first, 1 + rng.below(Math.min(30, sectors - first)));
    }
    // So that no layer is ever new.
    target.write(rng.below(sectors) * 512, rng.bytes(512));
  });
  const content = naiveContent(layers, sectors, (name) => devices[name]!.bytes);
  return { devices, content };
}

function contentsOf(devices: Devices): Contents {
  return Object.fromEntries(Object.entries(devices).map(([name, device]) => [name, contentOf(device)]));
}

/** The member that `layers` layers are merged into, by the names of its devices. */
function below(layers: number): { data: string; bitmap: string | undefined } {
  return layers === 1
    ? { data: 'base', bitmap: undefined }
    : { data: `data${layers - 1}`, bitmap: `bm${layers - 1}` };
}

/** What a merge makes of all devices, sector by sector. The top's data is what `trimmed` says. */
function naiveMerge(layers: number, sectors: number, before: Contents, trimmed: number): Contents {
  const after = Object.fromEntries(Object.entries(before).map(([name, bytes]) => [name, bytes.slice()]));
  const { data, bitmap } = below(layers);
  const top = { data: `data${layers}`, bitmap: `bm${layers}` };
  for (let sector = 0; sector < sectors; sector++) {
    const from = (offsetOf(layers) + sector) * 512;
    after[top.data]!.fill(trimmed, from, from + 512);
    if (!bitOf(before[top.bitmap]!, sector)) continue;
    const to = (offsetOf(layers - 1) + sector) * 512;
    after[data]!.set(before[top.data]!.subarray(from, from + 512), to);
    if (bitmap) after[bitmap]![sector >> 3]! |= 1 << (sector & 7);
    after[top.bitmap]![sector >> 3]! &= ~(1 << (sector & 7));
  }
  return after;
}

function expectContents(devices: Devices, expected: Contents, where: string): void {
  for (const [name, bytes] of Object.entries(expected)) {
    expectSameBytes(contentOf(devices[name]!), bytes, `${where}: ${name}`);
  }
}

/** How many of these sectors of a member lie in holes of its data, as `withHoles` has them: all bytes of each. */
function sectorsInHoles(held: readonly number[], data: Uint8Array, offset: number, grain: number): number {
  const isHole = (at: number) => data.subarray(at, at + grain).every((byte) => byte === 0);
  return held.filter((sector) => {
    const from = (offset + sector) * 512;
    for (let at = from - (from % grain); at < from + 512; at += grain) if (!isHole(at)) return false;
    return true;
  }).length;
}

/** Kills whoever makes change or flush number `at` of these devices, before it is made. What they have done stays. */
function killedAt(devices: Devices, at: number): Devices {
  let left = at;
  const alive = (operation: () => void) => {
    if (left-- === 0) throw new Killed();
    operation();
  };
  return Object.fromEntries(
    Object.entries(devices).map(([name, device]): [string, BlockDevice] => [
      name,
      {
        size: device.size,
        read: (offset, into) => device.read(offset, into),
        write: (offset, from) => alive(() => device.write(offset, from)),
        flush: () => alive(() => device.flush()),
        discard: (offset, length) => alive(() => device.discard(offset, length)),
        writeZeroes: (offset, length) => alive(() => device.writeZeroes(offset, length)),
      },
    ]),
  );
}

class Killed extends Error {}

const shapes = fc.record({
  layers: fc.integer({ min: 1, max: 3 }),
  sectors: fc.constantFrom(1, 7, 8, 31, 32, 33, 100, 700, 2047, 2049, 4100),
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
  grain: fc.constantFrom(0, 0, 512, 700, 4096),
  canUnmap: fc.boolean(),
});

describe('mergeTop', () => {
  it('does what a merge sector by sector does, and nothing else', async () => {
    let holes = 0;
    await fc.assert(
      fc.asyncProperty(shapes, async ({ layers, sectors, seed, grain, canUnmap }) => {
        const rng = new Prng(seed);
        const { devices: memory, content } = await someStack(layers, sectors, rng);
        const before = contentsOf(memory);
        const held = bitsOf(before[`bm${layers}`]!, sectors);
        const inHoles =
          grain === 0 ? 0 : sectorsInHoles(held, before[`data${layers}`]!, offsetOf(layers), grain);
        const devices: Devices = { ...memory };
        const { data } = below(layers);
        if (grain > 0) devices[`data${layers}`] = withHoles(memory[`data${layers}`]!, grain);
        if (!canUnmap) devices[data] = withoutUnmap(memory[data]!);

        const reports: WorkDone[] = [];
        const merged = await merge(layers, sectors, devices, {
          onProgress: (progress) => void reports.push(progress),
        });
        expect(merged).toEqual({ sectors: held.length, holeSectors: inHoles });
        holes += inHoles;
        expect(reports.at(-1)).toEqual({ bytes: held.length * 512, bytesTotal: held.length * 512 });
        expect(reports.map(({ bytes }) => bytes)).toEqual(
          reports.map(({ bytes }) => bytes).sort((a, b) => a - b),
        );
        expectContents(memory, naiveMerge(layers, sectors, before, 0), 'after a merge');
        expectSameBytes(
          naiveContent(layers, sectors, (name) => memory[name]!.bytes),
          content,
          'what the stack shows',
        );
        expectSameBytes(
          naiveContent(layers - 1, sectors, (name) => memory[name]!.bytes),
          content,
          'what the stack shows without its top',
        );

        const after = contentsOf(memory);
        expect(await merge(layers, sectors, devices)).toEqual({ sectors: 0, holeSectors: 0 });
        expectContents(memory, after, 'after a second merge');
      }),
      { numRuns: 90 },
    );
    expect(holes).toBeGreaterThan(0);
  });

  it('cow-M4: bits behind the end of the stack stay, in both bitmaps', async () => {
    for (const sectors of [1, 13, 31, 40, 63]) {
      const rng = new Prng(sectors);
      const { devices } = await someStack(2, sectors, rng);
      for (const name of ['bm1', 'bm2']) {
        const { bytes } = devices[name]!;
        for (let bit = sectors; bit < 4095; bit++) if (rng.chance(0.5)) bytes[bit >> 3]! |= 1 << (bit & 7);
      }
      const before = contentsOf(devices);
      await merge(2, sectors, devices);
      expectContents(devices, naiveMerge(2, sectors, before, 0), `${sectors} sectors`);
    }
  });

  it('cow-M4: where the top`s bitmap is new, nothing is written, trimmed or flushed', async () => {
    const rng = new Prng(5);
    const disks: Record<string, SimulatedDisk> = {};
    for (const [name, { bytes }] of Object.entries((await someStack(1, 50, rng)).devices)) {
      disks[name] = new SimulatedDisk(bytes);
    }
    disks.bm2 = new SimulatedDisk(bitmapSize(50));
    disks.data2 = new SimulatedDisk(dataBytes(2, 50, rng));
    // As the command opens it: a new bitmap is not written by looking.
    const { descriptor } = await makeCow(2, 50, { ...disks, bm2: new MemoryDevice(bitmapSize(50)) });
    const merged = await mergeTop(descriptor, { device: ({ path }) => disks[path]! });
    expect(merged).toEqual({ sectors: 0, holeSectors: 0 });
    expect(Object.values(disks).map((disk) => disk.operations)).toEqual([0, 0, 0, 0, 0]);
  });

  it('refuses a base alone', async () => {
    await expect(merge(0, 8, memoryFor(0, 8, new Prng(1)))).rejects.toMatchObject({
      code: 'EINVAL',
      message: 'a stack of a base alone has no layer to merge',
    });
  });

  it('data first, then bits, then the top`s bits, then the trim: each durable before the next', async () => {
    const { devices } = await someStack(2, 40, new Prng(8));
    const power = new PowerSupply();
    const disks = Object.fromEntries(
      Object.entries(devices).map(([name, { bytes }]) => [name, new SimulatedDisk(bytes, { power })]),
    );
    await merge(2, 40, disks);
    const trace = Object.entries(disks)
      .flatMap(([name, disk]) => disk.trace.map(({ kind, instant }) => ({ name, kind, instant })))
      .sort((a, b) => a.instant - b.instant)
      .map(({ name, kind }) => `${kind} ${name}`);
    expect(trace.filter((step, index) => step !== trace[index - 1])).toEqual([
      'write data1',
      'flush data1',
      'write bm1',
      'flush bm1',
      'write bm2',
      'flush bm2',
      'discard data2',
    ]);
  });

  it('after an error anywhere the stack shows the same, and the same call goes on', async () => {
    let failures = 0;
    const { devices: original, content } = await someStack(2, 200, new Prng(11), 25);
    for (const faulty of ['bm1', 'data1', 'bm2', 'data2'] as const) {
      for (const landed of [true, false, 'some'] as const) {
        for (let at = 1, isPast = false; !isPast; at++) {
          const devices: Devices = {};
          for (const [name, { bytes }] of Object.entries(original))
            devices[name] = new MemoryDevice(bytes.slice());
          const disk = new FaultyDisk(new SimulatedDisk(original[faulty]!.bytes));
          devices[faulty] = disk;
          const context = contextOf(devices);
          const stack = await cow.create(argsOf(2).split(' '), { ...context, length: 200 });
          disk.fail({ at, landed });
          const failed = await mergeTop(stack, context).catch((error) => error);
          isPast = disk.operations < at;
          if (!isPast) {
            failures++;
            expect(failed).toMatchObject({ code: 'EIO' });
          }
          disk.repair();
          const contents = () => contentsOf(devices);
          const show = (now = contents()) => naiveContent(2, 200, (name) => now[name]!);
          expectSameBytes(show(), content, `${faulty}, operation ${at}`);
          await merge(2, 200, devices);
          expectSameBytes(show(), content, `${faulty}, operation ${at}, after the second`);
          expect(bitsOf(contentOf(devices.bm2!), 200)).toEqual([]);
        }
      }
    }
    expect(failures).toBeGreaterThan(50);
  });

  it('what the caller throws from onProgress ends it, and the same call goes on', async () => {
    const { devices, content } = await someStack(1, 5000, new Prng(3));
    const stop = new Error('enough');
    const stopped = merge(1, 5000, devices, { onProgress: () => Promise.reject(stop) });
    await expect(stopped).rejects.toBe(stop);
    expect(bitsOf(devices.bm1!.bytes, 5000).length).toBeGreaterThan(0);
    expectSameBytes(
      naiveContent(1, 5000, (name) => devices[name]!.bytes),
      content,
      'stopped',
    );
    await merge(1, 5000, devices);
    expectSameBytes(devices.base!.bytes.subarray(offsetOf(0) * 512).subarray(0, 5000 * 512), content, 'base');
  });
});

const seen = { kills: 0, 'cuts of a second merge': 0, 'merges into a layer': 0, 'merges into the base': 0 };

/** A merge, killed a few times before, of which every operation is cut. */
class MergeSubject implements Subject {
  readonly unit = 512;
  /** What the stack showed without its top. */
  private readonly withoutTop: Uint8Array;

  private constructor(
    readonly target: BlockDevice,
    private readonly layers: number,
    private readonly sectors: number,
    private readonly disks: Readonly<Record<string, SimulatedDisk>>,
    private readonly before: Contents,
    private readonly content: Uint8Array,
  ) {
    this.withoutTop = naiveContent(layers - 1, sectors, (name) => before[name]!);
  }

  static async make(rng: Prng, power: PowerSupply): Promise<MergeSubject> {
    const layers = 1 + rng.below(3);
    // With more than 4096 sectors a bitmap's bits are in two sectors, which a cut may tear.
    const isLong = rng.chance(0.02);
    const sectors = isLong ? 4200 : rng.pick([1, 9, 33, 70, 70]);
    const { devices, content } = await someStack(layers, sectors, rng, isLong ? 3 : undefined);
    const before = contentsOf(devices);
    const disks = Object.fromEntries(
      Object.entries(before).map(([name, bytes]) => [name, new SimulatedDisk(bytes, { power })]),
    );
    const { target } = await makeCow(layers, sectors, disks);
    seen[layers === 1 ? 'merges into the base' : 'merges into a layer']++;
    return new MergeSubject(target, layers, sectors, disks, before, content);
  }

  async run(work: Workload): Promise<void> {
    const { layers, sectors, disks } = this;
    while (work.rng.chance(0.4)) {
      const at = work.rng.below(60);
      work.begin(`a merge that is killed at operation ${at}`);
      await merge(layers, sectors, killedAt(disks, at)).catch((error) => {
        if (!(error instanceof Killed)) throw error;
        seen.kills++;
      });
    }
    work.begin('a merge');
    await merge(layers, sectors, disks);
  }

  async check(images: readonly Uint8Array[], _cut: number, { rng }: Workload): Promise<void> {
    const { layers, sectors } = this;
    let contents = this.named(images);
    this.checkContents(contents, 'after the cut');
    // A second merge is cut, too; the third ends.
    if (rng.chance(0.3)) {
      const power = new PowerSupply();
      const disks = Object.entries(contents).map(([, bytes]) => new SimulatedDisk(bytes, { power }));
      power.cutAfter(rng.below(rng.pick([8, 60])));
      const names = Object.keys(contents);
      const devices = Object.fromEntries(names.map((name, index) => [name, disks[index]!]));
      await merge(layers, sectors, devices).catch((error) => {
        if (!(error instanceof PowerCut)) throw error;
        seen['cuts of a second merge']++;
      });
      contents = this.named(disks.map((disk) => disk.crashImage(rng)));
      this.checkContents(contents, 'after a cut of the second merge');
    }
    const devices = Object.fromEntries(
      Object.entries(contents).map(([name, bytes]) => [name, new MemoryDevice(bytes)]),
    );
    await merge(layers, sectors, devices);
    this.checkContents(contents, 'after the merge that ended');
    const after = naiveMerge(layers, sectors, this.before, 0);
    const { data, bitmap } = below(layers);
    for (const name of [data, `bm${layers}`, ...(bitmap ? [bitmap] : [])]) {
      expectSameBytes(contents[name]!, after[name]!, `after the merge that ended: ${name}`);
    }
  }

  /** cow-M1 and cow-M2, and cow-M4 as far as it holds in the middle. */
  private checkContents(contents: Contents, when: string): void {
    const { layers, sectors, before } = this;
    expectSameBytes(
      naiveContent(layers, sectors, (name) => contents[name]!),
      this.content,
      `cow-M1: what the stack shows ${when}`,
    );
    const without = naiveContent(layers - 1, sectors, (name) => contents[name]!);
    for (let at = 0; at < without.length; at += 512) {
      const sector = without.subarray(at, at + 512);
      if (Buffer.compare(sector, this.content.subarray(at, at + 512)) === 0) continue;
      expectSameBytes(sector, this.withoutTop.subarray(at, at + 512), `cow-M2: sector ${at / 512} ${when}`);
    }
    const { data, bitmap } = below(layers);
    const written = [data, bitmap, `data${layers}`, `bm${layers}`];
    for (const [name, bytes] of Object.entries(before)) {
      if (!written.includes(name)) expectSameBytes(contents[name]!, bytes, `cow-M4: ${name} ${when}`);
    }
  }

  private named(images: readonly Uint8Array[]): Contents {
    return Object.fromEntries(Object.keys(this.disks).map((name, index) => [name, images[index]!]));
  }
}

describe('power cuts', () => {
  it('cow-M1, cow-M2: before, between and after the stack shows the same, and a merge run again ends', async () => {
    await testPowerCuts({
      name: 'cow merge',
      cuts: 4000,
      seen,
      make: (rng, power) => MergeSubject.make(rng, power),
    });
  });
});
