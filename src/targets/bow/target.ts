/**
 * Requests of a bow device. One room for the question "where do these bytes go": in state 1 block 0 lives in
 * SECTOR0_CURRENT, trimmed blocks read as zeros, and every write is preceded by what it owes (`debtOf`).
 *
 * A request holds the shared lock across its I/O, one that fills trimmed blocks the exclusive lock (bow-I2).
 */
import { type Extent, extentOf } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { quoteWord } from '../../table.js';
import { SECTOR_BYTES } from '../../units.js';
import type { FileBacking, OpenContext, Target } from '../target.js';
import { backUp, mayFill, NoFreeBlocks, needsBackup, readsAsZeroes } from './backup.js';
import { type BowDescriptor, BowState, State, BlockType as T } from './state.js';
import { passDownTrim } from './trim.js';

/** `none`: the data may go to the device; `fill`: it goes to trimmed blocks; `backup`: a round must come first. */
type Debt = 'none' | 'fill' | 'backup';
type Apply = (at: number, done: number, length: number) => void;

/** Bytes of a write-zeroes that are prepared at a time: its plan stays small, and others get the lock in between. */
const ZEROES_STEP = 4 << 20;

export class BowTarget implements Target {
  readonly size: number;
  readonly trimGranularity: number;
  readonly state: BowState;

  constructor(
    private readonly descriptor: BowDescriptor,
    context: OpenContext,
  ) {
    this.size = descriptor.size;
    this.trimGranularity = descriptor.blockSize;
    this.state = new BowState(descriptor, context);
  }

  read(offset: number, into: Uint8Array): void {
    const { state } = this;
    state.lock.lockShared();
    try {
      if (state.state !== State.CHECKPOINT) {
        state.device.read(offset, into);
        // After a checkpoint that failed half way the medium may hold a log there.
        if (state.suspect && offset < SECTOR_BYTES) {
          into.set(state.logImage.subarray(offset, Math.min(SECTOR_BYTES, offset + into.length)));
        }
        return;
      }
      this.forEachRun(offset, into.length, (at, done, length, type) => {
        const part = into.subarray(done, done + length);
        if (readsAsZeroes(type)) part.fill(0);
        else state.device.read(at, part);
      });
    } finally {
      state.lock.unlockShared();
    }
  }

  write(offset: number, from: Uint8Array): void {
    this.change(offset, from.length, (at, done, length) => {
      this.state.device.write(at, from.subarray(done, done + length));
    });
  }

  flush(): void {
    this.state.flushForUser();
  }

  discard(offset: number, length: number): void {
    this.trim(offset, length, { zero: false });
  }

  writeZeroes(offset: number, length: number, { unmap = false } = {}): void {
    const { state } = this;
    if (unmap && state.state !== State.COMMITTED) {
      this.unmapZeroes(offset, length);
      return;
    }
    for (let done = 0; done < length; done += ZEROES_STEP) {
      this.change(offset + done, Math.min(ZEROES_STEP, length - done), (at, _done, part) => {
        state.device.writeZeroes(at, part, { unmap });
      });
    }
  }

  extentAt(offset: number): Extent {
    const { state } = this;
    state.lock.lockShared();
    try {
      if (state.state === State.COMMITTED) {
        const { data, end } = extentOf(state.device, offset);
        return { data, end: Math.min(end, this.size) };
      }
      const type = state.ranges.find(Math.floor(offset / state.blockSize));
      const hole = state.state === State.CHECKPOINT && readsAsZeroes(type);
      return { data: !hole, end: Math.min(state.ranges.end * state.blockSize, this.size) };
    } finally {
      state.lock.unlockShared();
    }
  }

  tableArgs(): string {
    return `${quoteWord(this.descriptor.backing.path)} 1 block_size:${this.descriptor.blockSize}`;
  }

  statusArgs(): string {
    const { state } = this;
    const tail = state.wholeBlocks < state.blocks ? ' short_tail' : '';
    const log =
      state.state === State.CHECKPOINT ? ` sequence:${state.logSequence} entries:${state.logCount}` : '';
    return `state:${state.state} free:${state.freeBytes}${log}${state.suspect ? ' suspect' : ''}${tail}`;
  }

  passthrough(): FileBacking | undefined {
    const { backing, size } = this.descriptor;
    const plain = this.state.state === State.COMMITTED && backing.kind === 'file' && size === backing.size;
    return plain ? backing : undefined;
  }

