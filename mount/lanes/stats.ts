/**
 * I/O counters of a target: a row of doubles for each lane, written by that lane alone, so no counter needs an atomic
 * operation; main adds the rows up. A double of one aligned word is never torn.
 */
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

/** Rows start a cache line apart and more, so that lanes do not share one. */
const ROW = 16;

const column = Object.fromEntries(STAT_NAMES.map((name, i) => [name, i])) as Record<StatName, number>;

export function createStats(lanes: number): SharedArrayBuffer {
  return new SharedArrayBuffer(lanes * ROW * Float64Array.BYTES_PER_ELEMENT);
}

/** One lane's counters of one target. */
export class LaneStats {
  private readonly row: Float64Array;

  constructor(buffer: SharedArrayBuffer, lane: number) {
    this.row = new Float64Array(buffer, lane * ROW * Float64Array.BYTES_PER_ELEMENT, STAT_NAMES.length);
  }

  add(name: StatName, amount: number): void {
    this.row[column[name]]! += amount;
  }
}

/** The sums over all lanes, in the order of STAT_NAMES. */
export function sumStats(buffer: SharedArrayBuffer): Record<StatName, number> {
  const rows = new Float64Array(buffer);
  const sums = Object.fromEntries(STAT_NAMES.map((name) => [name, 0])) as Record<StatName, number>;
  for (let row = 0; row < rows.length; row += ROW) {
    for (const name of STAT_NAMES) sums[name] += rows[row + column[name]]!;
  }
  return sums;
}
