/** Rounds under real threads. */
import { describe, expect, it, vi } from 'vitest';
import { Rounds } from '../../src/shared/rounds.js';
import { pause, until, useThreads } from '../threads.js';

/** The structure's own words, as src/shared/rounds.ts numbers them: the tests watch who waits. */
const MUTEX = 0;
const FIRST_TICKET = 4;
const WAITING = 2;
const LEAD = 5;

/** Words after the structure's. */
const LEADERS = Rounds.WORDS;
const ROUNDS = LEADERS + 1;
const SERVED = LEADERS + 2;
const FAILED = LEADERS + 3;
const VIOLATIONS = LEADERS + 4;
const DONE = LEADERS + 5;
/** While it is 1, who leads stays in its round. */
const HOLD = LEADERS + 6;
/** For each block, the round that last dealt with it. */
const BLOCKS = LEADERS + 7;
const BLOCK_COUNT = 40;
const WORDS = BLOCKS + BLOCK_COUNT;

const BAD_BLOCK = 39;

const WORKER = `
import { workerData } from 'node:worker_threads';
import { Rounds } from './src/shared/rounds.js';

const { buffer, doubles, id, times, limit, span } = workerData;
const words = new Int32Array(buffer);
const rounds = new Rounds(words, new Float64Array(doubles), { limit });
const idle = new Int32Array(new SharedArrayBuffer(4));
let x = 88172645 + id * 7919;
const random = (limit) => {
  x ^= x << 13;
  x ^= x >>> 17;
  x ^= x << 5;
  return (x >>> 0) % limit;
};
const claim = (holds) => {
  if (!holds) Atomics.add(words, ${VIOLATIONS}, 1);
};
const inside = (what) => {
  claim(Atomics.add(words, ${LEADERS}, 1) === 0);
  while (Atomics.load(words, ${HOLD}) === 1) Atomics.wait(words, ${HOLD}, 1);
  try {
    return what();
  } finally {
    Atomics.sub(words, ${LEADERS}, 1);
  }
};
const work = (spans) => inside(() => {
  const round = Atomics.add(words, ${ROUNDS}, 1) + 1;
  let end = -1;
  // The limit may be passed by one span; those that end in the bad block are long.
  const blocks = spans.reduce((sum, span) => sum + span.end - span.first, 0);
  claim(blocks < limit + 6 || spans.at(-1).end > ${BAD_BLOCK});
  for (const span of spans) {
    // Ascending, and neither overlapping nor touching.
    claim(span.first > end && span.end > span.first);
    end = span.end;
  }
  if (random(3) === 0) Atomics.wait(idle, 0, 0, 1);
  if (spans.some((span) => span.end > ${BAD_BLOCK})) throw new Error('bad block');
  for (const { first, end } of spans) for (let block = first; block < end; block++) words[${BLOCKS} + block] = round;
});
for (let i = 0; i < times; i++) {
  if (random(10) === 0) {
    const before = Atomics.load(words, ${ROUNDS});
    rounds.alone(() => inside(() => {
      const then = Atomics.load(words, ${ROUNDS});
      if (random(3) === 0) Atomics.wait(idle, 0, 0, 1);
      claim(then >= before && Atomics.load(words, ${ROUNDS}) === then);
    }));
    continue;
  }
  const first = span ? span.first : random(${BLOCK_COUNT} - 6);
  const end = span ? span.end : random(20) === 0 ? ${BLOCK_COUNT} : first + 1 + random(5);
  const before = Atomics.load(words, ${ROUNDS});
  let failed = false;
  try {
    rounds.submit({ first, end }, work);
  } catch (error) {
    failed = true;
  }
  claim(failed === (end > ${BAD_BLOCK}));
  Atomics.add(words, failed ? ${FAILED} : ${SERVED}, 1);
  // A round that began after we asked has dealt with each block.
  if (!failed) for (let block = first; block < end; block++) claim(Atomics.load(words, ${BLOCKS} + block) > before);
}
Atomics.add(words, ${DONE}, 1);
`;

const startThread = useThreads(WORKER);
let words: Int32Array;
let doubles: SharedArrayBuffer;

function fresh(): void {
  words = new Int32Array(new SharedArrayBuffer(4 * WORDS));
  doubles = new SharedArrayBuffer(8 * Rounds.DOUBLES);
}

const word = (index: number): number => Atomics.load(words, index);
const waiting = (): number =>
  words.subarray(FIRST_TICKET, Rounds.WORDS).reduce((sum, state) => sum + (state === WAITING ? 1 : 0), 0);

