/**
 * A snapshot: devices that are taken at one moment, and the storage that they share [5, 6]. Main thread.
 *
 *     created --take--> taken --destroy--> (gone)
 *
 * A take that fails leaves everything as it was before. What is refused is kept, for `state` to say.
 */
import { randomUUID } from 'node:crypto';
import { DmError, type ErrnoName, messageOf } from '../../errors.js';
import { RwLock } from '../../shared/rwlock.js';
import { quoteWord } from '../../table.js';
import { SECTOR_BYTES } from '../../units.js';
import { parseStorageLines, rangeOf, requireDisjoint, type StorageLine } from './append.js';
import { type AreaDescriptor, AreaStatus, createArea } from './area.js';
import { ChangeMap } from './change-map.js';
import { whileFrozen } from './freeze.js';
import type { Host, StorageFile, TrackedDevice } from './host.js';
import { chunkShift, params } from './params.js';
import { createStorage, DiffStorage, lowSpaceEvent, type StorageRange } from './storage.js';

const DEVICES_MAX = 255;

/** An image of a snapshot that is taken. */
export interface ImageInfo {
  readonly id: number;
  readonly name: string;
  readonly deviceId: number;
}

/** A device at and after the take. */
interface Taken {
  readonly device: TrackedDevice;
  readonly area: AreaDescriptor;
  readonly status: AreaStatus;
  readonly imageId: number;
}

/** Which snapshot a device is in; the mount has one for all of them. */
export interface Memberships {
  of(deviceId: number): Snapshot | undefined;
  join(deviceId: number, snapshot: Snapshot): void;
}

export class Snapshot {
  readonly id: number;
  /** UUID. */
  readonly idText = randomUUID();
  private readonly devices: TrackedDevice[] = [];
  private readonly storage: DiffStorage;
  private readonly batch = params.get('chunk_maximum_in_queue');
  private readonly ranges: StorageRange[] = [];
  private readonly paths = new Map<string, string>();
  /** Empty before the take. */
  private taken: readonly Taken[] = [];
  private taking: Promise<void> | undefined;
  private appends: Promise<unknown> = Promise.resolve();
  private destroying: Promise<void> | undefined;
  private refused = '';

  constructor(
    readonly name: string,
    private readonly host: Host,
    private readonly memberships: Memberships,
  ) {
    this.id = host.newId();
    const descriptor = createStorage(params.get('diff_storage_minimum'));
    this.storage = new DiffStorage(descriptor, () => {
      throw new Error('the main thread only keeps the accounts of the storage');
    });
  }

  /** What is asked for first; once the mount knows the snapshot. */
  raiseFirstEvent(): void {
    this.host.raise(this.id, lowSpaceEvent(this.storage.descriptor));
  }

  get isTaken(): boolean {
    return this.taken.length > 0;
  }

  get deviceNames(): string[] {
    return this.devices.map(({ name }) => name);
  }

  get deviceIds(): number[] {
    return this.devices.map(({ id }) => id);
  }

  get images(): ImageInfo[] {
    return this.taken.map(({ device, imageId }) => ({
      id: imageId,
      name: device.name,
      deviceId: device.id,
    }));
  }

  /** 0, or the negative errno of the first failure of the device's area. */
  errorCode(deviceId: number): number {
    const errno = this.taken.find(({ device }) => device.id === deviceId)?.status.errno ?? 0;
    return errno === 0 ? 0 : -errno;
  }

  /** What was appended, as the lines that did it. */
  storageText(): string {
    const lineOf = ({ key, offset, sectors }: StorageRange) =>
      `${quoteWord(this.paths.get(key)!)} ${offset / SECTOR_BYTES} ${sectors}\n`;
    return this.ranges.map(lineOf).join('');
  }

  stateText(): string {
    const isCorrupted = this.taken.some(({ status }) => status.errno !== 0);
    const { capacity, filled, requested } = this.storage.amounts;
    const lines = [
      isCorrupted ? 'corrupted' : this.isTaken ? 'taken' : 'created',
      `capacity ${capacity}`,
      `filled ${filled}`,
      `requested ${requested}`,
    ];
    for (const { id, name } of this.devices) {
      const code = this.errorCode(id);
      lines.push(code === 0 ? `device ${name} ok` : `device ${name} error ${code}`);
    }
    if (this.refused !== '') lines.push(`refused ${this.refused}`);
    return `${lines.join('\n')}\n`;
  }

  /**
   * Throws ENOENT as Host.trackedDevice, EALREADY for a device that is in it, EBUSY for one in another or when it is taken,
   * E2BIG when it is full.
   */
  async add(deviceName: string): Promise<void> {
    await this.keepingRefusal(async () => {
      this.requireAlive();
      const device = this.host.trackedDevice(deviceName);
      const other = this.memberships.of(device.id);
      if (other === this) throw new DmError('EALREADY', `${deviceName}: is in snapshot ${this.name}`);
      if (this.isTaken || this.taking) {
        throw new DmError('EBUSY', `snapshot ${this.name} is taken: create another one for ${deviceName}`);
      }
      if (other) {
        throw new DmError('EBUSY', `${deviceName}: is in snapshot ${other.name}; destroy that first`);
      }
      if (this.devices.length === DEVICES_MAX) {
        throw new DmError('E2BIG', `snapshot ${this.name} has ${DEVICES_MAX} devices, which is the most`);
      }
      this.devices.push(device);
      this.memberships.join(device.id, this);
    });
  }

