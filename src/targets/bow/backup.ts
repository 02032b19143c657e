/**
 * First touch: what a write in state 1 owes the checkpoint before its data may go to the device.
 *
 * Requests that come at the same time are served by one round, with one set of flushes (shared/rounds.ts). A round
 *
 *   reserves  under the exclusive lock: a plan is made in full, with a destination for every block that needs one and
 *             the batches in which their log entries are committed; the destinations become BACKUP. Where space lacks,
 *             it ends here with nothing changed (bow-I5).
 *   writes    each batch, in this order (bow-I3): copy the old blocks to their destinations; flush; commit the log. No
 *             lock is held: what is copied is written by nobody, for that would owe a round too. Only the live block 0
 *             is written in its place; while it moves the exclusive lock is held.
 *   settles   under the exclusive lock: blocks that were in use become CHANGED, trimmed ones AWAITED.
 *
 * Only then do the requests write their data, which they look into anew.
 */
import { DmError } from '../../errors.js';
import { bowChecksum, type LogEntry, logCapacity } from '../../formats/bow-log.js';
import type { Span } from '../../shared/rounds.js';
import { SECTOR_BYTES } from '../../units.js';
import { draftBatch, firstSectorCapacity, type LogBatch, publishDraft, stageDraft } from './log.js';
import { type BowState, COPY_BYTES, ROUND_RANGES, State, BlockType as T } from './state.js';

/** One backup: `count` blocks from `source` to the free blocks at `dest`. */
interface Piece {
  readonly source: number;
  readonly dest: number;
  readonly count: number;
  readonly type: number;
}

interface Batch {
  readonly overflowTo: number | undefined;
  readonly pieces: Piece[];
}

/** True where a block of the type must be backed up before it is written. */
export function needsBackup(type: number): boolean {
  return type === T.UNCHANGED || type === T.TRIMMED || type === T.BACKUP || type === T.SECTOR0_CURRENT;
}

/** True where the device reads as zeros whatever the medium holds: the block was trimmed. */
export function readsAsZeroes(type: number): boolean {
  return (
    type === T.FREE ||
    type === T.BACKUP ||
    type === T.SECTOR0_CURRENT ||
    type === T.TRIMMED ||
    type === T.AWAITED
  );
}

/** Too few free blocks for a round. */
export class NoFreeBlocks extends DmError {
  constructor() {
    super('ENOSPC', 'no free blocks left for backups');
  }
}

/**
 * A round: backs up all of the spans (without block 0 and a short tail) that is still owed to the checkpoint. Throws
 * NoFreeBlocks with nothing changed, or the device's error with nothing lost. Does nothing but heal outside state 1.
 */
export function backUp(state: BowState, spans: readonly Span[]): void {
  const batches = state.exclusively(() => {
    state.heal();
    return state.state === State.CHECKPOINT ? reserve(state, spans) : [];
  });
  for (const [index, batch] of batches.entries()) {
    try {
      commitBatch(state, batch);
    } catch (error) {
      state.exclusively(() => giveBack(state, spans, batches.slice(index)));
      throw error;
    }
  }
}

/**
 * Whether a write may make the FREE blocks in [first, end) its own: not where it would take the last one, which a log
 * past its first sector needs (bow-I7), nor the room in the map that a round under way counts on. The lock is held.
 */
export function mayFill(state: BowState, first: number, end: number): boolean {
  if (state.ranges.room() < ROUND_RANGES + 4) return false;
  let filled = 0;
  state.forEachOfType(T.FREE, first, end, (start, stop) => {
    filled += stop - start;
  });
  const spare = state.logReach > firstSectorCapacity(state.blockSize) ? 1 : 0;
  return filled === 0 || state.ranges.blocksOf(T.FREE) - filled >= spare;
}

/** Saves the log elsewhere and begins one of a single entry, as commit needs it. Throws ENOSPC. */
export function overflowLog(state: BowState): void {
  const overflowTo = new FreeSpace(state).take(1)?.dest;
  if (overflowTo === undefined) throw state.noSpace(0, 1);
  const batch = { overflowTo, pieces: [] };
  settle(state, batch, writeBatch(state, batch));
}

/** The batches that back up what the spans owe, their places taken. Throws NoFreeBlocks and changes nothing. */
function reserve(state: BowState, spans: readonly Span[]): Batch[] {
  const { ranges } = state;
  if (ranges.room() < 4 * spans.length + 2) throw new NoFreeBlocks();
  // What the writes themselves will fill is no place for backups.
  for (const { first, end } of spans) state.retype(first, end, T.FREE, T.AWAITED);
  const plan = planBackups(state, spans);
  if (plan === undefined) {
    giveBack(state, spans, []);
    throw new NoFreeBlocks();
  }
  for (const { overflowTo, pieces } of plan.batches) {
    if (overflowTo !== undefined) ranges.set(overflowTo, overflowTo + 1, T.BACKUP);
    for (const { dest, count } of pieces) ranges.set(dest, dest + count, T.BACKUP);
  }
  state.logReach = plan.logCount;
  return plan.batches;
}

/**
 * Undoes `reserve` for batches that were not committed. Should nobody know which log the medium holds, then nothing is
 * written before that is healed: blocks that either log speaks of stay as they are, and may be FREE.
 */
function giveBack(state: BowState, spans: readonly Span[], batches: readonly Batch[]): void {
  const { ranges } = state;
  for (const { overflowTo, pieces } of batches) {
    if (overflowTo !== undefined) ranges.set(overflowTo, overflowTo + 1, T.FREE);
    for (const { dest, count } of pieces) ranges.set(dest, dest + count, T.FREE);
  }
  for (const { first, end } of spans) state.retype(first, end, T.AWAITED, T.FREE);
  state.logReach = state.logCount;
}

