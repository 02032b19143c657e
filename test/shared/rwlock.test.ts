/** The lock under real threads. */
import { describe, expect, it } from 'vitest';
import { RwLock } from '../../src/shared/rwlock.js';
import { pause, until, useThreads } from '../threads.js';

/** The lock's own words, as src/shared/rwlock.ts numbers them: the tests watch who waits. */
const STATE = 0;
const WRITERS = 1;
/** Words after the lock's: a pair that only a writer may change, and what the workers report. */
const A = RwLock.WORDS;
const B = A + 1;
/** Readers and writers that say they are inside, counted atomically. */
const READERS_INSIDE = A + 2;
const WRITERS_INSIDE = A + 3;
/** Exclusive sections done, and violations seen. */
const WRITES = A + 4;
const VIOLATIONS = A + 5;
/** How many have come in, and at which place each worker did; by worker number. */
const ARRIVALS = A + 6;
const STARTED = A + 7;
const PLACE = A + 8;
const WORDS = PLACE + 8;

const WORKER = `
import { workerData } from 'node:worker_threads';
import { RwLock } from './src/shared/rwlock.js';

const { buffer, task, id, rounds } = workerData;
const words = new Int32Array(buffer);
const lock = new RwLock(words);
const idle = new Int32Array(new SharedArrayBuffer(4));

let x = 88172645 + id * 7919;
const random = (limit) => {
  x ^= x << 13;
  x ^= x >>> 17;
  x ^= x << 5;
  return (x >>> 0) % limit;
};
/** Mostly a short spin, now and then a sleep, so that others run into the lock and sleep on it. */
const linger = () => {
  if (random(200) === 0) Atomics.wait(idle, 0, 0, 1);
  for (let i = random(300); i > 0; i--) Atomics.load(idle, 0);
};
const claim = (holds) => {
  if (!holds) Atomics.add(words, ${VIOLATIONS}, 1);
};
const read = () => {
  Atomics.add(words, ${READERS_INSIDE}, 1);
  const a = words[${A}];
  linger();
  claim(words[${A}] === a && words[${B}] === a && Atomics.load(words, ${WRITERS_INSIDE}) === 0);
  Atomics.sub(words, ${READERS_INSIDE}, 1);
  return a;
};
const write = () => {
  claim(Atomics.add(words, ${WRITERS_INSIDE}, 1) === 0 && Atomics.load(words, ${READERS_INSIDE}) === 0);
  const a = (words[${A}] += 1);
  linger();
  words[${B}] += 1;
  claim(words[${A}] === a && words[${B}] === a);
  claim(Atomics.sub(words, ${WRITERS_INSIDE}, 1) === 1);
  Atomics.add(words, ${WRITES}, 1);
  return a;
};
const arrive = () => Atomics.store(words, ${PLACE} + id, Atomics.add(words, ${ARRIVALS}, 1) + 1);

const tasks = {
  hammer() {
    for (let i = 0; i < rounds; i++) {
      const kind = random(10);
      if (kind < 6) {
        lock.lockShared();
        read();
        lock.unlockShared();
      } else {
        if (kind < 8) lock.lockExclusive();
        else if (!lock.tryLockExclusive(random(3) / 4)) continue;
        write();
        lock.unlockExclusive();
      }
      if (random(4) === 0) linger();
    }
  },
  shared() {
    lock.lockShared();
    arrive();
    lock.unlockShared();
  },
  tryExclusive() {
    if (!lock.tryLockExclusive(rounds)) return;
    arrive();
    lock.unlockExclusive();
  },
  exclusive() {
    lock.lockExclusive();
    arrive();
    lock.unlockExclusive();
  },
};
Atomics.add(words, ${STARTED}, 1);
tasks[task]();
`;

const startThread = useThreads(WORKER);
let words: Int32Array;
let lock: RwLock;

/** A fresh lock, held by nobody. */
function freshLock(): void {
  words = new Int32Array(new SharedArrayBuffer(4 * WORDS));
  lock = new RwLock(words);
}

/** Starts a worker; the promise ends with its exit code. `rounds` are the milliseconds of a `tryExclusive`. */
function start(
  task: 'hammer' | 'shared' | 'exclusive' | 'tryExclusive',
  id: number,
  rounds = 1,
): Promise<number> {
  return startThread({ buffer: words.buffer, task, id, rounds });
}

const word = (index: number): number => Atomics.load(words, index);
const started = (count: number): Promise<void> =>
  until(`${count} workers run`, () => word(STARTED) === count);

