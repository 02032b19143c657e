/**
 * A stage: sectors that were written and not committed yet, in shared memory, by group. Two of them take turns: requests
 * fill one while a commit empties the other.
 *
 *   ENTRIES, SLOTS   how many are taken
 *   keys             open hashing: group + 1, 0 for a free one, GONE for one that was cleared
 *   written          for each key: 0, or 256 + the counter of the table that a commit has written for it
 *   places           for each key, for each sector of the group: 0 nothing staged, 1 zeros, 2 + s the slot s
 *   crcs, data       for each slot: the CRC of its sector, and the sector
 *
 * stage-I1  What belongs to a group (places, its slots' contents) is changed under the group's stripe lock, held
 *           exclusively; keys and slots are handed out by Atomics alone.
 * stage-I2  Places are cleared under that lock before a slot is used again, so a reader never sees another sector's bytes. And
 *           the key with them: an entry is found only while it cannot be given to another group.
 */

import { crcOfSector } from '../../formats/crc16.js';
import { GROUP_SECTORS } from '../../formats/csum.js';
import { SECTOR_BYTES } from '../../units.js';

const ENTRIES = 0;
const SLOTS = 1;
const KEYS_AT = 2;

const GONE = -1;

const NOTHING = 0;
const ZEROS = 1;
const FIRST_SLOT = 2;

/** What a stage has room for. */
export interface StageLimits {
  readonly groups: number;
  /** Sectors that are not zeros. */
  readonly slots: number;
}

/** A run of staged sectors of a group that are written as one: consecutive, and zeros or consecutive slots. */
export interface StagedRun {
  k: number;
  count: number;
  /** Undefined for zeros. */
  data: Uint8Array | undefined;
}

export class Stage {
  private readonly limits: StageLimits;
  /** A power of two, so that half of the keys at least are free. */
  private readonly keyCount: number;
  private readonly words: Int32Array;
  private readonly written: Int32Array;
  private readonly places: Int32Array;
  private readonly crcs: Uint16Array;
  private readonly data: Uint8Array;
  private readonly dataWords: Int32Array;

  /** This thread's view of a buffer of `bytesFor(limits)` bytes, all 0 at first. */
  constructor(buffer: SharedArrayBuffer, limits: StageLimits) {
    const { keyCount, written, places, crcs, data } = layout(limits);
    this.limits = limits;
    this.keyCount = keyCount;
    this.words = new Int32Array(buffer, 0, KEYS_AT + keyCount);
    this.written = new Int32Array(buffer, written, keyCount);
    this.places = new Int32Array(buffer, places, keyCount * GROUP_SECTORS);
    this.crcs = new Uint16Array(buffer, crcs, limits.slots);
    this.data = new Uint8Array(buffer, data, limits.slots * SECTOR_BYTES);
    this.dataWords = new Int32Array(buffer, data, limits.slots * (SECTOR_BYTES / 4));
  }

  static bytesFor(limits: StageLimits): number {
    return layout(limits).data + limits.slots * SECTOR_BYTES;
  }

  get isEmpty(): boolean {
    return Atomics.load(this.words, ENTRIES) === 0;
  }

  /** True when it is time to commit it, should anybody have time for that. */
  get isHalfFull(): boolean {
    const { words, limits } = this;
    return Atomics.load(words, SLOTS) > limits.slots / 2 || Atomics.load(words, ENTRIES) > limits.groups / 2;
  }

  /** Sectors that are not zeros; about. */
  get sectors(): number {
    return Atomics.load(this.words, SLOTS);
  }

  /** The entry of a group; -1 when it has none. */
  find(group: number): number {
    if (this.isEmpty) return -1;
    for (let key = this.first(group); ; key = (key + 1) & (this.keyCount - 1)) {
      const found = Atomics.load(this.words, KEYS_AT + key);
      if (found === group + 1) return key;
      if (found === 0) return -1;
    }
  }

  /** The entry of a group, a new one if it has none; -1 when there is no room. The group's lock is held exclusively. */
  enter(group: number): number {
    const found = this.find(group);
    if (found >= 0) return found;
    if (Atomics.add(this.words, ENTRIES, 1) >= this.limits.groups) {
      Atomics.sub(this.words, ENTRIES, 1);
      return -1;
    }
    for (let key = this.first(group); ; key = (key + 1) & (this.keyCount - 1)) {
      if (Atomics.compareExchange(this.words, KEYS_AT + key, 0, group + 1) === 0) return key;
    }
  }

