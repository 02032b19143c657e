/**
 * A lock a bit: as many locks as there are bits in some words of shared memory, for things of which there are millions.
 *
 * Nobody waits while holding one: a range is taken from its first lock on as far as it goes, so that two that want each
 * other's cannot wait for each other. Who waits sleeps on the word of his lock, and is woken whenever one of the word is
 * given back; no wakeup is lost, for Atomics.wait compares the word with the value in which the bit was seen set.
 */
import { maskOf, WORD_BITS } from './bitmap.js';

export class BitLocks {
  /** This thread's view of the locks in `words`, all 0 at first, in a SharedArrayBuffer. */
  constructor(private readonly words: Int32Array) {}

  /** Takes [from, end) or the longest part from `from` on that is free; waits for `from` itself. Returns the part's end. */
  take(from: number, end: number): number {
    for (;;) {
      const index = Math.floor(from / WORD_BITS);
      const held = Atomics.load(this.words, index);
      if ((held & maskOf(index, from, from + 1)) !== 0) {
        Atomics.wait(this.words, index, held);
        continue;
      }
      const stop = this.tryTake(from, end);
      if (stop > from) return stop;
    }
  }

  /** The same without waiting: `from` where that one is taken. */
  tryTake(from: number, end: number): number {
    let at = from;
    while (at < end) {
      const index = Math.floor(at / WORD_BITS);
      const wanted = maskOf(index, at, end);
      const held = Atomics.load(this.words, index);
      const barred = held & wanted;
      // What is wanted below the lowest bit that is held.
      const free = barred === 0 ? wanted : wanted & ((barred & -barred) - 1);
      if (free === 0) return at;
      if (Atomics.compareExchange(this.words, index, held, held | free) !== held) continue;
      at = index * WORD_BITS + WORD_BITS - Math.clz32(free);
      if (free !== wanted) return at;
    }
    return at;
  }

  /** Gives back [from, end), all of which the caller holds. */
  release(from: number, end: number): void {
    const last = Math.ceil(end / WORD_BITS);
    for (let index = Math.floor(from / WORD_BITS); index < last; index++) {
      Atomics.and(this.words, index, ~maskOf(index, from, end));
      Atomics.notify(this.words, index);
    }
  }
}
