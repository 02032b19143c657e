/** What all threads share of one clone target, and one thread's view of it. */
import type { BlockDevice } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { ARRAY_REGIONS, arraysOf } from '../../formats/dm-clone.js';
import { Activity } from '../../shared/activity.js';
import { BitLocks } from '../../shared/bit-locks.js';
import { setBits } from '../../shared/bitmap.js';
import { Commits } from '../../shared/commits.js';
import { Marks } from '../../shared/marks.js';
import { RwLock } from '../../shared/rwlock.js';
import type { Backing, OpenContext } from '../target.js';
import { countRegions, createRegionBits } from './image.js';
import type { StoreDescriptor } from './store.js';

export interface CloneDescriptor {
  readonly metadata: Backing;
  readonly destination: Backing;
  readonly source: Backing;
  /** Bytes, a whole number of sectors. */
  readonly size: number;
  /** Bytes. */
  readonly regionBytes: number;
  readonly regions: number;
  /** The table's arguments behind the devices, as they were given. */
  readonly options: readonly string[];
  readonly discardPassdown: boolean;
  readonly store: StoreDescriptor;
  /** A lock a region. */
  readonly busy: SharedArrayBuffer;
  /** Marks of the array blocks that have bits which are not durable. */
  readonly marks: SharedArrayBuffer;
  /** The words below, and then the reason of the mode. */
  readonly words: SharedArrayBuffer;
}

/** What can still be done with the metadata, in the kernel's words. */
export type Mode = 'rw' | 'ro' | 'Fail';
const MODES: readonly Mode[] = ['rw', 'ro', 'Fail'];

export interface Settings {
  readonly hydration: boolean;
  /** Regions that are copied at a time at most. */
  readonly threshold: number;
  /** Neighbouring regions that are copied with one request at most. */
  readonly batchSize: number;
}

// Words.
const COMMITS = RwLock.WORDS;
const MODE = COMMITS + Commits.WORDS;
const REASON_BYTES = MODE + 1;
const HYDRATED = MODE + 2;
const COMPLETE = MODE + 3;
const LOSSES = MODE + 4;
const REDONE = MODE + 5;
const HYDRATION = MODE + 6;
const THRESHOLD = MODE + 7;
const BATCH_SIZE = MODE + 8;
const IN_FLIGHT = MODE + 9;
const SPOILS = MODE + 10;
const ACTIVITY = MODE + 11;
const WORDS = ACTIVITY + Activity.WORDS;
const REASON_BYTES_MAX = 512;

/** The shared buffers of a new target, but for its store. */
export function createShared(
  { image }: StoreDescriptor,
  regions: number,
  { hydration, threshold, batchSize }: Settings,
): Pick<CloneDescriptor, 'busy' | 'marks' | 'words'> {
  const words = new SharedArrayBuffer(4 * WORDS + REASON_BYTES_MAX);
  const hydrated = countRegions(image.hydrated, regions);
  const view = new Int32Array(words, 0, WORDS);
  view[HYDRATED] = hydrated;
  view[COMPLETE] = hydrated === regions ? 1 : 0;
  view[HYDRATION] = hydration ? 1 : 0;
  view[THRESHOLD] = threshold;
  view[BATCH_SIZE] = batchSize;
  return {
    busy: createRegionBits(regions),
    marks: new SharedArrayBuffer(4 * Marks.words(arraysOf(regions))),
    words,
  };
}

/** One thread's view. */
export class CloneState {
  readonly source: BlockDevice;
  readonly destination: BlockDevice;
  readonly metadata: BlockDevice;
  /** A bit a region, set when all of it is on the destination. */
  readonly hydrated: Int32Array;
  /** Whoever copies a region, or sets its bit, holds its lock. */
  readonly busy: BitLocks;
  /** Shared by requests that change the destination; held alone to write again what it may have lost. */
  readonly lock: RwLock;
  readonly commits: Commits;
  readonly activity: Activity;
  readonly marks: Marks;
  readonly raise: (event: string) => void;
  private readonly words: Int32Array;
  private readonly reasonBytes: Uint8Array;

  constructor(
    readonly descriptor: CloneDescriptor,
    context: Pick<OpenContext, 'device' | 'raise'>,
  ) {
    const { source, destination, metadata, store, busy, marks, words } = descriptor;
    this.source = context.device(source);
    this.destination = context.device(destination);
    this.metadata = context.device(metadata);
    this.raise = context.raise;
    this.hydrated = new Int32Array(store.image.hydrated);
    this.busy = new BitLocks(new Int32Array(busy));
    this.marks = new Marks(new Int32Array(marks));
    this.words = new Int32Array(words, 0, WORDS);
    this.reasonBytes = new Uint8Array(words, 4 * WORDS, REASON_BYTES_MAX);
    this.lock = new RwLock(this.words.subarray(0, COMMITS));
    this.commits = new Commits(this.words.subarray(COMMITS, MODE));
    this.activity = new Activity(this.words.subarray(ACTIVITY, WORDS));
  }

