/**
 * RangeMap: which type (0..7) every block of a device has, as the sorted ranges that tile [0, blocks), in one
 * SharedArrayBuffer. Every thread makes its own view (`new RangeMap(buffer)`); what a lookup finds lies in
 * fields of the view, everything else in the buffer.
 *
 * Design. A range is one entry, its first block and its type; it ends where the next one starts. An entry takes
 * 48 bits, split over two columns: LOW (the key's low 32 bits) and HIGH (its high 13 bits and 3 bits of type).
 * Entries live in leaves of fixed size; the directory lists the leaves in key order in two columns, FIRST (first
 * key) and LEAF (leaf number). What does not depend on the order is kept by leaf number and never moves: COUNT
 * (entries) and TYPES (entries of each type, by which `firstOf` skips whole leaves).
 *
 *   header | FIRST f64 | LEAF f64 | LOW u32 | COUNT u16 | TYPES 8 x u16 | HIGH u16
 *
 * `set` removes the entries in [start, end] and puts back at most two: one at `start` unless the range before it
 * has the new type, one at `end` unless the range after it has. A full leaf splits in half; only at the right end
 * of the map it stays full and the new entry starts a leaf, so ascending growth packs leaves. Two neighbours merge
 * when together they fill at most 7/8 of a leaf; the eighth keeps a set and its undoing from splitting and merging
 * each time. Freed leaves form a list through their first LOW word and are used again before new ones.
 *
 * Invariants; `check` proves them:
 *   map-I1  The first key is 0; keys ascend and lie below `blocks`.
 *   map-I2  Neighbouring ranges differ in type.
 *   map-I3  FIRST, COUNT, TYPES, RANGES and BLOCKS_OF say what the entries say.
 *   map-I4  No leaf is empty; any two neighbours together fill more than 7/8 of one leaf.
 *   map-I5  Every leaf below TOUCHED is either in the directory or on the free list.
 *
 * Size. By map-I4 a leaf of 256 entries (1570 bytes with its share of the directory) holds 112.5 ranges or more on
 * average: at most 14 bytes a range whatever the order of the sets, 6.2 for ascending ones, 9 for random ones. By
 * map-I4 too the space reserved at creation suffices for `capacity` ranges in any arrangement. It is reserved in
 * addresses only: a page of it takes memory when it is first written, and nothing is initialised ahead of use.
 *
 * Threads. `set` needs the map for itself, the other methods need it unchanged while they run; a lock outside sees
 * to both, and its atomics order the plain accesses here. Two values can be read under no lock at all: `rangeCount`
 * and `blocksOf`, see there.
 */
import { DmError } from '../errors.js';

/** Types are 0 .. RANGE_TYPES - 1. */
export const RANGE_TYPES = 8;
/** Keys have 45 bits. */
export const MAX_RANGE_BLOCKS = 2 ** 45;

const DEFAULT_CAPACITY = 16 * 2 ** 20;
const MAX_CAPACITY = 2 ** 28;
const DEFAULT_LEAF_ENTRIES = 256;
/** Half a leaf must have room for the two entries of one `set`. */
const MIN_LEAF_ENTRIES = 4;
/** COUNT and TYPES are 16 bits. */
const MAX_LEAF_ENTRIES = 2 ** 15;

const TYPE_BITS = 3;
const TYPE_MASK = RANGE_TYPES - 1;
const LOW_SPAN = 2 ** 32;
const NO_TYPE = -1;

/** Header words of 32 bits. */
const MAGIC = 0;
/** Most ranges the map may have; fixed. */
const CAPACITY = 1;
/** Most entries in a leaf; fixed. */
const LEAF_ENTRIES = 2;
/** Ranges in the map. */
const RANGES = 3;
/** Leaves in the directory. */
const LEAVES = 4;
/** Leaf numbers below this have been in use at some time. */
const TOUCHED = 5;
/** First leaf of the free list, plus one; 0 when the list is empty. */
const FREE = 6;

