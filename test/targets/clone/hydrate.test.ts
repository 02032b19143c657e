/**
 * Hydration in the background, a step at a time: what it copies with which requests, what it does about settings, errors and
 * those who write meanwhile.
 */
import { describe, expect, it, vi } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { DmError } from '../../../src/errors.js';
import { clone } from '../../../src/targets/clone/index.js';
import { until } from '../../threads.js';
import { contentOf, expectSameBytes, type Hook, hooked, makeRig, withHoles } from '../harness.js';
import {
  durableOf,
  hydratedOf,
  hydratorOf,
  makeClone,
  memoryFor,
  type Shape,
  sourceOf,
  stepsOf,
} from './rig.js';

const MIB = 1 << 20;

interface Made extends Shape {
  readonly sectors: number;
  /** What is told of each device's operations, before they are done. */
  readonly onSource?: Hook;
  readonly onDestination?: Hook;
  readonly hasHoles?: boolean;
}

async function made({ onSource, onDestination, hasHoles = false, ...shape }: Made) {
  const memory = memoryFor(shape.sectors, new Prng(1));
  const asked: string[] = [];
  const note =
    (name: string, hook?: Hook): Hook =>
    (op, offset, length) => {
      asked.push(`${name} ${op} ${offset / 512}+${length / 512}`);
      hook?.(op, offset, length);
    };
  const source = hooked(sourceOf(memory.source!), note('s', onSource));
  const devices = {
    metadata: memory.metadata!,
    destination: hooked(memory.destination!, note('d', onDestination)),
    source: hasHoles ? withHoles({ ...source, read: sourceOf(memory.source!).read }) : source,
  };
  const rig = await makeClone(devices, shape);
  return { rig, target: rig.target, memory, asked, model: memory.source!.bytes.slice() };
}

/** How many sectors each write to the destination had. */
function writesIn(asked: readonly string[]): number[] {
  return asked.filter((line) => line.startsWith('d write')).map((line) => Number(line.split('+')[1]));
}

function expectWhole({ target, memory, model }: Awaited<ReturnType<typeof made>>): void {
  expectSameBytes(contentOf(target), model, 'the clone');
  expectSameBytes(memory.destination!.bytes, model, 'the destination');
}

