/**
 * Requests of a clone device, cut where regions that are hydrated meet others. A read goes to where the region is; what changes
 * a region that is not hydrated brings it over first, as much of it as the request leaves.
 */
import { type Extent, extentOf } from '../../device/block-device.js';
import { METADATA_BLOCK_SECTORS } from '../../formats/dm-clone.js';
import { nextOne, nextZero } from '../../shared/bitmap.js';
import { quoteWord } from '../../table.js';
import { SECTOR_BYTES } from '../../units.js';
import type { FileBacking, OpenContext, Target } from '../target.js';
import { Committer } from './commit.js';
import { Copier } from './copy.js';
import { Hydrator } from './hydrate.js';
import { type CloneDescriptor, CloneState } from './state.js';

/** Milliseconds that a change waits for somebody's flush before it is committed, and between two looks. */
const COMMIT_AFTER_MS = 1000;
const LOOK_MS = 100;
/** Bytes of the buffer of each view. More would not stay in a processor's cache. */
const BUFFER_BYTES = 128 << 10;
/** Bytes that are taken at a time of a long range: who waits for a region gets it in between. */
const STEP_BYTES = 64 << 20;
/** Regions that one `extentAt` looks at. */
const EXTENT_REGIONS = 1 << 17;
/** Bytes; programs take it for the size of a good request, so it is not always a region's. */
const TRIM_GRANULARITY_MAX = 1 << 20;

export class CloneTarget implements Target {
  readonly size: number;
  readonly trimGranularity: number;
  readonly state: CloneState;
  private readonly committer: Committer;
  private readonly copier: Copier;
  /** Regions of a step. */
  private readonly stepRegions: number;

  constructor(
    readonly descriptor: CloneDescriptor,
    context: Pick<OpenContext, 'device' | 'raise'>,
  ) {
    const { size, regionBytes } = descriptor;
    this.size = size;
    this.trimGranularity = Math.min(regionBytes, TRIM_GRANULARITY_MAX);
    this.stepRegions = Math.max(1, STEP_BYTES / regionBytes);
    this.state = new CloneState(descriptor, context);
    const buffer = new Uint8Array(BUFFER_BYTES);
    this.committer = new Committer(this.state, buffer);
    this.copier = new Copier(this.state, buffer);
  }

  read(offset: number, into: Uint8Array): void {
    const { state } = this;
    state.requireAlive();
    state.activity.countRequest();
    const end = offset + into.length;
    for (let at = offset; at < end; ) {
      const { isHydrated, stop } = this.runAt(at, end);
      const device = isHydrated ? state.destination : state.source;
      device.read(at, into.subarray(at - offset, stop - offset));
      at = stop;
    }
  }

  write(offset: number, from: Uint8Array): void {
    const { destination } = this.state;
    this.change(offset, from.length, (at, stop) =>
      destination.write(at, from.subarray(at - offset, stop - offset)),
    );
  }

  flush(): void {
    this.committer.flush();
  }

  /** What no commit has recorded is lost (clone-I7); removed and created anew, it is the source's again. */
  cannotFlush(): boolean {
    return this.state.mode !== 'rw';
  }

  /**
   * Only regions that it covers, and never a short last one, as the kernel has it: they become hydrated, with whatever the
   * destination holds. Nothing happens to regions that cannot be hydrated any more.
   */
  discard(offset: number, length: number): void {
    const { state, descriptor } = this;
    state.requireAlive();
    const { regionBytes, discardPassdown } = descriptor;
    const first = Math.ceil(offset / regionBytes);
    const end = Math.floor((offset + length) / regionBytes);
    if (first >= end) return;
    const isHydrated = nextZero(state.hydrated, first, end) === end;
    if (!isHydrated && state.mode === 'ro') return;
    this.change(first * regionBytes, (end - first) * regionBytes, (at, stop) => {
      if (discardPassdown) state.destination.discard(at, stop - at);
    });
  }

  writeZeroes(offset: number, length: number, { unmap = false } = {}): void {
    const { destination } = this.state;
    // Without passdown the space stays the destination's; what it reads as is promised all the same.
    const options = { unmap: unmap && this.descriptor.discardPassdown };
    this.change(offset, length, (at, stop) => destination.writeZeroes(at, stop - at, options));
  }

  extentAt(offset: number): Extent {
    const { state, descriptor } = this;
    const most = Math.min(this.size, offset + EXTENT_REGIONS * descriptor.regionBytes);
    const { isHydrated, stop } = this.runAt(offset, most);
    const { data, end } = extentOf(isHydrated ? state.destination : state.source, offset);
    return { data, end: Math.min(end, stop) };
  }

  tableArgs(): string {
    const { metadata, destination, source, regionBytes, options } = this.descriptor;
    const devices = [metadata, destination, source].map(({ path }) => path);
    return [...devices, `${regionBytes / SECTOR_BYTES}`, ...options].map(quoteWord).join(' ');
  }

