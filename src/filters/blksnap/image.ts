/**
 * The image of a device: what it held at the take, and can be written without changing the device. It is not durable: it ends
 * with its snapshot, which ends with the mount.
 */
import { type BlockDevice, type Extent, extentOf } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { Area, type AreaContext, type AreaDescriptor } from './area.js';
import { ChangeMap, type MapDescriptor } from './change-map.js';

/** The states of its chunks are looked at one by one. */
const EXTENT_BYTES_MAX = 2 ** 30;

/** Plain data. */
export interface ImageDescriptor {
  readonly area: AreaDescriptor;
  readonly map: MapDescriptor;
}

/** One thread's view. Reads of `origin` must give what the device holds, and are not recorded anywhere. */
export class SnapshotImage implements BlockDevice {
  readonly size: number;
  private readonly area: Area;
  private readonly map: ChangeMap;
  private readonly origin: BlockDevice;

  constructor(descriptor: ImageDescriptor, context: AreaContext) {
    this.size = descriptor.area.size;
    this.area = new Area(descriptor.area, context);
    this.map = new ChangeMap(descriptor.map);
    this.origin = context.origin;
  }

  read(offset: number, into: Uint8Array): void {
    this.requireSound();
    const end = offset + into.length;
    for (let at = offset; at < end; ) {
      const { stored, stop } = this.area.runAt(at, end);
      const part = into.subarray(at - offset, stop - offset);
      if (stored) {
        stored.place.device.read(stored.offset, part);
      } else {
        this.origin.read(at, part);
        this.readStored(at, part);
      }
      at = stop;
    }
    // After the last read: the device may have changed while it was read, with no copy (area-I2, area-I3).
    this.requireSound();
  }

  write(offset: number, from: Uint8Array): void {
    this.change(offset, from.length, (device, place, at, stop) =>
      device.write(place, from.subarray(at - offset, stop - offset)),
    );
  }

  /** Of what anybody has written to any image of the snapshot: they lie in the same files. */
  flush(): void {
    this.requireSound();
    try {
      this.area.storage.flush();
    } catch (error) {
      // What was lost may as well have been copies, and nobody will be told once more.
      this.area.fail(error);
      throw error;
    }
    this.requireSound();
  }

  /** Space in the storage is not given back before the snapshot goes. */
  discard(): void {
    this.requireSound();
  }

  /**
   * Nothing is unmapped: zeros would take room in the storage where they are not stored yet, and an fstrim of a file system on
   * the image would fill it.
   */
  writeZeroes(offset: number, length: number, { unmap = false } = {}): void {
    if (unmap) throw new DmError('EOPNOTSUPP', `${this.name} cannot give space back`);
    this.change(offset, length, (device, place, at, stop) => device.writeZeroes(place, stop - at));
  }

  /** A part that is on the device is a hole where it is one there: chunks that are changed are stored first (area-I1). */
  extentAt(offset: number): Extent {
    const { data, end } = extentOf(this.origin, offset);
    const limit = Math.min(end, this.size, offset + EXTENT_BYTES_MAX);
    const { stored, stop } = this.area.runAt(offset, limit);
    // As in `read`: where the device changed with no copy, none of this is so.
    this.requireSound();
    return { data: data || stored !== undefined, end: stop };
  }

  /** What became stored while `part`, from byte `offset` on, was read from the device, is read anew (area-I1). */
  private readStored(offset: number, part: Uint8Array): void {
    const end = offset + part.length;
    for (let at = offset; at < end; ) {
      const { stored, stop } = this.area.runAt(at, end);
      stored?.place.device.read(stored.offset, part.subarray(at - offset, stop - offset));
      at = stop;
    }
  }

  /** Changes a range in the storage; `apply(device, byte on it, byte of the image, byte after the last)` does it. */
  private change(
    offset: number,
    length: number,
    apply: (device: BlockDevice, place: number, at: number, stop: number) => void,
  ): void {
    this.requireSound();
    if (length === 0) return;
    this.map.markBoth(offset, length);
    this.area.copyBefore(offset, length);
    this.requireSound();
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const { stored, stop } = this.area.runAt(at, end);
      // Copied, and nothing has failed: it cannot be new.
      if (!stored) throw this.refusal('has lost a chunk');
      apply(stored.place.device, stored.offset, at, stop);
      at = stop;
    }
  }

  private requireSound(): void {
    const { status } = this.area;
    if (!status.isActive) throw this.refusal(status.isEnded ? 'is gone' : 'is not taken yet');
    if (status.errno !== 0) throw this.refusal(`is corrupted (errno ${status.errno}): destroy its snapshot`);
  }

  private refusal(why: string): DmError {
    return new DmError('EIO', `${this.name} ${why}`);
  }

  private get name(): string {
    return `the image of ${this.area.descriptor.device}`;
  }
}