describe('RwLock', () => {
  it('lock-L1..L3: four threads hammer it, nobody meets a writer inside and all finish', async () => {
    freshLock();
    const ROUNDS = 6000;
    const codes = await Promise.all([1, 2, 3, 4].map((id) => start('hammer', id, ROUNDS)));
    expect(codes).toEqual([0, 0, 0, 0]);
    expect(word(VIOLATIONS)).toBe(0);
    expect(word(WRITES)).toBeGreaterThan(ROUNDS / 2);
    expect([words[A], words[B]]).toEqual([word(WRITES), word(WRITES)]);
    expect([word(STATE), word(WRITERS)]).toEqual([0, 0]);
  }, 60_000);

  it('prefers a waiting writer to a later reader', async () => {
    freshLock();
    lock.lockShared();
    const writer = start('exclusive', 0);
    await until('the writer waits', () => word(WRITERS) === 1);
    const reader = start('shared', 1);
    await started(2);
    await pause(50);
    expect(word(ARRIVALS)).toBe(0);
    lock.unlockShared();
    await Promise.all([writer, reader]);
    expect([word(PLACE), word(PLACE + 1)]).toEqual([1, 2]);
  });

  it('lets readers share, and a writer in after the last of them', async () => {
    freshLock();
    lock.lockShared();
    lock.lockShared();
    expect(await start('shared', 0)).toBe(0);
    const writer = start('exclusive', 1);
    await until('the writer waits', () => word(WRITERS) === 1);
    lock.unlockShared();
    await pause(50);
    expect(word(PLACE + 1)).toBe(0);
    lock.unlockShared();
    await writer;
    expect(word(PLACE + 1)).toBe(2);
  });

  it('wakes every reader and writer when a writer leaves', async () => {
    freshLock();
    lock.lockExclusive();
    const all = [start('shared', 0), start('shared', 1), start('exclusive', 2), start('exclusive', 3)];
    await started(4);
    await until('both writers wait', () => word(WRITERS) === 2);
    await pause(50);
    expect(word(ARRIVALS)).toBe(0);
    lock.unlockExclusive();
    expect(await Promise.all(all)).toEqual([0, 0, 0, 0]);
    expect([word(ARRIVALS), word(STATE), word(WRITERS)]).toEqual([4, 0, 0]);
  });

  it('lets a writer give up: nothing of it stays behind', () => {
    freshLock();
    lock.lockShared();
    const began = performance.now();
    expect(lock.tryLockExclusive(30)).toBe(false);
    expect(performance.now() - began).toBeGreaterThanOrEqual(29);
    expect([word(STATE), word(WRITERS)]).toEqual([1, 0]);
    lock.lockShared();
    lock.unlockShared();
    lock.unlockShared();
    expect(lock.tryLockExclusive(0)).toBe(true);
    expect(lock.tryLockExclusive(0)).toBe(false);
    lock.unlockExclusive();
    expect([word(STATE), word(WRITERS)]).toEqual([0, 0]);
  });

  it('lock-L4: readers that a writer barred go on when it gives up', async () => {
    freshLock();
    lock.lockShared();
    const writer = start('tryExclusive', 0, 1500);
    await until('the writer waits', () => word(WRITERS) === 1);
    const readers = [start('shared', 1), start('shared', 2)];
    await started(3);
    await pause(100);
    expect([word(WRITERS), word(ARRIVALS)]).toEqual([1, 0]);
    // The lock stays shared: only the writer's giving up can let them in.
    expect(await Promise.all([writer, ...readers])).toEqual([0, 0, 0]);
    expect([word(PLACE), word(ARRIVALS), word(STATE), word(WRITERS)]).toEqual([0, 2, 1, 0]);
  }, 20_000);

  it('lets a patient writer in as soon as the last reader leaves', async () => {
    freshLock();
    lock.lockShared();
    const writer = start('tryExclusive', 0, 60_000);
    await until('the writer waits', () => word(WRITERS) === 1);
    lock.unlockShared();
    expect(await writer).toBe(0);
    expect([word(PLACE), word(STATE), word(WRITERS)]).toEqual([1, 0, 0]);
  }, 20_000);

  it('refuses a release without a lock, and words that are not shared', () => {
    freshLock();
    expect(() => lock.unlockExclusive()).toThrow('without lockExclusive');
    expect(() => lock.unlockShared()).toThrow('without lockShared');
    expect(() => new RwLock(new Int32Array(RwLock.WORDS))).toThrow(RangeError);
    expect(() => new RwLock(new Int32Array(new SharedArrayBuffer(4)))).toThrow(RangeError);
  });
});
