/**
 * Blocks of the kernel's persistent-data library, as dm-clone uses them: space map, B-tree and array. Pure functions: bytes
 * in, values out, one block of 4096 bytes at a time. All numbers are little endian. Every block has its own number and a
 * checksum over all of it but the first four bytes.
 *
 * clone-L1  A block is refused unless its number, checksum and every field are in range; BlockDamage names block and field.
 * clone-L2  csum = ~crc32c(bytes 4..4095) XOR a constant of the kind of block.
 * clone-L3  The two bits of a count are swapped: 0 is 0, 2 is 1, 1 is 2, and 3 is more than 2. Entry j: byte j div 4, bits
 *           2 * (j mod 4) and the next.
 * clone-L4  The free number of an index entry is 16320 less the counts that are not 0, for a last bitmap that covers less, too.
 * clone-L5  A node has room for 3 * floor((4096 - 32) / (8 + value bytes) / 3) entries; its values begin behind room for so
 *           many keys.
 *
 * Source: the dm-clone metadata format document, sections 2 and 4 to 6.
 */
import crc32c from 'crc-32/crc32c.js';
import { DmError } from '../errors.js';

export const METADATA_BLOCK_BYTES = 4096;
/** Blocks that one bitmap covers. */
export const BITMAP_ENTRIES = 16_320;
const MAX_BITMAPS = 255;
/** A larger device is used up to here. */
export const MAX_MANAGED_BLOCKS = MAX_BITMAPS * BITMAP_ENTRIES;
/** Bytes of the words of a full array block. */
export const ARRAY_BYTES = 509 * 8;
/** Entries of an inner node, and of a leaf of the bitset's tree. */
export const NODE_ENTRIES = 252;
const OVERFLOW_VALUE_BYTES = 4;
const NODE_HEADER_BYTES = 32;
const ARRAY_HEADER_BYTES = 24;
const BLOCK_HEADER_BYTES = 16;

/** A block that is not what it should be. */
export class BlockDamage extends DmError {
  constructor(
    readonly block: number,
    readonly problem: string,
  ) {
    super('EINVAL', `metadata block ${block}: ${problem}`);
    this.name = 'BlockDamage';
  }
}

export type BlockKind = 'superblock' | 'node' | 'array' | 'index' | 'bitmap';

/** What the checksum is XORed with, and the byte where the block has its own number. */
const KINDS: Readonly<Record<BlockKind, { salt: number; numberAt: number }>> = {
  superblock: { salt: 257_649_492, numberAt: 8 },
  node: { salt: 121_107, numberAt: 8 },
  array: { salt: 595_846_735, numberAt: 16 },
  index: { salt: 160_478, numberAt: 8 },
  bitmap: { salt: 240_779, numberAt: 8 },
};

/** One bitmap, as the index knows it. */
export interface IndexEntry {
  readonly block: number;
  readonly free: number;
  /** No free entry lies before this one. */
  readonly noneFreeBefore: number;
}

/** A node of a tree; keys rise. */
export interface TreeNode {
  readonly isLeaf: boolean;
  readonly keys: readonly number[];
  /** Of a leaf; block numbers of children otherwise. */
  readonly values: readonly number[];
}

export function bitmapsOf(managedBlocks: number): number {
  return Math.ceil(managedBlocks / BITMAP_ENTRIES);
}

/** Blocks that a new space map manages on a device of so many bytes. */
export function managedBlocksOf(deviceBytes: number): number {
  return Math.min(Math.floor(deviceBytes / METADATA_BLOCK_BYTES), MAX_MANAGED_BLOCKS);
}

/** Puts its number and checksum into a block that is complete otherwise. */
export function sealBlock(kind: BlockKind, bytes: Uint8Array, block: number): void {
  const view = viewOf(bytes);
  view.setBigUint64(KINDS[kind].numberAt, BigInt(block), true);
  view.setUint32(0, checksum(kind, bytes), true);
}

