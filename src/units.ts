/** A sector is 512 bytes, always, whatever the block size of a device (the block layer's unit). */
export const SECTOR_BYTES = 512;

/** True for 1, 2, 4, 8, … */
export function isPowerOfTwo(n: number): boolean {
  return Number.isSafeInteger(n) && n > 0 && Number.isInteger(Math.log2(n));
}
