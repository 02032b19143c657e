/** A device in cells of equal length, few enough to be drawn: the same ones for who counts and for who draws. */

/** Cells that a device has at most: 128 rows of 128. */
export const CELLS_MAX = 16_384;

/** Sectors of a cell: the least power of two with which a device of so many sectors has no more cells than that. */
export function cellSectorsOf(sectors: number, cellsMax = CELLS_MAX): number {
  let length = 1;
  while (Math.ceil(sectors / length) > cellsMax) length *= 2;
  return length;
}
