/**
 * The difference storage of a snapshot: ranges of files and block devices, in which its devices put away the chunks that they
 * are about to overwrite [8]. All units of the accounts are sectors, all places are bytes.
 *
 * A slot is room for one chunk. Every range has as many as fit in it, numbered on from the range before; what is left over at
 * its end is given up. Slots are handed out in their order and never taken back.
 *
 * storage-I1  Entries of the range table are only added, by the main thread, and are whole before their number is published,
 *             so that a slot can be found with no lock: its range was published before it was handed out.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { RwLock } from '../../shared/rwlock.js';
import type { Backing } from '../../targets/target.js';
import { SECTOR_BYTES } from '../../units.js';

/** Plain data; everything that changes is in `shared`. */
export interface StorageDescriptor {
  /** The words below, the accounts, the range table. */
  readonly shared: SharedArrayBuffer;
  /** M: sectors that are asked for at a time. */
  readonly minimum: number;
}

/** A part of a file or a block device that the storage may use. */
export interface StorageRange {
  readonly fd: number;
  /** Bytes of the file when it was opened. */
  readonly fileSize: number;
  /** The same for all descriptors and paths of one file. */
  readonly key: string;
  /** Bytes. */
  readonly offset: number;
  /** Sectors. */
  readonly sectors: number;
}

export interface Accounts {
  /** Sectors appended. */
  readonly capacity: number;
  /** Sectors used or given up. */
  readonly filled: number;
  /** Sectors asked for so far. */
  readonly requested: number;
}

export interface Allocation {
  /** The first of `count` slots, which lie one behind another in one range. */
  readonly first: number;
  readonly count: number;
  /** More storage is needed: the caller has to raise the event. */
  readonly isAlarm: boolean;
}

/** Where a slot is. */
export interface Place {
  readonly device: BlockDevice;
  /** Bytes. */
  readonly offset: number;
  /** Slots that lie there one behind another, this one first. */
  readonly slots: number;
}

// Words.
/** Sectors of a chunk; 0 before the take. */
const CHUNK = RwLock.WORDS;
const ALARM = CHUNK + 1;
const OVERFLOW = CHUNK + 2;
/** Ranges published (storage-I1). */
const RANGES = CHUNK + 3;
/** The range that the next slot is looked for in first. */
const CURRENT = CHUNK + 4;
const WORDS = CHUNK + 5;

// Accounts, under the lock.
const CAPACITY = 0;
const FILLED = 1;
const REQUESTED = 2;
const ACCOUNTS = 3;
const ACCOUNTS_AT = 8 * Math.ceil((4 * WORDS) / 8);

// Columns of the range table.
const FD = 0;
const FILE_SIZE = 1;
/** Bytes. */
const OFFSET = 2;
/** Sectors. */
const SECTORS = 3;
/** Slots of the ranges before. */
const FIRST_SLOT = 4;
/** Slots of this range that are handed out; under the lock. */
const USED = 5;
const COLUMNS = 6;
const RANGES_MAX = 65_536;
const TABLE_AT = ACCOUNTS_AT + 8 * ACCOUNTS;

/** A slot's number and one more must go into a word of a chunk table. */
const SLOTS_MAX = 2 ** 31 - 2;
/** T is a whole number of pages. Sectors. */
const PAGE_SECTORS = 8;

/** The storage of a new snapshot: nothing in it, and M sectors asked for. */
export function createStorage(minimum: number): StorageDescriptor {
  // Zeros that nobody touches take no memory.
  const shared = new SharedArrayBuffer(TABLE_AT + 8 * COLUMNS * RANGES_MAX);
  new Int32Array(shared, 0, WORDS)[ALARM] = 1;
  new Float64Array(shared, ACCOUNTS_AT, ACCOUNTS)[REQUESTED] = minimum;
  return { shared, minimum };
}

/** The line of `events` that asks for more. */
export function lowSpaceEvent({ minimum }: StorageDescriptor): string {
  return `low_free_space requested_nr_sect=${minimum}`;
}

/** One thread's view. */
export class DiffStorage {
  private readonly lock: RwLock;
  private readonly words: Int32Array;
  private readonly accounts: Float64Array;
  private readonly table: Float64Array;
  /** T: the alarm is raised when so many sectors or less are free. */
  private readonly alarmLevel: number;
  private readonly devices = new Map<number, BlockDevice>();

  constructor(
    readonly descriptor: StorageDescriptor,
    private readonly openDevice: (backing: Backing) => BlockDevice,
  ) {
    const { shared, minimum } = descriptor;
    this.words = new Int32Array(shared, 0, WORDS);
    this.lock = new RwLock(this.words.subarray(0, RwLock.WORDS));
    this.accounts = new Float64Array(shared, ACCOUNTS_AT, ACCOUNTS);
    this.table = new Float64Array(shared, TABLE_AT, COLUMNS * RANGES_MAX);
    const half = Math.floor(minimum / 2);
    this.alarmLevel = half - (half % PAGE_SECTORS);
  }

  get amounts(): Accounts {
    return this.locked((accounts) => ({
      capacity: accounts[CAPACITY]!,
      filled: accounts[FILLED]!,
      requested: accounts[REQUESTED]!,
    }));
  }