describe('what is copied', () => {
  it('all of it, in order, and nothing twice', async () => {
    const all = await made({ sectors: 100 });
    stepsOf(hydratorOf(all.rig, 4096));
    const expected = Array.from({ length: 13 }, (_, region) => [
      `s read ${region * 8}+${Math.min(8, 100 - region * 8)}`,
      `d write ${region * 8}+${Math.min(8, 100 - region * 8)}`,
    ]).flat();
    expect(all.asked).toEqual(expected);
    expectWhole(all);
    expect(hydratedOf(all.rig)).toHaveLength(13);
  });

  it.each([
    ['0 2 hydration_batch_size 4', [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 4]],
    ['0 2 hydration_threshold 4', [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 4]],
    ['0 4 hydration_threshold 5 hydration_batch_size 3', [24, 24, 24, 24, 4]],
    ['0 4 hydration_threshold 3 hydration_batch_size 5', [24, 24, 24, 24, 4]],
    ['0 4 hydration_threshold 4294967295 hydration_batch_size 4294967295', [100]],
  ])('with `%s`', async (options, writes) => {
    const all = await made({ sectors: 100, options });
    stepsOf(hydratorOf(all.rig));
    // Copied by hand, with a buffer of 16 sectors: a request is what is copied between two looks at the regions.
    const merged: number[] = [];
    let next = 0;
    for (const sectors of writesIn(all.asked)) {
      merged[next] = (merged[next] ?? 0) + sectors;
      if (merged[next]! >= writes[next]!) next++;
    }
    expect(merged).toEqual(writes);
    expectWhole(all);
  });

  it('a request is a batch where the devices do it by themselves', async () => {
    const memory = memoryFor(1000, new Prng(1));
    const copied: [number, number][] = [];
    const destination: BlockDevice = {
      ...hooked(memory.destination!, () => {}),
      copyFrom(source, offset, length) {
        copied.push([offset / 4096, length / 4096]);
        // Not all of it: the rest is copied by hand.
        const bytes = new Uint8Array(Math.min(length, 9000));
        source.read(offset, bytes);
        memory.destination!.write(offset, bytes);
        return bytes.length;
      },
    };
    let read = 0;
    const source = hooked(memory.source!, (_op, _at, length) => (read += length));
    const devices = { metadata: memory.metadata!, destination, source };
    const options = '0 4 hydration_threshold 32 hydration_batch_size 16';
    const rig = await makeClone(devices, { options });
    rig.target.write(20 * 4096, memory.source!.bytes.slice(20 * 4096, 21 * 4096));
    stepsOf(hydratorOf(rig));
    // Four regions, from 16 on, are too few to ask for.
    expect(copied).toEqual([
      [0, 16],
      [21, 16],
      [37, 16],
      [53, 16],
      [69, 16],
      [85, 16],
      [101, 16],
      [117, 8],
    ]);
    expect(read).toBe(124 * 4096);
    expectSameBytes(memory.destination!.bytes, memory.source!.bytes, 'the destination');
  });

  it('holes become zeros, whatever the destination held, and count little', async () => {
    const all = await made({ sectors: 4096, hasHoles: true });
    const hydrator = hydratorOf(all.rig);
    stepsOf(hydrator);
    expectWhole(all);
    const unmapped = all.asked.filter((line) => line.startsWith('d unmap'));
    expect(unmapped).toHaveLength(64);
    expect(all.asked.filter((line) => line.startsWith('d zeroes'))).toEqual([]);
  });

  it('no_discard_passdown: they become zeros that keep their space', async () => {
    const all = await made({ sectors: 4096, hasHoles: true, options: '1 no_discard_passdown' });
    stepsOf(hydratorOf(all.rig));
    expectWhole(all);
    expect(all.asked.filter((line) => line.startsWith('d unmap'))).toEqual([]);
    expect(all.asked.filter((line) => line.startsWith('d zeroes'))).toHaveLength(64);
  });

  it('a batch that ends inside a region sets the bits of whole ones only', async () => {
    const all = await made({
      sectors: 200,
      region: 16,
      hasHoles: true,
      options: '0 4 hydration_threshold 9 hydration_batch_size 9',
    });
    // A hole from 104 to 120: regions 6 and 7 are halves of it.
    all.memory.source!.bytes.fill(0, 100 * 512, 124 * 512);
    all.memory.source!.bytes.fill(7, 0, 100 * 512);
    all.memory.source!.bytes.fill(7, 124 * 512);
    all.model.set(all.memory.source!.bytes);
    const hydrator = hydratorOf(all.rig, 4096);
    for (let step = 0; hydrator.step() === 0; step++) {
      for (const region of hydratedOf(all.rig)) {
        const [from, to] = [region * 8192, Math.min((region + 1) * 8192, all.target.size)];
        expectSameBytes(
          all.memory.destination!.bytes.subarray(from, to),
          all.model.subarray(from, to),
          `step ${step}, region ${region}`,
        );
      }
    }
    expectWhole(all);
  });

  it.each([4096, 8192])('regions of %i sectors are copied in parts', async (region) => {
    const all = await made({ sectors: 2 * region + 1000, region });
    const hydrator = hydratorOf(all.rig);
    let steps = 0;
    while (hydrator.step() === 0) {
      steps++;
      expect(writesIn(all.asked).reduce((sum, sectors) => sum + sectors, 0)).toBeLessThanOrEqual(2048);
      expect(all.target.state.inFlight).toBeLessThanOrEqual(1);
      all.asked.length = 0;
    }
    expect(steps).toBeGreaterThanOrEqual(Math.floor(all.target.size / MIB));
    expectWhole(all);
  });

  it('who writes to a region that is copied in part takes it over', async () => {
    const all = await made({ sectors: 4096 * 3, region: 4096 });
    const { target, model } = all;
    const hydrator = hydratorOf(all.rig);
    hydrator.step();
    expect(hydratedOf(all.rig)).toEqual([]);
    for (const offset of [100, 2 * MIB - 1000]) {
      const data = new Uint8Array(512).fill(offset);
      target.write(offset, data);
      model.set(data, offset);
    }
    expect(hydratedOf(all.rig)).toEqual([0]);
    hydrator.step();
    target.writeZeroes(2 * MIB, 2 * MIB);
    model.fill(0, 2 * MIB, 4 * MIB);
    hydrator.step();
    target.discard(4 * MIB, 2 * MIB);
    target.read(4 * MIB, model.subarray(4 * MIB));
    all.asked.length = 0;
    stepsOf(hydrator);
    expect(all.asked).toEqual([]);
    expectWhole(all);
  });

  it('a write that fails half way leaves nothing behind in a region that is copied in part', async () => {
    let breaks = false;
    const all = await made({
      sectors: 4096 * 2,
      region: 4096,
      onSource(_, offset) {
        if (breaks && offset >= 1000) throw new DmError('EIO', 'the source is broken');
      },
    });
    const hydrator = hydratorOf(all.rig);
    hydrator.step();
    breaks = true;
    expect(() => all.target.write(1000, new Uint8Array(5000).fill(0x77))).toThrow('the source is broken');
    breaks = false;
    expectSameBytes(contentOf(all.target), all.model, 'after the failure');
    stepsOf(hydrator);
    expectWhole(all);
  });
});