  /**
   * Adds storage, lines `PATH SECTOR COUNT`: all or none. Throws EINVAL, ENOSPC, E2BIG, and what opening a file throws; files
   * that were opened stay open until the snapshot goes.
   */
  async append(text: string): Promise<void> {
    await this.keepingRefusal(async () => {
      const lines = parseStorageLines(text);
      // One after the other: ranges are compared with those before.
      const done = this.appends.then(() => this.appendLines(lines));
      this.appends = done.catch(() => {});
      await done;
    });
  }

  /** Throws EALREADY when it is taken or being taken, ENODEV without devices, EFAULT without storage or with too many chunks. */
  async take(): Promise<void> {
    await this.keepingRefusal(async () => {
      this.requireAlive();
      if (this.isTaken) throw new DmError('EALREADY', `snapshot ${this.name} is taken`);
      if (this.taking) throw new DmError('EALREADY', `snapshot ${this.name} is being taken`);
      if (this.devices.length === 0) {
        throw new DmError('ENODEV', `snapshot ${this.name} has no devices: add one first`);
      }
      if (this.storage.amounts.capacity === 0) {
        throw new DmError('EFAULT', `snapshot ${this.name} has no storage: append some first`);
      }
      this.taking = this.takeDevices();
      try {
        await this.taking;
      } finally {
        this.taking = undefined;
      }
    });
  }

  /** Ends everything under way, the images among it, whether they are open or not. */
  destroy(): Promise<void> {
    this.destroying ??= this.dismantle();
    return this.destroying;
  }

  private async appendLines(lines: readonly StorageLine[]): Promise<void> {
    const opened: { line: StorageLine; file: StorageFile }[] = [];
    for (const line of lines) {
      this.requireAlive();
      opened.push({ line, file: await this.host.openStorage(line.path, this.id) });
    }
    const added = opened.map(({ line, file }) => rangeOf(line, file));
    for (const { file } of opened) this.paths.set(file.key, file.path);
    requireDisjoint([...this.ranges, ...added], ({ key }) => this.paths.get(key)!);
    for (const { line, file } of opened) {
      if (file.isBlockDevice) continue;
      await this.allocate(line, file);
    }
    this.requireAlive();
    this.storage.append(added);
    this.ranges.push(...added);
  }

  private async allocate(line: StorageLine, file: StorageFile): Promise<void> {
    const { offset, sectors } = rangeOf(line, file);
    try {
      await this.host.allocateStorage(file.fd, offset, sectors * SECTOR_BYTES);
    } catch (error) {
      const { code = 'EIO' } = error as { code?: ErrnoName };
      throw new DmError(
        code,
        `${line.path}: no space for ${sectors} sectors from ${line.sector} on (${code}): append fewer, or elsewhere`,
      );
    }
  }

  private async takeDevices(): Promise<void> {
    // One size for all devices, the largest that one of them needs: a slot of the storage is a slot for any.
    const shift = Math.max(...this.devices.map(({ size }) => chunkShift(size, params)));
    this.storage.setChunkBytes(2 ** shift);
    const prepared: Taken[] = [];
    try {
      // Uppermost first, for the gates (whileFrozen).
      for (const device of this.devices.toSorted((a, b) => b.loaded - a.loaded)) {
        prepared.push(this.prepare(device, shift));
      }
      await this.host.settle(this.deviceIds);
      const gates = prepared.map(({ device }) => new RwLock(new Int32Array(device.tracker.gate)));
      await whileFrozen(
        gates,
        () => this.requireAlive(),
        () => {
          for (const { device, status } of prepared) {
            new ChangeMap(device.tracker.map).switch();
            status.activate();
          }
          this.taken = prepared;
        },
      );
    } catch (error) {
      for (const taken of prepared) this.withdraw(taken);
      throw error;
    }
  }

  /** Announces area and image of a device, neither of which does anything yet. */
  private prepare(device: TrackedDevice, shift: number): Taken {
    const area = createArea({
      device: device.name,
      snapshotId: this.id,
      size: device.size,
      chunkShift: shift,
      batch: this.batch,
      storage: this.storage.descriptor,
    });
    const imageId = this.host.newId();
    this.host.addImage({
      id: imageId,
      name: device.name,
      snapshotId: this.id,
      originId: device.id,
      descriptor: { area, map: device.tracker.map },
      size: device.size,
    });
    try {
      this.host.setTracker(device, { ...device.tracker, area });
    } catch (error) {
      this.host.removeImage(imageId);
      throw error;
    }
    return { device, area, status: new AreaStatus(area), imageId };
  }

  private withdraw({ device, status, imageId }: Taken): void {
    // Before devices stop copying (area-I3).
    status.end();
    this.host.setTracker(device, device.tracker);
    this.host.removeImage(imageId);
  }

  private async dismantle(): Promise<void> {
    // A take that waits for its gates gives up: `destroying` is set by now, or when it looks next.
    await this.taking?.catch(() => {});
    await this.appends;
    for (const taken of this.taken) this.withdraw(taken);
    await this.host.settle([...this.deviceIds, ...this.images.map(({ id }) => id)]);
    await this.host.releaseStorage(this.id);
  }

  private requireAlive(): void {
    if (this.destroying) throw new DmError('ENOENT', `snapshot ${this.name} is being destroyed`);
  }

  private async keepingRefusal(work: () => Promise<void>): Promise<void> {
    try {
      await work();
      this.refused = '';
    } catch (error) {
      const { code = 'EIO' } = error as { code?: string };
      this.refused = `${code} ${messageOf(error).replaceAll('\n', ' ')}`;
      throw error;
    }
  }
}
