/**
 * The bits of one layer in memory, in words of 32 sectors: loaded from its bitmap device, and scanned a word at a time.
 * Sector s is bit s mod 32 of word s div 32, which is the bitmap's own layout on a little-endian machine.
 *
 * Loads are atomic: other threads set bits, and a read of data that follows a load may not be done before it (cow-I2).
 */
import { endianness } from 'node:os';
import type { BlockDevice } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import type { BitmapLayout } from '../../formats/cow-bitmap.js';
import { SECTOR_BYTES } from '../../units.js';
import { forEachPiece, isZero } from './bitmap-device.js';

/** Sectors of a word. */
export const WORD_SECTORS = 32;
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

/** The first sector of [from, end) whose bit is set; `end` where there is none. */
export function nextOne(words: Int32Array, from: number, end: number): number {
  return nextUnlike(words, from, end, 0);
}

/** The first sector of [from, end) whose bit is not set; `end` where there is none. */
export function nextZero(words: Int32Array, from: number, end: number): number {
  return nextUnlike(words, from, end, -1);
}

/** How many bits of a word are set. */
export function popCount(word: number): number {
  let x = word - ((word >>> 1) & 0x55555555);
  x = (x & 0x33333333) + ((x >>> 2) & 0x33333333);
  return Math.imul((x + (x >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** The bits of word `index` that sectors [from, end) have there. The word must have some. */
export function maskOf(index: number, from: number, end: number): number {
  const start = index * WORD_SECTORS;
  const low = from > start ? -1 << (from - start) : -1;
  return end - start < WORD_SECTORS ? low & ~(-1 << (end - start)) : low;
}

function nextUnlike(words: Int32Array, from: number, end: number, skipped: number): number {
  if (from >= end) return end;
  let index = Math.floor(from / WORD_SECTORS);
  // `from` may be past 2^32, but its low five bits are right.
  let word = (Atomics.load(words, index) ^ skipped) & (-1 << (from & (WORD_SECTORS - 1)));
  for (;;) {
    if (word !== 0) return Math.min(end, index * WORD_SECTORS + 31 - Math.clz32(word & -word));
    if (++index * WORD_SECTORS >= end) return end;
    word = Atomics.load(words, index) ^ skipped;
  }
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
