/** Locks of a bit: against a set of numbers, and under real threads. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BitLocks } from '../../src/shared/bit-locks.js';
import { pause, until, useThreads } from '../threads.js';

const BITS = 100;

describe('tryTake and release', () => {
  const range = fc
    .tuple(fc.nat(BITS), fc.nat(BITS))
    .map(([a, b]): [number, number] => [Math.min(a, b), Math.max(a, b)]);
  const step = fc.record({ range, takes: fc.boolean() });

  it('hold exactly what a set says', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const words = new Int32Array(new SharedArrayBuffer(16));
        const locks = new BitLocks(words);
        const held = new Set<number>();
        for (const {
          range: [from, end],
          takes,
        } of steps) {
          if (takes) {
            let stop = from;
            while (stop < end && !held.has(stop)) held.add(stop++);
            expect(locks.tryTake(from, end)).toBe(stop);
          } else {
            // Only what is held is given back: the part of the range before the first free one.
            let stop = from;
            while (stop < end && held.delete(stop)) stop++;
            if (stop > from) locks.release(from, stop);
          }
          const found = Array.from({ length: 128 }, (_, i) => (words[i >> 5]! >>> (i & 31)) & 1);
          expect(found).toEqual(Array.from({ length: 128 }, (_, i) => (held.has(i) ? 1 : 0)));
        }
      }),
      { numRuns: 300 },
    );
  });

  it.each([
    [0, 32],
    [31, 33],
    [0, 96],
    [63, 64],
    [5, 5],
    [32, 32],
  ])('[%i, %i) as a whole', (from, end) => {
    const words = new Int32Array(new SharedArrayBuffer(16));
    const locks = new BitLocks(words);
    expect(locks.tryTake(from, end)).toBe(end);
    if (end > from) expect(locks.tryTake(from, end)).toBe(from);
    locks.release(from, end);
    expect([...words]).toEqual([0, 0, 0, 0]);
  });

  it('numbers of the last words of 2^31 locks', () => {
    // As many words as would be there, of which only the last are touched.
    const words = new Int32Array(new SharedArrayBuffer(2 ** 28));
    const locks = new BitLocks(words);
    const end = 2 ** 31;
    expect(locks.tryTake(end - 40, end)).toBe(end);
    expect([words.at(-3), words.at(-2), words.at(-1)]).toEqual([0, -1 << 24, -1]);
    expect(locks.tryTake(end - 50, end)).toBe(end - 40);
    locks.release(end - 50, end);
    expect([words.at(-2), words.at(-1)]).toEqual([0, 0]);
  });
});

const THREADS = 4;
const WORDS = Math.ceil(BITS / 32);
/** Words after the locks: who holds each bit, then counters. */
const OWNERS = WORDS;
const VIOLATIONS = OWNERS + BITS;
const PARTS = VIOLATIONS + 1;
const WAITING = PARTS + 1;
const GOT = WAITING + 1;
const ALL = GOT + 1;

const start = useThreads(`
import { workerData } from 'node:worker_threads';
import { BitLocks } from './src/shared/bit-locks.js';
import { Prng } from './src/device/prng.js';

const { buffer, id, times, range } = workerData;
const words = new Int32Array(buffer);
const locks = new BitLocks(words.subarray(0, ${WORDS}));
const rng = new Prng(id);
const idle = new Int32Array(new SharedArrayBuffer(4));
for (let i = 0; i < times; i++) {
  const from = range ? range[0] : rng.below(${BITS});
  const end = range ? range[1] : Math.min(${BITS}, from + 1 + rng.below(rng.pick([1, 8, 60])));
  Atomics.add(words, ${WAITING}, 1);
  const stop = !range && rng.chance(0.2) ? locks.tryTake(from, end) : locks.take(from, end);
  Atomics.sub(words, ${WAITING}, 1);
  if (range) Atomics.store(words, ${GOT}, stop);
  if (stop < end) Atomics.add(words, ${PARTS}, 1);
  if (stop < from || stop > end) Atomics.add(words, ${VIOLATIONS}, 1);
  for (let bit = from; bit < stop; bit++) {
    if (Atomics.compareExchange(words, ${OWNERS} + bit, 0, id) !== 0) Atomics.add(words, ${VIOLATIONS}, 1);
  }
  if (rng.chance(0.05)) Atomics.wait(idle, 0, 0, 1);
  for (let bit = from; bit < stop; bit++) {
    if (Atomics.compareExchange(words, ${OWNERS} + bit, id, 0) !== id) Atomics.add(words, ${VIOLATIONS}, 1);
  }
  if (stop > from) locks.release(from, stop);
}
`);

describe('take', () => {
  it('threads that want each other’s bits never hold the same one, and all come to an end', async () => {
    const words = new Int32Array(new SharedArrayBuffer(4 * ALL));
    const ids = Array.from({ length: THREADS }, (_, i) => i + 1);
    const codes = await Promise.all(ids.map((id) => start({ buffer: words.buffer, id, times: 20_000 })));
    expect(codes).toEqual(ids.map(() => 0));
    expect(words[VIOLATIONS]).toBe(0);
    expect(words[PARTS]).toBeGreaterThan(100);
    expect([...words.subarray(0, VIOLATIONS)].every((word) => word === 0)).toBe(true);
  });

  it('waits for its first bit only, also while others of the word come and go; then takes as far as it can', async () => {
    const words = new Int32Array(new SharedArrayBuffer(4 * ALL));
    const locks = new BitLocks(words.subarray(0, WORDS));
    locks.tryTake(10, 20);
    locks.tryTake(40, 41);
    const done = start({ buffer: words.buffer, id: 1, times: 1, range: [12, 90] });
    await until('it waits', () => Atomics.load(words, WAITING) === 1);
    // Its word changes and it is woken, but its bit is held.
    for (let i = 0; i < 20; i++) {
      locks.tryTake(20, 21);
      locks.release(20, 21);
      locks.release(10, 11);
      locks.tryTake(10, 11);
      await pause(1);
    }
    expect([words[WAITING], words[GOT]]).toEqual([1, 0]);
    locks.release(10, 20);
    expect(await done).toBe(0);
    expect(words[GOT]).toBe(40);
    expect([...words.subarray(0, WORDS)]).toEqual([0, 1 << 8, 0, 0]);
  });
});
