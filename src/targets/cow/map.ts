/** Which sectors a layer holds: what has changed since it was put on top, so the extents of an incremental backup. */
import { nextOne, nextZero } from '../../shared/bitmap.js';
import { SECTOR_BYTES } from '../../units.js';
import type { CowDescriptor } from './state.js';

/** Sectors. */
export interface HeldRun {
  readonly start: number;
  readonly count: number;
}

/** The runs of sectors that the top layer of a stack holds, ascending, as long as can be; none for a base alone. */
export function* topRuns({ layers, size }: CowDescriptor): Generator<HeldRun> {
  const top = layers.at(-1);
  if (!top) return;
  const bits = new Int32Array(top.bits);
  const sectors = size / SECTOR_BYTES;
  for (let start = nextOne(bits, 0, sectors); start < sectors; ) {
    const end = nextZero(bits, start, sectors);
    yield { start, count: end - start };
    start = nextOne(bits, end, sectors);
  }
}
