/**
 * The bitmap device of a copy-on-write layer: one bit a sector, then a magic block that tells the length. Pure functions:
 * numbers and bytes in, values out. What the bits mean is `targets/cow/index.ts`; where they are looked for on a device,
 * `targets/cow/bitmap-device.ts`.
 *
 *   bytes                          content
 *   0 .. ceil(len / 8)             bit of sector s: byte s div 8, bit s mod 8, bit 0 the least significant
 *   .. stored length * 512         the bits that a stack of the same stored length would have more; zero
 *   .. magic byte                  unused, zero
 *   magic byte + 0   8 bytes       0x00BABE0EAABABE11
 *              + 8   8 bytes       stored length (`bmap_len`), sectors
 *
 * All numbers are little endian.
 *
 * cow-L1  stored length = 1 + len div 4096; magic sector = stored length rounded down to 64, + 192. So the magic block is at
 *         a multiple of 32 KiB from 98304 on, always behind the bits, and moves with every 128 MiB of the stack's length.
 * cow-L2  All zero: a new bitmap. The magic and a length: one in use. Anything else is refused, a length of 2^53 or more, too.
 * cow-L3  Bits are linear. The reference's own bitmaps share one bit between eight sectors (document, section 4): nothing on the
 *         device tells them from these.
 *
 * Source: section 3 of the dm-cow stack format.
 */
import { SECTOR_BYTES } from '../units.js';

/** Bytes 11 be ba aa 0e be ba 00. */
export const COW_MAGIC = 0x00babe0eaababe11n;
/** Bytes: the magic and the stored length. */
export const MAGIC_BLOCK_BYTES = 16;
/** Bytes: where the magic block of the shortest stack is. */
export const FIRST_MAGIC_BYTE = 192 * SECTOR_BYTES;
/** Bytes between two places where a magic block may be. */
export const MAGIC_STEP_BYTES = 64 * SECTOR_BYTES;
/** Sectors of the stack for which one sector of the bitmap has the bits. */
const SECTORS_PER_BITMAP_SECTOR = 8 * SECTOR_BYTES;

/** Where things are on the bitmap device of a stack of `sectors`. */
export interface BitmapLayout {
  /** Sectors of the stack. */
  readonly sectors: number;
  /** Bytes that have bits of the stack. */
  readonly bitsBytes: number;
  /** `bmap_len`, sectors: the number that the magic block keeps. */
  readonly storedLength: number;
  /** Bytes. */
  readonly magicOffset: number;
  /** Bytes that the device must have. */
  readonly minimumBytes: number;
}

/** What a magic block says. */
export type MagicBlock =
  /** All zero: no bitmap yet. */
  | { readonly kind: 'none' }
  /** The magic is right; sectors, below 2^53. */
  | { readonly kind: 'stored'; readonly storedLength: number }
  /** `problem`: the field, what was found, what was expected. */
  | { readonly kind: 'unknown'; readonly problem: string };

/** The layout for a stack of `sectors` (1 at least). */
export function bitmapLayout(sectors: number): BitmapLayout {
  if (!Number.isSafeInteger(sectors) || sectors < 1) {
    throw new RangeError(`cow-L1: a stack of ${sectors} sectors: expected a whole number, 1..2^53 - 1`);
  }
  const storedLength = 1 + Math.floor(sectors / SECTORS_PER_BITMAP_SECTOR);
  const magicOffset = (storedLength - (storedLength % 64) + 192) * SECTOR_BYTES;
  return {
    sectors,
    bitsBytes: Math.ceil(sectors / 8),
    storedLength,
    magicOffset,
    minimumBytes: magicOffset + MAGIC_BLOCK_BYTES,
  };
}

/** The lengths, in sectors, of the stacks that share a stored length: from `least` to `most`. */
export function stackLengths(storedLength: number): { least: number; most: number } {
  const least = (storedLength - 1) * SECTORS_PER_BITMAP_SECTOR;
  return { least: Math.max(1, least), most: least + SECTORS_PER_BITMAP_SECTOR - 1 };
}

/** The 16 bytes of a magic block. */
export function encodeMagicBlock({ storedLength }: Pick<BitmapLayout, 'storedLength'>): Uint8Array {
  if (!Number.isSafeInteger(storedLength) || storedLength < 1) {
    throw new RangeError(`cow-L2: stored length ${storedLength} does not fit: expected 1..2^53 - 1`);
  }
  const bytes = new Uint8Array(MAGIC_BLOCK_BYTES);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, COW_MAGIC, true);
  view.setBigUint64(8, BigInt(storedLength), true);
  return bytes;
}

/** The inverse of `encodeMagicBlock`, of any 16 bytes (cow-L2). */
export function decodeMagicBlock(bytes: Uint8Array): MagicBlock {
  if (bytes.length < MAGIC_BLOCK_BYTES) {
    throw new RangeError(`cow-L2: a magic block of ${bytes.length} bytes: expected ${MAGIC_BLOCK_BYTES}`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, MAGIC_BLOCK_BYTES);
  const magic = view.getBigUint64(0, true);
  const length = view.getBigUint64(8, true);
  if (magic === 0n && length === 0n) return { kind: 'none' };
  if (magic !== COW_MAGIC) {
    return { kind: 'unknown', problem: `the magic is ${hex(magic)}, expected ${hex(COW_MAGIC)}` };
  }
  if (length < 1n || length > BigInt(Number.MAX_SAFE_INTEGER)) {
    return { kind: 'unknown', problem: `the stored length is ${length} sectors, expected 1..2^53 - 1` };
  }
  return { kind: 'stored', storedLength: Number(length) };
}

function hex(value: bigint): string {
  return `0x${value.toString(16).padStart(16, '0')}`;
}
