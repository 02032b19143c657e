/**
 * Hydration in the background: regions are copied one after the other, `hydration_batch_size` of them with one request where
 * they are neighbours, never more than `hydration_threshold` at a time.
 *
 * Nothing is held between two steps: of a large region only how far it was copied is known. Whoever writes to it meanwhile
 * takes it over; and as long as it is not hydrated its destination is only what was copied.
 */
import { errnoOf, messageOf } from '../../errors.js';
import { GiveWay } from '../../give-way.js';
import { nextOne, nextZero } from '../../shared/bitmap.js';
import type { Copier } from './copy.js';
import type { CloneState } from './state.js';

/** Bytes copied in one step, about a millisecond of work when they are cached. */
const STEP_BYTES = 1 << 20;
/** Holes are only noted: so much of them counts as a step. */
const STEP_HOLE_BYTES = 64 << 20;
/** While there are requests, it rests so many times as long as it has worked. */
const REST = 1;
/** Milliseconds. */
const IDLE_MS = 1000;
/** How long it rests, in milliseconds, when a round over all regions has met errors, or the destination is full. */
const RETRY_MS = 5000;

/** A region of which the first bytes are copied, up to `done`. */
interface PartlyCopied {
  readonly region: number;
  readonly done: number;
  readonly losses: number;
  readonly spoils: number;
}

export class Hydrator {
  private attends = true;
  /** The region to go on from. */
  private cursor = 0;
  private partial: PartlyCopied | undefined;
  /** Regions of this round that could not be copied. */
  private failures = 0;

  constructor(
    private readonly state: CloneState,
    private readonly copier: Copier,
    /** Commits what is hydrated. */
    private readonly commit: () => void,
    private readonly stepBytes = STEP_BYTES,
  ) {}

  start(): void {
    void this.run();
  }

  stop(): void {
    this.attends = false;
    this.state.activity.wake();
  }

  private async run(): Promise<void> {
    const { state } = this;
    const giveWay = new GiveWay(() => state.activity.requests, REST);
    while (this.attends) {
      const { wakes } = state.activity;
      const began = performance.now();
      const rest = this.step();
      if (rest === 0) {
        await giveWay.pause(performance.now() - began);
        continue;
      }
      state.inFlight = 0;
      if (state.hydratedCount === state.descriptor.regions && !state.isComplete) this.commit();
      await state.activity.awaitWake(wakes, rest);
    }
    state.inFlight = 0;
  }

  /** One step; the milliseconds to rest before the next one, 0 while there is something to do. */
  step(): number {
    const { state } = this;
    const { regions } = state.descriptor;
    const { hydration, threshold, batchSize } = state.settings;
    // No more than a step can copy: their locks are all taken.
    const most = Math.min(threshold, batchSize, Math.max(1, STEP_HOLE_BYTES / state.descriptor.regionBytes));
    if (!hydration || most === 0 || state.mode !== 'rw' || state.hydratedCount === regions) return IDLE_MS;
    for (let left = this.stepBytes; left > 0; ) {
      const first = nextZero(state.hydrated, this.cursor, regions);
      if (first === regions) return this.endOfRound();
      const stop = nextOne(state.hydrated, first, Math.min(regions, first + most));
      const end = state.busy.tryTake(first, stop);
      // Who has it hydrates it.
      this.cursor = first + 1;
      if (end === first) continue;
      try {
        left -= this.hydrate(first, end);
      } catch (error) {
        this.failed(first, error);
        // Regions that cannot be read may be many, and each take its time.
        left -= this.state.descriptor.regionBytes;
        if (errnoOf(error) === errnoOf({ code: 'ENOSPC' })) return RETRY_MS;
      } finally {
        state.busy.release(first, end);
      }
    }
    return 0;
  }

  /** Copies regions whose locks are held, or the next part of a large one. Returns what that counts, in bytes. */
  private hydrate(first: number, end: number): number {
    const { state, copier } = this;
    // Whoever had one before may have done it.
    const stop = nextOne(state.hydrated, first, end);
    if (stop === first) return 0;
    state.inFlight = stop - first;
    const { partial } = this;
    // Once: a loss between two looks would count for neither part of the region.
    const { losses, spoils } = state;
    const goesOn = partial?.region === first && partial.losses === losses && partial.spoils === spoils;
    const from = goesOn ? partial.done : state.startOf(first);
    const extent = copier.extents.at(from);
    const longest = extent.data ? this.stepBytes : STEP_HOLE_BYTES;
    const to = Math.min(state.startOf(stop), extent.end, from + longest);
    copier.copy(from, to);
    if (to < state.startOf(first + 1)) {
      this.partial = { region: first, done: to, losses, spoils };
      this.cursor = first;
    } else {
      this.partial = undefined;
      // Of several regions, those that are whole.
      const whole = to === state.startOf(stop) ? stop : Math.floor(to / state.descriptor.regionBytes);
      state.setHydrated(first, whole, losses);
      this.cursor = whole;
    }
    return extent.data ? to - from : (STEP_BYTES / STEP_HOLE_BYTES) * (to - from);
  }

  private endOfRound(): number {
    const { failures } = this;
    this.cursor = 0;
    this.failures = 0;
    return failures > 0 ? RETRY_MS : 0;
  }

  /** The first failure of a round is an event: there may be as many as there are regions. */
  private failed(region: number, error: unknown): void {
    this.partial = undefined;
    this.failures++;
    if (this.failures > 1) return;
    const reason = JSON.stringify(messageOf(error));
    this.state.raise(`hydration_failed region=${region} errno=${errnoOf(error)} reason=${reason}`);
  }
}
