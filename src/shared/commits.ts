/**
 * Commits that serve many: what is pending is made durable as a whole, so one thread does it for all that wait.
 *
 * Who asks waits for a commit that begins after it asked. One that is under way does not count: it may have gathered what
 * it writes before this thread's last change. Whoever gets the mutex first leads; the others find that it is done.
 *
 * commits-I1  DONE is the number of the last commit that worked. Commits come one after the other, and each takes all that
 *             is pending, so that one also makes up for failed ones before it. A thread answers for its own work only.
 */
import { RwLock } from './rwlock.js';

const BEGUN = RwLock.WORDS;
const DONE = BEGUN + 1;
const FLUSH_FAILED = BEGUN + 2;

export class Commits {
  /** 32-bit words in shared memory, all 0 at first. */
  static readonly WORDS = RwLock.WORDS + 3;

  private readonly mutex: RwLock;

  /** This thread's view. */
  constructor(private readonly words: Int32Array) {
    this.mutex = new RwLock(words.subarray(0, RwLock.WORDS));
  }

  /** How many commits have worked so far, for who wants to know whether there was one meanwhile. */
  get done(): number {
    return Atomics.load(this.words, DONE);
  }

  /**
   * Returns when a commit that began after the call is done, by this thread or another. `work` does one; what it throws is
   * thrown. Not recursive.
   */
  join(work: () => void): void {
    const { words } = this;
    const wanted = Atomics.load(words, BEGUN) + 1;
    this.alone(() => {
      // A difference, for the numbers wrap.
      if (((Atomics.load(words, DONE) - wanted) | 0) >= 0) return;
      const number = Atomics.add(words, BEGUN, 1) + 1;
      work();
      Atomics.store(words, DONE, number);
    });
  }

  /** Runs `work` while no commit is under way. */
  alone<T>(work: () => T): T {
    return this.mutex.exclusively(work);
  }

  /** A flush of a commit that nobody asked for failed: the next flush of the user says so, for the kernel tells it only once. */
  noteFlushFailed(): void {
    Atomics.store(this.words, FLUSH_FAILED, 1);
  }

  /** Whether one did since the last call. */
  takeFlushFailed(): boolean {
    return Atomics.exchange(this.words, FLUSH_FAILED, 0) === 1;
  }
}
