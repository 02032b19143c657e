/**
 * A whole metadata device, read and checked: what is reachable from the superblock, and nothing else, has a count of 1. As
 * values in shared memory, from which any block can be written again.
 *
 * Where every block is stands in one list of *places*: the array blocks in order, the nodes of the tree above them level by
 * level, the root last, then the bitmaps and the index. A tree keeps its shape for ever, for regions never come or go: a
 * commit only moves blocks.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { arraysOf, type CloneSuperblock, decodeSuperblock, regionsOf } from '../../formats/dm-clone.js';
import {
  ARRAY_BYTES,
  BITMAP_ENTRIES,
  BlockDamage,
  bitmapsOf,
  countAt,
  countsOf,
  decodeArray,
  decodeIndex,
  decodeNode,
  type IndexEntry,
  METADATA_BLOCK_BYTES,
  setCount,
  type TreeKind,
  verifyBlock,
} from '../../formats/persistent-data.js';
import { maskOf, popCount, type Run, runsOfOnes } from '../../shared/bitmap.js';

/** Bytes of a bitmap's counts. */
export const COUNTS_BYTES = BITMAP_ENTRIES / 4;
/** A tree of 65,923 array blocks is 3 nodes high as the kernel builds it. */
const MAX_HEIGHT = 8;

/** A metadata device in memory. Plain data: it crosses to the lanes. */
export interface CloneImage {
  /** As it was read; `usedBlocks` and `indexBlock` are of that time. */
  readonly superblock: CloneSuperblock;
  /** Array blocks, and nodes of each level above them; the last is 1, the root. */
  readonly levels: readonly number[];
  /** For each level above the arrays, one after the other: the first child of each node, and one more for the end. */
  readonly firstChildren: SharedArrayBuffer;
  /** Block numbers, in the order above. */
  readonly places: SharedArrayBuffer;
  /** COUNTS_BYTES for each bitmap, encoded as on the device. */
  readonly counts: SharedArrayBuffer;
  /** A bit a region: it is hydrated. ARRAY_BYTES for each array block. */
  readonly hydrated: SharedArrayBuffer;
}

/**
 * Reads a metadata device; undefined where none was ever formatted. Throws BlockDamage for what makes it unusable; with
 * `report`, tells all that is wrong instead, also what does no harm; what is returned is of no use then.
 */
export function readImage(
  device: BlockDevice,
  report?: (damage: BlockDamage) => void,
): CloneImage | undefined {
  if (device.size < METADATA_BLOCK_BYTES) {
    throw new DmError('EINVAL', `has ${device.size} bytes: metadata needs ${METADATA_BLOCK_BYTES} at least`);
  }
  return new ImageReader(device, report).read();
}

/** Shared memory for the bits of so many regions; costs nothing until it is touched. Throws ENOMEM. */
export function createRegionBits(regions: number): SharedArrayBuffer {
  const bytes = arraysOf(regions) * ARRAY_BYTES;
  try {
    return new SharedArrayBuffer(bytes);
  } catch {
    throw new DmError('ENOMEM', `no memory for the ${bytes} bytes of bits of ${regions} regions`);
  }
}

/** `numbers` as 32-bit words that threads share. */
export function sharedWords(numbers: readonly number[]): SharedArrayBuffer {
  const words = new Int32Array(new SharedArrayBuffer(4 * numbers.length));
  words.set(numbers);
  return words.buffer as SharedArrayBuffer;
}

class ImageReader {
  private readonly block = new Uint8Array(METADATA_BLOCK_BYTES);
  private superblock!: CloneSuperblock;
  /** A byte a block: 1 where it was reached. */
  private reached = new Uint8Array(0);
  private arrays = 0;
  /** By height above the arrays: block numbers, and how many children each node has. */
  private readonly nodes: { block: number; children: number }[][] = [];
  private readonly arrayBlocks: number[] = [];
  private hydrated!: Uint8Array;
  /** Something could not be read, and what it leads to is not known. */
  private hasGaps = false;