  /**
   * Runs `apply(deviceOffset, done, length)` over the pieces of a range that is changed, once nothing is owed for it.
   * Whatever a round or another request does meanwhile, it looks again under the lock that it writes under (bow-I2).
   */
  private change(offset: number, length: number, apply: Apply): void {
    const { lock } = this.state;
    while (length > 0) {
      lock.lockShared();
      let debt: Debt;
      try {
        debt = this.debtOf(offset, length);
        if (debt === 'none') {
          this.applyInPlace(offset, length, apply);
          return;
        }
      } finally {
        lock.unlockShared();
      }
      if (debt === 'backup') this.backUp(offset, length);
      else if (this.state.exclusively(() => this.fillTrimmed(offset, length, apply))) return;
    }
  }

  /** Block 0 lives elsewhere in state 1; all else is written in its place. */
  private applyInPlace(offset: number, length: number, apply: Apply): void {
    const { state, blockSize, sector0Block } = this.state;
    const moved = state === State.CHECKPOINT ? Math.min(Math.max(0, blockSize - offset), length) : 0;
    if (moved > 0) apply(offset + sector0Block * blockSize, 0, moved);
    if (length > moved) apply(offset + moved, moved, length - moved);
  }

  /** What a write of the range owes before it may go to the device. The lock is held. */
  private debtOf(offset: number, length: number): Debt {
    const { state } = this;
    const { ranges, blockSize } = state;
    if (state.suspect) return 'backup';
    if (state.state === State.COMMITTED) return 'none';
    if (state.state === State.TRIM && ranges.blocksOf(T.FREE) === 0) return 'none';
    const end = Math.ceil((offset + length) / blockSize);
    let debt: Debt = 'none';
    for (let block = Math.floor(offset / blockSize); block < end; block = ranges.end) {
      const type = ranges.find(block);
      if (type === T.FREE || type === T.AWAITED) debt = 'fill';
      else if (state.state === State.CHECKPOINT && needsBackup(type)) return 'backup';
    }
    return debt;
  }

  /** A round, with whoever else waits for one, backs up what the range owes and heals the log. Holds no lock. */
  private backUp(offset: number, length: number): void {
    const { state } = this;
    const { blockSize } = state;
    const first = Math.max(1, Math.floor(offset / blockSize));
    const end = Math.ceil((offset + length) / blockSize);
    if (state.state === State.CHECKPOINT && end > state.wholeBlocks) {
      state.raise(`short_tail_write sector=${Math.floor(offset / SECTOR_BYTES)}`);
      throw new DmError(
        'EIO',
        `bytes ${state.wholeBlocks * blockSize} to ${state.size} are less than a block of ${blockSize} bytes, which the ` +
          'log cannot back up: they are read-only in state 1; use block_size:512',
      );
    }
    try {
      state.rounds.submit({ first, end: Math.max(first, end) }, (spans) => backUp(state, spans));
    } catch (error) {
      throw error instanceof NoFreeBlocks ? state.noSpace(first, end) : error;
    }
  }

  /**
   * A write that owes nothing but goes to trimmed blocks: they read as zeros until it is done, and may be taken for
   * backups, so it holds the exclusive lock. False where something else is owed by now.
   */
  private fillTrimmed(offset: number, length: number, apply: Apply): boolean {
    const { state } = this;
    const { blockSize } = state;
    if (this.debtOf(offset, length) !== 'fill') return false;
    const first = Math.max(1, Math.floor(offset / blockSize));
    const end = Math.ceil((offset + length) / blockSize);
    if (state.state === State.TRIM) {
      this.applyInPlace(offset, length, apply);
      state.retype(first, end, T.FREE, T.UNCHANGED);
      return true;
    }
    if (!mayFill(state, first, end)) throw state.noSpace(first, end);
    for (const [at, count] of this.zeroEdges(offset, length, first, end)) {
      state.device.write(at, new Uint8Array(count));
    }
    this.applyInPlace(offset, length, apply);
    state.retype(first, end, T.FREE, T.CHANGED);
    state.retype(first, end, T.AWAITED, T.CHANGED);
    return true;
  }