/** The batches that back up the spans, and the log's entries after them; undefined where space ends. Changes nothing. */
function planBackups(
  state: BowState,
  spans: readonly Span[],
): { batches: Batch[]; logCount: number } | undefined {
  const { ranges } = state;
  const capacity = logCapacity(state.blockSize);
  const atomic = firstSectorCapacity(state.blockSize);
  const free = new FreeSpace(state);
  const batches: Batch[] = [];
  let batch: Batch = { overflowTo: undefined, pieces: [] };
  let used = state.logCount;
  let limit = capacity;

  for (const { source, end, type } of owedRuns(state, spans)) {
    for (let block = source; block < end; ) {
      if (used === limit) {
        // A full block overflows. A batch that begins with an overflow ends with the first sector: the log goes on.
        const full = used === capacity;
        const overflowTo = full ? free.take(1)?.dest : undefined;
        if (full && overflowTo === undefined) return undefined;
        if (batch.pieces.length > 0) batches.push(batch);
        batch = { overflowTo, pieces: [] };
        used = full ? 1 : used;
        limit = full ? atomic : capacity;
      }
      const taken = free.take(end - block);
      if (taken === undefined) return undefined;
      batch.pieces.push({ source: block, dest: taken.dest, count: taken.count, type });
      used++;
      block += taken.count;
    }
  }
  if (batch.pieces.length > 0) batches.push(batch);
  // bow-I7: commit needs a log that lies in one sector. One that does not must leave a block to overflow to.
  if (used > atomic && free.take(1) === undefined) return undefined;
  // Each piece splits at most two ranges in two, and so may the block of an overflow, and the write itself at its ends.
  const pieces = batches.reduce((sum, { pieces }) => sum + pieces.length + 1, 0);
  const room = 4 * pieces + 4 * spans.length + 2;
  return ranges.room() >= room ? { batches, logCount: used } : undefined;
}

/** The runs of one type in the spans that must be backed up. */
function owedRuns(
  { ranges }: BowState,
  spans: readonly Span[],
): { source: number; end: number; type: number }[] {
  const runs: { source: number; end: number; type: number }[] = [];
  for (const { first, end } of spans) {
    for (let block = first; block < end; block = ranges.end) {
      const type = ranges.find(block);
      if (needsBackup(type)) runs.push({ source: block, end: Math.min(ranges.end, end), type });
    }
  }
  return runs;
}

/** Hands out free blocks in ascending order. Marks nothing. */
class FreeSpace {
  private cursor = 0;

  constructor(private readonly state: BowState) {}

  /** At most `wanted` blocks in one run; undefined when there are none left. */
  take(wanted: number): { dest: number; count: number } | undefined {
    const { ranges, blockSize } = this.state;
    if (!ranges.firstOf(T.FREE, this.cursor)) return undefined;
    const dest = Math.max(ranges.start, this.cursor);
    const count = Math.min(wanted, ranges.end - dest, COPY_BYTES / blockSize);
    this.cursor = dest + count;
    return { dest, count };
  }
}

function commitBatch(state: BowState, batch: Batch): void {
  if (batch.pieces.some(({ type }) => type === T.SECTOR0_CURRENT)) {
    // Writes to block 0 go there under the shared lock: none may while it moves.
    state.exclusively(() => settle(state, batch, writeBatch(state, batch)));
    return;
  }
  const sector0Block = writeBatch(state, batch);
  state.exclusively(() => settle(state, batch, sector0Block));
}

/** Copies, and commits the log that says so. Returns where the live block 0 is afterwards. */
function writeBatch(state: BowState, { overflowTo, pieces }: Batch): number {
  const moved = pieces.find(({ type }) => type === T.SECTOR0_CURRENT);
  const entries = pieces.map((piece) => copyPiece(state, piece));
  const sector0Block = moved === undefined ? state.sector0Block : moved.dest;
  const batch: LogBatch = { overflowTo, entries, sector0Block };
  const draft = draftBatch(state, batch);
  stageDraft(state, draft, batch);
  state.flushDevice();
  publishDraft(state, draft);
  return sector0Block;
}

/** What a committed batch makes of the blocks. */
function settle(state: BowState, { overflowTo, pieces }: Batch, sector0Block: number): void {
  const { ranges } = state;
  state.sector0Block = sector0Block;
  if (overflowTo !== undefined) ranges.set(overflowTo, overflowTo + 1, T.BACKUP);
  for (const { source, dest, count, type } of pieces) {
    if (type === T.SECTOR0_CURRENT) ranges.set(dest, dest + count, T.SECTOR0_CURRENT);
    ranges.set(source, source + count, readsAsZeroes(type) ? T.AWAITED : T.CHANGED);
  }
}

function copyPiece(state: BowState, { source, dest, count, type }: Piece): LogEntry {
  const { blockSize, device } = state;
  const bytes = state.copyBuffer.subarray(0, count * blockSize);
  device.read(source * blockSize, bytes);
  device.write(dest * blockSize, bytes);
  return {
    sourceSector: (source * blockSize) / SECTOR_BYTES,
    destSector: (dest * blockSize) / SECTOR_BYTES,
    sizeBytes: bytes.length,
    // SECTOR0_CURRENT goes on being written in its new place: no checksum would stay true.
    checksum: type === T.SECTOR0_CURRENT ? 0 : bowChecksum(source, bytes),
  };
}
