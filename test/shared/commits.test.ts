/**
 * Commits. One thread shows who counts; threads show that what was pending at a call is done when it returns.
 *
 *   P1  A commit that began after the call has ended well when `join` returns.
 *   P2  Who fails throws what its own work threw; who waited behind it makes a commit of its own.
 */
import { expect, it } from 'vitest';
import { Commits } from '../../src/shared/commits.js';
import { useThreads } from '../threads.js';

it('each call alone makes a commit, a failed one does not count', () => {
  const commits = new Commits(new Int32Array(new SharedArrayBuffer(4 * Commits.WORDS)));
  let made = 0;
  commits.join(() => made++);
  expect([made, commits.done]).toEqual([1, 1]);
  expect(() =>
    commits.join(() => {
      throw new Error('no');
    }),
  ).toThrow('no');
  expect(commits.done).toBe(1);
  commits.join(() => made++);
  expect([made, commits.done]).toEqual([2, 3]);
});

const start = useThreads(`
import { workerData } from 'node:worker_threads';
import { Commits } from './src/shared/commits.js';
const { shared, times } = workerData;
const commits = new Commits(new Int32Array(shared, 0, Commits.WORDS));
const counts = new Int32Array(shared, 4 * Commits.WORDS);
const [PENDING, DURABLE, MADE] = [0, 1, 2];
for (let i = 1; i <= times; i++) {
  const mine = Atomics.add(counts, PENDING, 1) + 1;
  for (let done = false; !done; ) {
    try {
      commits.join(() => {
        const gathered = Atomics.load(counts, PENDING);
        if (Atomics.add(counts, MADE, 1) % 7 === 3) throw new Error('medium');
        Atomics.wait(counts, 3, 0, 0.2);
        Atomics.store(counts, DURABLE, gathered);
      });
      done = true;
    } catch (error) {
      if (error.message !== 'medium') throw error;
    }
  }
  if (Atomics.load(counts, DURABLE) < mine) throw new Error('P1');
}
`);

it('P1, P2: what was pending at the call is durable when it returns, and threads share commits', async () => {
  const [threads, times] = [6, 300];
  const shared = new SharedArrayBuffer(4 * (Commits.WORDS + 4));
  await Promise.all(Array.from({ length: threads }, () => start({ shared, times })));
  const made = new Int32Array(shared, 4 * Commits.WORDS)[2]!;
  expect(made).toBeLessThan(threads * times);
});
