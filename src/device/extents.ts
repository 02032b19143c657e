/** Where the holes of a device are, for who goes through it: it is asked once an extent. Only while its extents stay as they are. */
import { type BlockDevice, type Extent, extentOf } from './block-device.js';

export class Extents {
  private start = 0;
  private extent: Extent = { data: true, end: 0 };

  constructor(private readonly device: BlockDevice) {}

  /** The extent that byte `offset` lies in. It ends behind that byte, whatever the device says. */
  at(offset: number): Extent {
    if (offset < this.start || offset >= this.extent.end) {
      const { data, end } = extentOf(this.device, offset);
      this.extent = { data, end: Math.max(end, offset + 1) };
      this.start = offset;
    }
    return this.extent;
  }
}