/** Throws BlockDamage where a block is not the one of that kind and number, whole. */
export function verifyBlock(kind: BlockKind, bytes: Uint8Array, block: number): void {
  const { numberAt } = KINDS[kind];
  const view = viewOf(bytes);
  const number = view.getBigUint64(numberAt, true);
  if (number !== BigInt(block)) throw new BlockDamage(block, `is no ${kind}: it has number ${number}`);
  const found = view.getUint32(0, true);
  const expected = checksum(kind, bytes);
  if (found !== expected) {
    throw new BlockDamage(
      block,
      `is no ${kind}, or damaged: checksum ${hex(found)}, expected ${hex(expected)}`,
    );
  }
}

/** `bytes` gets the index block; `entries` one for each bitmap. */
export function encodeIndex(bytes: Uint8Array, block: number, entries: readonly IndexEntry[]): void {
  bytes.fill(0);
  const view = viewOf(bytes);
  entries.forEach(({ block: bitmap, free, noneFreeBefore }, i) => {
    const at = BLOCK_HEADER_BYTES + 16 * i;
    view.setBigUint64(at, BigInt(bitmap), true);
    view.setUint32(at + 8, free, true);
    view.setUint32(at + 12, noneFreeBefore, true);
  });
  sealBlock('index', bytes, block);
}

/** The first `count` entries of an index block. Throws BlockDamage. */
export function decodeIndex(bytes: Uint8Array, block: number, count: number): IndexEntry[] {
  verifyBlock('index', bytes, block);
  const view = viewOf(bytes);
  return Array.from({ length: count }, (_, i) => {
    const at = BLOCK_HEADER_BYTES + 16 * i;
    return {
      block: numberAt(view, at, block, `the bitmap of entry ${i}`),
      free: view.getUint32(at + 8, true),
      noneFreeBefore: view.getUint32(at + 12, true),
    };
  });
}

/** The part of a bitmap block that holds the counts, 4 a byte: a view of it. */
export function countsOf(bytes: Uint8Array): Uint8Array {
  return bytes.subarray(BLOCK_HEADER_BYTES, BLOCK_HEADER_BYTES + BITMAP_ENTRIES / 4);
}

/** `bytes` gets a bitmap block with these counts, encoded as `countAt` reads them. */
export function encodeBitmap(bytes: Uint8Array, block: number, counts: Uint8Array): void {
  bytes.fill(0);
  countsOf(bytes).set(counts);
  sealBlock('bitmap', bytes, block);
}

/** Count of entry `j`: 0, 1, 2, or 3 for more than 2 (clone-L3). */
export function countAt(counts: Uint8Array, j: number): number {
  const raw = (counts[j >>> 2]! >>> (2 * (j & 3))) & 3;
  return ((raw & 1) << 1) | (raw >>> 1);
}

export function setCount(counts: Uint8Array, j: number, count: 0 | 1): void {
  const shift = 2 * (j & 3);
  counts[j >>> 2] = (counts[j >>> 2]! & ~(3 << shift)) | ((count << 1) << shift);
}

/** `bytes` gets an array block of these words, 8 bytes each. */
export function encodeArray(bytes: Uint8Array, block: number, words: Uint8Array): void {
  bytes.fill(0);
  const view = viewOf(bytes);
  view.setUint32(4, ARRAY_BYTES / 8, true);
  view.setUint32(8, words.length / 8, true);
  view.setUint32(12, 8, true);
  bytes.set(words, ARRAY_HEADER_BYTES);
  sealBlock('array', bytes, block);
}

/** The `count` words of an array block, a view of 8 bytes each. Throws BlockDamage, too, when it has not so many. */
export function decodeArray(bytes: Uint8Array, block: number, count: number): Uint8Array {
  verifyBlock('array', bytes, block);
  const view = viewOf(bytes);
  expectField(block, 'its capacity', view.getUint32(4, true), ARRAY_BYTES / 8);
  expectField(block, 'its number of words', view.getUint32(8, true), count);
  expectField(block, 'its bytes of a word', view.getUint32(12, true), 8);
  return bytes.subarray(ARRAY_HEADER_BYTES, ARRAY_HEADER_BYTES + 8 * count);
}

/** Which tree a node is of: of array blocks (bitset), or of counts (overflow). */
export type TreeKind = 'bitset' | 'overflow';

