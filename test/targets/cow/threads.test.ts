/**
 * Several threads on one descriptor, over a disk that traces what they do together; then the power is cut in it.
 *
 *   P1  A reader never sees a bit before its data (cow-I2): each sector is the base's or what somebody wrote, never what was
 *       on the data device before.
 *   P2  A thread reads its own writes, also where others write the rest of the same sector (cow-I5).
 *   P3  After a cut the same holds, and what was written before a flush that had returned is there (cow-I3, cow-I4).
 */
import { expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { RwLock } from '../../../src/shared/rwlock.js';
import { cow } from '../../../src/targets/cow/index.js';
import { CowState } from '../../../src/targets/cow/state.js';
import { type SharedDiskBuffers, sharedDiskBuffers, traced } from '../../device/shared-disk.js';
import { until, useThreads } from '../../threads.js';
import { contentOf, type Devices, makeRig } from '../harness.js';
import { originContent, Promised } from '../versions.js';
import { bitmapSize, bitOf } from './rig.js';

const THREADS = 3;
const SECTORS = 400;
/** Sectors that everybody writes; the others are each thread's own in turn, and HALVES are shared by two threads. */
const SHARED = 150;
const HALVES = 20;
const DATA_BYTES = SECTORS * 512;
const DISK_BYTES = DATA_BYTES + bitmapSize(SECTORS);
const ARGS = 'base 0 bitmap data 0';

const start = useThreads(
  `
import { workerData } from 'node:worker_threads';
import { Prng } from './src/device/prng.js';
import { MemoryDevice } from './src/device/memory.js';
import { cow } from './src/targets/cow/index.js';
import { SharedDisk } from './test/device/shared-disk.js';
import { Writer } from './test/targets/versions.js';
const { id, buffers, descriptor, base, steps, notes, THREADS, SHARED, HALVES, SECTORS, DATA_BYTES, DISK_BYTES } = workerData;
const disk = new SharedDisk(buffers, id);
const devices = { base: new MemoryDevice(base), data: disk.part(0, DATA_BYTES), bitmap: disk.part(DATA_BYTES, DISK_BYTES) };
const target = cow.open(descriptor, { device: ({ path }) => devices[path], raise: () => {} });
const rng = new Prng(id * 1000 + 7);
const writer = new Writer(target, { id, rng, shared: SHARED, notes, entries: () => disk.entryCount });
if (steps === 0) {
  target.write(0, new Uint8Array(512));
  target.flush();
}
for (let step = 0; step < steps; step++) {
  const kind = rng.below(10);
  if (kind < 3) {
    const first = rng.below(SHARED);
    writer.put(2 * first, 2 * Math.min(SHARED - first, 1 + rng.below(rng.pick([1, 8, 70]))), rng.chance(0.2));
  } else if (kind < 6) {
    const own = SHARED + HALVES + rng.below(Math.floor((SECTORS - SHARED - HALVES) / THREADS)) * THREADS + id;
    writer.put(2 * own, 2, false);
  } else if (kind < 7 && id < 2) {
    writer.put(2 * (SHARED + rng.below(HALVES)) + id, 1, false);
  } else if (kind < 9) {
    const first = rng.below(SECTORS);
    writer.check(first, Math.min(SECTORS - first, 1 + rng.below(200)));
  } else {
    writer.flush();
  }
}
`,
  ['test/device/shared-disk.ts', 'test/targets/versions.ts'],
);

function partsOf(image: Uint8Array, base: Uint8Array): Devices {
  return {
    base: new MemoryDevice(base),
    data: new MemoryDevice(image.subarray(0, DATA_BYTES)),
    bitmap: new MemoryDevice(image.subarray(DATA_BYTES)),
  };
}

/** A new stack on an image that it is made on, with 0xee wherever no data was written. */
async function made() {
  const base = originContent(SECTORS);
  const image = new Uint8Array(DISK_BYTES).fill(0xee, 0, DATA_BYTES);
  const rig = await makeRig(cow, ARGS, partsOf(image, base), {});
  const buffers = sharedDiskBuffers(image, { most: 100_000, traceBytes: 256 << 20 });
  return { base, image, rig, buffers };
}

const workerData = (
  { rig, base, buffers }: Awaited<ReturnType<typeof made>>,
  id: number,
  steps: number,
  notes = new SharedArrayBuffer(4),
) => ({
  ...{ id, steps, notes, base, buffers, descriptor: rig.descriptor },
  ...{ THREADS, SHARED, HALVES, SECTORS, DATA_BYTES, DISK_BYTES },
});

it('P1, P2, P3: writers, readers and flushes', async () => {
  const shared = await made();
  const notes = Array.from({ length: THREADS }, () => new SharedArrayBuffer(4 << 20));
  await Promise.all(notes.map((buffer, id) => start(workerData(shared, id, 700, buffer))));
  const disk = traced(shared.image, shared.buffers as SharedDiskBuffers);
  expect(disk.operations).toBeGreaterThan(1000);
  const promised = new Promised(notes, { sectors: SECTORS, shared: SHARED, zeroes: false });
  expect(promised.count).toBeGreaterThan(1000);
  const rng = new Prng(1);
  for (let cut = 0; cut < disk.operations; cut += 1 + rng.below(5)) {
    const { target } = await makeRig(cow, ARGS, partsOf(disk.imageAt(cut, rng), shared.base), {});
    promised.expectKept(contentOf(target), cut);
  }
});

it('cow-I4: a flush waits for who has set bits and not marked them yet', async () => {
  const shared = await made();
  const { rig, base, buffers } = shared;
  const device = ({ path }: { path: string }) => partsOf(new Uint8Array(buffers.content), base)[path]!;
  const state = new CowState(rig.descriptor, { device });
  const marks = new Int32Array(rig.descriptor.marks);
  // Writers that wait for its lock.
  const waiting = () => Atomics.load(marks, 1) === 1;

  // As `set` does it, stopped before the mark.
  const lock = new RwLock(marks.subarray(0, RwLock.WORDS));
  lock.lockShared();
  Atomics.or(state.layers[0]!.bits, 0, 1);
  // It writes the same sector and flushes. It does not mark the page, for the bit is set.
  const flushed = start(workerData(shared, 0, 0));
  await until('the flush waits', waiting);
  state.marks.mark(0);
  lock.unlockShared();
  await flushed;
  const content = new Uint8Array(buffers.content).slice(DATA_BYTES);
  expect(bitOf(content, 0)).toBe(true);
});
