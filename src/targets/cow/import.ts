/**
 * Reading a bitmap that the dm-cow of 2006 wrote: in each block of it only the first eighth is used, and each bit there stands
 * for eight sectors, a block's size apart (the document's section 4). At least one of the eight was written; which, nobody
 * knows. The import takes those whose content shows: it differs from the layer below, or is not zero. So every sector reads as
 * it read in the reference, that is: also sectors that were never written, where the reference hid the layer below.
 *
 *   cow-S1  A bitmap that cannot be the reference's with this block size is refused: a bit in the part of a block that it
 *           never uses, or one none of whose sectors is in the stack. (Not all can be told: a bitmap of the first sectors only
 *           looks the same in any form.)
 *   cow-S2  Nothing is changed but the new bitmap, which was zeros.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { bitmapLayout } from '../../formats/cow-bitmap.js';
import type { ProgressOptions } from '../../progress.js';
import { isPowerOfTwo, SECTOR_BYTES } from '../../units.js';
import { inspectBitmap, isZero } from './bitmap-device.js';

export const SEED_BLOCK_SIZES = { least: 512, most: 32_768, default: 4096 } as const;

/** How many sectors share a bit. */
const ALIASES = 8;
/** Bytes read at a time. */
const CHUNK_BYTES = 1 << 20;

export interface SeedLayer {
  /** The reference's bitmap; `path` is for messages. */
  readonly oldBitmap: { readonly device: BlockDevice; readonly path: string };
  /** Bytes: the block size of the device that the reference had its bitmap on. */
  readonly blockSize: number;
  /** What the reference wrote; sector 0 of the stack is sector 0 here. */
  readonly data: BlockDevice;
  /** What the stack shows without this layer; its size is the stack's. */
  readonly below: BlockDevice;
}

export interface Imported {
  /** Bits set in the old bitmap. */
  readonly bits: number;
  /** Sectors that the new bitmap says are in the layer. */
  readonly sectors: number;
  /** Of these, sectors whose bit covers another one that was taken: perhaps only one of them was written. */
  readonly uncertainSectors: number;
  /** Of these, sectors that are zeros in the layer and not below: written as zeros, or never. */
  readonly uncertainZeroSectors: number;
}

/**
 * Fills `bitmap`, a device of zeros, with the bits of `layer`; not its magic block. Throws EINVAL for an old bitmap that
 * cannot be one (cow-S1), and what the devices throw. Does not flush.
 */
export async function importSeedBits(
  layer: SeedLayer,
  bitmap: BlockDevice,
  { onProgress }: ProgressOptions = {},
): Promise<Imported> {
  const { blockSize, below, oldBitmap } = layer;
  const { least, most } = SEED_BLOCK_SIZES;
  if (!isPowerOfTwo(blockSize) || blockSize < least || blockSize > most) {
    throw new DmError(
      'EINVAL',
      `a block size of ${blockSize} bytes: it must be a power of two, ${least} to ${most}`,
    );
  }
  const sectors = below.size / SECTOR_BYTES;
  if (inspectBitmap(oldBitmap.device, oldBitmap.path, sectors) === 'new') {
    throw new DmError('EINVAL', `${oldBitmap.path}: all zero, no bitmap that was ever used`);
  }
  const { bitsBytes } = bitmapLayout(sectors);
  const importer = new Importer(layer, bitmap, sectors);
  const old = new Uint8Array(blockSize);
  for (let at = 0; at < bitsBytes; at += blockSize) {
    const bytes = old.subarray(0, Math.min(blockSize, bitsBytes - at));
    oldBitmap.device.read(at, bytes);
    if (!isZero(bytes)) importer.importBlock(at, bytes);
    // A block of the bitmap stands for so much of the stack.
    const bytesDone = Math.min((at + blockSize) * 8 * SECTOR_BYTES, below.size);
    await onProgress?.({ bytes: bytesDone, bytesTotal: below.size });
  }
  return importer.result;
}

class Importer {
  readonly result = { bits: 0, sectors: 0, uncertainSectors: 0, uncertainZeroSectors: 0 };
  /** Sectors of each bit of the block at work that were taken, and those of them that are zeros. */
  private readonly taken: Uint8Array;
  private readonly zeros: Uint8Array;
  private readonly dataBuffer = new Uint8Array(CHUNK_BYTES);
  private readonly belowBuffer = new Uint8Array(CHUNK_BYTES);

