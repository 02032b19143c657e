/**
 * Bits in 32-bit words of shared memory, scanned a word at a time. Bit n is bit n mod 32 of word n div 32, which on a
 * little-endian machine is also bit n mod 8 of byte n div 8.
 *
 * Loads are atomic: other threads set bits, and a read of data that follows a load may not be done before it.
 */

/** Bits of a word. */
export const WORD_BITS = 32;

/** The first bit of [from, end) that is set; `end` where there is none. */
export function nextOne(words: Int32Array, from: number, end: number): number {
  return nextUnlike(words, from, end, 0);
}

/** The first bit of [from, end) that is not set; `end` where there is none. */
export function nextZero(words: Int32Array, from: number, end: number): number {
  return nextUnlike(words, from, end, -1);
}

export interface Run {
  readonly start: number;
  readonly count: number;
}

/** The runs of bits of [0, end) that are set, ascending, as long as can be. */
export function* runsOfOnes(words: Int32Array, end: number): Generator<Run> {
  for (let start = nextOne(words, 0, end); start < end; ) {
    const stop = nextZero(words, start, end);
    yield { start, count: stop - start };
    start = nextOne(words, stop, end);
  }
}

/** How many bits of a word are set. */
export function popCount(word: number): number {
  let x = word - ((word >>> 1) & 0x55555555);
  x = (x & 0x33333333) + ((x >>> 2) & 0x33333333);
  return Math.imul((x + (x >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** The bits of word `index` that [from, end) has there. The word must have some. */
export function maskOf(index: number, from: number, end: number): number {
  const start = index * WORD_BITS;
  const low = from > start ? -1 << (from - start) : -1;
  return end - start < WORD_BITS ? low & ~(-1 << (end - start)) : low;
}

/** Sets the bits of [from, end); how many were not set. */
export function setBits(words: Int32Array, from: number, end: number): number {
  const last = Math.ceil(end / WORD_BITS);
  let fresh = 0;
  for (let index = Math.floor(from / WORD_BITS); index < last; index++) {
    const mask = maskOf(index, from, end);
    if ((mask & ~Atomics.load(words, index)) === 0) continue;
    fresh += popCount(mask & ~Atomics.or(words, index, mask));
  }
  return fresh;
}

function nextUnlike(words: Int32Array, from: number, end: number, skipped: number): number {
  if (from >= end) return end;
  let index = Math.floor(from / WORD_BITS);
  // `from` may be past 2^32, but its low five bits are right.
  let word = (Atomics.load(words, index) ^ skipped) & (-1 << (from & (WORD_BITS - 1)));
  for (;;) {
    if (word !== 0) return Math.min(end, index * WORD_BITS + 31 - Math.clz32(word & -word));
    if (++index * WORD_BITS >= end) return end;
    word = Atomics.load(words, index) ^ skipped;
  }
}