function start(
  id: number,
  {
    times = 1,
    limit = 1000,
    span,
  }: { times?: number; limit?: number; span?: { first: number; end: number } },
): Promise<number> {
  return startThread({ buffer: words.buffer, doubles, id, times, limit, span });
}

function letGo(): void {
  Atomics.store(words, HOLD, 0);
  Atomics.notify(words, HOLD);
}

function expectAtRest(): void {
  expect(words.subarray(FIRST_TICKET, Rounds.WORDS).filter((state) => state !== 0)).toHaveLength(0);
  expect([word(MUTEX), word(LEADERS), word(VIOLATIONS)]).toEqual([0, 0, 0]);
}

describe('Rounds', () => {
  it.each([1000, 8])(
    'rounds-I1..I3: five threads hammer it (limit %i): each is served by a later round, or fails alone',
    async (limit) => {
      fresh();
      const times = 800;
      const codes = await Promise.all([1, 2, 3, 4, 5].map((id) => start(id, { times, limit })));
      expect(codes).toEqual([0, 0, 0, 0, 0]);
      expectAtRest();
      expect(word(SERVED)).toBeGreaterThan(times);
      expect(word(FAILED)).toBeGreaterThan(10);
    },
    60_000,
  );

  it('the first leads; all who come meanwhile share the next round', async () => {
    fresh();
    Atomics.store(words, HOLD, 1);
    const all = [start(1, { span: { first: 3, end: 5 } })];
    await until('somebody leads', () => word(LEADERS) === 1);
    for (const id of [2, 3, 4, 5]) all.push(start(id, { span: { first: id * 2, end: id * 2 + 3 } }));
    await until('the others wait', () => waiting() === 4);
    await pause(20);
    expect([word(DONE), word(ROUNDS)]).toEqual([0, 0]);
    letGo();
    await Promise.all(all);
    expect([word(SERVED), word(ROUNDS)]).toEqual([5, 2]);
    expect([...words.subarray(BLOCKS + 2, BLOCKS + 14)]).toEqual([0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0]);
    expectAtRest();
  });

  it('one that cannot be served fails alone', async () => {
    fresh();
    Atomics.store(words, HOLD, 1);
    const all = [start(1, { span: { first: 3, end: 5 } })];
    await until('somebody leads', () => word(LEADERS) === 1);
    for (const id of [2, 3, 4]) all.push(start(id, { span: { first: id, end: id + 1 } }));
    all.push(start(5, { span: { first: BAD_BLOCK, end: BAD_BLOCK + 1 } }));
    await until('the others wait', () => waiting() === 4);
    letGo();
    await Promise.all(all);
    expect([word(SERVED), word(FAILED)]).toEqual([4, 1]);
    expectAtRest();
  });

  it('rounds-I3: one that begins to wait while the mutex is let go gets it', () => {
    fresh();
    const rounds = new Rounds(words, new Float64Array(doubles), { limit: 10 });
    const { store } = Atomics;
    const betweenBoth = (array: Int32Array, index: number, value: number) => {
      if (index === MUTEX && value === 0) {
        // The other thread has found the mutex held, and sleeps on its ticket.
        vi.restoreAllMocks();
        Atomics.store(words, FIRST_TICKET + 7, WAITING);
      }
      return store(array, index, value);
    };
    vi.spyOn(Atomics, 'store').mockImplementation(betweenBoth as never);
    rounds.submit({ first: 1, end: 2 }, () => {});
    expect([word(FIRST_TICKET + 7), word(MUTEX)]).toEqual([LEAD, 1]);
  });

  it('an error of a round alone is thrown as it is, and leaves nothing held', () => {
    fresh();
    const rounds = new Rounds(words, new Float64Array(doubles), { limit: 10 });
    const error = new Error('as it is');
    const failing = () => {
      throw error;
    };
    expect(() => rounds.submit({ first: 1, end: 2 }, failing)).toThrow(error);
    expect(() => rounds.alone(failing)).toThrow(error);
    expect(rounds.alone(() => 7)).toBe(7);
    expectAtRest();
  });

  it('refuses memory that is too small', () => {
    expect(() => new Rounds(new Int32Array(3), new Float64Array(Rounds.DOUBLES), { limit: 1 })).toThrow(
      RangeError,
    );
    expect(() => new Rounds(new Int32Array(Rounds.WORDS), new Float64Array(3), { limit: 1 })).toThrow(
      RangeError,
    );
  });
});
