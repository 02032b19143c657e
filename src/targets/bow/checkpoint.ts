/**
 * The two changes of state: 0→1 takes the checkpoint, 1→2 commits. Both hold the exclusive lock, so every request in
 * flight is done and none begins (bow-I2); both commit with one write of block 0's first sector; a failed one changes
 * nothing and can be tried again (bow-I4).
 *
 * A cut in 1→2 leaves the log (the next restore undoes everything; nobody was told "committed") or the live block 0.
 * What trimmed blocks hold after a cut between that write and the end of 1→2 is not promised, as ever.
 */
import { DmError, errnoOf, messageOf } from '../../errors.js';
import { bowChecksum, sniffMagic } from '../../formats/bow-log.js';
import { SECTOR_BYTES } from '../../units.js';
import { overflowLog } from './backup.js';
import { firstLog, firstSectorCapacity, publishDraft } from './log.js';
import { type BowState, State, BlockType as T } from './state.js';
import { passDownTrim } from './trim.js';

/** The writes to `state`: only one more than the present state is taken, EINVAL for all else. */
export function changeState(state: BowState, text: string): void {
  state.exclusivelyAlone(() => {
    const from = state.state;
    const wanted = text.trim();
    if (wanted !== String(from + 1) || from === State.COMMITTED) {
      const next = from === State.COMMITTED ? 'it is final' : `only ${from + 1} can be written`;
      throw new DmError('EINVAL', `state is ${from} and \`${wanted}\` was written: ${next}`);
    }
    if (from === State.TRIM) takeCheckpoint(state);
    else commit(state);
    state.raise(`state from=${from} to=${state.state}`);
  });
}

function takeCheckpoint(state: BowState): void {
  const { blockSize, device, ranges } = state;
  state.heal();
  const original = new Uint8Array(blockSize);
  const [current, backup] = firstFreeBlocks(state, 2);
  if (current === undefined || backup === undefined) {
    throw new DmError('ENOSPC', `a checkpoint needs 2 free blocks of ${blockSize} bytes: run fstrim first`);
  }
  // Before anything is written: what comes after the log may not fail.
  if (ranges.room() < 6) throw new DmError('ENOSPC', 'the range map is full: too many separate free ranges');
  device.read(0, original);
  if (sniffMagic(original) !== 'none') {
    throw new DmError('EBUSY', 'block 0 holds a bow log: run `dmfuse bow restore` on the image first');
  }
  const draft = firstLog(
    state,
    original,
    {
      sourceSector: 0,
      destSector: (backup * blockSize) / SECTOR_BYTES,
      sizeBytes: blockSize,
      checksum: bowChecksum(0, original),
    },
    current,
  );
  state.flushDevice();
  try {
    device.write(current * blockSize, original);
    device.write(backup * blockSize, original);
    state.flushDevice();
    // Should the log's write fail and its undoing too, this is what block 0 must be made again.
    state.logImage.set(original);
    publishDraft(state, draft);
  } catch (error) {
    zeroAgain(state, [current, backup]);
    throw error;
  }

  state.sector0Block = current;
  ranges.set(0, 1, T.SECTOR0);
  ranges.set(current, current + 1, T.SECTOR0_CURRENT);
  ranges.set(backup, backup + 1, T.BACKUP);
  state.state = State.CHECKPOINT;
}

function commit(state: BowState): void {
  const { blockSize, device } = state;
  state.heal();
  // bow-I7: block 0 is replaced from its end, so nothing of the log may lie past the first sector.
  if (state.logCount > firstSectorCapacity(blockSize)) overflowLog(state);
  const live = new Uint8Array(blockSize);
  device.read(state.sector0Block * blockSize, live);
  if (blockSize > SECTOR_BYTES) {
    device.write(SECTOR_BYTES, live.subarray(SECTOR_BYTES));
    state.logImage.set(live.subarray(SECTOR_BYTES), SECTOR_BYTES);
  }
  state.flushDevice();
  state.publishFirstSector(live);

  // Committed: from here on nothing may fail. A trim that cannot be passed on is space not given back, no more.
  try {
    for (const type of [T.FREE, T.BACKUP, T.SECTOR0_CURRENT, T.TRIMMED, T.AWAITED]) {
      state.forEachOfType(type, 1, state.wholeBlocks, (first, end) => passDownTrim(state, first, end));
    }
    state.flushDevice();
  } catch (error) {
    state.raise(`trim_failed errno=${errnoOf(error)} reason=${JSON.stringify(messageOf(error))}`);
  }
  state.ranges.set(0, state.blocks, T.UNCHANGED);
  state.state = State.COMMITTED;
}

/** Takes copies back: a trimmed block may have read as zeros. Not while the medium may hold a log that needs them. */
function zeroAgain(state: BowState, blocks: readonly number[]): void {
  if (state.suspect) return;
  try {
    for (const block of blocks) passDownTrim(state, block, block + 1);
  } catch {
    // The caller reports the error that came first.
  }
}

/** The lowest `count` free blocks, or as many as there are. */
function firstFreeBlocks({ ranges }: BowState, count: number): number[] {
  const found: number[] = [];
  for (let from = 0; found.length < count && ranges.firstOf(T.FREE, from); from = ranges.start + 1) {
    found.push(ranges.start);
  }
  return found;
}
