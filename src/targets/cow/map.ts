/** Which sectors a layer holds: what has changed since it was put on top, so the extents of an incremental backup. */
import { type Run, runsOfOnes } from '../../shared/bitmap.js';
import { SECTOR_BYTES } from '../../units.js';
import type { CowDescriptor } from './state.js';

/** The runs of sectors that the top layer of a stack holds, ascending, as long as can be; none for a base alone. */
export function* topRuns({ layers, size }: CowDescriptor): Generator<Run> {
  const top = layers.at(-1);
  if (top) yield* runsOfOnes(new Int32Array(top.bits), size / SECTOR_BYTES);
}