  /** First byte of a region; of the one after the last, the end of the device. */
  startOf(region: number): number {
    return Math.min(region * this.descriptor.regionBytes, this.descriptor.size);
  }

  /** Regions that are hydrated. */
  get hydratedCount(): number {
    return Atomics.load(this.words, HYDRATED) >>> 0;
  }

  /** Whether all are, and the metadata on the device says so. */
  get isComplete(): boolean {
    return Atomics.load(this.words, COMPLETE) === 1;
  }

  /** All are: true for the first who says so. */
  complete(): boolean {
    return Atomics.exchange(this.words, COMPLETE, 1) === 0;
  }

  /**
   * Regions [first, end) are on the destination; their locks are held. False, and nothing is done, where the destination has
   * lost writes since `losses` was read: theirs may be among them (clone-I6).
   */
  setHydrated(first: number, end: number, losses: number): boolean {
    let isDone = false;
    this.marks.whileChanging(() => {
      if (this.losses !== losses) return;
      isDone = true;
      for (let at = first; at < end; ) {
        const array = Math.floor(at / ARRAY_REGIONS);
        const stop = Math.min(end, (array + 1) * ARRAY_REGIONS);
        const fresh = setBits(this.hydrated, at, stop);
        this.marks.mark(array);
        // After the mark: where all are counted and nothing is marked, all are durable.
        Atomics.add(this.words, HYDRATED, fresh);
        at = stop;
      }
    });
    if (isDone && this.hydratedCount === this.descriptor.regions) this.activity.wake();
    return isDone;
  }

  get mode(): Mode {
    return MODES[Atomics.load(this.words, MODE)]!;
  }

  /** Why the mode is not `rw`. */
  get reason(): string {
    const length = Atomics.load(this.words, REASON_BYTES);
    return Buffer.from(this.reasonBytes.slice(0, length)).toString();
  }

  /** Takes a worse mode, for good. Under the mutex of the commits. */
  degrade(mode: Mode, reason: string): void {
    const { written } = new TextEncoder().encodeInto(reason, this.reasonBytes);
    Atomics.store(this.words, REASON_BYTES, written);
    Atomics.store(this.words, MODE, MODES.indexOf(mode));
    this.raise(`metadata_mode mode=${mode} reason=${JSON.stringify(reason)}`);
  }

  /** Throws EIO in mode `Fail`. */
  requireAlive(): void {
    if (this.mode === 'Fail') throw this.refusal();
  }

  /** Throws EIO where no region can be hydrated any more. */
  requireWritable(): void {
    if (this.mode !== 'rw') throw this.refusal();
  }

  /** Why something is refused that the mode forbids. */
  refusal(): DmError {
    const what = this.mode === 'Fail' ? 'has failed' : 'is read-only';
    return new DmError(
      'EIO',
      `clone: the metadata ${what}: ${this.reason}; remove the target and create it anew`,
    );
  }

  /** How often a flush of the destination has failed: each time it may have lost writes. */
  get losses(): number {
    return Atomics.load(this.words, LOSSES);
  }

  countLoss(): void {
    Atomics.add(this.words, LOSSES, 1);
  }

  /** How often a change to a region failed half way: what it left on the destination is neither copied nor hydrated. */
  get spoils(): number {
    return Atomics.load(this.words, SPOILS);
  }

  /** The lock of the region is held. */
  countSpoil(): void {
    Atomics.add(this.words, SPOILS, 1);
  }

  /** The losses whose regions were written again. Under the mutex of the commits. */
  get redone(): number {
    return Atomics.load(this.words, REDONE);
  }

  set redone(losses: number) {
    Atomics.store(this.words, REDONE, losses);
  }

  get settings(): Settings {
    return {
      hydration: Atomics.load(this.words, HYDRATION) === 1,
      threshold: Atomics.load(this.words, THRESHOLD) >>> 0,
      batchSize: Atomics.load(this.words, BATCH_SIZE) >>> 0,
    };
  }

  set settings({ hydration, threshold, batchSize }: Settings) {
    Atomics.store(this.words, THRESHOLD, threshold);
    Atomics.store(this.words, BATCH_SIZE, batchSize);
    Atomics.store(this.words, HYDRATION, hydration ? 1 : 0);
    this.activity.wake();
  }

  /** Regions that are being copied in the background. */
  get inFlight(): number {
    return Atomics.load(this.words, IN_FLIGHT);
  }

  set inFlight(regions: number) {
    Atomics.store(this.words, IN_FLIGHT, regions);
  }
}
