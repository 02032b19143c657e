/** Holes of a member's data. */
import { extentOf } from '../../device/block-device.js';
import { SECTOR_BYTES } from '../../units.js';
import type { MemberView } from './state.js';

/** Where the holes of a member are, for who goes through it once, upwards: asks the device once an extent. */
export class Holes {
  // The extent that was asked for last; sectors of the stack.
  private start = 0;
  private end = 0;
  private isHole = false;

  constructor(private readonly member: MemberView) {}

  /** Whether sector `at` is in a hole, and up to which sector, `stop` at most, it is the same. */
  pieceAt(at: number, stop: number): { isHole: boolean; end: number } {
    if (at < this.start || at >= this.end) this.lookAt(at);
    return { isHole: this.isHole, end: Math.min(stop, this.end) };
  }

  private lookAt(at: number): void {
    const { device, offset } = this.member;
    const extent = extentOf(device, offset + at * SECTOR_BYTES);
    const end = (extent.end - offset) / SECTOR_BYTES;
    this.start = at;
    // A sector that is a hole in part is data.
    this.isHole = !extent.data && Math.floor(end) > at;
    this.end = this.isHole ? Math.floor(end) : Math.max(at + 1, Math.ceil(end));
  }
}
