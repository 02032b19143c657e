/**
 * A stage by itself.
 *
 *   stage-P1  What was put is found, by its group alone, until the group is cleared; then nothing of it is, whatever the
 *             others hold still (stage-I2: an index that a reader has looked up stays its group's while it holds the lock).
 *   stage-P2  A refused put has changed nothing, and an empty stage has room for a whole group.
 *   stage-P3  No two sectors share a slot, however many threads ask at once and are refused.
 *   stage-P4  Runs are what is staged, in order, each as long as can be; the counter that was written is kept, 255 as well.
 */
import { describe, expect, it } from 'vitest';
import { Prng } from '../../../src/device/prng.js';
import { Stage, type StageLimits } from '../../../src/targets/csum/stage.js';
import { useThreads } from '../../threads.js';
import { expectSameBytes } from '../harness.js';
import { bitwiseCrc } from './naive-volume.js';

const makeStage = (limits: StageLimits) => new Stage(new SharedArrayBuffer(Stage.bytesFor(limits)), limits);

describe('stage-P1, stage-P2, stage-P4: one thread', () => {
  it('stage-P1: what is cleared is found no more, while others of the same chain are', () => {
    const stage = makeStage({ groups: 16, slots: 64 });
    const one = new Uint8Array(512).fill(1);
    const groups = Array.from({ length: 16 }, (_, i) => i * 1024 + 5);
    for (const group of groups) expect(stage.put(group, 3, 1, one)).toBe(true);
    for (const [index, group] of groups.entries()) {
      stage.clear(stage.find(group));
      expect(stage.find(group), 'an entry that is free again').toBe(-1);
      for (const other of groups.slice(index + 1)) expect(stage.has(stage.find(other), 3)).toBe(true);
    }
    stage.reset();
    expect([stage.isEmpty, stage.sectors, [...stage.groups()]]).toEqual([true, 0, []]);
    for (const group of groups) expect(stage.put(group + 1, 0, 4, new Uint8Array(2048))).toBe(true);
  });

  it('stage-P1, stage-P2, stage-P4: as a map from sectors to bytes', () => {
    for (let seed = 1; seed <= 40; seed++) {
      const rng = new Prng(seed);
      const limits = { groups: 1 + rng.below(6), slots: 62 + rng.below(100) };
      const stage = makeStage(limits);
      let model = new Map<string, Uint8Array>();
      for (let step = 0; step < 40; step++) {
        const group = rng.below(9) * rng.pick([1, 1024]);
        const k = rng.below(62);
        const count = 1 + rng.below(62 - k);
        const zeros = rng.chance(0.3);
        const data = zeros ? new Uint8Array(512 * count) : rng.bytes(512 * count);
        const wasThere = [...stage.groups()].includes(group);
        const free = limits.slots - stage.sectors;
        const done = zeros ? stage.putZeros(group, k, count) : stage.put(group, k, count, data);
        if (done) {
          for (let i = 0; i < count; i++) model.set(`${group} ${k + i}`, data.slice(i * 512, i * 512 + 512));
        } else {
          const isFull = !wasThere && stage.groups().length >= limits.groups;
          expect(isFull || count > free, 'stage-P2: refused without need').toBe(true);
        }
        expectStage(stage, model);
        if (!done || rng.chance(0.05)) {
          for (const taken of stage.groups()) stage.clear(stage.find(taken));
          stage.reset();
          model = new Map();
          expect(stage.put(group, 0, 62, new Uint8Array(62 * 512)), 'stage-P2').toBe(true);
          stage.clear(stage.find(group));
          stage.reset();
        }
      }
    }
  });

  it('stage-P4: the counter of the table that was written', () => {
    const stage = makeStage({ groups: 2, slots: 2 });
    stage.putZeros(7, 0, 1);
    const entry = stage.find(7);
    expect(stage.writtenCounter(entry)).toBe(undefined);
    for (const counter of [0, 1, 254, 255]) {
      stage.setWrittenCounter(entry, counter);
      expect(stage.writtenCounter(entry)).toBe(counter);
    }
    stage.clear(entry);
    expect(stage.writtenCounter(entry)).toBe(undefined);
  });
});