  constructor(
    private readonly device: BlockDevice,
    private readonly report: ((damage: BlockDamage) => void) | undefined,
  ) {}

  read(): CloneImage | undefined {
    const superblock = this.attempt(() => this.readSuperblock());
    if (superblock === undefined) return undefined;
    this.superblock = superblock;
    this.reached = new Uint8Array(superblock.managedBlocks);
    this.reached[0] = 1;
    const hydrated = createRegionBits(regionsOf(superblock));
    this.hydrated = new Uint8Array(hydrated);
    const bitmaps = bitmapsOf(superblock.managedBlocks);
    const counts = new SharedArrayBuffer(bitmaps * COUNTS_BYTES);
    const index = this.attempt(() => this.readIndex(bitmaps)) ?? [];
    const known = index.map((entry, i) => this.attempt(() => this.readBitmap(entry, i, counts)) ?? false);
    this.attempt(() => this.walkOverflow(superblock.overflowRoot, 0, 1));
    this.attempt(() => this.walkBitset(superblock.bitsetRoot, 0, 1));
    this.attempt(() => this.checkArrays());
    this.clearTail();
    this.checkCounts(new Uint8Array(counts), known);
    if (this.report) this.checkIndex(new Uint8Array(counts), index, known);
    const places = [
      ...this.arrayBlocks,
      ...this.nodes.flatMap((level) => level.map(({ block }) => block)),
      ...index.map(({ block }) => block),
      superblock.indexBlock,
    ];
    return {
      superblock,
      levels: [this.arrayBlocks.length, ...this.nodes.map((level) => level.length)],
      firstChildren: sharedWords(this.nodes.flatMap(firstChildrenOf)),
      places: sharedWords(places),
      counts,
      hydrated,
    };
  }

  private readSuperblock(): CloneSuperblock | undefined {
    const superblock = decodeSuperblock(this.readBlock(0));
    if (superblock === undefined) return undefined;
    const blocks = Math.floor(this.device.size / METADATA_BLOCK_BYTES);
    if (superblock.managedBlocks > blocks) {
      throw new BlockDamage(0, `manages ${superblock.managedBlocks} blocks, the device has ${blocks}`);
    }
    this.arrays = arraysOf(regionsOf(superblock));
    // So that no memory is taken for regions that cannot be there.
    if (this.arrays >= superblock.managedBlocks) {
      throw new BlockDamage(
        0,
        `${regionsOf(superblock)} regions need ${this.arrays} array blocks, it manages ${superblock.managedBlocks} blocks`,
      );
    }
    return superblock;
  }

  private readIndex(bitmaps: number): IndexEntry[] {
    const block = this.reach(this.superblock.indexBlock, 0, 'the index');
    return decodeIndex(this.readBlock(block), block, bitmaps);
  }

  private readBitmap(entry: IndexEntry, i: number, counts: SharedArrayBuffer): boolean {
    const block = this.reach(entry.block, this.superblock.indexBlock, `bitmap ${i}`);
    const bytes = this.readBlock(block);
    verifyBlock('bitmap', bytes, block);
    const here = new Uint8Array(counts, i * COUNTS_BYTES, COUNTS_BYTES);
    here.set(countsOf(bytes));
    // Counts of blocks that are not managed mean nothing, and are 0 where they are added up.
    const { managedBlocks } = this.superblock;
    const first = i * BITMAP_ENTRIES;
    for (let j = managedBlocks - first; j < BITMAP_ENTRIES; j++) {
      if (countAt(here, j) === 0) continue;
      this.flaw(first + j, `counted, but only ${managedBlocks} blocks are managed`);
      setCount(here, j, 0);
    }
    return true;
  }

