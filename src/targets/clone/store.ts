/**
 * The metadata store: a commit writes what has changed to free blocks and then, with the superblock, makes them the state.
 *
 *   1  Every block on the way from a changed array block to the superblock gets a free block, bitmaps and index included;
 *      those they leave become free when all is done.
 *   2  They are written, the array blocks as the regions are now.
 *   3  The destination is flushed: what the bits promise is durable.
 *   4  The metadata is flushed, the superblock written, the metadata flushed.
 *
 * clone-I3  Bits are copied in 2, before the flush in 3, and count from 4 on.
 * clone-I4  A block that is taken is free now and in the state on the device; nothing that is live is written but the
 *           superblock. So a power cut leaves the state before or the one after.
 * clone-I5  A commit that fails before the superblock has changed nothing; after that nobody knows, and there must not be
 *           another one.
 *
 * All of it runs under the mutex of the commits. Source: section 8 of the dm-clone metadata format document.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { decodeSuperblock, encodeSuperblock, regionsOf } from '../../formats/dm-clone.js';
import {
  ARRAY_BYTES,
  BITMAP_ENTRIES,
  countAt,
  decodeArray,
  encodeArray,
  encodeBitmap,
  encodeIndex,
  encodeNode,
  METADATA_BLOCK_BYTES,
  setCount,
} from '../../formats/persistent-data.js';
import { type CloneImage, COUNTS_BYTES, sharedWords, spaceOf } from './image.js';

// Words of the space map: CURSOR and USED, then for each bitmap how much is free, and where to look.
const CURSOR = 0;
const USED = 1;
const BITMAP_SPACE = 2;

/** What threads share of a store besides the image. */
export interface StoreDescriptor {
  readonly image: CloneImage;
  readonly space: SharedArrayBuffer;
}

/** Works out the space of an image; nothing that it says about that is relied on. */
export function createStore(image: CloneImage): StoreDescriptor {
  const counts = new Uint8Array(image.counts);
  const bitmaps = counts.length / COUNTS_BYTES;
  const words = [0, 0];
  let used = 0;
  for (let i = 0; i < bitmaps; i++) {
    const { free, firstFree } = spaceOf(counts.subarray(i * COUNTS_BYTES, (i + 1) * COUNTS_BYTES));
    words.push(free, firstFree);
    used += BITMAP_ENTRIES - free;
  }
  words[USED] = used;
  return { image, space: sharedWords(words) };
}

/** No metadata block is free for a commit. */
class NoSpace extends Error {}

/** Where a block was. */
interface Move {
  readonly place: number;
  readonly from: number;
}

/** One thread's view. */
export class MetadataStore {
  private readonly image: CloneImage;
  private readonly places: Int32Array;
  private readonly firstChildren: Int32Array;
  private readonly counts: Uint8Array;
  private readonly hydrated: Uint8Array;
  private readonly space: Int32Array;
  private readonly block = new Uint8Array(METADATA_BLOCK_BYTES);
  /** First place of each level, of the bitmaps, and of the index. */
  private readonly starts: readonly number[];
  /** Where in `firstChildren` those of each level begin. */
  private readonly childStarts: readonly number[];
  private readonly bitmaps: number;

  constructor(
    { image, space }: StoreDescriptor,
    private readonly device: BlockDevice,
  ) {
    this.image = image;
    this.places = new Int32Array(image.places);
    this.firstChildren = new Int32Array(image.firstChildren);
    this.counts = new Uint8Array(image.counts);
    this.hydrated = new Uint8Array(image.hydrated);
    this.space = new Int32Array(space);
    this.bitmaps = this.counts.length / COUNTS_BYTES;
    const starts = [0];
    for (const blocks of [...image.levels, this.bitmaps]) starts.push(starts.at(-1)! + blocks);
    this.starts = starts;
    const childStarts = [0, 0];
    for (const nodes of image.levels.slice(1)) childStarts.push(childStarts.at(-1)! + nodes + 1);
    this.childStarts = childStarts;
  }

  /** Metadata blocks in use. */
  get used(): number {
    return Atomics.load(this.space, USED);
  }

  get total(): number {
    return this.image.superblock.managedBlocks;
  }

  /** What an array block says on the device: a bit a region, as in memory. Throws BlockDamage. */
  readArray(array: number): Uint8Array {
    const block = this.places[array]!;
    this.device.read(block * METADATA_BLOCK_BYTES, this.block);
    return decodeArray(this.block, block, this.wordsOf(array).length / 8);
  }