describe('settings', () => {
  it('off and on by control file, threshold 0, batch 0', async () => {
    const all = await made({ sectors: 800, options: '1 no_hydration' });
    const hydrator = hydratorOf(all.rig, 4096);
    const count = () => hydratedOf(all.rig).length;
    expect([hydrator.step(), count()]).toEqual([1000, 0]);
    all.rig.write('hydration', '1');
    expect([hydrator.step(), count()]).toEqual([0, 1]);
    all.rig.write('hydration', '0');
    expect([hydrator.step(), count()]).toEqual([1000, 1]);
    all.rig.write('hydration', '1');
    for (const name of ['hydration_threshold', 'hydration_batch_size']) {
      all.rig.write(name, '0');
      expect([hydrator.step(), count()], name).toEqual([1000, 1]);
      all.rig.write(name, '1');
    }
    stepsOf(hydrator);
    expectWhole(all);
    expect(hydrator.step()).toBe(1000);
  });

  it('a change wakes who rests', async () => {
    const all = await made({ sectors: 800, options: '1 no_hydration' });
    const dismiss = all.target.workInBackground();
    // It would look again in a second; the settings are what wakes it.
    const { state } = all.target;
    const seen = state.activity.wakes;
    all.rig.openView().state.settings = { hydration: true, threshold: 1, batchSize: 8 };
    expect(state.activity.wakes).not.toBe(seen);
    await until('all is hydrated', () => state.isComplete);
    dismiss();
    expectWhole(all);
  });

  it('the status says how many are on their way, and none when it rests', async () => {
    const inFlight: string[] = [];
    const all = await made({
      sectors: 800,
      options: '0 4 hydration_threshold 6 hydration_batch_size 4',
      onDestination: (op) => op === 'write' && inFlight.push(all.target.statusArgs().split(' ')[4]!),
    });
    const dismiss = all.target.workInBackground();
    await until('all is hydrated', () => all.target.state.isComplete);
    dismiss();
    expect(inFlight[0]).toBe('4');
    await until('it rests', () => all.target.statusArgs().split(' ')[4] === '0');
  });
});

describe('errors', () => {
  it('of one region: an event a round, the others are hydrated, and later that one', async () => {
    let broken: number[] = [3, 7];
    const all = await made({
      sectors: 100,
      onSource(_, offset) {
        if (broken.includes(Math.floor(offset / 4096))) throw new DmError('EIO', `no "${offset}"`);
      },
    });
    const hydrator = hydratorOf(all.rig, 4096);
    expect(stepsOf(hydrator)).toBe(5000);
    expect(hydratedOf(all.rig)).toEqual([0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 12]);
    const event = 'hydration_failed region=3 errno=5 reason="no \\"12288\\""';
    expect(all.rig.events).toEqual([event]);
    expect(stepsOf(hydrator)).toBe(5000);
    expect(all.rig.events).toEqual([event, event]);
    broken = [7];
    expect(stepsOf(hydrator)).toBe(5000);
    expect(all.rig.events.slice(2)).toEqual(['hydration_failed region=7 errno=5 reason="no \\"28672\\""']);
    broken = [];
    expect(stepsOf(hydrator)).toBe(1000);
    expect(all.rig.events).toHaveLength(3);
    expectWhole(all);
  });

  it('many of them do not keep it from stopping', async () => {
    let reads = 0;
    const all = await made({
      sectors: 8 * 2000,
      onSource() {
        reads++;
        throw new DmError('EIO', 'gone');
      },
    });
    expect(hydratorOf(all.rig).step()).toBe(0);
    expect(reads).toBeLessThanOrEqual(MIB / 4096);
  });

  it('a destination that is full: it rests, and goes on', async () => {
    let room = 4;
    let tries = 0;
    const all = await made({
      sectors: 100,
      onDestination(op) {
        if (op !== 'write') return;
        tries++;
        if (room-- <= 0) throw new DmError('ENOSPC', 'full');
      },
    });
    const hydrator = hydratorOf(all.rig);
    expect(stepsOf(hydrator)).toBe(5000);
    expect([tries, hydratedOf(all.rig).length]).toEqual([5, 4]);
    expect(all.rig.events).toEqual(['hydration_failed region=4 errno=28 reason="full"']);
    expect(stepsOf(hydrator)).toBe(5000);
    expect(tries).toBe(6);
    room = 1000;
    expect(stepsOf(hydrator)).toBe(5000);
    expect(stepsOf(hydrator)).toBe(1000);
    expectWhole(all);
  });

  it('of a region that is copied in part: from its start again', async () => {
    let breaks = false;
    const all = await made({
      sectors: 4096 * 2,
      region: 4096,
      onSource() {
        if (breaks) throw new DmError('EIO', 'broken');
      },
    });
    const hydrator = hydratorOf(all.rig);
    hydrator.step();
    breaks = true;
    // Also the other region, and the end of the round.
    expect(stepsOf(hydrator)).toBe(5000);
    breaks = false;
    all.memory.destination!.bytes.fill(9);
    stepsOf(hydrator);
    expectWhole(all);
  });
});

