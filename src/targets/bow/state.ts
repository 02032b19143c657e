/**
 * What all threads share of one bow target: one SharedArrayBuffer with the locks, the state words and the log block's
 * image, and the range map's own buffer. State and ranges are read under the lock and changed under the exclusive lock.
 * The log is the leader's (Rounds), under the lock or not. `free` and the flush-failure word are single words.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { DmError, errnoOf } from '../../errors.js';
import { RangeMap } from '../../shared/range-map.js';
import { Rounds } from '../../shared/rounds.js';
import { RwLock } from '../../shared/rwlock.js';
import { SECTOR_BYTES } from '../../units.js';
import type { Backing, OpenContext } from '../target.js';

/** The types of blocks. The numbers are ours alone: they live in memory, never on a device. */
export const BlockType = {
  UNCHANGED: 0,
  FREE: 1,
  CHANGED: 2,
  BACKUP: 3,
  SECTOR0_CURRENT: 4,
  SECTOR0: 5,
  /** UNCHANGED on the medium, and trimmed since the checkpoint: reads as zeros. */
  TRIMMED: 6,
  /** A trimmed block that a write is about to fill: owes nothing, is nobody's to reuse, and reads as zeros until then. */
  AWAITED: 7,
} as const;
export type BlockType = (typeof BlockType)[keyof typeof BlockType];

/** Bytes copied at a time; also the longest backup that one log entry speaks of. */
export const COPY_BYTES = 1 << 20;

/** The three states of a bow device, as `state` shows them. */
export const State = { TRIM: 0, CHECKPOINT: 1, COMMITTED: 2 } as const;
export type State = (typeof State)[keyof typeof State];

export interface BowDescriptor {
  readonly backing: Backing;
  /** Bytes, a whole number of sectors; a last block may be short. */
  readonly size: number;
  /** Bytes. */
  readonly blockSize: number;
  readonly shared: SharedArrayBuffer;
  readonly ranges: SharedArrayBuffer;
}

/** Blocks after which a round takes no further request: as much as one alone may ask for. */
const ROUND_BLOCKS = 8192;

// Words of `shared`, then doubles (SECTOR0_CURRENT's block, the rounds' spans), then the log block's image.
const ROUNDS = RwLock.WORDS;
const STATE = ROUNDS + Rounds.WORDS;
const SUSPECT = STATE + 1;
const FLUSH_FAILED = STATE + 2;
const NO_SPACE_TOLD = STATE + 3;
const LOG_COUNT = STATE + 4;
const LOG_SEQUENCE = STATE + 5;
const LOG_REACH = STATE + 6;
const WORDS_BYTES = Math.ceil(((STATE + 7) * Int32Array.BYTES_PER_ELEMENT) / 8) * 8;
const IMAGE_OFFSET = WORDS_BYTES + 8 * (1 + Rounds.DOUBLES);

/** Ranges that one round can add at most: four for each of less than two times ROUND_BLOCKS, and what overflows take. */
export const ROUND_RANGES = 12 * ROUND_BLOCKS;
/** Ranges that there is always room for, however the device is cut up. */
const SPARE_RANGES = 2 * ROUND_RANGES;
/** Most ranges of a map; 14 bytes each when they are in use, nothing before. */
const MAX_RANGES = 1 << 24;

/** The shared buffers of a new target of `size` bytes: state 0, nothing trimmed. */
export function createShared(size: number, blockSize: number): Pick<BowDescriptor, 'shared' | 'ranges'> {
  const blocks = Math.ceil(size / blockSize);
  return {
    shared: new SharedArrayBuffer(IMAGE_OFFSET + blockSize),
    ranges: RangeMap.create(blocks, {
      initialType: BlockType.UNCHANGED,
      capacity: Math.min(blocks, MAX_RANGES) + SPARE_RANGES,
    }).buffer,
  };
}

/** One thread's view. */
export class BowState {
  readonly size: number;
  readonly blockSize: number;
  /** Blocks that are there in full; a short last one is not counted. */
  readonly wholeBlocks: number;
  /** Blocks, a short last one included. */
  readonly blocks: number;
  readonly device: BlockDevice;
  readonly lock: RwLock;
  /** Who leads a round backs up for all that wait. Taken before the lock, never inside it. */
  readonly rounds: Rounds;
  readonly ranges: RangeMap;
  readonly raise: (event: string) => void;
  /** bow-I6: the log block as it is on the device. Written out only from copies: the kernel gets no shared bytes. */
  readonly logImage: Uint8Array;
  /**
   * There before the first write: a write-back path must not wait for memory. Not shared with other targets: the device
   * below may be one, and have backups of its own to make while we write to it.
   */
  readonly copyBuffer: Uint8Array;
  private readonly words: Int32Array;
  private readonly sector0: Float64Array;

  constructor(descriptor: BowDescriptor, context: OpenContext) {
    const { size, blockSize, shared } = descriptor;
    this.size = size;
    this.blockSize = blockSize;
    this.wholeBlocks = Math.floor(size / blockSize);
    this.blocks = Math.ceil(size / blockSize);
    this.device = context.device(descriptor.backing);
    this.raise = context.raise;
    this.words = new Int32Array(shared, 0, WORDS_BYTES / Int32Array.BYTES_PER_ELEMENT);
    this.sector0 = new Float64Array(shared, WORDS_BYTES, 1);
    this.logImage = new Uint8Array(shared, IMAGE_OFFSET, blockSize);
    this.lock = new RwLock(this.words.subarray(0, RwLock.WORDS));
    const spans = new Float64Array(shared, WORDS_BYTES + 8, Rounds.DOUBLES);
    this.rounds = new Rounds(this.words.subarray(ROUNDS, STATE), spans, { limit: ROUND_BLOCKS });
    this.ranges = new RangeMap(descriptor.ranges);
    this.copyBuffer = new Uint8Array(Math.min(COPY_BYTES, size));
  }