  /**
   * As the kernel's dm-clone; in a mode that is not `rw` the reason follows. When all regions are hydrated one still counts as on
   * its way until the metadata says so.
   */
  statusArgs(): string {
    const { state, committer, descriptor } = this;
    const { mode, settings } = state;
    const reason = mode === 'rw' ? '' : ` reason=${JSON.stringify(state.reason)}`;
    if (mode === 'Fail') return `Fail${reason}`;
    const { used, total } = committer.store;
    const hydrated = state.hydratedCount;
    const isFull = hydrated === descriptor.regions;
    const features = [
      ...(settings.hydration ? [] : ['no_hydration']),
      ...(descriptor.discardPassdown ? [] : ['no_discard_passdown']),
    ];
    const core = ['hydration_threshold', settings.threshold, 'hydration_batch_size', settings.batchSize];
    return [
      METADATA_BLOCK_SECTORS,
      `${used}/${total}`,
      descriptor.regionBytes / SECTOR_BYTES,
      `${hydrated}/${descriptor.regions}`,
      isFull && !state.isComplete ? 1 : state.inFlight,
      features.length,
      ...features,
      core.length,
      ...core,
      `${mode}${reason}`,
    ].join(' ');
  }

  /** All is on the destination, and the metadata says so for ever: nothing is left to do here. */
  passthrough(): FileBacking | undefined {
    const { destination } = this.descriptor;
    if (!this.state.isComplete || destination.kind !== 'file') return undefined;
    return destination.size === this.size ? destination : undefined;
  }

  commitRegularly(): () => void {
    const { state, committer } = this;
    let waitingSince: number | undefined;
    let done = state.commits.done;
    const timer = setInterval(() => {
      const isNew = waitingSince === undefined || state.commits.done !== done;
      done = state.commits.done;
      if (!state.marks.areThere) waitingSince = undefined;
      else if (isNew) waitingSince = performance.now();
      else if (performance.now() - waitingSince! >= COMMIT_AFTER_MS) {
        committer.commitInBackground();
        waitingSince = undefined;
      }
    }, LOOK_MS);
    timer.unref();
    return () => clearInterval(timer);
  }

  workInBackground(): () => void {
    const hydrator = new Hydrator(this.state, this.copier, () => this.committer.commitInBackground());
    hydrator.start();
    return () => hydrator.stop();
  }

  /** What was hydrated since the last commit need not be copied again. */
  close(): void {
    this.committer.commitInBackground();
  }

  /** Bytes [at, stop) are all in regions that are hydrated, or all in others. `stop` is at most `end`. */
  private runAt(at: number, end: number): { isHydrated: boolean; stop: number } {
    const { state, descriptor } = this;
    const region = Math.floor(at / descriptor.regionBytes);
    const last = Math.ceil(end / descriptor.regionBytes);
    const next = nextZero(state.hydrated, region, last);
    if (next > region) return { isHydrated: true, stop: Math.min(end, state.startOf(next)) };
    // From the one behind it: it may have become hydrated since.
    return {
      isHydrated: false,
      stop: Math.min(end, state.startOf(nextOne(state.hydrated, region + 1, last))),
    };
  }

  /** Changes a range on the destination with `apply(byte, byte after it)`, and hydrates what it touches. */
  private change(offset: number, length: number, apply: (at: number, stop: number) => void): void {
    const { state } = this;
    state.requireAlive();
    state.activity.countRequest();
    const end = offset + length;
    state.lock.lockShared();
    try {
      for (let at = offset; at < end; ) {
        const { isHydrated, stop } = this.runAt(at, end);
        if (isHydrated) apply(at, stop);
        at = isHydrated ? stop : this.hydrate(at, stop, apply);
      }
    } finally {
      state.lock.unlockShared();
    }
  }

  /**
   * Applies a change to [at, end) where its first region is not hydrated, and makes the regions so, as many as there are locks
   * to get. Returns where it got to; `at` again where it has to be looked at again.
   */
  private hydrate(at: number, end: number, apply: (at: number, stop: number) => void): number {
    const { state, descriptor } = this;
    state.requireWritable();
    const first = Math.floor(at / descriptor.regionBytes);
    const last = Math.min(Math.ceil(end / descriptor.regionBytes), first + this.stepRegions);
    const taken = state.busy.take(first, last);
    try {
      // Whoever had them before may have done it.
      const stop = nextOne(state.hydrated, first, taken);
      if (stop === first) return at;
      const { losses } = state;
      const to = Math.min(end, state.startOf(stop));
      this.copier.copy(state.startOf(first), at);
      apply(at, to);
      this.copier.copy(to, state.startOf(stop));
      return state.setHydrated(first, stop, losses) ? to : at;
    } catch (error) {
      state.countSpoil();
      throw error;
    } finally {
      state.busy.release(first, taken);
    }
  }
}