/** Entries that a node has room for (clone-L5). */
export function nodeCapacity(tree: TreeKind, isLeaf: boolean): number {
  return 3 * Math.floor((METADATA_BLOCK_BYTES - NODE_HEADER_BYTES) / (8 + valueBytes(tree, isLeaf)) / 3);
}

/** `bytes` gets a node. */
export function encodeNode(bytes: Uint8Array, block: number, tree: TreeKind, node: TreeNode): void {
  const { isLeaf, keys, values } = node;
  const width = valueBytes(tree, isLeaf);
  const capacity = nodeCapacity(tree, isLeaf);
  if (keys.length > capacity || values.length !== keys.length) {
    throw new RangeError(
      `clone-L5: a node of ${keys.length} keys, ${values.length} values: ${capacity} at most`,
    );
  }
  bytes.fill(0);
  const view = viewOf(bytes);
  view.setUint32(4, isLeaf ? 2 : 1, true);
  view.setUint32(16, keys.length, true);
  view.setUint32(20, capacity, true);
  view.setUint32(24, width, true);
  const valuesAt = NODE_HEADER_BYTES + 8 * capacity;
  keys.forEach((key, i) => {
    view.setBigUint64(NODE_HEADER_BYTES + 8 * i, BigInt(key), true);
    if (width === 8) view.setBigUint64(valuesAt + 8 * i, BigInt(values[i]!), true);
    else view.setUint32(valuesAt + 4 * i, values[i]!, true);
  });
  sealBlock('node', bytes, block);
}

/** The inverse, of any shape that its tree may have. Throws BlockDamage. */
export function decodeNode(bytes: Uint8Array, block: number, tree: TreeKind): TreeNode {
  verifyBlock('node', bytes, block);
  const view = viewOf(bytes);
  const flags = view.getUint32(4, true);
  if (flags !== 1 && flags !== 2) throw new BlockDamage(block, `a node with flags ${flags}: 1 or 2`);
  const isLeaf = flags === 2;
  const width = valueBytes(tree, isLeaf);
  const capacity = nodeCapacity(tree, isLeaf);
  const count = view.getUint32(16, true);
  expectField(block, 'its capacity', view.getUint32(20, true), capacity);
  expectField(block, 'its bytes of a value', view.getUint32(24, true), width);
  if (count > capacity) throw new BlockDamage(block, `a node of ${count} entries: ${capacity} at most`);
  if (count === 0 && !isLeaf) throw new BlockDamage(block, 'an inner node without a child');
  const valuesAt = NODE_HEADER_BYTES + 8 * capacity;
  const keys: number[] = [];
  const values: number[] = [];
  for (let i = 0; i < count; i++) {
    keys.push(numberAt(view, NODE_HEADER_BYTES + 8 * i, block, `key ${i}`));
    values.push(
      width === 8
        ? numberAt(view, valuesAt + 8 * i, block, `value ${i}`)
        : view.getUint32(valuesAt + 4 * i, true),
    );
    if (i > 0 && keys[i]! <= keys[i - 1]!)
      throw new BlockDamage(block, `key ${i} is no greater than the one before`);
  }
  return { isLeaf, keys, values };
}

function valueBytes(tree: TreeKind, isLeaf: boolean): number {
  return isLeaf && tree === 'overflow' ? OVERFLOW_VALUE_BYTES : 8;
}

/** clone-L2. */
function checksum(kind: BlockKind, bytes: Uint8Array): number {
  return (~crc32c.buf(bytes.subarray(4)) ^ KINDS[kind].salt) >>> 0;
}

/** The 64-bit number at a byte of a block. Throws BlockDamage from 2^53 on. */
export function numberAt(view: DataView, at: number, block: number, what: string): number {
  const value = view.getBigUint64(at, true);
  if (value > BigInt(Number.MAX_SAFE_INTEGER))
    throw new BlockDamage(block, `${what} is ${value}: below 2^53`);
  return Number(value);
}

function expectField(block: number, what: string, found: number, expected: number): void {
  if (found !== expected) throw new BlockDamage(block, `${what} is ${found}, expected ${expected}`);
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, METADATA_BLOCK_BYTES);
}

export function hex(value: number | bigint): string {
  return `0x${value.toString(16).padStart(8, '0')}`;
}