  constructor(
    private readonly layer: SeedLayer,
    private readonly bitmap: BlockDevice,
    private readonly sectors: number,
  ) {
    this.taken = new Uint8Array(layer.blockSize);
    this.zeros = new Uint8Array(layer.blockSize);
  }

  /** `bytes`: the block of the old bitmap that begins at its byte `at`, as far as the stack has bits. */
  importBlock(at: number, bytes: Uint8Array): void {
    const { result, taken, zeros } = this;
    const { blockSize } = this.layer;
    const first = at * 8;
    this.check(at, bytes);
    taken.fill(0);
    zeros.fill(0);
    for (let alias = 0; alias < ALIASES; alias++) this.importAlias(first + alias * blockSize, bytes);
    for (let bit = 0; bit < blockSize; bit++) {
      if (!isSet(bytes, bit)) continue;
      result.bits++;
      result.sectors += taken[bit]!;
      if (taken[bit]! < 2) continue;
      result.uncertainSectors += taken[bit]!;
      result.uncertainZeroSectors += zeros[bit]!;
    }
  }

  /** cow-S1. */
  private check(at: number, bytes: Uint8Array): void {
    const { blockSize, oldBitmap } = this.layer;
    const unused = bytes.findIndex((byte, index) => index >= blockSize / 8 && byte !== 0);
    if (unused >= 0) {
      throw new DmError(
        'EINVAL',
        `${oldBitmap.path}: byte ${at + unused} is not zero, where a bitmap of the reference with a block size of ` +
          `${blockSize} bytes has no bits: it is a linear bitmap, or its block size is another`,
      );
    }
    for (let bit = Math.max(0, this.sectors - at * 8); bit < blockSize; bit++) {
      if (!isSet(bytes, bit)) continue;
      throw new DmError(
        'EINVAL',
        `${oldBitmap.path}: bit ${bit % 8} of byte ${at + Math.floor(bit / 8)} is set, and none of its sectors is in ` +
          `a stack of ${this.sectors}: it belongs to a longer one`,
      );
    }
  }

  /** Takes sectors [first, first + blockSize), for which bits 0.. of `bytes` stand, and writes their own bits. */
  private importAlias(first: number, bytes: Uint8Array): void {
    const count = Math.min(this.layer.blockSize, this.sectors - first);
    if (count <= 0) return;
    const linear = new Uint8Array(Math.ceil(count / 8));
    for (let bit = 0; bit < count; ) {
      if (!isSet(bytes, bit)) {
        bit++;
        continue;
      }
      let end = bit + 1;
      while (end < count && isSet(bytes, end) && end - bit < CHUNK_BYTES / SECTOR_BYTES) end++;
      this.compare(first, bit, end, linear);
      bit = end;
    }
    if (!isZero(linear)) this.bitmap.write(first / 8, linear);
  }

  /** Takes of sectors [first + from, first + end) those that show. */
  private compare(first: number, from: number, end: number, linear: Uint8Array): void {
    const length = (end - from) * SECTOR_BYTES;
    const here = this.dataBuffer.subarray(0, length);
    const below = this.belowBuffer.subarray(0, length);
    this.layer.data.read((first + from) * SECTOR_BYTES, here);
    this.layer.below.read((first + from) * SECTOR_BYTES, below);
    for (let bit = from; bit < end; bit++) {
      const at = (bit - from) * SECTOR_BYTES;
      const isZeroHere = isZero(here.subarray(at, at + SECTOR_BYTES));
      // It is not zero, or it differs from the layer below, which is not zero then.
      if (isZeroHere && isZero(below.subarray(at, at + SECTOR_BYTES))) continue;
      linear[bit >> 3]! |= 1 << (bit & 7);
      this.taken[bit]!++;
      if (isZeroHere) this.zeros[bit]!++;
    }
  }
}

function isSet(bytes: Uint8Array, bit: number): boolean {
  return bit >> 3 < bytes.length && ((bytes[bit >> 3]! >> (bit & 7)) & 1) === 1;
}
