/** All snapshots of a mount, and which of them a device is in. Main thread. */
import { DmError } from '../../errors.js';
import type { Host } from './host.js';
import { Snapshot } from './snapshot.js';

const NAME_BYTES_MAX = 255;

/** What a device knows of snapshots. */
export interface DeviceInfo {
  /** Of the one that it is in. */
  readonly snapshot?: string;
  readonly uuid?: string;
  /** Name of the image; only when taken. */
  readonly image?: string;
  /** 0, or the negative errno of the first failure; kept until the device joins another snapshot. */
  readonly errorCode: number;
}

export class Snapshots {
  private readonly byName = new Map<string, Snapshot>();
  /** By device. */
  private readonly members = new Map<number, Snapshot>();
  /** Of snapshots that are gone, by device. */
  private readonly lastErrors = new Map<number, number>();

  constructor(private readonly host: Host) {}

  get all(): Snapshot[] {
    return [...this.byName.values()];
  }

  get(name: string): Snapshot | undefined {
    return this.byName.get(name);
  }

  /** `onCreated`: before the first event is raised. Throws EEXIST, EINVAL. */
  create(name: string, onCreated: (snapshot: Snapshot) => void = () => {}): Snapshot {
    if (this.byName.has(name)) throw new DmError('EEXIST', `snapshot ${name} exists`);
    if (!/^[^\s/@.][^\s/]*$/.test(name) || Buffer.byteLength(name) > NAME_BYTES_MAX) {
      throw new DmError('EINVAL', `\`${name}\` cannot name a snapshot: no blanks, no leading dot or @`);
    }
    const snapshot = new Snapshot(name, this.host, {
      of: (deviceId) => this.members.get(deviceId),
      join: (deviceId, joined) => {
        this.members.set(deviceId, joined);
        this.lastErrors.delete(deviceId);
      },
    });
    this.byName.set(name, snapshot);
    onCreated(snapshot);
    snapshot.raiseFirstEvent();
    return snapshot;
  }

  /** Resolves when nothing of it is left. Throws ENOENT; what its files throw, and it is gone all the same. */
  async destroy(name: string): Promise<void> {
    const snapshot = this.byName.get(name);
    if (!snapshot) throw new DmError('ENOENT', `${name}: no such snapshot`);
    try {
      await snapshot.destroy();
    } finally {
      // Unless somebody else who waited for the same was sooner, and it has been made anew.
      if (this.byName.get(name) === snapshot) this.forget(snapshot);
    }
  }

  /** Whether a device is in a snapshot: its filter and it must stay. */
  isHeld(deviceId: number): boolean {
    return this.members.has(deviceId);
  }

  deviceInfo(deviceId: number): DeviceInfo {
    const snapshot = this.members.get(deviceId);
    if (!snapshot) return { errorCode: this.lastErrors.get(deviceId) ?? 0 };
    const image = snapshot.images.find((candidate) => candidate.deviceId === deviceId);
    return {
      snapshot: snapshot.name,
      uuid: snapshot.idText,
      ...(image && { image: image.name }),
      errorCode: snapshot.errorCode(deviceId),
    };
  }

  private forget(snapshot: Snapshot): void {
    for (const id of snapshot.deviceIds) {
      const code = snapshot.errorCode(id);
      if (code !== 0) this.lastErrors.set(id, code);
      this.members.delete(id);
    }
    this.byName.delete(snapshot.name);
  }
}
