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
import { bitmapSize, bitOf } from './rig.js';

const THREADS = 3;
const SECTORS = 400;
/** Sectors that everybody writes; the others are each thread's own in turn, and HALVES are shared by two threads. */
const SHARED = 150;
const HALVES = 20;
const DATA_BYTES = SECTORS * 512;
const DISK_BYTES = DATA_BYTES + bitmapSize(SECTORS);
const ARGS = 'base 0 bitmap data 0';

/** The base's sector s is filled with the words -1 - s. */
function baseContent(): Uint8Array {
  const words = new Int32Array(SECTORS * 128);
  for (let at = 0; at < words.length; at++) words[at] = -1 - (at >> 7);
  return new Uint8Array(words.buffer);
}

const start = useThreads(
  `
import { workerData } from 'node:worker_threads';
import { Prng } from './src/device/prng.js';
import { MemoryDevice } from './src/device/memory.js';
import { cow } from './src/targets/cow/index.js';
import { SharedDisk } from './test/device/shared-disk.js';
const { id, buffers, descriptor, base, steps, notes, THREADS, SHARED, HALVES, SECTORS, DATA_BYTES, DISK_BYTES } = workerData;
const disk = new SharedDisk(buffers, id);
const part = (from, to) => ({
  size: to - from,
  read: (at, into) => disk.read(from + at, into),
  write: (at, bytes) => disk.write(from + at, bytes),
  flush: () => disk.flush(),
  discard: () => { throw new Error('discard'); },
  writeZeroes: (at, length) => disk.writeZeroes(from + at, length),
});
const devices = { base: new MemoryDevice(base), data: part(0, DATA_BYTES), bitmap: part(DATA_BYTES, DISK_BYTES) };
const target = cow.open(descriptor, { device: ({ path }) => devices[path], raise: () => {} });
const rng = new Prng(id * 1000 + 7);
const entries = new Int32Array(buffers.words);
// Words of notes: how many, then [entries of the trace, half sector, value] each.
const noteWords = new Int32Array(notes);
const mine = new Map();
let pending = new Map();
let version = 0;
const fill = (count, valueOf) => {
  const words = new Int32Array(count * 64);
  for (let at = 0; at < words.length; at++) words[at] = valueOf(at >> 6);
  return new Uint8Array(words.buffer);
};
const put = (half, count, zero) => {
  const value = zero ? 0 : ++version * 16 + id + 1;
  if (zero) target.writeZeroes(half * 256, count * 256, { unmap: rng.chance(0.5) });
  else target.write(half * 256, fill(count, () => value));
  for (let at = half; at < half + count; at++) {
    const isMine = at >= 2 * SHARED;
    if (isMine) mine.set(at, value);
    pending.set(at, isMine ? version : 0);
  }
};
if (steps === 0) {
  target.write(0, new Uint8Array(512));
  target.flush();
}
for (let step = 0; step < steps; step++) {
  const kind = rng.below(10);
  if (kind < 3) {
    const first = rng.below(SHARED);
    put(2 * first, 2 * Math.min(SHARED - first, 1 + rng.below(rng.pick([1, 8, 70]))), rng.chance(0.2));
  } else if (kind < 6) {
    const own = SHARED + HALVES + rng.below(Math.floor((SECTORS - SHARED - HALVES) / THREADS)) * THREADS + id;
    put(2 * own, 2, false);
  } else if (kind < 7 && id < 2) {
    put(2 * (SHARED + rng.below(HALVES)) + id, 1, false);
  } else if (kind < 9) {
    const first = rng.below(SECTORS);
    const found = new Uint8Array(512 * Math.min(SECTORS - first, 1 + rng.below(200)));
    target.read(first * 512, found);
    const words = new Int32Array(found.buffer);
    for (let at = 0; at < words.length; at++) {
      const half = 2 * first + (at >> 6);
      const word = words[at];
      if (mine.has(half) ? word !== mine.get(half) : !(word >= 0 || word === -1 - (half >> 1))) {
        throw new Error('sector ' + half / 2 + ' reads as ' + word + ', expected ' + mine.get(half));
      }
    }
  } else {
    const before = pending;
    pending = new Map();
    target.flush();
    const done = Atomics.load(entries, 1);
    for (const [half, value] of before) {
      const row = 1 + 3 * noteWords[0]++;
      noteWords.set([done, half, value], row);
    }
  }
}
`,
  ['test/device/shared-disk.ts'],
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
  const base = baseContent();
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
  const promised = notes
    .flatMap((buffer) => {
      const words = new Int32Array(buffer);
      return Array.from({ length: words[0]! }, (_, row) => [...words.subarray(1 + 3 * row, 4 + 3 * row)]);
    })
    .sort((a, b) => a[0]! - b[0]!);
  expect(promised.length).toBeGreaterThan(1000);
  const rng = new Prng(1);
  /** The least version of each half sector; -1: it may be the base's. */
  const least = new Int32Array(2 * SECTORS).fill(-1);
  let next = 0;
  for (let cut = 0; cut < disk.operations; cut += 1 + rng.below(5)) {
    for (; next < promised.length && promised[next]![0]! <= cut; next++) {
      const [, half, version] = promised[next]!;
      least[half!] = Math.max(least[half!]!, version!);
    }
    const { target } = await makeRig(cow, ARGS, partsOf(disk.imageAt(cut, rng), shared.base), {});
    const words = new Int32Array(contentOf(target).buffer);
    for (let at = 0; at < words.length; at++) {
      const half = at >> 6;
      const word = words[at]!;
      const isBase = word === -1 - (half >> 1) && least[half]! < 0;
      const isNew = word >= 0 && (half < 2 * SHARED || word >> 4 >= least[half]!);
      if (!isBase && !isNew)
        expect.fail(
          `cut ${cut} of ${disk.operations}: sector ${half / 2} is ${word}, version ${least[half]} at least`,
        );
    }
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