  /**
   * Takes over whole sectors for `count` sectors from the k-th of a group on. False, with nothing done, when there is no
   * room. The group's lock is held exclusively.
   */
  put(group: number, k: number, count: number, from: Uint8Array): boolean {
    const entry = this.enter(group);
    if (entry < 0) return false;
    const { places, data, dataWords, crcs } = this;
    const first = entry * GROUP_SECTORS + k;
    let missing = 0;
    for (let i = first; i < first + count; i++) if (places[i]! < FIRST_SLOT) missing++;
    let free = missing > 0 ? this.takeSlots(missing) : 0;
    if (free < 0) return false;
    for (let i = first; i < first + count; i++) {
      if (places[i]! < FIRST_SLOT) places[i] = FIRST_SLOT + free++;
    }
    // Slots that follow each other, most often all of them, are copied at once.
    for (let done = 0, next = 1; done < count; done = next++) {
      const slot = places[first + done]! - FIRST_SLOT;
      while (next < count && places[first + next] === places[first + next - 1]! + 1) next++;
      data.set(from.subarray(done * SECTOR_BYTES, next * SECTOR_BYTES), slot * SECTOR_BYTES);
      for (let s = slot; s < slot + next - done; s++) {
        crcs[s] = crcOfSector(dataWords, s * (SECTOR_BYTES / 4));
      }
    }
    return true;
  }

  /** The same for zeros, which take no slots. */
  putZeros(group: number, k: number, count: number): boolean {
    const entry = this.enter(group);
    if (entry < 0) return false;
    const first = entry * GROUP_SECTORS + k;
    this.places.fill(ZEROS, first, first + count);
    return true;
  }

  /** Whether sector k of an entry is staged. The group's lock is held. */
  has(entry: number, k: number): boolean {
    return this.places[entry * GROUP_SECTORS + k] !== NOTHING;
  }

  /** Copies a staged sector. */
  get(entry: number, k: number, into: Uint8Array): void {
    const place = this.places[entry * GROUP_SECTORS + k]!;
    if (place === ZEROS) into.fill(0);
    else {
      const at = (place - FIRST_SLOT) * SECTOR_BYTES;
      into.set(this.data.subarray(at, at + SECTOR_BYTES));
    }
  }

  /** The CRC of a staged sector. */
  crc(entry: number, k: number): number {
    const place = this.places[entry * GROUP_SECTORS + k]!;
    return place === ZEROS ? 0 : this.crcs[place - FIRST_SLOT]!;
  }

  /** The run of staged sectors that begins at the first staged one from k on; undefined after the last. */
  runFrom(entry: number, from: number): StagedRun | undefined {
    const { places } = this;
    const base = entry * GROUP_SECTORS;
    let k = from;
    while (k < GROUP_SECTORS && places[base + k] === NOTHING) k++;
    if (k === GROUP_SECTORS) return undefined;
    const place = places[base + k]!;
    const step = place === ZEROS ? 0 : 1;
    let count = 1;
    while (k + count < GROUP_SECTORS && places[base + k + count] === place + count * step) count++;
    if (place === ZEROS) return { k, count, data: undefined };
    const at = (place - FIRST_SLOT) * SECTOR_BYTES;
    return { k, count, data: this.data.subarray(at, at + count * SECTOR_BYTES) };
  }

  /** The groups that have entries, ascending. */
  groups(): Int32Array {
    const found = this.words.slice(KEYS_AT, KEYS_AT + this.keyCount).filter((key) => key > 0);
    for (let i = 0; i < found.length; i++) found[i]!--;
    return found.sort();
  }

  /** The counter of the table that was written for an entry, if one was. */
  writtenCounter(entry: number): number | undefined {
    const written = this.written[entry]!;
    return written === 0 ? undefined : written & 255;
  }

  setWrittenCounter(entry: number, counter: number): void {
    this.written[entry] = 256 + counter;
  }

  /** Forgets what is staged for an entry. The group's lock is held exclusively. */
  clear(entry: number): void {
    this.places.fill(NOTHING, entry * GROUP_SECTORS, (entry + 1) * GROUP_SECTORS);
    this.written[entry] = 0;
    // Or who gets the lock next finds it, and holds it still when it is another group's.
    Atomics.store(this.words, KEYS_AT + entry, GONE);
  }

  /** Makes an empty stage of one whose entries are all cleared, and which nobody fills. */
  reset(): void {
    for (let i = KEYS_AT; i < this.words.length; i++) {
      if (this.words[i] !== 0) Atomics.store(this.words, i, 0);
    }
    Atomics.store(this.words, SLOTS, 0);
    Atomics.store(this.words, ENTRIES, 0);
  }

  /** The first of `count` slots that follow each other; -1 when there is no room. */
  private takeSlots(count: number): number {
    const { words, limits } = this;
    // Not added and taken back: between the two another thread could take slots twice.
    for (;;) {
      const first = Atomics.load(words, SLOTS);
      if (first + count > limits.slots) return -1;
      if (Atomics.compareExchange(words, SLOTS, first, first + count) === first) return first;
    }
  }

  private first(group: number): number {
    // Fibonacci hashing: neighbours are far apart.
    return (Math.imul(group, 0x9e3779b1) >>> 8) & (this.keyCount - 1);
  }
}

function layout({ groups, slots }: StageLimits) {
  const keyCount = 2 ** Math.ceil(Math.log2(2 * groups));
  const written = 4 * (KEYS_AT + keyCount);
  const places = written + 4 * keyCount;
  const crcs = places + 4 * keyCount * GROUP_SECTORS;
  const data = Math.ceil((crcs + 2 * slots) / 4096) * 4096;
  return { keyCount, written, places, crcs, data };
}
