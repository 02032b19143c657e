/**
 * Threads that touch a checkpoint's blocks at the same time share rounds, and the power is cut at every operation of
 * what they did together.
 *
 *   shared-P1  At any cut, restore brings back every block that was not FREE at the checkpoint.
 *   shared-P2  Each thread finds what it wrote; nobody's write is lost to another's round.
 *   shared-P3  Rounds are shared: there are fewer flushes than two for each first touch.
 *
 * The schedule is the machine's and is not repeated by the seed.
 */
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import type { Survivors } from '../../../src/device/simulated.js';
import { BlockType as T } from '../../../src/targets/bow/state.js';
import { restore } from '../../../src/targets/bow/undo.js';
import { SharedDisk, sharedDiskBuffers, traced } from '../../device/shared-disk.js';
import { useThreads } from '../../threads.js';
import { contentOf, expectSameBytes } from '../harness.js';
import { blocksOf, expectAtRest, makeBow, trimAtRandom } from './rig.js';

const THREADS = 5;

/** Each thread writes where no other does, but shares blocks with its neighbours, and trims whole blocks of its own. */
const WORKER = `
import { workerData } from 'node:worker_threads';
import { Prng } from './src/device/prng.js';
import { BowTarget } from './src/targets/bow/target.js';
import { SharedDisk } from './test/device/shared-disk.js';

const { descriptor, disk, seed, start, end, writes, submitted } = workerData;
const device = new SharedDisk(disk, seed);
const target = new BowTarget(descriptor, { device: () => device, raise: () => {} });
const rng = new Prng(seed);
const { blockSize } = descriptor;
const model = new Uint8Array(end - start);
target.read(start, model);
let submits = 0;
const { rounds } = target.state;
const submit = rounds.submit.bind(rounds);
rounds.submit = (span, work) => {
  submits++;
  submit(span, work);
};
let done = 0;
const attempt = (body) => {
  try {
    body();
    return true;
  } catch (error) {
    if (error.code !== 'ENOSPC') throw error;
    return false;
  }
};
for (; done < writes; done++) {
  const length = Math.min(end - start, 1 + rng.below(rng.pick([600, blockSize, 3 * blockSize])));
  const at = start + rng.below(end - start - length + 1);
  const data = rng.bytes(length);
  const kind = rng.below(10);
  if (kind === 0) {
    if (attempt(() => target.writeZeroes(at, length, { unmap: true }))) model.fill(0, at - start, at - start + length);
    else target.read(start, model);
  } else if (attempt(() => target.write(at, data))) model.set(data, at - start);
  const found = new Uint8Array(end - start);
  target.read(start, found);
  const wrong = found.findIndex((byte, index) => byte !== model[index]);
  if (wrong !== -1) throw new Error('byte ' + (start + wrong) + ' of ' + start + '..' + end + ' after ' + done + ' writes, seed ' + seed);
}
Atomics.add(new Int32Array(submitted), 0, submits);
`;

const startThread = useThreads(WORKER, ['test/device/shared-disk.ts']);

describe('shared-P1, shared-P2: threads that share rounds, and a power cut at every operation', () => {
  const total = { submits: 0, flushes: 0 };
  for (const blockSize of [512, 2048, 4096]) {
    for (const seed of [1, 2, 3]) {
      it(`block ${blockSize}, seed ${seed}`, async () => {
        const { submits, flushes } = await run(blockSize, seed);
        total.submits += submits;
        total.flushes += flushes;
      });
    }
  }

  it('shared-P3: they took fewer flushes than each by itself', () => {
    expect(total.submits).toBeGreaterThan(100);
    expect(total.flushes).toBeLessThan(1.6 * total.submits);
  });
});

async function run(blockSize: number, seed: number): Promise<{ submits: number; flushes: number }> {
  const rng = new Prng(seed * 1000 + blockSize);
  const blocks = 30 + rng.below((100 << 10) / blockSize);
  const origin = rng.bytes(blocks * blockSize);
  origin[0] = 0;
  const buffers = sharedDiskBuffers(origin, { most: 60_000, traceBytes: 64 << 20 });
  const rig = await makeBow(new SharedDisk(buffers, seed), blockSize);
  trimAtRandom(rig, blockSize, rng.pick([0.2, 0.5, 0.8]), rng);
  const free = blocksOf(rig, T.FREE);
  rig.write('state', '1');
  const content = contentOf(rig.target);
  const [firstOperation, flushes] = [traced(origin, buffers).operations, new SharedDisk(buffers, 0).flushes];

  const submitted = new SharedArrayBuffer(4);
  const share = Math.floor(origin.length / THREADS);
  const codes = await Promise.all(
    Array.from({ length: THREADS }, (_, i) =>
      startThread({
        descriptor: rig.descriptor,
        disk: buffers,
        seed: seed * 100 + i,
        start: i * share,
        end: (i + 1) * share,
        writes: 40,
        submitted,
      }),
    ),
  );
  expect(codes).toEqual(Array(THREADS).fill(0));
  expectAtRest(rig);
  const took = new SharedDisk(buffers, 0).flushes - flushes;

  const disk = traced(origin, buffers);
  for (let cut = firstOperation; cut < disk.operations; cut++) {
    const images: Survivors[] = [rng, rng.pick<Survivors>(['none', 'all', { only: rng.below(5) }])];
    for (const survivors of images) {
      const image = disk.imageAt(cut, survivors);
      const where = `shared-P1: cut ${cut} of ${disk.operations}`;
      expect(restore(new MemoryDevice(image)).state, where).toBe('restored');
      const expected = content.slice();
      for (const block of free) {
        expected.set(image.subarray(block * blockSize, (block + 1) * blockSize), block * blockSize);
      }
      expectSameBytes(image, expected, where);
    }
  }
  return { submits: new Int32Array(submitted)[0]!, flushes: took };
}
