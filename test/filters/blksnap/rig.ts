/**
 * Tracked devices and snapshots on one thread, with no mount: a Host over devices in memory.
 *
 *     const mount = new FakeMount(); mount.device('disk', new MemoryDevice(…)); mount.file('/store', …);
 *     const snapshot = await mount.taken('s', ['disk'], '/store 0 2048'); mount.image('s', 'disk').read(…)
 */
import type { BlockDevice } from '../../../src/device/block-device.js';
import { DmError } from '../../../src/errors.js';
import type {
  Host,
  ImageAnnouncement,
  StorageFile,
  TrackedDevice,
} from '../../../src/filters/blksnap/host.js';
import { SnapshotImage } from '../../../src/filters/blksnap/image.js';
import { type ParameterName, params } from '../../../src/filters/blksnap/params.js';
import type { Snapshot } from '../../../src/filters/blksnap/snapshot.js';
import { Snapshots } from '../../../src/filters/blksnap/snapshots.js';
import {
  blksnap,
  createTracker,
  type TrackerDescriptor,
  type TrackerFilter,
} from '../../../src/filters/blksnap/tracker.js';
import type { FilterContext } from '../../../src/filters/filter.js';
import type { Backing } from '../../../src/targets/target.js';

interface FakeDevice {
  readonly id: number;
  readonly name: string;
  readonly loaded: number;
  readonly below: BlockDevice;
  readonly tracker: TrackerDescriptor;
  current: TrackerDescriptor;
  filter: TrackerFilter;
}

interface FakeFile extends StorageFile {
  readonly device: BlockDevice;
  owner: number | undefined;
}

interface FakeImage extends ImageAnnouncement {
  readonly device: SnapshotImage;
}

export class FakeMount implements Host {
  readonly snapshots = new Snapshots(this);
  /** What was announced and asked for, in order. */
  readonly calls: string[] = [];
  /** Called before each settle is over. */
  onSettle: () => void | Promise<void> = () => {};
  private readonly devices = new Map<string, FakeDevice>();
  private readonly files = new Map<string, FakeFile>();
  private readonly images = new Map<number, FakeImage>();
  private readonly eventLines = new Map<number, string[]>();
  private lastId = 0;

  /** A device with the filter; each one is loaded after those before. */
  device(name: string, below: BlockDevice): TrackerFilter {
    const tracker = createTracker(below.size);
    const device: FakeDevice = {
      ...{ id: this.newId(), name, loaded: this.devices.size, below, tracker, current: tracker },
      filter: blksnap.open(tracker, this.contextOf(below)),
    };
    this.devices.set(name, device);
    return device.filter;
  }

  /** A file that storage may lie on. */
  file(path: string, device: BlockDevice, { isBlockDevice = false, key = path } = {}): void {
    const fd = 100 + this.files.size;
    this.files.set(path, { fd, size: device.size, path, isBlockDevice, key, device, owner: undefined });
  }

  /** The view of the filter that requests meet now. */
  filter(name: string): TrackerFilter {
    return this.devices.get(name)!.filter;
  }

  /** What the filter's descriptor is now. */
  descriptor(name: string): TrackerDescriptor {
    return this.devices.get(name)!.current;
  }

  idOf(name: string): number {
    return this.devices.get(name)!.id;
  }

  /** The image that a snapshot shows of a device. */
  image(snapshot: string, device: string): SnapshotImage {
    return this.announcement(snapshot, device).device;
  }

  announcement(snapshot: string, device: string): FakeImage {
    const id = this.snapshots.get(snapshot)!.images.find(({ name }) => name === device)!.id;
    return this.images.get(id)!;
  }

  get imageCount(): number {
    return this.images.size;
  }

  events({ id }: { id: number }): string[] {
    return this.eventLines.get(id) ?? [];
  }

  /** Files that somebody has open. */
  get claimed(): string[] {
    return [...this.files.values()].filter(({ owner }) => owner !== undefined).map(({ path }) => path);
  }

  /** A snapshot of devices, with storage, taken. */
  async taken(name: string, devices: readonly string[], storage: string): Promise<Snapshot> {
    const snapshot = this.snapshots.create(name);
    for (const device of devices) await snapshot.add(device);
    await snapshot.append(storage);
    await snapshot.take();
    return snapshot;
  }