/** Header words of 64 bits; they follow the 32-bit ones. */
const BLOCKS = 4;
/** Blocks of each type: RANGE_TYPES words. */
const BLOCKS_OF = 5;
const HEADER_BYTES = 8 * (BLOCKS_OF + RANGE_TYPES);

const MAGIC_VALUE = 0x524d4150;
/** Bytes of FIRST, LEAF, COUNT and TYPES for one leaf. */
const DIRECTORY_BYTES = 8 + 8 + 2 + 2 * RANGE_TYPES;
/** Bytes of LOW and HIGH for one entry. */
const ENTRY_BYTES = 6;

export interface RangeMapOptions {
  /** The type of every block at first. */
  readonly initialType: number;
  /** Most ranges the map can ever have; by default one per block, or 16 Mi where that is fewer. */
  readonly capacity?: number;
  /** Most entries in a leaf; small leaves are for tests. */
  readonly leafEntries?: number;
}

/** Neighbouring leaves with this many entries together, or fewer, become one. */
function mergeLimit(leafEntries: number): number {
  return Math.floor((leafEntries * 7) / 8);
}

/** By map-I4 every pair of leaves holds mergeLimit + 1 ranges; one odd leaf, and one more while a `set` is half done. */
function leavesFor(capacity: number, leafEntries: number): number {
  return 2 * Math.floor(capacity / (mergeLimit(leafEntries) + 1)) + 2;
}

function requireInteger(name: string, value: number, min: number, max: number): void {
  if (Number.isInteger(value) && value >= min && value <= max) return;
  throw new RangeError(`range map: ${name} ${value} is not an integer from ${min} to ${max}`);
}

export class RangeMap {
  readonly buffer: SharedArrayBuffer;
  /** The map covers blocks 0 .. blocks - 1. */
  readonly blocks: number;
  /** Most ranges the map can have. */
  readonly capacity: number;

  /** What `find` and `firstOf` found, in blocks, for this view; `end` is the first block after the range. */
  start = 0;
  end = 0;
  type = 0;

  private readonly leafEntries: number;
  private readonly mergeLimit: number;
  private readonly words: Uint32Array;
  private readonly longs: BigInt64Array;
  private readonly firsts: Float64Array;
  /** 64 bits for a leaf number, because V8 moves shared memory word by word only when the shift is whole words. */
  private readonly leafAt: Float64Array;
  private readonly counts: Uint16Array;
  private readonly typeCounts: Uint16Array;
  private readonly low: Uint32Array;
  private readonly high: Uint16Array;

  // What `seek` found: a slot is a place in the directory, an entry a place in that slot's leaf.
  private slot = 0;
  private entry = 0;
  // What `survey` found: the entries in [start, end], and the types beside the span.
  private cutSlot = 0;
  private cutEntry = 0;
  private endSlot = 0;
  private endEntry = 0;
  private cutRanges = 0;
  private typeBefore = NO_TYPE;
  private typeAfter = NO_TYPE;
  /** Blocks of each type that the span has had. */
  private readonly cutBlocks = new Float64Array(RANGE_TYPES);

  /** A new map of `blocks` blocks, all of one type, in a buffer of its own. */
  static create(blocks: number, options: RangeMapOptions): RangeMap {
    const { initialType, leafEntries = DEFAULT_LEAF_ENTRIES } = options;
    requireInteger('block count', blocks, 1, MAX_RANGE_BLOCKS);
    const { capacity = Math.min(blocks, DEFAULT_CAPACITY) } = options;
    requireInteger('type', initialType, 0, RANGE_TYPES - 1);
    requireInteger('capacity', capacity, 1, MAX_CAPACITY);
    requireInteger('leaf size', leafEntries, MIN_LEAF_ENTRIES, MAX_LEAF_ENTRIES);

    const leafBytes = DIRECTORY_BYTES + ENTRY_BYTES * leafEntries;
    const buffer = new SharedArrayBuffer(HEADER_BYTES + leavesFor(capacity, leafEntries) * leafBytes);
    const words = new Uint32Array(buffer, 0, 2 * BLOCKS);
    words[CAPACITY] = capacity;
    words[LEAF_ENTRIES] = leafEntries;
    words[MAGIC] = MAGIC_VALUE;
    new BigInt64Array(buffer, 0, BLOCKS_OF)[BLOCKS] = BigInt(blocks);
    const map = new RangeMap(buffer);
    map.reset(initialType);
    return map;
  }