  /** State 0, 1 or 2. */
  get state(): State {
    return Atomics.load(this.words, STATE) as State;
  }

  set state(state: State) {
    Atomics.store(this.words, STATE, state);
  }

  /** The block that holds the live contents of block 0; state 1 only. */
  get sector0Block(): number {
    return this.sector0[0]!;
  }

  set sector0Block(block: number) {
    this.sector0[0] = block;
  }

  /** Entries in use in the log block. */
  get logCount(): number {
    return this.words[LOG_COUNT]!;
  }

  set logCount(count: number) {
    this.words[LOG_COUNT] = count;
  }

  /** Entries that the log will have after the round that is under way. */
  get logReach(): number {
    return this.words[LOG_REACH]!;
  }

  set logReach(count: number) {
    this.words[LOG_REACH] = count;
  }

  get logSequence(): number {
    return this.words[LOG_SEQUENCE]! >>> 0;
  }

  set logSequence(sequence: number) {
    this.words[LOG_SEQUENCE] = sequence;
  }

  /** True after a failed write of block 0 that could not be undone: nobody knows what the medium holds there. */
  get suspect(): boolean {
    return this.words[SUSPECT] === 1;
  }

  set suspect(suspect: boolean) {
    this.words[SUSPECT] = suspect ? 1 : 0;
  }

  /** Bytes in FREE blocks; exact, and read without the lock. */
  get freeBytes(): number {
    return this.ranges.blocksOf(BlockType.FREE) * this.blockSize;
  }

  /** Runs `work` under the exclusive lock. */
  exclusively<T>(work: () => T): T {
    return this.lock.exclusively(work);
  }

  /** The same while no round is under way: for what rounds may not see change. */
  exclusivelyAlone<T>(work: () => T): T {
    return this.rounds.alone(() => this.exclusively(work));
  }

  /** A flush of ours. Its failure is kept for the next flush of the user, whom the kernel tells only once. */
  flushDevice(): void {
    try {
      this.device.flush();
    } catch (error) {
      Atomics.store(this.words, FLUSH_FAILED, 1);
      throw error;
    }
  }

  /** A flush that the user asked for. */
  flushForUser(): void {
    const failedBefore = Atomics.exchange(this.words, FLUSH_FAILED, 0) === 1;
    this.device.flush();
    if (failedBefore)
      throw new DmError('EIO', 'an earlier flush of the backing device failed: writes may be lost');
  }

  /**
   * Writes the first sector of block 0, durably: the commit point of every change of the log. When that fails it
   * puts the sector back that `logImage` holds, so that a failure changes nothing; when that fails too, the target is
   * suspect and each later write tries again first (`heal`).
   */
  publishFirstSector(sector: Uint8Array): void {
    try {
      this.device.write(0, sector.subarray(0, SECTOR_BYTES));
      this.flushDevice();
    } catch (error) {
      this.suspect = true;
      try {
        this.heal();
      } catch {
        this.raise(`suspect errno=${errnoOf(error)}`);
      }
      throw error;
    }
  }

  /** Makes the medium hold what `logImage` says again. Throws while it still cannot. */
  heal(): void {
    if (!this.suspect) return;
    this.device.write(0, this.logImage.slice(0, SECTOR_BYTES));
    this.flushDevice();
    this.suspect = false;
  }

  /** ENOSPC for blocks [first, end) that found no free ones; the event is raised once, until there is free space again. */
  noSpace(first: number, end: number): DmError {
    const bytes = (end - first) * this.blockSize;
    const sector = (first * this.blockSize) / SECTOR_BYTES;
    if (Atomics.exchange(this.words, NO_SPACE_TOLD, 1) === 0) {
      this.raise(`no_space sector=${sector} count=${bytes / SECTOR_BYTES} free=${this.freeBytes}`);
    }
    return new DmError('ENOSPC', `no free blocks left to back up ${bytes} bytes at sector ${sector}`);
  }

  /** Free space has grown: the next ENOSPC is news again. */
  spaceGrew(): void {
    Atomics.store(this.words, NO_SPACE_TOLD, 0);
  }

  /** Visits the ranges of `type` inside [first, end) (blocks), each clipped to it; `visit` may change their type. */
  forEachOfType(
    type: BlockType,
    first: number,
    end: number,
    visit: (start: number, end: number) => void,
  ): void {
    const { ranges } = this;
    for (let block = first; block < end && ranges.firstOf(type, block) && ranges.start < end; ) {
      const start = ranges.start;
      const stop = Math.min(ranges.end, end);
      visit(start, stop);
      block = stop;
    }
  }

  /** Turns all blocks of type `from` inside [first, end) (blocks) into `to`. */
  retype(first: number, end: number, from: BlockType, to: BlockType): void {
    this.forEachOfType(from, first, end, (start, stop) => this.ranges.set(start, stop, to));
  }
}
