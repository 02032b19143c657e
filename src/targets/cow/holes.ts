/** Holes of a member's data, in sectors of the stack. */
import { Extents } from '../../device/extents.js';
import { SECTOR_BYTES } from '../../units.js';
import type { MemberView } from './state.js';

export class Holes {
  private readonly extents: Extents;
  private readonly offset: number;

  constructor({ device, offset }: MemberView) {
    this.extents = new Extents(device);
    this.offset = offset;
  }

  /** Whether sector `at` is in a hole, and up to which sector, `stop` at most, it is the same. */
  pieceAt(at: number, stop: number): { isHole: boolean; end: number } {
    const extent = this.extents.at(this.offset + at * SECTOR_BYTES);
    const end = (extent.end - this.offset) / SECTOR_BYTES;
    // A sector that is a hole in part is data.
    const isHole = !extent.data && Math.floor(end) > at;
    return { isHole, end: Math.min(stop, isHole ? Math.floor(end) : Math.ceil(end)) };
  }
}