  newId(): number {
    return ++this.lastId;
  }

  trackedDevice(name: string): TrackedDevice {
    const device = this.devices.get(name);
    if (!device) throw new DmError('ENOENT', `${name}: no such target`);
    return { ...device, size: device.below.size };
  }

  setTracker({ name }: TrackedDevice, descriptor: TrackerDescriptor): void {
    this.calls.push(`tracker ${name} ${descriptor.area ? 'with' : 'without'} area`);
    const device = this.devices.get(name)!;
    device.current = descriptor;
    device.filter = blksnap.open(descriptor, this.contextOf(device.below));
  }

  addImage(image: ImageAnnouncement): void {
    this.calls.push(`add image ${image.name}`);
    const origin = [...this.devices.values()].find(({ id }) => id === image.originId)!;
    const device = new SnapshotImage(image.descriptor, this.imageContext(origin.name));
    this.images.set(image.id, { ...image, device });
  }

  removeImage(id: number): void {
    this.calls.push(`remove image ${this.images.get(id)!.name}`);
    this.images.delete(id);
  }

  async settle(ids: readonly number[]): Promise<void> {
    this.calls.push(`settle ${ids.length}`);
    await this.onSettle();
  }

  async openStorage(path: string, owner: number): Promise<StorageFile> {
    const file = this.files.get(path);
    if (!file) throw new DmError('ENOENT', `${path}: no such file or device`);
    if ((file.owner ?? owner) !== owner) throw new DmError('EBUSY', `${path}: in use`);
    file.owner = owner;
    return file;
  }

  async allocateStorage(fd: number, offset: number, length: number): Promise<void> {
    this.calls.push(`allocate ${fd} ${offset} ${length}`);
    const { size } = this.fileOf(fd);
    if (offset + length > size) throw new DmError('ENOSPC', 'the disk is full');
  }

  async releaseStorage(owner: number): Promise<void> {
    this.calls.push('release');
    for (const file of this.files.values()) if (file.owner === owner) file.owner = undefined;
  }

  raise(id: number, event: string): void {
    this.eventLines.set(id, [...(this.eventLines.get(id) ?? []), event]);
  }

  private imageContext(origin: string) {
    return {
      // By its name: the filter's view changes.
      origin: {
        size: this.filter(origin).size,
        read: (offset: number, into: Uint8Array) => this.filter(origin).read(offset, into),
        extentAt: (offset: number) => this.filter(origin).extentAt(offset),
      } as BlockDevice,
      device: (backing: Backing) => this.storageDevice(backing),
      raiseAt: (id: number, event: string) => this.raise(id, event),
    };
  }

  private contextOf(below: BlockDevice): FilterContext {
    return {
      below,
      device: (backing) => this.storageDevice(backing),
      raise: () => {
        throw new Error('devices have no events of this filter');
      },
      raiseAt: (id, event) => this.raise(id, event),
    };
  }

  private storageDevice(backing: Backing): BlockDevice {
    if (backing.kind !== 'file') throw new Error('storage lies in files');
    const file = this.fileOf(backing.fd);
    if (file.owner === undefined) throw new Error(`${file.path} is used after its release`);
    return file.device;
  }

  private fileOf(fd: number): FakeFile {
    return [...this.files.values()].find((file) => file.fd === fd)!;
  }
}

/** Parameters for the tests of a file; undone by what it returns. */
export function setParams(values: Partial<Record<ParameterName, number>>): () => void {
  const names = Object.keys(values) as ParameterName[];
  const before = names.map((name) => params.get(name));
  for (const name of names) params.set(name, `${values[name]}`);
  return () => {
    for (const [i, name] of names.entries()) params.set(name, `${before[i]}`);
  };
}

/** `code` of what an operation is refused with; 'none' when it is not. */
export async function refusalOf(operation: Promise<unknown>): Promise<string> {
  try {
    await operation;
    return 'none';
  } catch (error) {
    if (error instanceof DmError) return error.code;
    throw error;
  }
}