  /** Throws where the superblock on the device cannot be read, or is not one. */
  probe(): void {
    this.device.read(0, this.block);
    if (decodeSuperblock(this.block) === undefined) throw new DmError('EIO', 'the superblock is gone');
  }

  /**
   * Makes durable what some array blocks (numbers, ascending) say now. `flushDestination` is called once for each superblock
   * that is written. Throws ENOSPC when no metadata block is free, and what the device throws.
   */
  commit(arrays: readonly number[], flushDestination: () => void): void {
    let moves: Move[];
    try {
      moves = this.plan(arrays);
    } catch (error) {
      if (!(error instanceof NoSpace)) throw error;
      if (arrays.length <= 1) {
        throw new DmError(
          'ENOSPC',
          `the metadata device is full: ${this.used} of its ${this.total} blocks are in use, a commit needs more`,
        );
      }
      // What does not fit at once fits one after the other.
      const half = arrays.length >> 1;
      this.commit(arrays.slice(0, half), flushDestination);
      this.commit(arrays.slice(half), flushDestination);
      return;
    }
    try {
      for (const { place } of moves) this.writePlace(place);
      flushDestination();
      this.device.flush();
    } catch (error) {
      for (const { from } of moves) this.acquire(from);
      this.takeBack(moves);
      throw error;
    }
    this.writeSuperblock();
    this.device.flush();
  }

  /**
   * Makes durable the superblock that was read. One whose flush failed is in the page cache still, and counts as written: what is
   * free by it may be live by the one on the device.
   */
  settle(): void {
    this.device.read(0, this.block);
    this.writeBlock(0);
    this.device.flush();
  }

  /** Writes every block of a new image, the superblock when the others are durable. */
  writeAll(): void {
    const { superblock } = this.image;
    encodeNode(this.block, superblock.overflowRoot, 'overflow', { isLeaf: true, keys: [], values: [] });
    this.writeBlock(superblock.overflowRoot);
    for (let place = 0; place < this.places.length; place++) this.writePlace(place);
    this.device.flush();
    this.writeSuperblock();
    this.device.flush();
  }

  /** Gives every block that a commit changes its new place, in memory. Throws NoSpace, and has done nothing then. */
  private plan(arrays: readonly number[]): Move[] {
    const { places, space, starts, image } = this;
    const cursor = space[CURSOR]!;
    const moves: Move[] = [];
    const touched = new Set<number>();
    const move = (place: number) => {
      const from = places[place]!;
      const to = this.take();
      places[place] = to;
      moves.push({ place, from });
      for (const block of [from, to]) touched.add(Math.floor(block / BITMAP_ENTRIES));
    };
    try {
      let changed = arrays;
      for (let level = 0; level < image.levels.length; level++) {
        for (const index of changed) move(starts[level]! + index);
        if (level + 1 < image.levels.length) changed = this.parentsOf(level + 1, changed);
      }
      move(starts.at(-1)!);
      // A bitmap that moves may touch another one.
      for (const bitmap of touched) move(starts.at(-2)! + bitmap);
    } catch (error) {
      this.takeBack(moves);
      space[CURSOR] = cursor;
      throw error;
    }
    // Not before all are taken: what was live is not free for this commit (clone-I4).
    for (const { from } of moves) this.release(from);
    return moves;
  }

  /** The nodes of a level that have one of these children. */
  private parentsOf(level: number, children: readonly number[]): number[] {
    const { firstChildren } = this;
    const start = this.childStarts[level]!;
    const parents: number[] = [];
    let node = 0;
    for (const child of children) {
      while (firstChildren[start + node + 1]! <= child) node++;
      if (parents.at(-1) !== node) parents.push(node);
    }
    return parents;
  }

