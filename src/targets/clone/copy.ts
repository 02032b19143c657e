/** Copying from the source to the destination: what both lie on does it where it can, and holes stay holes where that may be. */
import { type BlockDevice, zeroOut } from '../../device/block-device.js';
import { Extents } from '../../device/extents.js';
import type { CloneState } from './state.js';

/** Bytes; less is copied sooner by a read and a write. */
const COPY_FROM_BYTES = 32 << 10;

export class Copier {
  private readonly source: BlockDevice;
  private readonly destination: BlockDevice;
  private readonly mayUnmap: boolean;
  /** Of the source, which never changes. */
  readonly extents: Extents;

  constructor(
    { source, destination, descriptor }: CloneState,
    /** For bytes on their way. */
    private readonly buffer: Uint8Array,
  ) {
    this.source = source;
    this.destination = destination;
    this.extents = new Extents(source);
    this.mayUnmap = descriptor.discardPassdown;
  }

  /** Copies bytes [from, to), which are at the same place on both. */
  copy(from: number, to: number): void {
    for (let at = from; at < to; ) {
      const extent = this.extents.at(at);
      const stop = Math.min(to, extent.end);
      if (extent.data) this.copyData(at, stop);
      else if (this.mayUnmap) zeroOut(this.destination, at, stop - at);
      else this.destination.writeZeroes(at, stop - at);
      at = stop;
    }
  }

  private copyData(from: number, to: number): void {
    const { source, destination, buffer } = this;
    let at = from;
    if (to - from >= COPY_FROM_BYTES) at += destination.copyFrom?.(source, from, to - from) ?? 0;
    while (at < to) {
      const part = buffer.subarray(0, Math.min(buffer.length, to - at));
      source.read(at, part);
      destination.write(at, part);
      at += part.length;
    }
  }
}