describe('attending', () => {
  it('hydrates all and says so once, after the metadata is durable', async () => {
    const memory = memoryFor(500, new Prng(1));
    const rig = await makeClone(memory, { options: '0 4 hydration_threshold 8 hydration_batch_size 8' });
    const view = rig.openView();
    const durable: number[] = [];
    rig.events.push = (...lines: string[]) => {
      durable.push(durableOf(memory.metadata!, 63).length);
      return Array.prototype.push.apply(rig.events, lines);
    };
    // Alone, so that nobody else commits.
    const hydrator = hydratorOf(rig);
    hydrator.start();
    await until('the event', () => rig.events.length > 0);
    view.flush();
    rig.target.flush();
    hydrator.stop();
    expect([...rig.events]).toEqual(['hydrated regions=63']);
    expect(durable).toEqual([63]);
    expect(rig.target.passthrough()?.path).toBe('destination');
    expectSameBytes(memory.destination!.bytes, memory.source!.bytes, 'the destination');
  });

  it('nothing is copied after it has been dismissed', async () => {
    const all = await made({ sectors: 100 * 2048 });
    const dismiss = all.target.workInBackground();
    await until('it has begun', () => hydratedOf(all.rig).length > 256);
    dismiss();
    const { length } = all.asked;
    for (let times = 0; times < 5; times++) await new Promise((resolve) => setTimeout(resolve, 10));
    expect(all.asked.length).toBe(length);
    expect(all.target.state.inFlight).toBe(0);
    expect(hydratedOf(all.rig).length).toBeLessThan(100 * 256);
  });

  it('commits what has waited for a second', async () => {
    vi.useFakeTimers();
    try {
      const all = await made({ sectors: 100, options: '1 no_hydration' });
      const flushes = () => all.asked.filter((line) => line.startsWith('d flush')).length;
      const dismiss = all.target.commitRegularly();
      vi.advanceTimersByTime(3500);
      expect(flushes()).toBe(0);
      all.target.write(0, new Uint8Array(1));
      vi.advanceTimersByTime(999);
      expect(flushes()).toBe(0);
      vi.advanceTimersByTime(201);
      expect([flushes(), durableOf(all.memory.metadata!, 13)]).toEqual([1, [0]]);
      vi.advanceTimersByTime(5000);
      expect(flushes()).toBe(1);
      dismiss();
      all.target.write(5000, new Uint8Array(1));
      vi.advanceTimersByTime(5000);
      expect(flushes()).toBe(1);
    } finally {
      vi.useRealTimers();
    }
  });

  it('holds nothing between two steps: a clone over this one, on the same thread', async () => {
    const all = await made({ sectors: 4096 * 4, region: 4096 });
    const lower = hydratorOf(all.rig);
    const metadata = new MemoryDevice(40 * 4096);
    const source = new MemoryDevice(new Prng(9).bytes(all.target.size));
    const upper = await makeRig(clone, 'm @lower s 8', { m: metadata, '@lower': all.target, s: source });
    const above = hydratorOf(upper, 200_000);
    const model = source.bytes.slice();
    for (let step = 0; step < 400; step++) {
      lower.step();
      above.step();
      const offset = (step * 77_777) % (model.length - 9000);
      const data = new Uint8Array(9000).fill(step);
      upper.target.write(offset, data);
      model.set(data, offset);
      if (step % 7 === 0) upper.target.flush();
    }
    stepsOf(above);
    stepsOf(lower);
    expectSameBytes(contentOf(upper.target), model, 'the upper one');
    expectSameBytes(all.memory.destination!.bytes, model, 'the destination of the lower one');
  });
});
