/**
 * Several threads on one clone, over a disk that traces what they do together, one of them hydrating; then the power is cut.
 *
 *   P1  A reader never sees the destination of a region before all of it is there (clone-I2): each sector is the source's or
 *       what somebody wrote, one version as a whole.
 *   P2  A thread reads its own writes, also where others write the rest of the same sector or region, and where it hydrates.
 *   P3  After a cut the same holds, and what was written before a flush that had returned is there, whoever hydrated its
 *       region (marks-I1); the metadata is whole.
 *   P4  At the end all is hydrated, and that is said once.
 */
import { expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { RwLock } from '../../../src/shared/rwlock.js';
import { clone } from '../../../src/targets/clone/index.js';
import { CloneState } from '../../../src/targets/clone/state.js';
import { sharedDiskBuffers, traced } from '../../device/shared-disk.js';
import { until, useThreads } from '../../threads.js';
import { contentOf, type Devices, expectSameBytes, makeRig } from '../harness.js';
import { originContent, Promised } from '../versions.js';
import { durableOf, GARBAGE, hydratedOf } from './rig.js';

const THREADS = 3;
const SECTORS = 1203;
const REGION = 8;
const REGIONS = Math.ceil(SECTORS / REGION);
/** Sectors that everybody writes; the others are each thread's own in turn, and HALVES are shared by two threads. */
const SHARED = 400;
const HALVES = 40;
const DATA_BYTES = SECTORS * 512;
const DISK_BYTES = DATA_BYTES + 16 * 4096;
const ARGS = `metadata destination source ${REGION} 0 4 hydration_threshold 2 hydration_batch_size 2`;

const start = useThreads(
  `
import { workerData } from 'node:worker_threads';
import { Prng } from './src/device/prng.js';
import { MemoryDevice } from './src/device/memory.js';
import { clone } from './src/targets/clone/index.js';
import { Committer } from './src/targets/clone/commit.js';
import { Copier } from './src/targets/clone/copy.js';
import { Hydrator } from './src/targets/clone/hydrate.js';
import { SharedDisk } from './test/device/shared-disk.js';
import { Writer } from './test/targets/versions.js';
const { id, seed, buffers, descriptor, source, steps, notes, counts, THREADS, SHARED, HALVES, SECTORS, DATA_BYTES, DISK_BYTES } = workerData;
const disk = new SharedDisk(buffers, id + seed);
const devices = { source: new MemoryDevice(source), destination: disk.part(0, DATA_BYTES), metadata: disk.part(DATA_BYTES, DISK_BYTES) };
const raised = new Int32Array(counts);
const raise = (event) => {
  if (!event.startsWith('hydrated ')) throw new Error(event);
  Atomics.add(raised, 0, 1);
};
const target = clone.open(descriptor, { device: ({ path }) => devices[path], raise });
const rng = new Prng(id * 1000 + 7 + seed);
const writer = new Writer(target, { id, rng, shared: SHARED, notes, entries: () => disk.entryCount });
if (steps === 0) {
  target.write(0, new Uint8Array(512));
  target.flush();
}
const buffer = new Uint8Array(8192);
const committer = new Committer(target.state, buffer);
const copier = new Copier(target.state, buffer);
const hydrator = new Hydrator(target.state, copier, () => committer.commitInBackground(), 3000);
for (let step = 0; step < steps; step++) {
  const kind = rng.below(10);
  if (id === 0 && step % 2 === 0) {
    // In pace with the others, so that there is something to hydrate all along.
    if (target.state.hydratedCount < (descriptor.regions * step) / steps) hydrator.step();
    if (rng.chance(0.05)) committer.commitInBackground();
  } else if (kind < 3) {
    const first = rng.below(SHARED);
    writer.put(2 * first, 2 * Math.min(SHARED - first, 1 + rng.below(rng.pick([1, 1, 4, 30]))), rng.chance(0.2));
  } else if (kind < 6) {
    const most = Math.floor((SECTORS - SHARED - HALVES) / THREADS);
    writer.put(2 * (SHARED + HALVES + Math.floor((rng.below(most) * (step + 1)) / steps) * THREADS + id), 2, rng.chance(0.1));
  } else if (kind < 7 && id < 2) {
    writer.put(2 * (SHARED + rng.below(HALVES)) + id, 1, false);
  } else if (kind < 9) {
    const first = rng.below(SECTORS);
    writer.check(first, Math.min(SECTORS - first, 1 + rng.below(200)));
  } else {
    writer.flush();
  }
}
if (steps > 0) {
  if (id === 0) while (target.state.hydratedCount < descriptor.regions) hydrator.step();
  writer.check(0, SECTORS);
  writer.flush();
}
`,
  ['test/device/shared-disk.ts', 'test/targets/versions.ts'],
);

function partsOf(image: Uint8Array, source: Uint8Array): Devices {
  return {
    source: new MemoryDevice(source),
    destination: new MemoryDevice(image.subarray(0, DATA_BYTES)),
    metadata: new MemoryDevice(image.subarray(DATA_BYTES)),
  };
}

/** A new clone on an image that it is made on. */
async function made() {
  const source = originContent(SECTORS);
  const image = new Uint8Array(DISK_BYTES).fill(GARBAGE, 0, DATA_BYTES);
  const rig = await makeRig(clone, ARGS, partsOf(image, source), {});
  const buffers = sharedDiskBuffers(image, { most: 100_000, traceBytes: 256 << 20 });
  return { source, image, rig, buffers, counts: new SharedArrayBuffer(4) };
}

const workerData = (
  { rig, source, buffers, counts }: Awaited<ReturnType<typeof made>>,
  id: number,
  steps: number,
  seed = 0,
  notes = new SharedArrayBuffer(4),
) => ({
  ...{ id, seed, steps, notes, counts, source, buffers, descriptor: rig.descriptor },
  ...{ THREADS, SHARED, HALVES, SECTORS, DATA_BYTES, DISK_BYTES },
});

it.each([1, 2, 3])('P1, P2, P3, P4: writers, readers, flushes and hydration, run %i', async (seed) => {
  const shared = await made();
  const notes = Array.from({ length: THREADS }, () => new SharedArrayBuffer(4 << 20));
  await Promise.all(notes.map((buffer, id) => start(workerData(shared, id, 600, seed * 100, buffer))));
  expect(hydratedOf(shared.rig)).toHaveLength(REGIONS);
  const { source, image } = shared;
  const view = await makeRig(clone, ARGS, partsOf(new Uint8Array(shared.buffers.content), source), {});
  expect(hydratedOf(view)).toHaveLength(REGIONS);
  expectSameBytes(
    contentOf(view.target),
    new Uint8Array(shared.buffers.content).slice(0, DATA_BYTES),
    'P4: at the end all is on the destination',
  );
  expect(new Int32Array(shared.counts)[0], 'P4: hydrated').toBe(1);

  const disk = traced(image, shared.buffers);
  expect(disk.operations).toBeGreaterThan(1000);
  const promised = new Promised(notes, { sectors: SECTORS, shared: SHARED, zeroes: true });
  expect(promised.count).toBeGreaterThan(1000);
  const rng = new Prng(seed);
  const seen = { some: 0, all: 0 };
  for (let cut = 0; cut < disk.operations; cut += 1 + rng.below(9)) {
    const parts = partsOf(disk.imageAt(cut, rng), source);
    const durable = durableOf(parts.metadata!, REGIONS).length;
    if (durable === REGIONS) seen.all++;
    else if (durable > 0) seen.some++;
    const { target } = await makeRig(clone, ARGS, parts, {});
    promised.expectKept(contentOf(target), cut);
  }
  expect(seen.some).toBeGreaterThan(50);
});

it('marks-I1: a flush waits for who has set bits and not marked them yet', async () => {
  const shared = await made();
  const { rig, source, buffers } = shared;
  const device = ({ path }: { path: string }) => partsOf(new Uint8Array(buffers.content), source)[path]!;
  const state = new CloneState(rig.descriptor, { device, raise: () => {} });
  const marks = new Int32Array(rig.descriptor.marks);
  // Writers that wait for its lock.
  const waiting = () => Atomics.load(marks, 1) === 1;

  // As setHydrated does it, stopped before the mark.
  const lock = new RwLock(marks.subarray(0, RwLock.WORDS));
  state.destination.write(0, source.slice(0, 4096));
  lock.lockShared();
  Atomics.or(state.hydrated, 0, 1);
  // It writes the same region and flushes. It does not mark the array block, for the bit is set.
  const flushed = start(workerData(shared, 0, 0));
  await until('the flush waits', waiting);
  expect(durableOf(state.metadata, REGIONS)).toEqual([]);
  state.marks.mark(0);
  lock.unlockShared();
  await flushed;
  expect(durableOf(state.metadata, REGIONS)).toEqual([0]);
});
