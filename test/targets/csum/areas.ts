/** What the csum tests share: the devices of a naive volume and where it is on them, and its superblock. */
import type { BlockDevice, Extent } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import type { Superblock } from '../../../src/formats/csum.js';
import type { Places } from '../../../src/targets/csum/volume.js';
import type { NaivePlacement, NaiveShape, NaiveVolume } from './naive-volume.js';

export const PLACEMENTS: readonly NaivePlacement[] = ['interleaved', 'separate-r', 'separate-c'];

export const ID = Uint8Array.from({ length: 16 }, (_, i) => 7 * i + 1);

/** The devices are on the bytes of the volume itself. */
export function areasOf({ shape, data, imd }: NaiveVolume): { data: MemoryDevice; imd?: MemoryDevice } {
  const device = new MemoryDevice(data);
  return shape.placement === 'interleaved' ? { data: device } : { data: device, imd: new MemoryDevice(imd) };
}

export function placesOf({ placement, dataStart = 0, imdStart = 0 }: NaiveShape): Places {
  return {
    dataPath: '/d',
    imdPath: placement === 'interleaved' ? undefined : '/i',
    dataStart: dataStart * 512,
    imdStart: imdStart * 512,
  };
}

export function superblockOf(
  { placement, order, sectors }: NaiveShape,
  change: Partial<Superblock> = {},
): Superblock {
  return { placement, order, sectors, state: 'clean', groupsFormatted: 0, id: ID, ...change };
}

/** Counts the requests to a device. With `grain` (bytes) it knows its holes: units of that size with zeros only. */
export class CountingDevice implements BlockDevice {
  readonly size: number;
  reads = 0;
  bytesRead = 0;
  writes = 0;
  flushes = 0;
  longest = 0;

  constructor(
    readonly bytes: Uint8Array,
    private readonly grain = 0,
  ) {
    this.size = bytes.length;
    if (grain === 0) this.extentAt = undefined as never;
  }

  read(offset: number, into: Uint8Array): void {
    this.reads++;
    this.bytesRead += into.length;
    this.longest = Math.max(this.longest, into.length);
    new MemoryDevice(this.bytes).read(offset, into);
  }

  write(offset: number, from: Uint8Array): void {
    this.writes++;
    new MemoryDevice(this.bytes).write(offset, from);
  }

  flush(): void {
    this.flushes++;
  }

  discard(): void {
    throw new Error('nobody asked for a discard');
  }

  writeZeroes(): void {
    throw new Error('nobody asked for zeroes');
  }

  extentAt(offset: number): Extent {
    const zeros = new Uint8Array(this.grain);
    const isData = (at: number) => {
      const unit = this.bytes.subarray(at, at + this.grain);
      return Buffer.compare(unit, zeros.subarray(0, unit.length)) !== 0;
    };
    const first = Math.floor(offset / this.grain) * this.grain;
    const data = isData(first);
    let end = first + this.grain;
    while (end < this.size && isData(end) === data) end += this.grain;
    return { data, end: Math.min(end, this.size) };
  }
}
