/**
 * First touch: what a write in state 1 owes the checkpoint before its data may go to the device.
 *
 * A plan is made in full before anything is written: a backup destination for every block that needs one, and the
 * batches in which their log entries are committed. A write that lacks space fails here with nothing changed (bow-I5).
 * Then each batch, in this order (bow-I3): copy the old blocks to their destinations; flush; commit the log; and only
 * then do the blocks change their type: to CHANGED, or to FREE where the caller has yet to make them CHANGED. The caller
 * holds the exclusive lock throughout.
 */
import { bowChecksum, type LogEntry, logCapacity } from '../../formats/bow-log.js';
import { SECTOR_BYTES } from '../../units.js';
import { draftBatch, firstSectorCapacity, type LogBatch, publishDraft, stageDraft } from './log.js';
import { type BowState, COPY_BYTES, BlockType as T } from './state.js';

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
  return type === T.FREE || type === T.BACKUP || type === T.SECTOR0_CURRENT || type === T.TRIMMED;
}

/**
 * Backs up all of [first, end) (blocks, without block 0 and a short tail) that is still owed to the checkpoint. Throws
 * ENOSPC with nothing changed, or the device's error with nothing lost.
 */
export function backUp(state: BowState, first: number, end: number): void {
  const batches = planBackups(state, first, end);
  if (batches === undefined) {
    throw state.noSpace(first * state.blockSize, (end - first) * state.blockSize);
  }
  for (const batch of batches) commitBatch(state, batch);
}

/** Saves the log elsewhere and begins one of a single entry, as commit needs it. Throws ENOSPC. */
export function overflowLog(state: BowState): void {
  const overflowTo = new FreeSpace(state, 0, 0).take(1)?.dest;
  if (overflowTo === undefined) throw state.noSpace(0, state.blockSize);
  commitBatch(state, { overflowTo, pieces: [] });
}

/** The batches that back up [first, end); undefined where space ends. Changes nothing. */
function planBackups(state: BowState, first: number, end: number): Batch[] | undefined {
  const { ranges } = state;
  const capacity = logCapacity(state.blockSize);
  const atomic = firstSectorCapacity(state.blockSize);
  const free = new FreeSpace(state, first, end);
  const batches: Batch[] = [];
  let batch: Batch = { overflowTo: undefined, pieces: [] };
  let used = state.logCount;
  let limit = capacity;

  for (let block = first; block < end; ) {
    const type = ranges.find(block);
    const runEnd = Math.min(ranges.end, end);
    while (needsBackup(type) && block < runEnd) {
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
      const taken = free.take(runEnd - block);
      if (taken === undefined) return undefined;
      batch.pieces.push({ source: block, dest: taken.dest, count: taken.count, type });
      used++;
      block += taken.count;
    }
    block = Math.max(block, runEnd);
  }
  if (batch.pieces.length > 0) batches.push(batch);
  // bow-I7: commit needs a log that lies in one sector. One that does not must leave a block to overflow to.
  if (used > atomic && free.take(1) === undefined) return undefined;
  // Each piece splits at most two ranges in two, and so may the block of an overflow, and the write itself at its ends.
  const pieces = batches.reduce((sum, { pieces }) => sum + pieces.length + 1, 0);
  return ranges.room() >= 4 * pieces + 2 ? batches : undefined;
}

/** Hands out free blocks in ascending order, none of them in [avoidFirst, avoidEnd). Marks nothing. */
class FreeSpace {
  private cursor = 0;

  constructor(
    private readonly state: BowState,
    private readonly avoidFirst: number,
    private readonly avoidEnd: number,
  ) {}

  /** At most `wanted` blocks in one run; undefined when there are none left. */
  take(wanted: number): { dest: number; count: number } | undefined {
    const { ranges, blockSize } = this.state;
    // find() in the planner uses the same scratch fields: they are read before anything else is looked up.
    while (ranges.firstOf(T.FREE, this.cursor)) {
      const dest = ranges.start;
      let end = ranges.end;
      if (dest < this.avoidEnd && end > this.avoidFirst) {
        if (dest >= this.avoidFirst) {
          this.cursor = this.avoidEnd;
          continue;
        }
        end = this.avoidFirst;
      }
      const count = Math.min(wanted, end - dest, COPY_BYTES / blockSize);
      this.cursor = dest + count;
      return { dest, count };
    }
    return undefined;
  }
}

function commitBatch(state: BowState, { overflowTo, pieces }: Batch): void {
  const { ranges } = state;
  const moved = pieces.find(({ type }) => type === T.SECTOR0_CURRENT);
  const entries = pieces.map((piece) => copyPiece(state, piece));
  const sector0Block = moved === undefined ? state.sector0Block : moved.dest;
  const batch: LogBatch = { overflowTo, entries, sector0Block };
  const draft = draftBatch(state, batch);

  stageDraft(state, draft, batch);
  state.flushDevice();
  // Should nobody know afterwards which log the medium holds, then nothing is written before that is healed: the blocks
  // that either log speaks of stay as they are, and may stay FREE.
  publishDraft(state, draft);

  state.sector0Block = sector0Block;
  if (overflowTo !== undefined) ranges.set(overflowTo, overflowTo + 1, T.BACKUP);
  for (const { source, dest, count, type } of pieces) {
    ranges.set(dest, dest + count, type === T.SECTOR0_CURRENT ? T.SECTOR0_CURRENT : T.BACKUP);
    // What read as zeros goes on doing so until the write puts something there: that may fail before it does.
    ranges.set(source, source + count, readsAsZeroes(type) ? T.FREE : T.CHANGED);
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
