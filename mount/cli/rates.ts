/** What happened between two samples of a target: rates, mean queue depth, quantiles of the latency. Numbers only, no I/O. */
import { quantile } from '../lanes/histogram.js';
import { type Latency, STAT_NAMES, type StatName, TIMED_OPS } from '../lanes/stats.js';
import type { TargetSample } from './sample.js';

export interface Rates {
  readonly seconds: number;
  readonly readsPerSecond: number;
  readonly writesPerSecond: number;
  readonly readBytesPerSecond: number;
  readonly writtenBytesPerSecond: number;
  /** Requests of all kinds. */
  readonly requestsPerSecond: number;
  readonly errors: number;
  /**
   * Requests that were being served at a time, on average: by Little's law the time that requests took, over the time there was. A
   * request counts when it is done.
   */
  readonly meanInFlight: number;
  readonly readLatency: Quantiles;
  readonly writeLatency: Quantiles;
  /** Of a clone. */
  readonly hydratedBytesPerSecond: number | undefined;
}

/** Microseconds, upper bounds (histogram.ts). Undefined: there was no such request. */
export interface Quantiles {
  readonly p50: number | undefined;
  readonly p99: number | undefined;
}

type Times = Pick<Latency, 'microseconds' | 'buckets'>;

/** Undefined where there is nothing to compare with: another target, or the same one counted anew. */
export function ratesBetween(before: TargetSample | undefined, after: TargetSample): Rates | undefined {
  if (!before || before.inode !== after.inode || before.status.type !== after.status.type) return undefined;
  const seconds = after.seconds - before.seconds;
  const grown = (name: StatName) => after.counters[name] - before.counters[name];
  if (seconds <= 0 || STAT_NAMES.some((name) => grown(name) < 0)) return undefined;
  const times = TIMED_OPS.map((op) => difference(before.latencies[op], after.latencies[op]));
  const [read, write] = times as [Times, Times];
  const microseconds = times.reduce((sum, each) => sum + each.microseconds, 0);
  const requests = times.reduce(
    (sum, { buckets }) => sum + buckets.reduce((all, count) => all + count, 0),
    0,
  );
  return {
    seconds,
    readsPerSecond: grown('reads') / seconds,
    writesPerSecond: grown('writes') / seconds,
    readBytesPerSecond: grown('read_bytes') / seconds,
    writtenBytesPerSecond: grown('written_bytes') / seconds,
    requestsPerSecond: requests / seconds,
    errors: grown('errors'),
    meanInFlight: microseconds / 1e6 / seconds,
    readLatency: quantiles(read),
    writeLatency: quantiles(write),
    hydratedBytesPerSecond: hydrationRate(before, after, seconds),
  };
}

/** The latencies of what was done in between. */
export function difference(before: Latency, after: Latency): Times {
  return {
    microseconds: Math.max(0, after.microseconds - before.microseconds),
    buckets: after.buckets.map((count, bucket) => Math.max(0, count - (before.buckets[bucket] ?? 0))),
  };
}

export function quantiles({ buckets }: Pick<Latency, 'buckets'>): Quantiles {
  return { p50: quantile(buckets, 0.5), p99: quantile(buckets, 0.99) };
}

function hydrationRate(before: TargetSample, after: TargetSample, seconds: number): number | undefined {
  const [from, to] = [before.status.clone, after.status.clone];
  if (!from || !to) return undefined;
  return Math.max(0, ((to.hydratedRegions - from.hydratedRegions) * to.regionBytes) / seconds);
}
