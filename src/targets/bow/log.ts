/**
 * The log block on the device: how it grows so that a power cut at any instant, on a medium that writes only 512 bytes
 * atomically, leaves either the log before or the log after.
 *
 * Every change commits with one write of the block's first sector, where header and the first 20 entries lie:
 *
 *   append    the sectors past the first that hold new entries are written along with the backups they speak of (the
 *             count does not reach them yet), one flush, then the first sector with the new count, one flush;
 *   overflow  the whole block is copied to a free block L along with the backups, one flush, then a first sector with
 *             the next sequence, entry 0 = L and at most as many entries as the first sector holds, one flush. The
 *             rest of the block still belongs to the old log until then and is not touched.
 *
 * A batch is what goes into one such commit. Format: formats/bow-log.ts.
 */
import {
  BOW_MAGIC,
  bowChecksum,
  ENTRY_BYTES,
  encodeEntry,
  encodeHeader,
  HEADER_BYTES,
  HEADER_VERSION,
  type LogEntry,
  logCapacity,
} from '../../formats/bow-log.js';
import { SECTOR_BYTES } from '../../units.js';
import type { BowState } from './state.js';

export interface LogBatch {
  /** The block that saves the full log first; undefined: the entries are appended. */
  readonly overflowTo: number | undefined;
  readonly entries: readonly LogEntry[];
  /** The block that holds the live block 0 once the batch is committed. */
  readonly sector0Block: number;
}

/** A log block that is not yet on the device. */
export interface LogDraft {
  readonly image: Uint8Array;
  readonly count: number;
  readonly sequence: number;
}

/** How many entries lie wholly inside the first sector: what one atomic write can carry. */
export function firstSectorCapacity(blockSize: number): number {
  return Math.min(logCapacity(blockSize), logCapacity(SECTOR_BYTES));
}

/** The first log of a checkpoint over `original`, the bytes of block 0: only its first sector differs. */
export function firstLog(
  state: BowState,
  original: Uint8Array,
  entry: LogEntry,
  sector0Block: number,
): LogDraft {
  const image = original.slice();
  image.fill(0, 0, SECTOR_BYTES);
  return draftLog(state, image, [entry], 0, sector0Block, 0);
}

/** The log block after a batch. Changes nothing yet. */
export function draftBatch(state: BowState, batch: LogBatch): LogDraft {
  const image = state.logImage.slice();
  if (batch.overflowTo === undefined) {
    return draftLog(state, image, batch.entries, state.logCount, batch.sector0Block, state.logSequence);
  }
  const saved: LogEntry = {
    sourceSector: 0,
    destSector: (batch.overflowTo * state.blockSize) / SECTOR_BYTES,
    sizeBytes: state.blockSize,
    checksum: bowChecksum(0, image),
  };
  image.fill(0, 0, SECTOR_BYTES);
  return draftLog(state, image, [saved, ...batch.entries], 0, batch.sector0Block, state.logSequence + 1);
}

/** Writes what must be durable before the draft is published: the saved log, or the new entries' later sectors. */
export function stageDraft(state: BowState, draft: LogDraft, batch: LogBatch): void {
  if (batch.overflowTo !== undefined) {
    state.device.write(batch.overflowTo * state.blockSize, state.logImage.slice());
    return;
  }
  const firstByte = HEADER_BYTES + state.logCount * ENTRY_BYTES;
  const from = Math.max(SECTOR_BYTES, Math.floor(firstByte / SECTOR_BYTES) * SECTOR_BYTES);
  const to = endOfEntries(draft.count);
  if (to > from) state.device.write(from, draft.image.subarray(from, to));
}

/** Commits a staged draft; the caller has flushed. Throws and changes nothing when the device fails. */
export function publishDraft(state: BowState, draft: LogDraft): void {
  state.publishFirstSector(draft.image);
  state.logImage.set(draft.image);
  state.logCount = draft.count;
  state.logSequence = draft.sequence;
}

function draftLog(
  state: BowState,
  image: Uint8Array,
  entries: readonly LogEntry[],
  firstIndex: number,
  sector0Block: number,
  sequence: number,
): LogDraft {
  const count = firstIndex + entries.length;
  // Zeros after the last entry, in the sectors that are written anyway.
  image.fill(0, HEADER_BYTES + firstIndex * ENTRY_BYTES, endOfEntries(count));
  encodeHeader(image, {
    magic: BOW_MAGIC,
    headerVersion: HEADER_VERSION,
    headerSize: HEADER_BYTES,
    blockSize: state.blockSize,
    count,
    sequence,
    sector0: (sector0Block * state.blockSize) / SECTOR_BYTES,
  });
  entries.forEach((entry, i) => {
    encodeEntry(image, firstIndex + i, entry);
  });
  return { image, count, sequence };
}

/** Bytes from the block's start to the end of the sector that holds the last of `count` entries. */
function endOfEntries(count: number): number {
  return Math.ceil((HEADER_BYTES + count * ENTRY_BYTES) / SECTOR_BYTES) * SECTOR_BYTES;
}
