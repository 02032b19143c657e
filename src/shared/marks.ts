/**
 * Which pages of a map in memory have changes that no commit has taken: a bit a page. Who changes the map marks the page
 * afterwards; a commit takes the marks and writes what the pages hold then.
 *
 * marks-I1  What another thread can see changed is marked when a commit takes the marks, or marked again later: a change and
 *           its mark are one step to `take`, which waits for those who are in between. Without that, a thread that relies on
 *           somebody else's change could flush, find no mark, and believe the change durable.
 * marks-I2  The mark comes after the change, so that who takes it copies the change with the page.
 */
import { RwLock } from './rwlock.js';

export class Marks {
  private readonly lock: RwLock;
  private readonly bits: Int32Array;

  /** 32-bit words of shared memory for so many pages, all 0 at first. */
  static words(pages: number): number {
    return RwLock.WORDS + Math.ceil(pages / 32);
  }

  /** This thread's view. */
  constructor(words: Int32Array) {
    this.lock = new RwLock(words.subarray(0, RwLock.WORDS));
    this.bits = words.subarray(RwLock.WORDS);
  }

  /** Whether a commit has something to do. */
  get areThere(): boolean {
    return this.bits.some((word) => word !== 0);
  }

  /** Runs `work`, which changes pages and marks each one after. Not recursive. */
  whileChanging(work: () => void): void {
    this.lock.lockShared();
    try {
      work();
    } finally {
      this.lock.unlockShared();
    }
  }

  mark(page: number): void {
    Atomics.or(this.bits, page >>> 5, 1 << (page & 31));
  }

  /** Waits for those who are between a change and its mark (marks-I1). Once before the first `take` of a commit. */
  settle(): void {
    this.lock.lockExclusive();
    this.lock.unlockExclusive();
  }

  /**
   * Takes marks from word `from` on into `pages`, ascending, while there is room for a whole word of 32. How many they are,
   * and the word to go on from; undefined at the end.
   */
  take(from: number, pages: Int32Array): { count: number; next: number | undefined } {
    const { bits } = this;
    let count = 0;
    let word = from;
    for (; word < bits.length && count + 32 <= pages.length; word++) {
      if (Atomics.load(bits, word) === 0) continue;
      for (let marks = Atomics.exchange(bits, word, 0); marks !== 0; marks &= marks - 1) {
        pages[count++] = word * 32 + 31 - Math.clz32(marks & -marks);
      }
    }
    return { count, next: word < bits.length ? word : undefined };
  }
}