  /** Takes a free block, from the cursor on and around the end once. */
  private take(): number {
    const { space, counts, bitmaps, total } = this;
    const cursor = space[CURSOR]!;
    for (let i = 0; i <= bitmaps; i++) {
      const bitmap = (Math.floor(cursor / BITMAP_ENTRIES) + i) % bitmaps;
      if (space[BITMAP_SPACE + 2 * bitmap] === 0) continue;
      const first = bitmap * BITMAP_ENTRIES;
      const here = counts.subarray(bitmap * COUNTS_BYTES, (bitmap + 1) * COUNTS_BYTES);
      const end = Math.min(BITMAP_ENTRIES, total - first);
      const from = i === 0 ? cursor - first : 0;
      for (let j = Math.max(from, space[BITMAP_SPACE + 2 * bitmap + 1]!); j < end; j++) {
        if (countAt(here, j) > 0) continue;
        this.acquire(first + j);
        if (j === space[BITMAP_SPACE + 2 * bitmap + 1]) space[BITMAP_SPACE + 2 * bitmap + 1] = j + 1;
        space[CURSOR] = first + j + 1;
        return first + j;
      }
    }
    throw new NoSpace();
  }

  /** Puts everything back where it was, in memory. */
  private takeBack(moves: readonly Move[]): void {
    for (const { place, from } of moves) {
      this.release(this.places[place]!);
      this.places[place] = from;
    }
  }

  /** The inverse of `release`. */
  private acquire(block: number): void {
    const { space } = this;
    const bitmap = Math.floor(block / BITMAP_ENTRIES);
    setCount(this.counts.subarray(bitmap * COUNTS_BYTES), block % BITMAP_ENTRIES, 1);
    space[BITMAP_SPACE + 2 * bitmap]!--;
    space[USED]!++;
  }

  private release(block: number): void {
    const { space } = this;
    const bitmap = Math.floor(block / BITMAP_ENTRIES);
    const j = block % BITMAP_ENTRIES;
    setCount(this.counts.subarray(bitmap * COUNTS_BYTES), j, 0);
    space[BITMAP_SPACE + 2 * bitmap]!++;
    space[BITMAP_SPACE + 2 * bitmap + 1] = Math.min(space[BITMAP_SPACE + 2 * bitmap + 1]!, j);
    space[USED]!--;
  }

  /** Encodes what stands at a place, and writes it there. */
  private writePlace(place: number): void {
    const { places, starts, block, space } = this;
    const number = places[place]!;
    const level = starts.findLastIndex((start) => place >= start);
    const index = place - starts[level]!;
    const height = this.image.levels.length;
    if (level === 0) {
      encodeArray(block, number, this.wordsOf(index));
    } else if (level < height) {
      encodeNode(block, number, 'bitset', this.nodeAt(level, index));
    } else if (level === height) {
      encodeBitmap(block, number, this.counts.subarray(index * COUNTS_BYTES, (index + 1) * COUNTS_BYTES));
    } else {
      const entries = Array.from({ length: this.bitmaps }, (_, i) => ({
        block: places[starts[height]! + i]!,
        free: space[BITMAP_SPACE + 2 * i]!,
        noneFreeBefore: space[BITMAP_SPACE + 2 * i + 1]!,
      }));
      encodeIndex(block, number, entries);
    }
    this.writeBlock(number);
  }

  /** The words of an array block, as the regions are now. */
  private wordsOf(array: number): Uint8Array {
    const words = Math.ceil(regionsOf(this.image.superblock) / 64);
    const start = array * ARRAY_BYTES;
    return this.hydrated.subarray(start, Math.min(start + ARRAY_BYTES, words * 8));
  }

  private nodeAt(level: number, index: number) {
    const { places, firstChildren } = this;
    const at = this.childStarts[level]! + index;
    const keys: number[] = [];
    const values: number[] = [];
    for (let child = firstChildren[at]!; child < firstChildren[at + 1]!; child++) {
      keys.push(this.firstArrayBelow(level - 1, child));
      values.push(places[this.starts[level - 1]! + child]!);
    }
    return { isLeaf: level === 1, keys, values };
  }

  private firstArrayBelow(level: number, index: number): number {
    let first = index;
    for (let at = level; at > 0; at--) first = this.firstChildren[this.childStarts[at]! + first]!;
    return first;
  }

  private writeSuperblock(): void {
    const { places, starts, image } = this;
    const root = starts[image.levels.length]! - 1;
    this.block.set(
      encodeSuperblock({
        ...image.superblock,
        usedBlocks: this.used,
        indexBlock: places[starts.at(-1)!]!,
        bitsetRoot: places[root]!,
      }),
    );
    this.writeBlock(0);
  }

  private writeBlock(number: number): void {
    this.device.write(number * METADATA_BLOCK_BYTES, this.block);
  }
}
