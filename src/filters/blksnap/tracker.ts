/**
 * blksnap: keeps track of which blocks of a device change, and keeps what they held at the take of a snapshot. As the block
 * filter of the same name.
 *
 * Every change passes the gate, shared: it is marked in the change map, what it overwrites is copied where there is a snapshot,
 * and then it goes on to the target. A take holds the gates of all its devices alone, so that it is one moment for all of them.
 * Reads pass by.
 */
import { type BlockDevice, type Extent, extentOf } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { RwLock } from '../../shared/rwlock.js';
import type { Filter, FilterContext, FilterType } from '../filter.js';
import { Area, type AreaDescriptor } from './area.js';
import { ChangeMap, createMap, type MapDescriptor, type MapState, restoreMap } from './change-map.js';
import { trackerFiles } from './controls.js';
import { params, trackingShift } from './params.js';
import { decodeTracker, encodeTracker } from './saved.js';

export interface TrackerDescriptor {
  readonly map: MapDescriptor;
  /** An RwLock. */
  readonly gate: SharedArrayBuffer;
  /** While the device is in a snapshot that is taken, or about to be. */
  readonly area?: AreaDescriptor;
}

/** A tracker for a device of so many bytes that knows nothing, or what a former one did. */
export function createTracker(size: number, saved?: MapState): TrackerDescriptor {
  return {
    map: saved ? restoreMap(saved) : createMap(size, trackingShift(size, params)),
    gate: new SharedArrayBuffer(4 * RwLock.WORDS),
  };
}

export class TrackerFilter implements Filter {
  readonly size: number;
  readonly map: ChangeMap;
  private readonly below: BlockDevice;
  private readonly gate: RwLock;
  private readonly area: Area | undefined;

  constructor(
    readonly descriptor: TrackerDescriptor,
    context: Pick<FilterContext, 'below' | 'device' | 'raiseAt'>,
  ) {
    const { below } = context;
    this.below = below;
    this.size = below.size;
    this.map = new ChangeMap(descriptor.map);
    this.gate = new RwLock(new Int32Array(descriptor.gate));
    this.area =
      descriptor.area &&
      new Area(descriptor.area, {
        origin: below,
        device: (backing) => context.device(backing),
        raiseAt: (id, event) => context.raiseAt(id, event),
      });
  }

  read(offset: number, into: Uint8Array): void {
    this.below.read(offset, into);
  }

  write(offset: number, from: Uint8Array): void {
    this.change(offset, from.length, () => this.below.write(offset, from));
  }

  flush(): void {
    this.below.flush();
  }

  discard(offset: number, length: number): void {
    this.change(offset, length, () => this.below.discard(offset, length));
  }

  writeZeroes(offset: number, length: number, options?: { unmap?: boolean }): void {
    this.change(offset, length, () => this.below.writeZeroes(offset, length, options));
  }

  extentAt(offset: number): Extent {
    return extentOf(this.below, offset);
  }

  args(): string {
    return '';
  }

  private change(offset: number, length: number, apply: () => void): void {
    if (length === 0) return;
    const { gate, area } = this;
    gate.lockShared();
    try {
      this.map.mark(offset, length);
      if (area?.status.isActive) area.copyBefore(offset, length);
      apply();
    } finally {
      gate.unlockShared();
    }
  }
}

export const blksnap: FilterType<TrackerDescriptor, TrackerFilter> = {
  name: 'blksnap',
  usage: '',
  files: trackerFiles,

  async attach(args, { size }) {
    if (args[0] !== undefined) {
      throw new DmError(
        'EINVAL',
        `blksnap takes no arguments, found \`${args[0]}\`: write \`blksnap\` alone`,
      );
    }
    return createTracker(size);
  },

  save(descriptor, identity) {
    return encodeTracker({ identity, map: new ChangeMap(descriptor.map).saveState() });
  },

  restore(bytes, { identity, size }) {
    const saved = decodeTracker(bytes);
    if (saved.identity !== identity || saved.map.size !== size) {
      throw new DmError('EINVAL', 'the device has changed since its change map was saved');
    }
    return createTracker(size, saved.map);
  },

  /** A map is of one size: a new generation begins. */
  resized: (size) => createTracker(size),

  open(descriptor, context) {
    return new TrackerFilter(descriptor, context);
  },
};
