/**
 * MNT/snapshots: its folders, and what the snapshots ask of a mount. What a snapshot is and may do stands in
 * src/filters/blksnap/snapshot.ts.
 *
 *     snapshots/params/NAME      a module parameter                 snapshots/S/id           the UUID
 *     snapshots/S/devices        `add NAME`                         snapshots/S/storage      `PATH SECTOR COUNT`
 *     snapshots/S/take           `1`                                snapshots/S/state        what it is, and why it refused
 *     snapshots/S/events         a stream                           snapshots/S/images/NAME  as a target's `device`
 */
import { reserveSpace } from '../src/device/file.js';
import { inodeKey, statBacking } from '../src/device/open.js';
import { DmError } from '../src/errors.js';
import type { Host, ImageAnnouncement, StorageFile, TrackedDevice } from '../src/filters/blksnap/host.js';
import { params } from '../src/filters/blksnap/params.js';
import type { Snapshot } from '../src/filters/blksnap/snapshot.js';
import { Snapshots } from '../src/filters/blksnap/snapshots.js';
import { blksnap, type TrackerDescriptor } from '../src/filters/blksnap/tracker.js';
import type { ToLane } from './lanes/protocol.js';
import { createStats } from './lanes/stats.js';
import type { Registry } from './registry.js';
import type { LiveTarget } from './slot.js';
import { EventLog } from './tree/events.js';
import {
  eventsFile,
  type Folder,
  type OutputFile,
  SNAPSHOTS,
  type TreeFile,
  textFile,
} from './tree/folder.js';
import { fileNode, folderIdOf } from './tree/nodes.js';

const PARAMS = 'params';

export interface SnapshotsOptions {
  readonly registry: Registry;
  /** Threads that count I/O. */
  readonly statRows: number;
  readonly announce: (message: ToLane) => void;
}

/** What the mount keeps of a snapshot. */
interface Kept {
  readonly events: EventLog;
  readonly folder: Folder;
  readonly imagesFolder: Folder;
  /** Of a snapshot that is taken, or about to be; their places in their folder. */
  readonly images: ImageAnnouncement[];
  /** By their keys. */
  readonly storage: Map<string, StorageFile>;
}

export class MountedSnapshots {
  /** MNT/snapshots. */
  readonly folder: Folder;
  private readonly paramsFolder: Folder;
  private readonly snapshots: Snapshots;
  private readonly kept = new Map<number, Kept>();
  /** Of images, by their ids: also of those that are gone, as long as requests for them may be under way. */
  private readonly nodes = new Map<number, number>();

  constructor(private readonly options: SnapshotsOptions) {
    const { registry } = options;
    this.snapshots = new Snapshots(this.host());
    this.paramsFolder = { id: registry.newId(), name: PARAMS, files: paramFiles, folders: () => [] };
    this.folder = {
      id: registry.newId(),
      name: SNAPSHOTS,
      files: () => [],
      folders: () => [this.paramsFolder, ...[...this.kept.values()].map(({ folder }) => folder)],
      // As soon as there is something to do in it: scripts take what the mount lists for targets.
      isListed: () => this.kept.size > 0 || registry.all().some(({ live }) => isTracked(live)),
      make: (name) => this.make(name),
      remove: (name) => this.remove(name),
    };
  }

  folderById(id: number): Folder | undefined {
    const kept = this.kept.get(id);
    if (kept) return kept.folder;
    if (id === this.folder.id) return this.folder;
    if (id === this.paramsFolder.id) return this.paramsFolder;
    return [...this.kept.values()].find(({ imagesFolder }) => imagesFolder.id === id)?.imagesFolder;
  }

  /** The events of a snapshot, or of the snapshot that an image is of. */
  eventsOf(id: number): EventLog | undefined {
    const hasIt = ({ images }: Kept) => images.some((image) => image.id === id);
    return (this.kept.get(id) ?? [...this.kept.values()].find(hasIt))?.events;
  }

  /** Whether a target is in a snapshot. */
  holds(targetId: number): boolean {
    return this.snapshots.isHeld(targetId);
  }

  /** What a tracked target's file `snapshot` says. */
  textFor(targetId: number): string {
    const { snapshot = '', uuid = '', image, errorCode } = this.snapshots.deviceInfo(targetId);
    const path = image === undefined ? '' : `${SNAPSHOTS}/${snapshot}/images/${image}`;
    return `snapshot ${snapshot}\nid ${uuid}\nimage ${path}\nerror_code ${errorCode}\n`;
  }

  /** Adds a tracked target to a snapshot, known by its name or UUID. Throws ESRCH where there is none. */
  async join(snapshot: string, target: string): Promise<void> {
    const isMeant = ({ name, idText }: Snapshot) => name === snapshot || idText === snapshot;
    const found = this.snapshots.all.find(isMeant);
    if (!found)
      throw new DmError('ESRCH', `\`${snapshot}\`: no such snapshot; mkdir ${SNAPSHOTS}/NAME makes one`);
    await found.add(target);
  }

  /** Ends the event streams: their readers would keep the mount busy for ever. */
  closeEvents(): void {
    for (const { events } of this.kept.values()) events.close();
  }

  private make(name: string): Folder {
    if (name === PARAMS) throw new DmError('EEXIST', `${SNAPSHOTS}/${PARAMS} exists`);
    const { registry } = this.options;
    const snapshot = this.snapshots.create(name, (created) => {
      const events = new EventLog();
      const images: ImageAnnouncement[] = [];
      const imagesFolder: Folder = {
        id: registry.newId(),
        name: 'images',
        files: () => images.map((image) => imageFile(image, created.isTaken)),
        folders: () => [],
      };
      const folder: Folder = {
        id: created.id,
        name,
        events,
        files: () => snapshotFiles(created, events),
        folders: () => [imagesFolder],
      };
      const storage = new Map<string, StorageFile>();
      this.kept.set(created.id, { events, folder, imagesFolder, images, storage });
    });
    return this.kept.get(snapshot.id)!.folder;
  }