  /**
   * The size of the chunks: main thread, at the take, before there is a slot. Throws EFAULT where the storage has more slots
   * than can be numbered.
   */
  setChunkBytes(bytes: number): void {
    const sectors = bytes / SECTOR_BYTES;
    const firsts = this.firstSlots(sectors);
    if (firsts.at(-1)! > SLOTS_MAX) {
      throw new DmError(
        'EFAULT',
        `the difference storage has room for more than ${SLOTS_MAX} chunks of ${bytes} bytes: raise chunk_minimum_shift`,
      );
    }
    for (let range = 0; range < this.rangeCount; range++) this.set(range, FIRST_SLOT, firsts[range]!);
    Atomics.store(this.words, CHUNK, sectors);
  }

  /** Adds ranges, which the caller has checked: all of them or, where it throws, none. Main thread. */
  append(ranges: readonly StorageRange[]): void {
    const known = this.rangeCount;
    const chunk = this.chunkSectors;
    if (known + ranges.length > RANGES_MAX) {
      throw new DmError(
        'E2BIG',
        `the difference storage can have ${RANGES_MAX} ranges: append fewer and longer ones`,
      );
    }
    let slots = chunk === 0 ? 0 : this.firstSlots(chunk).at(-1)!;
    const added = ranges.map(({ sectors }) => (chunk === 0 ? 0 : Math.floor(sectors / chunk)));
    if (slots + added.reduce((sum, count) => sum + count, 0) > SLOTS_MAX) {
      throw new DmError('E2BIG', `the difference storage can have ${SLOTS_MAX} chunks, this would be more`);
    }
    ranges.forEach(({ fd, fileSize, offset, sectors }, i) => {
      const row = (known + i) * COLUMNS;
      this.table.set([fd, fileSize, offset, sectors, slots, 0], row);
      slots += added[i]!;
    });
    this.locked((accounts) => {
      for (const { sectors } of ranges) accounts[CAPACITY]! += sectors;
      // Whole by now (storage-I1).
      Atomics.store(this.words, RANGES, known + ranges.length);
      if (accounts[CAPACITY]! - accounts[FILLED]! > this.alarmLevel) this.words[ALARM] = 0;
    });
  }

  /**
   * Up to `count` slots, as many as one range has: as if one by one. Throws ENOSPC when there is none, and from then on, also
   * after an append.
   */
  allocate(count: number): Allocation {
    return this.locked((accounts) => {
      const { words } = this;
      const chunk = this.chunkSectors;
      for (; words[OVERFLOW] === 0 && words[CURRENT]! < this.rangeCount; words[CURRENT]! += 1) {
        const range = words[CURRENT]!;
        const sectors = this.column(range, SECTORS);
        const used = this.column(range, USED);
        const free = Math.floor(sectors / chunk) - used;
        if (free === 0) {
          // Too short for another chunk: given up.
          accounts[FILLED]! += sectors - used * chunk;
          continue;
        }
        const granted = Math.min(count, free);
        this.set(range, USED, used + granted);
        accounts[FILLED]! += granted * chunk;
        return {
          first: this.column(range, FIRST_SLOT) + used,
          count: granted,
          isAlarm: this.checkLevel(accounts),
        };
      }
      words[OVERFLOW] = 1;
      throw new DmError('ENOSPC', 'the difference storage is full: append in time when it is asked for');
    });
  }

  locate(slot: number): Place {
    // The last range whose first slot is not behind it: one before that has the same first slot has no slot at all.
    let range = 0;
    for (let end = this.rangeCount; end - range > 1; ) {
      const middle = Math.floor((range + end) / 2);
      if (this.column(middle, FIRST_SLOT) <= slot) range = middle;
      else end = middle;
    }
    const chunk = this.chunkSectors;
    const index = slot - this.column(range, FIRST_SLOT);
    return {
      device: this.deviceOf(range),
      offset: this.column(range, OFFSET) + index * chunk * SECTOR_BYTES,
      slots: Math.floor(this.column(range, SECTORS) / chunk) - index,
    };
  }

  /** Makes durable what any thread has put there. */
  flush(): void {
    for (let range = 0; range < this.rangeCount; range++) this.deviceOf(range);
    for (const device of this.devices.values()) device.flush();
  }

  /** After an allocation: whether an event must be raised. Under the lock. */
  private checkLevel(accounts: Float64Array): boolean {
    const { words } = this;
    const isLow = accounts[CAPACITY]! - accounts[FILLED]! <= this.alarmLevel;
    if (!isLow || words[ALARM] === 1) return false;
    words[ALARM] = 1;
    accounts[REQUESTED]! += this.descriptor.minimum;
    return true;
  }

  /** Of each range, and of one that would be appended. */
  private firstSlots(chunkSectors: number): number[] {
    const firsts = [0];
    for (let range = 0; range < this.rangeCount; range++) {
      firsts.push(firsts[range]! + Math.floor(this.column(range, SECTORS) / chunkSectors));
    }
    return firsts;
  }

  private deviceOf(range: number): BlockDevice {
    const fd = this.column(range, FD);
    let device = this.devices.get(fd);
    if (!device) {
      const size = this.column(range, FILE_SIZE);
      device = this.openDevice({ kind: 'file', fd, path: 'the difference storage', size });
      this.devices.set(fd, device);
    }
    return device;
  }

  private get chunkSectors(): number {
    return Atomics.load(this.words, CHUNK);
  }

  private get rangeCount(): number {
    return Atomics.load(this.words, RANGES);
  }

  private column(range: number, column: number): number {
    return this.table[range * COLUMNS + column]!;
  }

  private set(range: number, column: number, value: number): void {
    this.table[range * COLUMNS + column] = value;
  }

  private locked<T>(work: (accounts: Float64Array) => T): T {
    return this.lock.exclusively(() => work(this.accounts));
  }
}
