/** The bits of one layer in memory (shared/bitmap.ts), a bit a sector: loaded from its bitmap device, which has the same layout. */
import { endianness } from 'node:os';
import type { BlockDevice } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import type { BitmapLayout } from '../../formats/cow-bitmap.js';
import { popCount } from '../../shared/bitmap.js';
import { SECTOR_BYTES } from '../../units.js';
import { forEachPiece, isZero } from './bitmap-device.js';

/** Bytes of a bitmap that are written together. */
export const PAGE_BYTES = 4096;
export const PAGE_WORDS = PAGE_BYTES / 4;

/** Bytes of the bitmap device that hold bits of a stack of this stored length; the magic block is behind them. */
export function bitmapBytes({ storedLength }: BitmapLayout): number {
  return storedLength * SECTOR_BYTES;
}

/** Memory for the bits of a layer, in whole pages; costs nothing until it is touched. Throws ENOMEM. */
export function createBits(layout: BitmapLayout): SharedArrayBuffer {
  if (endianness() !== 'LE') throw new DmError('EOPNOTSUPP', 'cow runs on little-endian machines only');
  const bytes = Math.ceil(bitmapBytes(layout) / PAGE_BYTES) * PAGE_BYTES;
  try {
    return new SharedArrayBuffer(bytes);
  } catch {
    throw new DmError('ENOMEM', `no memory for the ${bytes} bytes of bits of ${layout.sectors} sectors`);
  }
}

/**
 * Fills `bits` from a bitmap device; returns how many of the stack's sectors have theirs set. Bits behind the stack's end
 * count for nothing, but are kept for when it is written.
 */
export function loadBits(device: BlockDevice, layout: BitmapLayout, bits: SharedArrayBuffer): number {
  const shared = new Uint8Array(bits);
  let owned = 0;
  forEachPiece(device, 0, bitmapBytes(layout), (bytes, at) => {
    for (let done = 0; done < bytes.length; done += PAGE_BYTES) {
      const part = bytes.subarray(done, done + PAGE_BYTES);
      if (isZero(part)) continue;
      shared.set(part, at + done);
      owned += countBits(part, at + done, layout);
    }
    return false;
  });
  return owned;
}

function countBits(bytes: Uint8Array, at: number, { bitsBytes, sectors }: BitmapLayout): number {
  const whole = Math.floor(sectors / 8);
  let count = 0;
  for (const byte of bytes.subarray(0, Math.max(0, whole - at))) count += popCount(byte);
  if (bitsBytes > whole && at <= whole && whole < at + bytes.length) {
    count += popCount(bytes[whole - at]! & ~(-1 << (sectors % 8)));
  }
  return count;
}