  /** The bytes of a partly written first and last block that read as zeros now, and must go on doing so. */
  private zeroEdges(offset: number, length: number, body: number, end: number): [number, number][] {
    const { ranges, blockSize } = this.state;
    const edges: [number, number][] = [];
    const bodyStart = body * blockSize;
    const writeEnd = offset + length;
    if (offset > bodyStart && readsAsZeroes(ranges.find(body))) edges.push([bodyStart, offset - bodyStart]);
    if (writeEnd < end * blockSize && readsAsZeroes(ranges.find(end - 1))) {
      edges.push([writeEnd, end * blockSize - writeEnd]);
    }
    return edges;
  }

  /**
   * A PUNCH_HOLE: a trim that must also read as zeros, durably. Whole blocks are trimmed; the edges are parts of blocks
   * in use, for which it is a write of zeros. So it is for block 0 and a short tail, which can be no free space.
   */
  private unmapZeroes(offset: number, length: number): void {
    const { blockSize, wholeBlocks } = this.state;
    const to = offset + length;
    const first = Math.max(1, Math.ceil(offset / blockSize));
    const end = Math.min(wholeBlocks, Math.floor(to / blockSize));
    if (first >= end) {
      this.zeroEdge(offset, to);
      return;
    }
    this.zeroEdge(offset, first * blockSize);
    this.zeroEdge(end * blockSize, to);
    this.trim(first * blockSize, (end - first) * blockSize, { zero: true });
  }

  /** Zeros for [from, to) (bytes), which covers no block in full that could be trimmed; one that was stays free. */
  private zeroEdge(from: number, to: number): void {
    const { state } = this;
    for (let at = from; at < to; ) {
      const block = Math.floor(at / state.blockSize);
      const part = Math.min((block + 1) * state.blockSize, to) - at;
      if (!this.zeroTrimmed(block, at, part)) this.writeZeroes(at, part);
      at += part;
    }
  }

  /** Zeros for a part of a block that was trimmed; false where it was not, and nothing is done. */
  private zeroTrimmed(block: number, at: number, length: number): boolean {
    const { state } = this;
    state.lock.lockShared();
    try {
      const type = state.ranges.find(block);
      if (state.state === State.CHECKPOINT) return readsAsZeroes(type);
      // While it is suspect, the medium may have a log that speaks of this block: the write makes that good first.
      if (state.state !== State.TRIM || type !== T.FREE || state.suspect) return false;
      state.device.writeZeroes(at, length);
      return true;
    } finally {
      state.lock.unlockShared();
    }
  }

  /** Marks the whole blocks of a range as free space, as the state allows; with `zero` they are zeroed where that may be. */
  private trim(offset: number, length: number, { zero }: { zero: boolean }): void {
    const { state } = this;
    const { ranges, blockSize } = state;
    const first = Math.max(1, Math.ceil(offset / blockSize));
    const end = Math.min(state.wholeBlocks, Math.floor((offset + length) / blockSize));
    state.exclusivelyAlone(() => {
      if (state.state === State.COMMITTED) {
        if (zero) state.device.writeZeroes(offset, length, { unmap: true });
        else state.device.discard(offset, length);
        return;
      }
      if (first >= end) return;
      state.heal();
      const freeBefore = state.freeBytes;
      if (state.state === State.TRIM) {
        if (zero) passDownTrim(state, first, end);
        ranges.set(first, end, T.FREE);
      } else {
        if (zero) state.forEachOfType(T.CHANGED, first, end, (from, to) => passDownTrim(state, from, to));
        state.retype(first, end, T.CHANGED, T.FREE);
        state.retype(first, end, T.AWAITED, T.FREE);
        state.retype(first, end, T.UNCHANGED, T.TRIMMED);
      }
      if (state.freeBytes > freeBefore) state.spaceGrew();
    });
  }

  /** Visits the runs of equal type of a byte range in state 1: `visit(deviceOffset, done, length, type)`. */
  private forEachRun(
    offset: number,
    length: number,
    visit: (at: number, done: number, length: number, type: number) => void,
  ): void {
    const { ranges, blockSize, sector0Block } = this.state;
    for (let done = 0; done < length; ) {
      const at = offset + done;
      const type = ranges.find(Math.floor(at / blockSize));
      const part = Math.min(ranges.end * blockSize - at, length - done);
      visit(type === T.SECTOR0 ? at + sector0Block * blockSize : at, done, part, type);
      done += part;
    }
  }
}