  /** This thread's view of the map in `buffer`, which `create` made. */
  constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer;
    this.words = new Uint32Array(buffer, 0, 2 * BLOCKS);
    this.longs = new BigInt64Array(buffer, 0, BLOCKS_OF + RANGE_TYPES);
    if (this.words[MAGIC] !== MAGIC_VALUE) throw new RangeError('range map: the buffer holds no range map');
    this.blocks = Number(this.longs[BLOCKS]);
    this.capacity = this.words[CAPACITY];
    this.leafEntries = this.words[LEAF_ENTRIES];
    this.mergeLimit = mergeLimit(this.leafEntries);

    // Wide columns first: so each starts at a multiple of its own width.
    const leaves = leavesFor(this.capacity, this.leafEntries);
    let at = HEADER_BYTES;
    const column = (bytes: number): number => (at += bytes) - bytes;
    this.firsts = new Float64Array(buffer, column(8 * leaves), leaves);
    this.leafAt = new Float64Array(buffer, column(8 * leaves), leaves);
    this.low = new Uint32Array(buffer, column(4 * leaves * this.leafEntries), leaves * this.leafEntries);
    this.counts = new Uint16Array(buffer, column(2 * leaves), leaves);
    this.typeCounts = new Uint16Array(buffer, column(2 * RANGE_TYPES * leaves), RANGE_TYPES * leaves);
    this.high = new Uint16Array(buffer, column(2 * leaves * this.leafEntries), leaves * this.leafEntries);
  }

  /** Ranges in the map. Exact under the lock; a thread without it sees some recent value (32 bits never tear). */
  get rangeCount(): number {
    return Atomics.load(this.words, RANGES);
  }

  /** How many more ranges surely fit. One `set` needs 2 at most. */
  room(): number {
    return this.capacity - this.words[RANGES];
  }

  /** Bytes of header, directory and leaves in use. */
  get bytesUsed(): number {
    return HEADER_BYTES + this.words[LEAVES] * (DIRECTORY_BYTES + ENTRY_BYTES * this.leafEntries);
  }

  /**
   * How many blocks are of `type`. Any thread may ask without the lock: the count is one 64-bit word that is read
   * and written by Atomics only, and those never tear in a BigInt64Array (the language promises nothing alike for a
   * Float64Array). What it sees is exact as of before or after some `set`; two types are not one snapshot.
   */
  blocksOf(type: number): number {
    requireInteger('type', type, 0, RANGE_TYPES - 1);
    return Number(Atomics.load(this.longs, BLOCKS_OF + type));
  }

  /** The type of `block`; `start`, `end` and `type` of this view become its range. */
  find(block: number): number {
    requireInteger('block', block, 0, this.blocks - 1);
    this.seek(block);
    return this.load();
  }

  /**
   * Finds the first range of `type` that ends after block `from` (at most `blocks`), into `start` (`from` or
   * later), `end` and `type` of this view; false when there is none.
   */
  firstOf(type: number, from = 0): boolean {
    requireInteger('block', from, 0, this.blocks);
    if (this.blocksOf(type) === 0 || from === this.blocks) return false;
    this.seek(from);
    const { counts, typeCounts, leafAt, high, leafEntries } = this;
    const leaves = this.words[LEAVES];
    let { slot, entry } = this;
    for (; slot < leaves; slot++, entry = 0) {
      const leaf = leafAt[slot];
      if (typeCounts[leaf * RANGE_TYPES + type] === 0) continue;
      const stop = leaf * leafEntries + counts[leaf];
      let at = leaf * leafEntries + entry;
      while (at < stop && (high[at] & TYPE_MASK) !== type) at++;
      if (at === stop) continue;
      this.slot = slot;
      this.entry = at - leaf * leafEntries;
      this.load();
      this.start = Math.max(this.start, from);
      return true;
    }
    return false;
  }

  /** Calls `visit` for every range in ascending order; `visit` must not change the map. */
  forEach(visit: (start: number, end: number, type: number) => void): void {
    const leaves = this.words[LEAVES];
    let start = 0;
    let type = NO_TYPE;
    for (let slot = 0; slot < leaves; slot++) {
      const base = this.leafAt[slot] * this.leafEntries;
      const stop = base + this.counts[this.leafAt[slot]];
      for (let at = base; at < stop; at++) {
        const next = this.keyAt(at);
        if (type !== NO_TYPE) visit(start, next, type);
        start = next;
        type = this.high[at] & TYPE_MASK;
      }
    }
    visit(start, this.blocks, type);
  }

  /**
   * Makes every block of [start, end) `type`. Throws ENOSPC, with nothing changed, when that takes more ranges than
   * the map has room for. Takes time for each range it replaces, though only a few nanoseconds: those are read for
   * the block counts, but not moved or freed one by one.
   */
  set(start: number, end: number, type: number): void {
    requireInteger('end block', end, 1, this.blocks);
    requireInteger('start block', start, 0, end - 1);
    requireInteger('type', type, 0, RANGE_TYPES - 1);
    if (start === 0 && end === this.blocks) {
      this.reset(type);
      return;
    }
    this.survey(start, end);
    if (this.cutBlocks[type] === end - start) return;
    const putStart = this.typeBefore !== type;
    const putEnd = this.typeAfter !== NO_TYPE && this.typeAfter !== type;
    const put = (putStart ? 1 : 0) + (putEnd ? 1 : 0);
    const ranges = this.words[RANGES] - this.cutRanges + put;
    if (ranges > this.capacity) {
      throw new DmError(
        'ENOSPC',
        `range map: ${this.capacity} ranges is all it has room for; give it more capacity`,
      );
    }

    this.replace(put);
    // `replace` left `slot` and `entry` at the gap.
    if (putStart) this.write(this.entry++, start, type);
    if (putEnd) this.write(this.entry, end, this.typeAfter);
    // What changed: the leaf of `start`, perhaps split in two, and the leaf of `end`.
    this.settle(this.cutSlot - 1, this.cutSlot + 2);
    Atomics.store(this.words, RANGES, ranges);
    this.recount(type, end - start);
  }

  /** Makes the whole map one range, as at creation. Every leaf counts as untouched again, its memory will be reused. */
  private reset(type: number): void {
    this.words[LEAVES] = 0;
    this.words[TOUCHED] = 0;
    this.words[FREE] = 0;
    this.insertSlot(0);
    this.slot = 0;
    this.counts[0] = 1;
    this.write(0, 0, type);
    Atomics.store(this.words, RANGES, 1);
    for (let t = 0; t < RANGE_TYPES; t++) {
      Atomics.store(this.longs, BLOCKS_OF + t, BigInt(t === type ? this.blocks : 0));
    }
  }

  /** Block counts after a `set` that made `length` blocks `type`. */
  private recount(type: number, length: number): void {
    for (let t = 0; t < RANGE_TYPES; t++) {
      const change = (t === type ? length : 0) - this.cutBlocks[t];
      if (change !== 0) Atomics.add(this.longs, BLOCKS_OF + t, BigInt(change));
    }
  }

  /** Finds the entry whose range holds `block`. */
  private seek(block: number): void {
    const { firsts, low, high } = this;
    let slot = 0;
    for (let above = this.words[LEAVES]; above - slot > 1; ) {
      const middle = (slot + above) >>> 1;
      if (firsts[middle] <= block) slot = middle;
      else above = middle;
    }
    const leaf = this.leafAt[slot];
    const base = leaf * this.leafEntries;
    let at = base;
    for (let above = base + this.counts[leaf]; above - at > 1; ) {
      const middle = (at + above) >>> 1;
      if ((high[middle] >>> TYPE_BITS) * LOW_SPAN + low[middle] <= block) at = middle;
      else above = middle;
    }
    this.slot = slot;
    this.entry = at - base;
  }

  /** The range of the entry that `seek` found, into the fields of the view. */
  private load(): number {
    const leaf = this.leafAt[this.slot];
    const at = leaf * this.leafEntries + this.entry;
    this.start = this.keyAt(at);
    if (this.entry + 1 < this.counts[leaf]) this.end = this.keyAt(at + 1);
    else this.end = this.slot + 1 < this.words[LEAVES] ? this.firsts[this.slot + 1] : this.blocks;
    return (this.type = this.high[at] & TYPE_MASK);
  }

  private keyAt(at: number): number {
    return (this.high[at] >>> TYPE_BITS) * LOW_SPAN + this.low[at];
  }

  /**
   * Walks [start, end] and notes the entries in it (from cutEntry of cutSlot to before endEntry of endSlot,
   * cutRanges of them), the blocks of each type in [start, end), and the types before `start` and from `end` on.
   */
  private survey(start: number, end: number): void {
    const { leafAt, leafEntries, counts, firsts, high, cutBlocks } = this;
    this.seek(start);
    let { slot, entry } = this;
    let base = leafAt[slot] * leafEntries;
    let type = high[base + entry] & TYPE_MASK;
    const startsRange = this.keyAt(base + entry) === start;
    this.typeBefore = startsRange ? this.typeBeforeEntry(slot, entry) : type;
    this.cutSlot = slot;
    this.cutEntry = startsRange ? entry : entry + 1;

    cutBlocks.fill(0);
    let ranges = startsRange ? 1 : 0;
    let from = start;
    for (entry++; ; entry = 0, slot++) {
      base = leafAt[slot] * leafEntries;
      const count = counts[leafAt[slot]];
      for (; entry < count; entry++) {
        const key = this.keyAt(base + entry);
        if (key > end) break;
        cutBlocks[type] += key - from;
        from = key;
        type = high[base + entry] & TYPE_MASK;
        ranges++;
      }
      if (entry < count || slot + 1 === this.words[LEAVES] || firsts[slot + 1] > end) break;
    }
    cutBlocks[type] += end - from;
    this.endSlot = slot;
    this.endEntry = entry;
    this.cutRanges = ranges;
    this.typeAfter = end === this.blocks ? NO_TYPE : type;
  }

  private typeBeforeEntry(slot: number, entry: number): number {
    if (entry > 0) return this.high[this.leafAt[slot] * this.leafEntries + entry - 1] & TYPE_MASK;
    if (slot === 0) return NO_TYPE;
    const leaf = this.leafAt[slot - 1];
    return this.high[leaf * this.leafEntries + this.counts[leaf] - 1] & TYPE_MASK;
  }

  /** Removes the surveyed entries and opens a gap for `put` (0..2) others, at `entry` of `slot`. */
  private replace(put: number): void {
    const { cutSlot, endSlot } = this;
    const count = this.counts[this.leafAt[cutSlot]];
    let cut = this.endEntry - this.cutEntry;
    if (endSlot > cutSlot) {
      this.splice(endSlot, 0, this.endEntry, 0);
      this.removeSlots(cutSlot + 1, endSlot);
      cut = count - this.cutEntry;
    }
    this.slot = cutSlot;
    this.entry = this.cutEntry;
    if (count - cut + put > this.leafEntries) {
      // Here cut <= 1, so that no split divides the cut.
      const append = cutSlot + 1 === this.words[LEAVES] && this.cutEntry + cut === count;
      const half = append ? this.cutEntry : (count + 1) >>> 1;
      this.split(cutSlot, half);
      if (this.cutEntry >= half) {
        this.slot++;
        this.entry -= half;
      }
    }
    this.splice(this.slot, this.entry, cut, put);
  }

  /** Removes `cut` entries of a leaf from `entry` on and opens a gap of `put`, which `write` has to fill. */
  private splice(slot: number, entry: number, cut: number, put: number): void {
    const { low, high, typeCounts } = this;
    const leaf = this.leafAt[slot];
    const base = leaf * this.leafEntries;
    const from = base + entry + cut;
    const stop = base + this.counts[leaf];
    const shift = put - cut;
    for (let at = base + entry; at < from; at++) typeCounts[leaf * RANGE_TYPES + (high[at] & TYPE_MASK)]--;
    // By hand: copyWithin goes byte by byte here, see `leafAt`.
    if (shift > 0) {
      for (let at = stop - 1; at >= from; at--) {
        low[at + shift] = low[at];
        high[at + shift] = high[at];
      }
    } else if (shift < 0) {
      for (let at = from; at < stop; at++) {
        low[at + shift] = low[at];
        high[at + shift] = high[at];
      }
    }
    this.counts[leaf] += shift;
    if (entry === 0) this.firsts[slot] = this.keyAt(base);
  }

  /** Fills one entry of a gap in the leaf of `slot`. */
  private write(entry: number, key: number, type: number): void {
    const leaf = this.leafAt[this.slot];
    const at = leaf * this.leafEntries + entry;
    this.low[at] = key % LOW_SPAN;
    this.high[at] = (Math.floor(key / LOW_SPAN) << TYPE_BITS) | type;
    this.typeCounts[leaf * RANGE_TYPES + type]++;
    if (entry === 0) this.firsts[this.slot] = key;
  }

  /** Moves the entries of a leaf from `entry` on to a new leaf in the slot after it. */
  private split(slot: number, entry: number): void {
    this.insertSlot(slot + 1);
    const moved = this.append(slot + 1, slot, entry);
    const { typeCounts } = this;
    const left = this.leafAt[slot] * RANGE_TYPES;
    const right = this.leafAt[slot + 1] * RANGE_TYPES;
    for (let t = 0; t < RANGE_TYPES; t++) typeCounts[left + t] -= typeCounts[right + t];
    this.counts[this.leafAt[slot]] -= moved;
    this.firsts[slot + 1] = this.keyAt(this.leafAt[slot + 1] * this.leafEntries);
  }

  /** Copies the entries of slot `from`, from `entry` on, to the end of slot `to`; how many. */
  private append(to: number, from: number, entry: number): number {
    const { low, high, typeCounts, leafEntries } = this;
    const target = this.leafAt[to];
    const source = this.leafAt[from];
    const stop = source * leafEntries + this.counts[source];
    let into = target * leafEntries + this.counts[target];
    for (let at = source * leafEntries + entry; at < stop; at++, into++) {
      low[into] = low[at];
      high[into] = high[at];
      typeCounts[target * RANGE_TYPES + (high[at] & TYPE_MASK)]++;
    }
    const moved = this.counts[source] - entry;
    this.counts[target] += moved;
    return moved;
  }

  /**
   * Restores map-I4 after the leaves in slots `from` + 1 to `to` have changed. Downwards, so that a leaf that became
   * empty is the left one of its pair, unless it is the last of all, and each pair is looked at once.
   */
  private settle(from: number, to: number): void {
    for (let slot = Math.min(to, this.words[LEAVES] - 2); slot >= Math.max(from, 0); slot--) {
      const left = this.counts[this.leafAt[slot]];
      const right = this.counts[this.leafAt[slot + 1]];
      if (left === 0) {
        this.removeSlots(slot, slot + 1);
      } else if (right === 0 || left + right <= this.mergeLimit) {
        this.append(slot, slot + 1, 0);
        this.removeSlots(slot + 1, slot + 2);
      }
    }
  }

  /** An empty leaf for `slot`, a freed one if there is one; the slots from there on move up. */
  private insertSlot(slot: number): void {
    const { words } = this;
    const freed = words[FREE];
    const leaf = freed === 0 ? words[TOUCHED]++ : freed - 1;
    if (freed !== 0) words[FREE] = this.low[leaf * this.leafEntries];
    this.counts[leaf] = 0;
    this.typeCounts.fill(0, leaf * RANGE_TYPES, (leaf + 1) * RANGE_TYPES);
    const leaves = words[LEAVES]++;
    this.firsts.copyWithin(slot + 1, slot, leaves);
    this.leafAt.copyWithin(slot + 1, slot, leaves);
    this.leafAt[slot] = leaf;
  }

  /** Frees the leaves of slots [from, to), whatever they hold; the slots from `to` on move down. */
  private removeSlots(from: number, to: number): void {
    if (from === to) return;
    const { words } = this;
    for (let slot = from; slot < to; slot++) {
      const leaf = this.leafAt[slot];
      this.low[leaf * this.leafEntries] = words[FREE];
      words[FREE] = leaf + 1;
    }
    this.firsts.copyWithin(from, to, words[LEAVES]);
    this.leafAt.copyWithin(from, to, words[LEAVES]);
    words[LEAVES] -= to - from;
  }

  /** Throws an Error that names the invariant if one does not hold. Reads the whole map. */
  check(): void {
    const require = (holds: boolean, what: string): void => {
      if (!holds) throw new Error(`range map: ${what}`);
    };
    const { words, counts } = this;
    const blocksOf = new Array<number>(RANGE_TYPES).fill(0);
    let ranges = 0;
    let reached = 0;
    let lastType = NO_TYPE;
    this.forEach((start, end, type) => {
      require(start === reached && end > start && end <= this.blocks, `map-I1: range ${start}..${end}`);
      require(type !== lastType, `map-I2: type ${type} on both sides of block ${start}`);
      blocksOf[type] += end - start;
      reached = end;
      lastType = type;
      ranges++;
    });
    require(reached === this.blocks, `map-I1: ranges end at ${reached}`);
    require(ranges === words[RANGES] &&
      ranges <= this.capacity, `map-I3: ${words[RANGES]} ranges, not ${ranges}`);
    for (let t = 0; t < RANGE_TYPES; t++) {
      require(this.blocksOf(t) ===
        blocksOf[t], `map-I3: ${this.blocksOf(t)} blocks of ${t}, not ${blocksOf[t]}`);
    }
    const seen = new Set<number>();
    for (let slot = 0; slot < words[LEAVES]; slot++) {
      const leaf = this.leafAt[slot];
      seen.add(leaf);
      this.checkLeaf(slot, require);
      const pair = slot === 0 ? Infinity : counts[this.leafAt[slot - 1]] + counts[leaf];
      require(counts[leaf] > 0 && pair > this.mergeLimit, `map-I4: leaf ${leaf} has ${counts[leaf]}`);
    }
    for (let free = words[FREE]; free !== 0; free = this.low[(free - 1) * this.leafEntries]) {
      require(!seen.has(free - 1), `map-I5: leaf ${free - 1} is in two places`);
      seen.add(free - 1);
    }
    const fits = seen.size === words[TOUCHED] && seen.size <= this.firsts.length;
    require(fits, `map-I5: ${words[TOUCHED]} leaves, not ${seen.size}`);
  }

  private checkLeaf(slot: number, require: (holds: boolean, what: string) => void): void {
    const leaf = this.leafAt[slot];
    const base = leaf * this.leafEntries;
    require(this.counts[leaf] <= this.leafEntries, `map-I3: leaf ${leaf} has ${this.counts[leaf]} entries`);
    require(this.firsts[slot] === this.keyAt(base), `map-I3: first key of leaf ${leaf}`);
    const types = new Array<number>(RANGE_TYPES).fill(0);
    for (let at = base; at < base + this.counts[leaf]; at++) types[this.high[at] & TYPE_MASK]++;
    for (let t = 0; t < RANGE_TYPES; t++) {
      require(this.typeCounts[leaf * RANGE_TYPES + t] === types[t], `map-I3: ranges of ${t} in leaf ${leaf}`);
    }
  }
}
