/**
 * Trims that reach the medium.
 *
 * The seed passes no trim on before the commit. Under a loop device that would lose data: the loop driver sends the
 * unmapping write-zeroes of a file system and its discards alike as PUNCH_HOLE, so each of them must leave zeros. A
 * trim of the `discard` file is a trim and nothing else, and is not passed on.
 */
import { isUnsupported } from '../../device/block-device.js';
import type { BowState } from './state.js';

/** Bytes up to which zeros are written out on a medium that cannot unmap; longer runs there are taken for trims. */
const WRITTEN_ZEROES_MAX = 16 << 20;

/** Zeros for the trimmed blocks [first, end) on the medium; their space is given back where that can be done. */
export function passDownTrim({ device, blockSize }: BowState, first: number, end: number): void {
  const offset = first * blockSize;
  const length = (end - first) * blockSize;
  try {
    device.writeZeroes(offset, length, { unmap: true });
  } catch (error) {
    if (!isUnsupported(error)) throw error;
    if (length <= WRITTEN_ZEROES_MAX) device.writeZeroes(offset, length);
  }
}
