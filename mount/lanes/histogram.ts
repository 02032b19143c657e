/**
 * How long requests take, as counts in buckets: two an octave, from 1 µs to 2^26 µs (67 s), and one for what is slower.
 *
 *   bucket  0   1     2   3   4   5   6   …   51          52          53
 *   µs up   1   1.5   2   3   4   6   8   …   50331648    67108864    all the rest
 *
 * A duration is in the first bucket whose bound is not below it. The bounds are halves of a microsecond, so that finding the
 * bucket takes integers only: no logarithm, no loop, no memory.
 */

/** 2^26 µs in halves of a microsecond. */
const HALVES_MAX = 2 ** 27;
const BOUNDS = 53;

/** Those with a bound, and the last one. */
export const BUCKETS = BOUNDS + 1;

/** The bucket of a request that took so many milliseconds. */
export function bucketOf(milliseconds: number): number {
  const halves = Math.ceil(milliseconds * 2000);
  if (!(halves <= HALVES_MAX)) return BOUNDS;
  // One less: then a bound belongs to the bucket below it, and the upper two bits tell the bucket.
  const least = halves - 1;
  if (least < 2) return 0;
  const octave = 31 - Math.clz32(least);
  return 2 * octave - 1 + ((least >> (octave - 1)) & 1);
}

/** Up to how many microseconds a bucket reaches, that itself included; Infinity for the last one. */
export function upperMicroseconds(bucket: number): number {
  if (bucket >= BOUNDS) return Infinity;
  const octave = Math.ceil(bucket / 2);
  return bucket % 2 === 0 ? 2 ** octave : 0.75 * 2 ** octave;
}

/**
 * The q-quantile of what is counted, 0 < q <= 1: the upper bound, in microseconds, of the bucket that holds it. The true value is not
 * above it, and above two thirds of it where that is more than 1 µs. Undefined where nothing is counted.
 */
export function quantile(counts: readonly number[], q: number): number | undefined {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total <= 0) return undefined;
  let left = Math.ceil(q * total);
  for (const [bucket, count] of counts.entries()) {
    left -= count;
    if (left <= 0) return upperMicroseconds(bucket);
  }
  return Infinity;
}
