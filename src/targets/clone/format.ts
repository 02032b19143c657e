/** A new, empty image: nothing is hydrated. Laid out as the kernel does it, as long as one node suffices. */
import { DmError } from '../../errors.js';
import { arraysOf, type CloneSuperblock, regionsOf } from '../../formats/dm-clone.js';
import {
  BITMAP_ENTRIES,
  bitmapsOf,
  METADATA_BLOCK_BYTES,
  managedBlocksOf,
  NODE_ENTRIES,
  setCount,
} from '../../formats/persistent-data.js';
import { type CloneImage, COUNTS_BYTES, createRegionBits, sharedWords } from './image.js';

/** Blocks behind the superblock that hold neither bitmaps nor tree: the index and the root of the overflow tree. */
const INDEX_BLOCK = 1;
const OVERFLOW_ROOT = 2;
const FIRST_BITMAP = 3;

/** In memory; the store writes it. There are MAX_REGIONS at most. Throws EINVAL where the device is too small. */
export function createImage(
  sizes: Pick<CloneSuperblock, 'regionSectors' | 'targetSectors'>,
  deviceBytes: number,
): CloneImage {
  const regions = regionsOf(sizes);
  const levels = [arraysOf(regions)];
  do levels.push(Math.ceil(levels.at(-1)! / NODE_ENTRIES));
  while (levels.at(-1)! > 1);
  const managedBlocks = managedBlocksOf(deviceBytes);
  const bitmaps = bitmapsOf(managedBlocks);
  const usedBlocks = FIRST_BITMAP + bitmaps + levels.reduce((sum, blocks) => sum + blocks, 0);
  // Or there would be no room for the first commit: an array block, its nodes, the bitmaps, the index.
  const needed = usedBlocks + levels.length + bitmaps + 1;
  if (managedBlocks < needed) {
    throw new DmError(
      'EINVAL',
      `has ${deviceBytes} bytes: metadata of ${regions} regions needs ${needed * METADATA_BLOCK_BYTES} at least`,
    );
  }

  let next = FIRST_BITMAP;
  const take = (blocks: number) => Array.from({ length: blocks }, () => next++);
  const bitmapPlaces = take(bitmaps);
  const nodePlaces = levels.slice(1).reverse().map(take).reverse();
  const arrayPlaces = take(levels[0]!);
  const counts = new SharedArrayBuffer(bitmaps * COUNTS_BYTES);
  for (let block = 0; block < usedBlocks; block++) {
    const bitmap = Math.floor(block / BITMAP_ENTRIES);
    setCount(new Uint8Array(counts, bitmap * COUNTS_BYTES), block % BITMAP_ENTRIES, 1);
  }
  return {
    superblock: {
      managedBlocks,
      usedBlocks,
      indexBlock: INDEX_BLOCK,
      overflowRoot: OVERFLOW_ROOT,
      ...sizes,
      bitsetRoot: nodePlaces.at(-1)![0]!,
    },
    levels,
    firstChildren: sharedWords(levels.slice(1).flatMap((nodes, level) => spread(levels[level]!, nodes))),
    places: sharedWords([...arrayPlaces, ...nodePlaces.flat(), ...bitmapPlaces, INDEX_BLOCK]),
    counts,
    hydrated: createRegionBits(regions),
  };
}

/** The first child of each of so many nodes, full but for the last one, and the end. */
function spread(children: number, nodes: number): number[] {
  return [...Array.from({ length: nodes }, (_, node) => node * NODE_ENTRIES), children];
}
