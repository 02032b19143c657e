/** The outputs of all devices as one thread sees them, main and attendants included: its own views of targets, filters, images. */
import { type BlockDevice, type Extent, extentOf } from '../src/device/block-device.js';
import { FileDevice } from '../src/device/file.js';
import { DmError } from '../src/errors.js';
import { SnapshotImage } from '../src/filters/blksnap/image.js';
import type { Filter } from '../src/filters/filter.js';
import { filterType } from '../src/filters/index.js';
import { targetType } from '../src/targets/index.js';
import type { Backing, Target } from '../src/targets/target.js';
import type { FilterDescription, ImageDescription, TargetDescription } from './lanes/protocol.js';

/**
 * What a lane serves, and what targets of the same mount stand on. Requests meet the filter first, where one is attached, and
 * then the target.
 */
export class Output<D extends BlockDevice = BlockDevice> implements BlockDevice {
  private front: BlockDevice;

  constructor(public target: D) {
    this.front = target;
  }

  /** Bytes. */
  get size(): number {
    return this.target.size;
  }

  /** From now on requests meet `filter` first; undefined: the target. */
  setFilter(filter: BlockDevice | undefined): void {
    this.front = filter ?? this.target;
  }

  read(offset: number, into: Uint8Array): void {
    this.front.read(offset, into);
  }

  write(offset: number, from: Uint8Array): void {
    this.front.write(offset, from);
  }

  flush(): void {
    this.front.flush();
  }

  discard(offset: number, length: number): void {
    this.front.discard(offset, length);
  }

  writeZeroes(offset: number, length: number, options?: { unmap?: boolean }): void {
    this.front.writeZeroes(offset, length, options);
  }

  extentAt(offset: number): Extent {
    return extentOf(this.front, offset);
  }
}

type OpenDescription = Pick<TargetDescription, 'id' | 'typeName' | 'descriptor'>;

export class Outputs {
  private readonly targets = new Map<number, Output<Target>>();

  /** `raiseAt`: puts a line in the events of whatever has the id. */
  constructor(private readonly raiseAt: (id: number, line: string) => void) {}

  /** The output of a target. */
  get(id: number): Output<Target> | undefined {
    return this.targets.get(id);
  }

  addTarget(description: OpenDescription): Output<Target> {
    const output = new Output(this.open(description));
    this.targets.set(description.id, output);
    return output;
  }

  /** Another view of a target that has none of its filter; what stands on it goes on with its output. */
  replaceTarget(description: OpenDescription): Target | undefined {
    const output = this.targets.get(description.id);
    if (!output) return undefined;
    output.target = this.open(description);
    output.setFilter(undefined);
    return output.target;
  }

  /** Attaches a filter to a target, replaces its descriptor, or detaches it; returns this thread's view of it. */
  setFilter(id: number, filter: FilterDescription | undefined): Filter | undefined {
    const output = this.targets.get(id);
    if (!output) return undefined;
    const view =
      filter &&
      filterType(filter.typeName).open(filter.descriptor, {
        below: output.target,
        device: this.device,
        raise: this.raiseFor(id),
        raiseAt: this.raiseAt,
      });
    output.setFilter(view);
    return view;
  }

  /** Takes away a target. */
  remove(id: number): void {
    this.targets.delete(id);
  }

  openImage({ originId, descriptor }: ImageDescription): Output {
    const origin = this.targets.get(originId);
    if (!origin) throw new DmError('ENXIO', 'the origin of the image is gone');
    const { device, raiseAt } = this;
    return new Output(new SnapshotImage(descriptor, { origin: origin.target, device, raiseAt }));
  }

  /** The device behind a backing. Throws ENXIO where the target is gone. */
  readonly device = (backing: Backing): BlockDevice => {
    if (backing.kind === 'file') return new FileDevice(backing);
    const output = this.targets.get(backing.id);
    if (output) return output;
    throw new DmError('ENXIO', `${backing.path}: the target is gone`);
  };

  private open({ id, typeName, descriptor }: OpenDescription): Target {
    return targetType(typeName).open(descriptor, { device: this.device, raise: this.raiseFor(id) });
  }

  private raiseFor(id: number): (line: string) => void {
    return (line) => this.raiseAt(id, line);
  }
}