  private async remove(name: string): Promise<readonly number[]> {
    if (name === PARAMS) throw new DmError('EPERM', `${SNAPSHOTS}/${PARAMS} stays`);
    const snapshot = this.snapshots.get(name);
    const kept = snapshot && this.kept.get(snapshot.id);
    if (!kept) throw new DmError('ENOENT', `${name}: no such snapshot`);
    try {
      await this.snapshots.destroy(name);
    } finally {
      this.kept.delete(snapshot.id);
      for (const [id, node] of this.nodes)
        if (folderIdOf(node) === kept.imagesFolder.id) this.nodes.delete(id);
      // Who waits for an event wakes to the end of the stream.
      kept.events.close();
      this.options.registry.retryDeferred();
    }
    return [kept.folder.id, kept.imagesFolder.id];
  }

  private host(): Host {
    const { registry, announce } = this.options;
    return {
      newId: () => registry.newId(),
      trackedDevice: (name) => this.trackedDevice(name),
      setTracker: ({ id }, descriptor) => registry.replaceFilter(registry.byId(id)!, descriptor),
      addImage: (image) => this.addImage(image),
      removeImage: (id) => {
        for (const { images } of this.kept.values()) {
          const place = images.findIndex((image) => image.id === id);
          if (place >= 0) images.splice(place, 1);
        }
        announce({ kind: 'remove', id });
      },
      settle: (ids) =>
        registry.settle(
          ids,
          ids.flatMap((id) => this.nodes.get(id) ?? []),
        ),
      openStorage: (path, owner) => this.openStorage(path, owner),
      allocateStorage: async (fd, offset, length) => reserveSpace(fd, offset, length),
      releaseStorage: async (owner) => registry.releaseFiles(owner),
      raise: (id, event) => this.eventsOf(id)?.raise(event),
    };
  }

  private addImage(image: ImageAnnouncement): void {
    const { images, imagesFolder } = this.kept.get(image.snapshotId)!;
    const { id, originId, descriptor } = image;
    const node = fileNode(imagesFolder.id, images.push(image) - 1);
    this.nodes.set(id, node);
    const stats = createStats(this.options.statRows);
    this.options.announce({ kind: 'add', device: { kind: 'image', id, node, originId, descriptor, stats } });
  }

  private trackedDevice(name: string): TrackedDevice {
    const slot = this.options.registry.get(name);
    const { live } = slot ?? {};
    if (!slot || !live) throw new DmError('ENOENT', `${name}: there is no target of that name in this mount`);
    const { filter, loaded, target } = live;
    if (!filter || !isTracked(live)) {
      throw new DmError(
        'ENOENT',
        `${name}: its changes are not tracked; \`echo blksnap > ${name}/filter\` starts that`,
      );
    }
    return { id: slot.id, name, size: target.size, loaded, tracker: filter.descriptor as TrackerDescriptor };
  }

  private async openStorage(path: string, owner: number): Promise<StorageFile> {
    if (!path.startsWith('/')) throw new DmError('EINVAL', `${path}: not an absolute path`);
    const found = await statBacking(path);
    const key = inodeKey(found);
    const { storage } = this.kept.get(owner)!;
    const known = storage.get(key);
    if (known) return known;
    const { fd, size } = await this.options.registry.openFile(path, owner);
    const file = { fd, size, path, isBlockDevice: found.isBlockDevice(), key };
    storage.set(key, file);
    return file;
  }
}

function isTracked(live: LiveTarget | undefined): boolean {
  return live?.filter?.type.name === blksnap.name;
}

function imageFile({ name, size }: ImageAnnouncement, isShown: boolean): TreeFile {
  // The folder of a snapshot that is destroyed is gone, and with it its images, whoever has them open.
  const device: OutputFile = {
    size,
    trimGranularity: 4096,
    open: () => undefined,
    flush: () => {},
    release: () => {},
  };
  return { name, permissions: 0o600, isShown, device };
}

function paramFiles(): TreeFile[] {
  return params.names.map((name) =>
    textFile(name, { read: () => `${params.get(name)}\n`, write: (text) => params.set(name, text.trim()) }),
  );
}

function snapshotFiles(snapshot: Snapshot, events: EventLog): TreeFile[] {
  return [
    textFile('id', { read: () => `${snapshot.idText}\n` }),
    textFile('devices', {
      read: () => snapshot.deviceNames.map((name) => `${name}\n`).join(''),
      write: (text) => addDevice(snapshot, text),
    }),
    textFile('storage', { read: () => snapshot.storageText(), write: (text) => snapshot.append(text) }),
    textFile('take', { write: (text) => take(snapshot, text) }),
    textFile('state', { read: () => snapshot.stateText() }),
    eventsFile(events),
  ];
}

async function addDevice(snapshot: Snapshot, text: string): Promise<void> {
  const [verb, name, ...rest] = text.trim().split(/\s+/);
  if (verb !== 'add' || name === undefined || rest.length > 0) {
    throw new DmError('EINVAL', `devices: expected \`add NAME\`, found \`${text}\``);
  }
  await snapshot.add(name);
}

async function take(snapshot: Snapshot, text: string): Promise<void> {
  if (text.trim() !== '1') throw new DmError('EINVAL', `take: expected 1, found \`${text}\``);
  await snapshot.take();
}
