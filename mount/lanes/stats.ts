/**
 * I/O counters of a target and the latencies of its requests: a row of doubles for each lane, written by that lane alone, so
 * nothing needs an atomic operation; main adds the rows up. A double of one aligned word is never torn.
 *
 * The latency of a request is the time from when its lane has it until the reply is ready: what it waits for a free lane or for
 * its device to be resumed, and what the kernel takes to carry it, is not in it. Requests that fail are counted as errors and have no latency.
 */
import { BUCKETS, bucketOf, upperMicroseconds } from './histogram.js';

export const STAT_NAMES = [
  'reads',
  'read_bytes',
  'writes',
  'written_bytes',
  'flushes',
  'discards',
  'discarded_bytes',
  'zeroes',
  'zeroed_bytes',
  'errors',
] as const;
export type StatName = (typeof STAT_NAMES)[number];

/** The operations whose latency is measured. A write with O_DSYNC is a write, its flush included. */
export const TIMED_OPS = ['read', 'write', 'flush', 'discard', 'zeroes'] as const;
export type TimedOp = (typeof TIMED_OPS)[number];

/** Latencies of one operation. */
export interface Latency {
  readonly count: number;
  readonly microseconds: number;
  /** Requests in each bucket of histogram.ts. */
  readonly buckets: readonly number[];
}

/** Of an operation: the milliseconds of all its requests, then the buckets. */
const OP_WORDS = 1 + BUCKETS;
const USED = STAT_NAMES.length + TIMED_OPS.length * OP_WORDS;
/** Rows start a cache line apart and more, so that lanes do not share one. */
const LINE = 8;
const ROW = (Math.ceil(USED / LINE) + 1) * LINE;

const column = Object.fromEntries(STAT_NAMES.map((name, i) => [name, i])) as Record<StatName, number>;
const timesAt = Object.fromEntries(
  TIMED_OPS.map((op, i) => [op, STAT_NAMES.length + i * OP_WORDS]),
) as Record<TimedOp, number>;

export function createStats(lanes: number): SharedArrayBuffer {
  return new SharedArrayBuffer(lanes * ROW * Float64Array.BYTES_PER_ELEMENT);
}

/** One lane's counters of one target. */
export class LaneStats {
  private readonly row: Float64Array;

  constructor(buffer: SharedArrayBuffer, lane: number) {
    this.row = new Float64Array(buffer, lane * ROW * Float64Array.BYTES_PER_ELEMENT, USED);
  }

  add(name: StatName, amount: number): void {
    this.row[column[name]]! += amount;
  }

  /** A request is done. */
  time(op: TimedOp, milliseconds: number): void {
    const at = timesAt[op];
    this.row[at]! += milliseconds;
    this.row[at + 1 + bucketOf(milliseconds)]! += 1;
  }
}

/** The sums over all lanes, in the order of STAT_NAMES. */
export function sumStats(buffer: SharedArrayBuffer): Record<StatName, number> {
  const sums = sumRows(buffer);
  return Object.fromEntries(STAT_NAMES.map((name) => [name, sums[column[name]]!])) as Record<
    StatName,
    number
  >;
}

/** The latencies over all lanes, in the order of TIMED_OPS. */
export function sumLatencies(buffer: SharedArrayBuffer): Record<TimedOp, Latency> {
  const sums = sumRows(buffer);
  const latencyOf = (op: TimedOp): Latency => {
    const [milliseconds = 0, ...buckets] = sums.subarray(timesAt[op], timesAt[op] + OP_WORDS);
    const count = buckets.reduce((sum, each) => sum + each, 0);
    return { count, microseconds: Math.round(milliseconds * 1000), buckets };
  };
  return Object.fromEntries(TIMED_OPS.map((op) => [op, latencyOf(op)])) as Record<TimedOp, Latency>;
}

/**
 * The text of a `latency` file, `OP KEY VALUE` lines: for each operation `count`, `sum_us`, and, where a bucket holds some, its upper
 * bound in microseconds (`inf` for the last one) and how many it holds itself.
 */
export function latencyText(latencies: Readonly<Record<TimedOp, Latency>>): string {
  const lines = TIMED_OPS.flatMap((op) => {
    const { count, microseconds, buckets } = latencies[op];
    const bound = (bucket: number) => (bucket < BUCKETS - 1 ? upperMicroseconds(bucket) : 'inf');
    const held = buckets.flatMap((n, bucket) => (n > 0 ? [`${op} ${bound(bucket)} ${n}`] : []));
    return [`${op} count ${count}`, `${op} sum_us ${microseconds}`, ...held];
  });
  return lines.map((line) => `${line}\n`).join('');
}

/** What `latencyText` wrote. Lines of other operations or keys are left out. */
export function parseLatencyText(text: string): Record<TimedOp, Latency> {
  const lines = text.split('\n').map((line) => line.split(' '));
  const latencyOf = (op: TimedOp): Latency => {
    const value = new Map(lines.filter(([of]) => of === op).map(([, key, amount]) => [key, Number(amount)]));
    const keyOf = (bucket: number) => (bucket < BUCKETS - 1 ? String(upperMicroseconds(bucket)) : 'inf');
    return {
      count: value.get('count') ?? 0,
      microseconds: value.get('sum_us') ?? 0,
      buckets: Array.from({ length: BUCKETS }, (_, bucket) => value.get(keyOf(bucket)) ?? 0),
    };
  };
  return Object.fromEntries(TIMED_OPS.map((op) => [op, latencyOf(op)])) as Record<TimedOp, Latency>;
}

function sumRows(buffer: SharedArrayBuffer): Float64Array {
  const rows = new Float64Array(buffer);
  const sums = new Float64Array(USED);
  for (let row = 0; row < rows.length; row += ROW) {
    for (let i = 0; i < USED; i++) sums[i]! += rows[row + i]!;
  }
  return sums;
}
