/**
 * The superblock of dm-clone's metadata, version 1, and its sizes. The metadata is one bit a region, "hydrated", in a bitset of
 * the kernel's persistent-data library (persistent-data.ts). How blocks make a whole is targets/clone/image.ts; what hydrated
 * means, targets/clone/index.ts.
 *
 *   block 0    superblock: sizes, and where the rest is
 *     index    where the bitmaps are, and how much is free in what each covers
 *       bitmap   2 bits a metadata block: how often it is in use (0 or 1, for nothing is shared)
 *     tree     of counts above 2; empty
 *     tree     key: number of an array block, 0, 1, 2…; value: where that is
 *       array    509 words of 64 regions. Region r: bit r mod 64 of word r div 64
 *
 * Source: the dm-clone metadata format document, section 3.
 */
import { isPowerOfTwo } from '../units.js';
import {
  ARRAY_BYTES,
  BlockDamage,
  hex,
  MAX_MANAGED_BLOCKS,
  METADATA_BLOCK_BYTES,
  numberAt,
  sealBlock,
  verifyBlock,
  viewOf,
} from './persistent-data.js';

/** Sectors of a metadata block: the first field of the kernel's status line. */
export const METADATA_BLOCK_SECTORS = 8;
/** Regions of a full array block. */
export const ARRAY_REGIONS = ARRAY_BYTES * 8;
/** Sectors; 4 KiB and 1 GiB. */
export const MIN_REGION_SECTORS = 8;
export const MAX_REGION_SECTORS = 1 << 21;
export const MAX_REGIONS = 2 ** 31;

const MAGIC = 0x8af27f64;
const VERSION = 1;

/** The fields of the superblock, in disk order. */
export interface CloneSuperblock {
  /** Blocks that the space map covers. */
  readonly managedBlocks: number;
  /** Of these, with a count that is not 0. */
  readonly usedBlocks: number;
  readonly indexBlock: number;
  readonly overflowRoot: number;
  readonly regionSectors: number;
  readonly targetSectors: number;
  readonly bitsetRoot: number;
}

/** Byte of each 8-byte field of the superblock, in disk order. */
const SUPERBLOCK_FIELDS: readonly (readonly [keyof CloneSuperblock, number])[] = [
  ['managedBlocks', 44],
  ['usedBlocks', 52],
  ['indexBlock', 60],
  ['overflowRoot', 68],
  ['regionSectors', 172],
  ['targetSectors', 180],
  ['bitsetRoot', 188],
];

/** Regions of a target, array blocks of them, and bitmaps of so many managed blocks. */
export function regionsOf({
  targetSectors,
  regionSectors,
}: Pick<CloneSuperblock, 'targetSectors' | 'regionSectors'>): number {
  return Math.ceil(targetSectors / regionSectors);
}

export function arraysOf(regions: number): number {
  return Math.ceil(regions / ARRAY_REGIONS);
}

/** Why so many sectors cannot be a region size; undefined where they can. */
export function regionSizeProblem(sectors: number): string | undefined {
  if (isPowerOfTwo(sectors) && sectors >= MIN_REGION_SECTORS && sectors <= MAX_REGION_SECTORS)
    return undefined;
  return `${sectors} sectors is no region size: a power of two, ${MIN_REGION_SECTORS} to ${MAX_REGION_SECTORS}`;
}

export function encodeSuperblock(superblock: CloneSuperblock): Uint8Array {
  const bytes = new Uint8Array(METADATA_BLOCK_BYTES);
  const view = viewOf(bytes);
  view.setBigUint64(32, BigInt(MAGIC), true);
  view.setUint32(40, VERSION, true);
  for (const [field, at] of SUPERBLOCK_FIELDS) view.setBigUint64(at, BigInt(superblock[field]), true);
  sealBlock('superblock', bytes, 0);
  return bytes;
}

/**
 * The inverse; undefined where all of block 0 is zero: nothing was ever formatted. Throws BlockDamage. Whether the blocks
 * that it names are there is left to who knows the device.
 */
export function decodeSuperblock(bytes: Uint8Array): CloneSuperblock | undefined {
  if (bytes.every((byte) => byte === 0)) return undefined;
  const view = viewOf(bytes);
  const magic = view.getBigUint64(32, true);
  if (magic !== BigInt(MAGIC)) {
    throw new BlockDamage(0, `is no dm-clone superblock: magic ${hex(magic)}, expected ${hex(MAGIC)}`);
  }
  verifyBlock('superblock', bytes, 0);
  const version = view.getUint32(40, true);
  if (version !== VERSION) throw new BlockDamage(0, `metadata version ${version}: only ${VERSION} is known`);
  const field = (at: number, name: string) => numberAt(view, at, 0, name);
  const read = Object.fromEntries(SUPERBLOCK_FIELDS.map(([name, at]) => [name, field(at, name)]));
  const superblock = read as unknown as CloneSuperblock;
  const { regionSectors, targetSectors, managedBlocks } = superblock;
  const problem = regionSizeProblem(regionSectors);
  if (problem !== undefined) throw new BlockDamage(0, problem);
  const regions = regionsOf(superblock);
  if (regions < 1 || regions > MAX_REGIONS) {
    throw new BlockDamage(
      0,
      `a target of ${targetSectors} sectors has ${regions} regions: 1 to ${MAX_REGIONS}`,
    );
  }
  if (managedBlocks < 1 || managedBlocks > MAX_MANAGED_BLOCKS) {
    throw new BlockDamage(0, `manages ${managedBlocks} metadata blocks: 1 to ${MAX_MANAGED_BLOCKS}`);
  }
  return superblock;
}