  /** Counts above 2 are no business of dm-clone's; the blocks of their tree are in use all the same. */
  private walkOverflow(from: number, by: number, depth: number): void {
    const node = this.readNode(from, by, 'overflow', depth);
    if (node.isLeaf) return;
    for (const child of node.values) this.attempt(() => this.walkOverflow(child, from, depth + 1));
  }

  /** Reads a node of the bitset's tree and all below it, left to right; gives its height above the arrays. */
  private walkBitset(from: number, by: number, depth: number): number {
    const node = this.readNode(from, by, 'bitset', depth);
    let height: number | undefined;
    node.values.forEach((child, i) => {
      const key = node.keys[i]!;
      // What could not be read leaves a gap.
      while (this.hasGaps && this.arrayBlocks.length < Math.min(key, this.arrays)) this.arrayBlocks.push(0);
      if (key !== this.arrayBlocks.length) {
        throw new BlockDamage(from, `key ${i} is ${key}, expected ${this.arrayBlocks.length}`);
      }
      const below = node.isLeaf
        ? this.readArray(child, from)
        : this.attempt(() => this.walkBitset(child, from, depth + 1));
      if (below === undefined) return;
      if (height !== undefined && below !== height) {
        throw new BlockDamage(child, 'not as deep as the nodes before it');
      }
      height = below;
    });
    const level = (this.nodes[height ?? 0] ??= []);
    level.push({ block: from, children: node.values.length });
    return (height ?? 0) + 1;
  }

  private readNode(from: number, by: number, tree: TreeKind, depth: number) {
    if (depth > MAX_HEIGHT) throw new BlockDamage(from, `a tree more than ${MAX_HEIGHT} nodes high`);
    const block = this.reach(from, by, `a node of the ${tree} tree`);
    return decodeNode(this.readBlock(block), block, tree);
  }

  private readArray(from: number, by: number): number {
    const number = this.arrayBlocks.length;
    if (number >= this.arrays) {
      throw new BlockDamage(by, `key ${number}: there are ${this.arrays} array blocks`);
    }
    this.arrayBlocks.push(from);
    this.attempt(() => {
      const block = this.reach(from, by, `array block ${number}`);
      const perArray = ARRAY_BYTES / 8;
      const words = Math.ceil(regionsOf(this.superblock) / 64);
      const count = Math.min(perArray, words - perArray * number);
      this.hydrated.set(decodeArray(this.readBlock(block), block, count), number * ARRAY_BYTES);
    });
    return 0;
  }

  private checkArrays(): void {
    const found = this.arrayBlocks.length;
    if (found !== this.arrays) {
      const { bitsetRoot } = this.superblock;
      throw new BlockDamage(bitsetRoot, `its tree has ${found} array blocks, expected ${this.arrays}`);
    }
  }

  /** Bits behind the last region mean nothing, and are 0 where they are counted. */
  private clearTail(): void {
    const regions = regionsOf(this.superblock);
    const words = new Int32Array(this.hydrated.buffer);
    const last = Math.floor(regions / 32);
    for (let i = last; i < Math.min(words.length, last + 2); i++) {
      const keep = i === last ? ~(-1 << (regions % 32)) : 0;
      if ((words[i]! & ~keep) === 0) continue;
      this.flaw(this.arrayBlocks.at(-1)!, `has bits behind the last region, ${regions - 1}`);
      words[i]! &= keep;
    }
  }

  /** Every block that was reached must have the count 1: one that looks free would be written over. */
  private checkCounts(counts: Uint8Array, known: readonly boolean[]): void {
    const { managedBlocks, usedBlocks } = this.superblock;
    let used = 0;
    known.forEach((isKnown, bitmap) => {
      if (!isKnown) return;
      const here = counts.subarray(bitmap * COUNTS_BYTES, (bitmap + 1) * COUNTS_BYTES);
      const first = bitmap * BITMAP_ENTRIES;
      const entries = Math.min(BITMAP_ENTRIES, managedBlocks - first);
      for (let j = 0; j < entries; j++) {
        const count = countAt(here, j);
        if (count > 0) used++;
        if (count !== this.reached[first + j]) this.wrongCount(first + j, count);
      }
    });
    if (used !== usedBlocks && !this.hasGaps) {
      this.flaw(0, `says that ${usedBlocks} blocks are in use, there are ${used}`);
    }
  }