function expectStage(stage: Stage, model: Map<string, Uint8Array>): void {
  const wanted = [...new Set([...model.keys()].map((key) => Number(key.split(' ')[0])))];
  expect([...stage.groups()].filter((group) => stage.runFrom(stage.find(group), 0))).toEqual(
    wanted.sort((a, b) => a - b),
  );
  const sector = new Uint8Array(512);
  for (const group of wanted) {
    const entry = stage.find(group);
    const inRuns = new Set<number>();
    for (let run = stage.runFrom(entry, 0); run; run = stage.runFrom(entry, run.k + run.count)) {
      for (let i = 0; i < run.count; i++) {
        inRuns.add(run.k + i);
        const found = run.data?.subarray(i * 512, i * 512 + 512) ?? new Uint8Array(512);
        expectSameBytes(found, model.get(`${group} ${run.k + i}`)!, `run at ${group} ${run.k}+${i}`);
      }
    }
    for (let k = 0; k < 62; k++) {
      const expected = model.get(`${group} ${k}`);
      const isThere = expected !== undefined;
      if (stage.has(entry, k) !== isThere || inRuns.has(k) !== isThere)
        expect.fail(`sector ${k} of ${group}`);
      if (expected === undefined) continue;
      stage.get(entry, k, sector);
      expectSameBytes(sector, expected, `${group} ${k}`);
      if (k % 8 === 0) expect(stage.crc(entry, k)).toBe(bitwiseCrc(expected));
    }
  }
}

/** Rounds of puts of every size into a stage that is nearly full; after each one thread looks at the slots. */
const WORKER = `
import { workerData } from 'node:worker_threads';
import { Prng } from './src/device/prng.js';
import { Stage } from './src/targets/csum/stage.js';
const { buffer, limits, shared, threads, index, rounds } = workerData;
const words = new Int32Array(shared);
const stage = new Stage(buffer, limits);
const rng = new Prng(index);
const bytes = rng.bytes(62 * 512);
const meet = () => {
  const round = Atomics.load(words, 1);
  if (Atomics.add(words, 0, 1) === threads - 1) {
    Atomics.store(words, 0, 0);
    Atomics.add(words, 1, 1);
    Atomics.notify(words, 1);
  }
  // Looked at anew: who was late to be told wakes those that wait for the next time already.
  while (Atomics.load(words, 1) === round) Atomics.wait(words, 1, round);
};
for (let round = 0; round < rounds; round++) {
  meet();
  for (let tries = 0; tries < 30; tries++) {
    const k = rng.below(62);
    stage.put(index * 1000 + rng.below(4), k, rng.chance(0.7) ? 1 : 1 + rng.below(62 - k), bytes);
  }
  meet();
  if (index > 0) continue;
  const owners = new Set();
  for (const group of stage.groups()) {
    const entry = stage.find(group);
    for (let run = stage.runFrom(entry, 0); run; run = stage.runFrom(entry, run.k + run.count)) {
      for (let i = 0; i < run.count; i++) {
        const at = run.data.byteOffset + 512 * i;
        if (owners.has(at)) throw new Error('stage-P3: a slot with two owners in round ' + round);
        owners.add(at);
      }
    }
  }
  for (const group of stage.groups()) stage.clear(stage.find(group));
  stage.reset();
}
`;

const start = useThreads(WORKER);

it('stage-P3: no two sectors share a slot', async () => {
  const [threads, rounds] = [3, 1500];
  const limits = { groups: 12, slots: 100 };
  const buffer = new SharedArrayBuffer(Stage.bytesFor(limits));
  const shared = new SharedArrayBuffer(8);
  const work = (index: number) => start({ buffer, limits, shared, threads, index, rounds });
  expect(await Promise.all([0, 1, 2].map(work))).toEqual([0, 0, 0]);
});
