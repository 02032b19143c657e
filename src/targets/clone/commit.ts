/**
 * Commits of a clone: what is hydrated becomes durable, and what happens when that fails.
 *
 * clone-I6  A destination that could not be flushed may have lost what was written since it last was, and the next flush that
 *           works does not say so. Regions hydrated since the last commit are therefore written again, from what the
 *           destination still reads, before one may count. A region whose copy or write was under way is not marked.
 * clone-I7  Metadata that fails makes the target read-only: what is hydrated stays so, but not durably, and a flush says so.
 *           Where not even the superblock can be read any more the target fails altogether.
 */
import { DmError, errnoOf, messageOf } from '../../errors.js';
import { ARRAY_REGIONS } from '../../formats/dm-clone.js';
import { runsOfOnes } from '../../shared/bitmap.js';
import type { CloneState } from './state.js';
import { MetadataStore } from './store.js';

/** Array blocks that are taken at a time; whole words of marks. */
const BATCH = 1024;

export class Committer {
  readonly store: MetadataStore;
  private readonly taken = new Int32Array(BATCH);
  /** What the last commit in the background failed of, until one works. */
  private failure = '';

  constructor(
    private readonly state: CloneState,
    /** For bytes on their way. */
    private readonly buffer: Uint8Array,
  ) {
    this.store = new MetadataStore(state.descriptor.store, state.metadata);
  }

  /** A flush that the user asked for. Throws EIO, too, when a commit of ours failed to flush the destination before. */
  flush(): void {
    let failedBefore = false;
    try {
      this.state.commits.join(() => this.commit());
    } finally {
      // After our own: one of ours may fail while we wait for it.
      failedBefore = this.state.commits.takeFlushFailed();
    }
    if (failedBefore) {
      throw new DmError('EIO', 'an earlier flush of the destination failed: writes may be lost');
    }
  }

  /** Commits what there is. A failure is an event, once until it works again. */
  commitInBackground(): void {
    const { state } = this;
    if (!state.marks.areThere || state.mode !== 'rw') return;
    try {
      state.commits.join(() => this.commit({ inBackground: true }));
      this.failure = '';
    } catch (error) {
      const reason = messageOf(error);
      if (reason !== this.failure) {
        state.raise(`commit_failed errno=${errnoOf(error)} reason=${JSON.stringify(reason)}`);
      }
      this.failure = reason;
    }
  }

  /** One commit; the mutex of `commits` is held. */
  private commit({ inBackground = false } = {}): void {
    const { state } = this;
    // What was to be committed when the mode changed never will be.
    state.requireWritable();
    const arrays = state.redone === state.losses ? this.takeMarks() : this.writeAgain();
    if (arrays.length === 0) {
      this.flushDestination(inBackground);
      return;
    }
    let destinationError: unknown;
    try {
      this.store.commit(arrays, () => {
        try {
          this.flushDestination(inBackground);
        } catch (error) {
          destinationError = error;
          throw error;
        }
      });
    } catch (error) {
      this.putBack(arrays);
      if (error !== destinationError) this.degrade(error);
      throw error;
    }
    // Nothing is marked, so all that is hydrated was in this commit.
    const isComplete = state.hydratedCount === state.descriptor.regions && !state.marks.areThere;
    if (isComplete && state.complete()) state.raise(`hydrated regions=${state.descriptor.regions}`);
  }

  private flushDestination(inBackground: boolean): void {
    const { state } = this;
    try {
      state.destination.flush();
    } catch (error) {
      state.countLoss();
      if (inBackground) state.commits.noteFlushFailed();
      throw error;
    }
  }

  private takeMarks(): number[] {
    const { marks } = this.state;
    marks.settle();
    const arrays: number[] = [];
    for (let from: number | undefined = 0; from !== undefined; ) {
      const { count, next } = marks.take(from, this.taken);
      arrays.push(...this.taken.subarray(0, count));
      from = next;
    }
    return arrays;
  }

  private putBack(arrays: readonly number[]): void {
    for (const array of arrays) this.state.marks.mark(array);
  }

  /** Writes regions again that the destination may have lost, and takes the marks (clone-I6). */
  private writeAgain(): number[] {
    const { state } = this;
    // Alone: what a request writes between our read and our write would be undone.
    state.lock.lockExclusive();
    let arrays: number[] = [];
    try {
      const { losses } = state;
      arrays = this.takeMarks();
      for (const array of arrays) this.writeArrayAgain(array);
      state.redone = losses;
      return arrays;
    } catch (error) {
      this.putBack(arrays);
      throw error;
    } finally {
      state.lock.unlockExclusive();
    }
  }

  private writeArrayAgain(array: number): void {
    const { state, buffer } = this;
    const { hydrated, descriptor } = state;
    const first = array * ARRAY_REGIONS;
    const end = Math.min(first + ARRAY_REGIONS, descriptor.regions);
    // Whole words: an array begins with one.
    const pending = hydrated.slice(first / 32, Math.ceil(end / 32));
    const durable = this.readDurable(array);
    new Uint8Array(pending.buffer).forEach((byte, i, bytes) => {
      bytes[i] = byte & ~durable[i]!;
    });
    for (const { start, count } of runsOfOnes(pending, end - first)) {
      const stop = state.startOf(first + start + count);
      for (let at = state.startOf(first + start); at < stop; at += buffer.length) {
        const part = buffer.subarray(0, Math.min(buffer.length, stop - at));
        state.destination.read(at, part);
        state.destination.write(at, part);
      }
    }
  }

  private readDurable(array: number): Uint8Array {
    try {
      return this.store.readArray(array);
    } catch (error) {
      this.degrade(error);
      throw this.state.refusal();
    }
  }

  /** clone-I7 */
  private degrade(error: unknown): void {
    const { state } = this;
    const reason = messageOf(error);
    try {
      this.store.probe();
      state.degrade('ro', reason);
    } catch (probeError) {
      state.degrade('Fail', `${reason}; ${messageOf(probeError)}`);
    }
  }
}