  private wrongCount(block: number, count: number): void {
    const name = count > 2 ? 'more than 2' : `${count}`;
    if (this.reached[block] === 0) {
      if (!this.hasGaps) this.flaw(block, `not in use, its reference count is ${name}`);
      return;
    }
    const damage = new BlockDamage(block, `in use once, its reference count is ${name}`);
    if (!this.report) throw damage;
    this.report(damage);
  }

  /** What is worked out anew when an image is used, so that only a check looks at it. */
  private checkIndex(counts: Uint8Array, index: readonly IndexEntry[], known: readonly boolean[]): void {
    const { indexBlock } = this.superblock;
    index.forEach(({ free, noneFreeBefore }, i) => {
      if (!known[i]) return;
      const space = spaceOf(counts.subarray(i * COUNTS_BYTES, (i + 1) * COUNTS_BYTES));
      if (space.free !== free) {
        this.flaw(indexBlock, `bitmap ${i} has ${space.free} free entries, the index says ${free}`);
      }
      if (noneFreeBefore > space.firstFree) {
        this.flaw(indexBlock, `bitmap ${i} has a free entry before ${noneFreeBefore}: ${space.firstFree}`);
      }
    });
  }

  /** Notes that a block is in use. Throws where it is none that may be, or is in use already. */
  private reach(block: number, by: number, what: string): number {
    const { managedBlocks } = this.superblock;
    if (block < 1 || block >= managedBlocks) {
      throw new BlockDamage(by, `${what} is block ${block}: 1 to ${managedBlocks - 1}`);
    }
    if (this.reached[block] === 1) throw new BlockDamage(block, `in use twice: also as ${what}`);
    this.reached[block] = 1;
    return block;
  }

  /** A block; good until the next call. */
  private readBlock(block: number): Uint8Array {
    this.device.read(block * METADATA_BLOCK_BYTES, this.block);
    return this.block;
  }

  private flaw(block: number, problem: string): void {
    this.report?.(new BlockDamage(block, problem));
  }

  /** With `report` work that fails is reported, and undefined. */
  private attempt<T>(work: () => T): T | undefined {
    const { report } = this;
    if (!report) return work();
    try {
      return work();
    } catch (error) {
      if (!(error instanceof BlockDamage)) throw error;
      report(error);
      this.hasGaps = true;
      return undefined;
    }
  }
}

/** How many entries of a bitmap are free, and the first that is. */
export function spaceOf(counts: Uint8Array): { free: number; firstFree: number } {
  let free = 0;
  let firstFree = BITMAP_ENTRIES;
  for (let j = BITMAP_ENTRIES - 1; j >= 0; j--) {
    if (countAt(counts, j) > 0) continue;
    free++;
    firstFree = j;
  }
  return { free, firstFree };
}

/** Bits of [0, regions) that are set. */
export function countRegions(hydrated: SharedArrayBuffer, regions: number): number {
  const words = new Int32Array(hydrated);
  let count = 0;
  const end = Math.ceil(regions / 32);
  for (let i = 0; i < end; i++) if (words[i] !== 0) count += popCount(words[i]! & maskOf(i, 0, regions));
  return count;
}

/** The runs of regions that are hydrated, ascending, as long as can be. */
export function hydratedRuns({ superblock, hydrated }: CloneImage): Generator<Run> {
  return runsOfOnes(new Int32Array(hydrated), regionsOf(superblock));
}

function firstChildrenOf(level: readonly { children: number }[]): number[] {
  const first = [0];
  for (const { children } of level) first.push(first.at(-1)! + children);
  return first;
}
