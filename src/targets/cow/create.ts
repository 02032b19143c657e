/** A new layer: the files that it is made of. */

import type { BlockDevice } from '../../device/block-device.js';
import { NewFile } from '../../device/new-file.js';
import { type BitmapLayout, bitmapLayout } from '../../formats/cow-bitmap.js';
import { SECTOR_BYTES } from '../../units.js';
import { initialiseBitmap } from './bitmap-device.js';

/** Bytes: sizes of bitmap files are multiples of it, the largest block of a disk. */
const SIZE_UNIT = 4096;

/** Where a layer's bitmap is by convention: beside its data. */
export function bitmapPathOf(layer: string): string {
  return `${layer}.bitmap`;
}

/** Bytes: the size of the bitmap file of a new layer. */
export function bitmapFileBytes({ minimumBytes }: BitmapLayout): number {
  return Math.ceil(minimumBytes / SIZE_UNIT) * SIZE_UNIT;
}

/**
 * Makes an empty layer for a stack of `sectors`: a data file without data at `path`, and its bitmap beside it. The bitmap is
 * initialised, so that the layer may be frozen before it was ever written. Throws EEXIST where either is there already, and
 * what the file system throws; then neither is.
 */
export async function createLayer(path: string, sectors: number): Promise<void> {
  const data = await NewFile.create(path, sectors * SECTOR_BYTES);
  try {
    await createBitmap(path, sectors, () => data.publish());
  } finally {
    data.drop();
  }
}

/**
 * Makes the bitmap of the layer at `path` for a stack of `sectors`. `fill` may write its bits; what it throws leaves no
 * bitmap. Throws as `createLayer`.
 */
export async function createBitmap<T>(
  path: string,
  sectors: number,
  fill: (bitmap: BlockDevice) => T | Promise<T>,
): Promise<T> {
  const layout = bitmapLayout(sectors);
  const bitmap = await NewFile.create(bitmapPathOf(path), bitmapFileBytes(layout));
  try {
    const result = await fill(bitmap.device);
    initialiseBitmap(bitmap.device, layout);
    bitmap.publish();
    return result;
  } finally {
    bitmap.drop();
  }
}
