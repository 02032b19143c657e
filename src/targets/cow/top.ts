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
import { SECTOR_BYTES } from '../../units.js';
import type { OpenContext } from '../target.js';
import { bitmapBytes, maskOf, nextZero, PAGE_BYTES, PAGE_WORDS, popCount, WORD_SECTORS } from './bits.js';
import type { CowDescriptor, CowState, LayerView } from './state.js';

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
    state.marking.lockShared();
    try {
      for (let at = first; at < end; ) {
        const page = Math.floor(at / (PAGE_WORDS * WORD_SECTORS));
        const stop = Math.min(end, (page + 1) * PAGE_WORDS * WORD_SECTORS);
        const fresh = this.setWords(at, stop);
        // After the last bit of the page: a commit that takes the mark now copies them all.
        if (fresh > 0) this.mark(page);
        added += fresh;
        at = stop;
      }
    } finally {
      state.marking.unlockShared();
    }
    state.addOwned(this.index, added);
  }

  /** A flush that the user asked for. Throws EIO, too, when a commit of ours failed to flush the data before. */
  flushForUser(): void {
    const failedBefore = this.state.takeFlushFailed();
    this.state.commits.join(() => this.commit());
    if (failedBefore) {
      throw new DmError('EIO', 'an earlier flush of the data device failed: writes may be lost');
    }
  }

  /** Commits what is dirty. A failure is an event, once until it works again. */
  commitInBackground(raise: (event: string) => void): void {
    if (!this.state.dirty.some((word) => word !== 0)) return;
    try {
      this.state.commits.join(() => this.commit({ inBackground: true }));
      this.isFailing = false;
    } catch (error) {
      if (!this.isFailing) raise(`commit_failed errno=${errnoOf(error)}`);
      this.isFailing = true;
    }
  }

  /** Sets the bits of [first, end); how many were not set. */
  private setWords(first: number, end: number): number {
    const { bits } = this.layer;
    const last = Math.ceil(end / WORD_SECTORS);
    let fresh = 0;
    for (let index = Math.floor(first / WORD_SECTORS); index < last; index++) {
      const mask = maskOf(index, first, end);
      if ((mask & ~Atomics.load(bits, index)) === 0) continue;
      fresh += popCount(mask & ~Atomics.or(bits, index, mask));
    }
    return fresh;
  }

  private mark(page: number): void {
    Atomics.or(this.state.dirty, page >>> 5, 1 << (page & 31));
  }

  /** One commit; the mutex of `commits` is held. */
  private commit({ inBackground = false } = {}): void {
    const { marking, dirty } = this.state;
    // A thread may rely on a bit that another has set and not yet marked: it does not mark the page itself. cow-I4
    marking.lockExclusive();
    marking.unlockExclusive();
    let word = 0;
    do {
      word = this.commitBatch(word, inBackground);
    } while (word < dirty.length);
  }

  /** Commits pages marked in `dirty` from word `from` on, as many as the snapshot takes; returns the word to go on from. */
  private commitBatch(from: number, inBackground: boolean): number {
    const { state, taken } = this;
    let count = 0;
    let word = from;
    for (; word < state.dirty.length && count + 32 <= taken.length; word++) {
      if (Atomics.load(state.dirty, word) === 0) continue;
      for (let marks = Atomics.exchange(state.dirty, word, 0); marks !== 0; marks &= marks - 1) {
        taken[count++] = word * 32 + 31 - Math.clz32(marks & -marks);
      }
    }
    if (count === 0 && from > 0) return word;
    try {
      this.copyPages(count);
      this.flushData(inBackground);
      if (count > 0) {
        this.writePages(count);
        this.device.flush();
      }
    } catch (error) {
      for (let i = 0; i < count; i++) this.mark(taken[i]!);
      throw error;
    }
    return word;
  }

  private flushData(inBackground: boolean): void {
    try {
      this.layer.device.flush();
    } catch (error) {
      if (inBackground) this.state.flushFailed();
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
