/** Marks of pages: against a set of numbers, and what a commit may not miss, under real threads. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Marks } from '../../src/shared/marks.js';
import { useThreads } from '../threads.js';

function create(pages: number): Marks {
  return new Marks(new Int32Array(new SharedArrayBuffer(4 * Marks.words(pages))));
}

/** All marks, in batches of at most `room`; each batch must be within its room. */
function takeAll(marks: Marks, room: number): { pages: number[]; batches: number } {
  const batch = new Int32Array(room);
  const pages: number[] = [];
  let batches = 0;
  for (let from: number | undefined = 0; from !== undefined; batches++) {
    const { count, next }: { count: number; next: number | undefined } = marks.take(from, batch);
    expect(count).toBeLessThanOrEqual(room);
    pages.push(...batch.subarray(0, count));
    from = next;
  }
  return { pages, batches };
}

describe('Marks', () => {
  it('takes what was marked since, ascending and once, in batches of any size', () => {
    const rounds = fc.array(fc.array(fc.nat(299), { maxLength: 200 }), { maxLength: 6 });
    fc.assert(
      fc.property(
        fc.integer({ min: 300, max: 400 }),
        fc.integer({ min: 32, max: 130 }),
        rounds,
        (pages, room, all) => {
          const marks = create(pages);
          for (const round of all) {
            expect(marks.areThere).toBe(false);
            marks.whileChanging(() => round.forEach((page) => void marks.mark(page)));
            expect(marks.areThere).toBe(round.length > 0);
            marks.settle();
            expect(takeAll(marks, room).pages).toEqual([...new Set(round)].sort((a, b) => a - b));
          }
        },
      ),
    );
  });

  it('every page alone, the last of a word and of all among them', () => {
    for (const pages of [1, 31, 32, 33, 64, 100]) {
      const marks = create(pages);
      for (let page = 0; page < pages; page++) {
        marks.mark(page);
        expect(marks.areThere).toBe(true);
        expect(takeAll(marks, 32).pages).toEqual([page]);
      }
      for (let page = pages - 1; page >= 0; page--) marks.mark(page);
      const { pages: found, batches } = takeAll(marks, 32);
      expect(found).toEqual(Array.from({ length: pages }, (_, page) => page));
      expect(batches).toBe(Math.ceil(pages / 32));
    }
  });

  it('a mark that comes while batches are taken is in a later one, or stays', () => {
    const marks = create(96);
    for (const page of [0, 40]) marks.mark(page);
    const batch = new Int32Array(32);
    expect(marks.take(0, batch)).toEqual({ count: 1, next: 1 });
    for (const page of [3, 95]) marks.mark(page);
    expect(marks.take(1, batch)).toEqual({ count: 1, next: 2 });
    expect(batch[0]).toBe(40);
    expect(marks.take(2, batch)).toEqual({ count: 1, next: undefined });
    expect(batch[0]).toBe(95);
    expect(takeAll(marks, 32).pages).toEqual([3]);
    expect(marks.areThere).toBe(false);
  });

  it('an error of a change is thrown, and holds nobody up', () => {
    const marks = create(10);
    const failing = () => {
      marks.mark(4);
      throw new Error('as it is');
    };
    expect(() => marks.whileChanging(failing)).toThrow('as it is');
    marks.settle();
    expect(takeAll(marks, 32).pages).toEqual([4]);
  });
});

const PAGES = 70;
const VALUES = Marks.words(PAGES);
const STOPPED = VALUES + PAGES;
const ALL = STOPPED + 1;
const THREADS = 3;

const start = useThreads(`
import { workerData } from 'node:worker_threads';
import { Marks } from './src/shared/marks.js';
import { Prng } from './src/device/prng.js';

const { buffer, id, times } = workerData;
const words = new Int32Array(buffer);
const marks = new Marks(words.subarray(0, ${VALUES}));
const rng = new Prng(id);
const idle = new Int32Array(new SharedArrayBuffer(4));
for (let i = 0; i < times; i++) {
  const page = rng.below(${PAGES});
  marks.whileChanging(() => {
    Atomics.add(words, ${VALUES} + page, 1);
    if (rng.chance(0.01)) Atomics.wait(idle, 0, 0, 1);
    marks.mark(page);
  });
}
Atomics.add(words, ${STOPPED}, 1);
`);

describe('marks-I1', () => {
  it('what can be seen changed after settle is marked', async () => {
    const words = new Int32Array(new SharedArrayBuffer(4 * ALL));
    const marks = new Marks(words.subarray(0, VALUES));
    const values = () => Array.from({ length: PAGES }, (_, page) => Atomics.load(words, VALUES + page));
    const committed = new Array<number>(PAGES).fill(0);
    const ids = Array.from({ length: THREADS }, (_, i) => i + 1);
    const ends = ids.map((id) => start({ buffer: words.buffer, id, times: 5000 }));
    let rounds = 0;
    for (let isLast = false; !isLast; rounds++) {
      isLast = Atomics.load(words, STOPPED) === THREADS;
      const seen = values();
      marks.settle();
      for (const page of takeAll(marks, 32).pages) committed[page] = Atomics.load(words, VALUES + page);
      // A commit that took no mark of a page has what was seen before.
      seen.forEach((value, page) => void expect(committed[page]).toBeGreaterThanOrEqual(value));
      if (rounds % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await Promise.all(ends)).toEqual(ids.map(() => 0));
    expect(committed).toEqual(values());
    expect(committed.reduce((sum, value) => sum + value, 0)).toBe(THREADS * 5000);
    expect(rounds).toBeGreaterThan(2);
  });
});
