/**
 * The top layer's bitmap: bits are set in memory, and a commit makes them durable after the data that they promise.
 *
 * A commit, per batch of pages:
 *
 *   1  wait for those who are setting bits              what others saw set by now is marked (cow-I4)
 *   2  take the marks, copy their pages                 the copy has only bits whose data is in the data device's cache
 *   3  flush the data device                            now that data is durable
 *   4  write the copies, flush the bitmap device
 *
 * Bits that are set after 2 are not in the copy, and their mark is for the next commit. When 3 or 4 fails the marks are put
 * back, so that the next one does it all again.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { DmError, errnoOf } from '../../errors.js';
import { type BitmapLayout, bitmapLayout } from '../../formats/cow-bitmap.js';
import { nextZero, setBits } from '../../shared/bitmap.js';
import { SECTOR_BYTES } from '../../units.js';
import type { OpenContext } from '../target.js';
import { bitmapBytes, PAGE_BYTES } from './bits.js';
import type { CowDescriptor, CowState, LayerView } from './state.js';

/** Sectors that have their bits on one page. */
const PAGE_SECTORS = PAGE_BYTES * 8;

/** One thread's view. */
export class TopBitmap {
  private readonly layer: LayerView;
  private readonly index: number;
  private readonly device: BlockDevice;
  private readonly layout: BitmapLayout;
  /** Page numbers of the batch under way, ascending; the n-th is the n-th page of the snapshot. */
  private readonly taken: Int32Array;
  /** A background commit failed, and none has worked since. */
  private isFailing = false;

  constructor(
    descriptor: CowDescriptor,
    private readonly state: CowState,
    context: OpenContext,
  ) {
    this.index = descriptor.layers.length - 1;
    this.layer = state.layers[this.index]!;
    this.device = context.device(descriptor.layers[this.index]!.bitmap);
    this.layout = bitmapLayout(descriptor.size / SECTOR_BYTES);
    this.taken = new Int32Array(state.snapshot.length / PAGE_BYTES);
  }

  /** Whether sectors [first, end) are all held here. */
  holdsAll(first: number, end: number): boolean {
    return nextZero(this.layer.bits, first, end) === end;
  }

  /** Sectors [first, end) are held here from now on: their data is complete. */
  set(first: number, end: number): void {
    if (this.holdsAll(first, end)) return;
    const { state } = this;
    let added = 0;
    state.marks.whileChanging(() => {
      for (let at = first; at < end; ) {
        const page = Math.floor(at / PAGE_SECTORS);
        const stop = Math.min(end, (page + 1) * PAGE_SECTORS);
        const fresh = setBits(this.layer.bits, at, stop);
        if (fresh > 0) state.marks.mark(page);
        added += fresh;
        at = stop;
      }
    });
    state.addOwned(this.index, added);
  }

  /** A flush that the user asked for. Throws EIO, too, when a commit of ours failed to flush the data before. */
  flushForUser(): void {
    const failedBefore = this.state.commits.takeFlushFailed();
    this.state.commits.join(() => this.commit());
    if (failedBefore) {
      throw new DmError('EIO', 'an earlier flush of the data device failed: writes may be lost');
    }
  }

  /** Commits what is dirty. A failure is an event, once until it works again. */
  commitInBackground(raise: (event: string) => void): void {
    if (!this.state.marks.areThere) return;
    try {
      this.state.commits.join(() => this.commit({ inBackground: true }));
      this.isFailing = false;
    } catch (error) {
      if (!this.isFailing) raise(`commit_failed errno=${errnoOf(error)}`);
      this.isFailing = true;
    }
  }

  /** One commit; the mutex of `commits` is held. */
  private commit({ inBackground = false } = {}): void {
    this.state.marks.settle();
    for (let from: number | undefined = 0; from !== undefined; ) from = this.commitBatch(from, inBackground);
  }

  /** Commits pages that are marked, as many as the snapshot takes; returns where to go on in the marks. */
  private commitBatch(from: number, inBackground: boolean): number | undefined {
    const { state, taken } = this;
    const { count, next } = state.marks.take(from, taken);
    if (count === 0 && from > 0) return next;
    try {
      this.copyPages(count);
      this.flushData(inBackground);
      if (count > 0) {
        this.writePages(count);
        this.device.flush();
      }
    } catch (error) {
      for (let i = 0; i < count; i++) state.marks.mark(taken[i]!);
      throw error;
    }
    return next;
  }

  private flushData(inBackground: boolean): void {
    try {
      this.layer.device.flush();
    } catch (error) {
      if (inBackground) this.state.commits.noteFlushFailed();
      throw error;
    }
  }

  /** Before the flush of the data (cow-I3): what is set later may promise data that the flush does not cover. */
  private copyPages(count: number): void {
    const { bits } = this.layer;
    const { snapshot } = this.state;
    for (let i = 0; i < count; i++) {
      const start = this.taken[i]! * PAGE_BYTES;
      snapshot.set(new Uint8Array(bits.buffer, start, PAGE_BYTES), i * PAGE_BYTES);
    }
  }

  /** Neighbouring pages in one write. Through the buffer of this thread: the kernel gets no shared bytes. */
  private writePages(count: number): void {
    const { taken } = this;
    const { snapshot, buffer } = this.state;
    const room = buffer.length / PAGE_BYTES;
    for (let i = 0, end = 0; i < count; i = end) {
      const page = taken[i]!;
      for (end = i + 1; end < count && end - i < room && taken[end] === page + end - i; ) end++;
      const start = page * PAGE_BYTES;
      // The last page may end past the bits: behind them the magic block may follow at once.
      const length = Math.min((end - i) * PAGE_BYTES, bitmapBytes(this.layout) - start);
      buffer.set(snapshot.subarray(i * PAGE_BYTES, i * PAGE_BYTES + length));
      this.device.write(start, buffer.subarray(0, length));
    }
  }
}
