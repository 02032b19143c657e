/** dmfuse itself, through its own command line and control files. */
import { mkdir, open, readFile, rmdir, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { findMount } from '../../../mount/cli/find-mount.js';
import { isAlive } from '../../../mount/cli/umount.js';
import { quoteWord } from '../../../src/table.js';
import { SECTOR_BYTES } from '../../../src/units.js';
import { type Image, overwrite } from '../image.js';
import { type Lab, waitUntil } from '../lab.js';
import { unmount } from '../loop-device.js';
import type { Served, Subject } from '../subject.js';

const COMMAND = fileURLToPath(new URL('./main.js', import.meta.url));
const UNMOUNT_LIMIT_SECONDS = 120;
const PROBE_BYTES = 4096;
const CLONE_REGION_SECTORS = 128;
const CLONE_METADATA_BYTES = 8 << 20;
const HYDRATION_LIMIT_SECONDS = 60;
const SNAPSHOT = 'snapshots/s';
/** Of a snapshot: the mount's default, for devices of up to 64 TiB. */
const CHUNK_BYTES = 256 << 10;

/** One mount and its daemon, used through its files as a shell would. */
export class DmfuseMount {
  private constructor(
    readonly folder: string,
    readonly daemonPid: number,
  ) {}

  /** An empty mount; it goes with the scope. */
  static async start(lab: Lab): Promise<DmfuseMount> {
    const folder = lab.newFolder('dmfuse');
    let daemonPid = 0;
    lab.defer(async () => {
      if (!findMount(folder)) return;
      await unmount(lab, folder);
      await waitUntil('dmfuse: end of the daemon', () => !isAlive(daemonPid), {
        limitSeconds: UNMOUNT_LIMIT_SECONDS,
      }).catch((error) => {
        process.kill(daemonPid, 'SIGKILL');
        throw error;
      });
    });
    await lab.run(process.execPath, [COMMAND, 'mount', folder]);
    daemonPid = Number(/^pid (\d+)$/m.exec(await readFile(join(folder, '.dmfuse'), 'utf8'))![1]);
    return new DmfuseMount(folder, daemonPid);
  }

  /** Throws what `status` says when the table is refused. */
  async create(name: string, table: string): Promise<void> {
    await mkdir(join(this.folder, name));
    await writeControl(this.path(name, 'table'), table).catch(async (error) => {
      throw new Error(`${table}: ${await readFile(this.path(name, 'status'), 'utf8').catch(() => error)}`);
    });
  }

  /** Waits for the last close, which the kernel may send a moment after the fact. */
  async remove(name: string): Promise<void> {
    await waitUntil(`rmdir ${name}`, () =>
      rmdir(join(this.folder, name)).then(
        () => true,
        (error) => {
          if (error.code === 'EBUSY') return false;
          throw error;
        },
      ),
    );
  }

  path(target: string, file: string): string {
    return join(this.folder, target, file);
  }

  /** Tells a bow target that all from `firstByte` on is free, and takes the checkpoint. */
  async checkpoint(name: string, firstByte: number, sizeBytes: number): Promise<void> {
    const count = (sizeBytes - firstByte) / SECTOR_BYTES;
    await this.control(name, 'discard', `${firstByte / SECTOR_BYTES} ${count}`);
    await this.changeState(name, 1);
  }

  async changeState(name: string, state: 1 | 2): Promise<void> {
    await this.control(name, 'state', String(state));
  }

  /** Writes a control file. */
  async control(name: string, file: string, line: string): Promise<void> {
    await writeControl(this.path(name, file), line);
  }

  /** Takes a snapshot of a target that is tracked, with storage of its own. Throws what `state` says when it is refused. */
  async takeSnapshot(lab: Lab, name: string, storageBytes: number): Promise<void> {
    const storage = await scratchDisk(lab, 'storage', storageBytes);
    await mkdir(join(this.folder, SNAPSHOT));
    try {
      await this.control(SNAPSHOT, 'devices', `add ${name}`);
      await this.control(SNAPSHOT, 'storage', `${quoteWord(storage)} 0 ${storageBytes / SECTOR_BYTES}`);
      await this.control(SNAPSHOT, 'take', '1');
    } catch (error) {
      throw new Error(`snapshot: ${await readFile(this.path(SNAPSHOT, 'state'), 'utf8').catch(() => error)}`);
    }
  }

  /** Ends the snapshot. */
  async removeSnapshot(): Promise<void> {
    await rmdir(join(this.folder, SNAPSHOT));
  }

  /** The image of a target in the snapshot. */
  snapshotImage(name: string): string {
    return join(this.folder, SNAPSHOT, 'images', name);
  }

  /** How much has been copied to the storage of the snapshot. */
  async copiedBytes(): Promise<number> {
    const state = await readFile(this.path(SNAPSHOT, 'state'), 'utf8');
    return Number(/^filled (\d+)$/m.exec(state)![1]) * SECTOR_BYTES;
  }

  /** Makes what was written durable. */
  async flush(name: string): Promise<void> {
    await sync(this.path(name, 'device'));
  }

  /** True when all regions of a clone are. */
  async isHydrated(name: string): Promise<boolean> {
    const [hydrated, regions] = (await readFile(this.path(name, 'status'), 'utf8')).split(' ')[6]!.split('/');
    return hydrated === regions;
  }

  /** True when the kernel does the I/O of a new open itself: then the lanes count nothing. */
  async passesThrough(name: string): Promise<boolean> {
    const before = await readFile(this.path(name, 'stats'), 'utf8');
    const device = await open(this.path(name, 'device'), 'r');
    await device.read(Buffer.alloc(PROBE_BYTES), 0, PROBE_BYTES, 0).finally(() => device.close());
    return before === (await readFile(this.path(name, 'stats'), 'utf8'));
  }
}

async function sync(path: string): Promise<void> {
  const file = await open(path, 'r+');
  await file.sync().finally(() => file.close());
}

async function writeControl(path: string, line: string): Promise<void> {
  await writeFile(path, `${line}\n`, { flag: 'r+' });
}

/**
 * `table` makes what the target needs besides the image and gives the table line; `prepare` gets a mount with the target `device` and returns when it
 * is in its state; `shown` is the file that is measured, by default its `device`.
 */
function dmfuse(
  name: string,
  description: string,
  table: (lab: Lab, image: Image) => string | Promise<string>,
  {
    prepare = async () => {},
    shown = (mount) => mount.path('device', 'device'),
    passthrough = false,
    ownFiles = false,
    readOnly = false,
    judged = true,
  }: {
    prepare?: (mount: DmfuseMount, image: Image, lab: Lab) => Promise<void>;
    shown?: (mount: DmfuseMount) => string;
    passthrough?: boolean;
    ownFiles?: boolean;
    readOnly?: boolean;
    judged?: boolean;
  } = {},
): Subject {
  return {
    name,
    description,
    judged,
    missing: async () => undefined,
    async start(lab, image): Promise<Served> {
      const mount = await DmfuseMount.start(lab);
      await mount.create('device', await table(lab, image));
      await prepare(mount, image, lab);
      const path = shown(mount);
      if (!passthrough) return { path, cache: 'server', ownFiles, readOnly };
      if (await mount.passesThrough('device')) return { path, cache: 'own', ownFiles };
      return { path, cache: 'server', note: 'no FUSE passthrough here (Linux 6.9): served by the lanes' };
    },
  };
}

async function steadyState1(mount: DmfuseMount, image: Image): Promise<void> {
  await mount.checkpoint('device', image.regionBytes, image.sizeBytes);
  await overwrite(mount.path('device', 'device'), image.regionBytes);
  const ranges = await readFile(mount.path('device', 'ranges'), 'utf8');
  const first = /^Unchanged: (\d+)$/m.exec(ranges)?.[1];
  if (first !== undefined && Number(first) * SECTOR_BYTES < image.regionBytes) {
    throw new Error(`bow: sector ${first} was written and is still unchanged`);
  }
}

async function committed(mount: DmfuseMount, image: Image): Promise<void> {
  await mount.checkpoint('device', image.regionBytes, image.sizeBytes);
  await mount.changeState('device', 2);
}

/** A table that needs nothing but the image. */
function plain(table: (path: string) => string): (lab: Lab, image: Image) => string {
  return (_lab, image) => table(quoteWord(image.path));
}

/** A volume of its own: the reference writes to the image, which csum would rightly call corrupt. */
async function formatted(lab: Lab, image: Image): Promise<string> {
  const data = await scratchDisk(lab, 'data', image.sizeBytes);
  await lab.run(process.execPath, [COMMAND, 'csum', 'format', data]);
  return `csum ${quoteWord(data)} 0`;
}

async function formattedApart(lab: Lab, image: Image): Promise<string> {
  const data = await scratchDisk(lab, 'data', image.sizeBytes);
  // Two sectors for 62, and three more.
  const tables = await scratchDisk(lab, 'tables', Math.ceil(image.sizeBytes / 62) * 2 + 4096);
  await lab.run(process.execPath, [COMMAND, 'csum', 'format', data, tables]);
  return `csum ${quoteWord(data)} 0 ${quoteWord(tables)} 0`;
}

async function fill(mount: DmfuseMount, image: Image): Promise<void> {
  await overwrite(mount.path('device', 'device'), image.regionBytes);
  await mount.flush('device');
}

/** A new layer on the image. */
async function layered(lab: Lab, image: Image): Promise<string> {
  const layer = scratchFile(lab, 'layer');
  const bitmap = `${layer}.bitmap`;
  lab.defer(async () => void (await lab.run('rm', ['-f', bitmap])));
  await lab.run(process.execPath, [COMMAND, 'cow', 'create', image.path, layer]);
  return `cow ${quoteWord(image.path)} 0 ${quoteWord(bitmap)} ${quoteWord(layer)} 0`;
}

/** New metadata and a new, sparse destination for a clone of an image; `options` as in a table. */
export async function cloneTable(
  lab: Lab,
  source: Pick<Image, 'path' | 'sizeBytes'>,
  regionSectors: number,
  options: string,
  metadataBytes = CLONE_METADATA_BYTES,
): Promise<string> {
  const metadata = await scratchDisk(lab, 'metadata', metadataBytes);
  const destination = await scratchDisk(lab, 'destination', source.sizeBytes);
  const devices = [metadata, destination, source.path].map(quoteWord).join(' ');
  return `0 ${source.sizeBytes / SECTOR_BYTES} clone ${devices} ${regionSectors} ${options}`;
}

/** All of the image comes over, and the metadata says so. */
async function hydrate(mount: DmfuseMount): Promise<void> {
  await waitUntil('hydration', () => mount.isHydrated('device'), { limitSeconds: HYDRATION_LIMIT_SECONDS });
  await mount.flush('device');
}

/** A sparse file. */
export async function scratchDisk(lab: Lab, name: string, bytes: number): Promise<string> {
  const path = scratchFile(lab, name);
  await writeFile(path, '');
  await truncate(path, bytes);
  return path;
}

/** A path for a file that goes with the scope. */
export function scratchFile(lab: Lab, name: string): string {
  const path = lab.newPath(name);
  lab.defer(async () => void (await lab.run('rm', ['-f', path])));
  return path;
}

async function ownAll(mount: DmfuseMount, image: Image): Promise<void> {
  await overwrite(mount.path('device', 'device'), image.regionBytes);
  const owned = /^1 (\d+) /m.exec(await readFile(mount.path('device', 'layers'), 'utf8'))?.[1];
  if (Number(owned) * SECTOR_BYTES < image.regionBytes)
    throw new Error(`cow: the layer holds ${owned} sectors`);
}

async function track(mount: DmfuseMount): Promise<void> {
  await mount.control('device', 'filter', 'blksnap');
}

/** With storage for all of the image. */
async function trackAndTake(mount: DmfuseMount, image: Image, lab: Lab): Promise<void> {
  await track(mount);
  await mount.takeSnapshot(lab, 'device', image.sizeBytes);
}

async function copyAll(mount: DmfuseMount, image: Image, lab: Lab): Promise<void> {
  await trackAndTake(mount, image, lab);
  await overwrite(mount.path('device', 'device'), image.regionBytes);
  await requireCopied(mount, image.regionBytes);
}

/** Every second chunk of the snapshot's image comes from its storage. */
async function copyHalf(mount: DmfuseMount, image: Image, lab: Lab): Promise<void> {
  await trackAndTake(mount, image, lab);
  const halves = { pieceBytes: CHUNK_BYTES, stepBytes: 2 * CHUNK_BYTES };
  await overwrite(mount.path('device', 'device'), image.regionBytes, halves);
  await requireCopied(mount, image.regionBytes / 2);
}

/** Checks how much the snapshot has copied, and makes it durable: write-back would be measured with what comes. */
async function requireCopied(mount: DmfuseMount, bytes: number): Promise<void> {
  await sync(mount.snapshotImage('device'));
  const copied = await mount.copiedBytes();
  if (copied !== bytes) throw new Error(`snapshot: ${copied} bytes are copied, not ${bytes}`);
}

/** A table of `linear` whose I/O the kernel leaves to us, as that of a filter. */
const throughLanes = plain((path) => `linear ${path} 0 1 no_passthrough`);

export const linearLanes = dmfuse('linear-lanes', 'linear, I/O served by the lanes', throughLanes);

/** A fresh snapshot: what is written to the device is copied first. */
export const snapshotFresh = dmfuse(
  'snapshot-fresh',
  'linear in a snapshot that was just taken',
  throughLanes,
  {
    prepare: trackAndTake,
  },
);

/** A fresh layer: what is written to it is written there for the first time. */
export const cowFresh = dmfuse('cow-fresh', 'cow, a fresh layer on the image', layered, { judged: false });

export const dmfuseSubjects: readonly Subject[] = [
  dmfuse(
    'linear-passthrough',
    'linear, I/O passed through by the kernel',
    plain((path) => `linear ${path} 0`),
    {
      passthrough: true,
    },
  ),
  linearLanes,
  dmfuse(
    'bow-0',
    'bow before the checkpoint',
    plain((path) => `bow ${path}`),
    { judged: false },
  ),
  dmfuse(
    'bow-1',
    'bow after the checkpoint, every block changed already',
    plain((path) => `bow ${path}`),
    {
      prepare: steadyState1,
    },
  ),
  dmfuse(
    'bow-2',
    'bow committed, opened anew',
    plain((path) => `bow ${path}`),
    {
      prepare: committed,
      passthrough: true,
    },
  ),
  dmfuse('csum', 'csum, tables among the data', formatted, { prepare: fill, ownFiles: true }),
  dmfuse('csum-imd', 'csum, tables on a device of their own', formattedApart, {
    prepare: fill,
    ownFiles: true,
  }),
  dmfuse('cow', 'cow, every block held by the top layer already', layered, {
    prepare: ownAll,
    ownFiles: true,
  }),
  cowFresh,
  dmfuse(
    'clone',
    'clone, nothing hydrated: what is read comes from the image',
    (lab, image) => cloneTable(lab, image, CLONE_REGION_SECTORS, '1 no_hydration'),
    { ownFiles: true, readOnly: true },
  ),
  dmfuse(
    'clone-hydrated',
    'clone, all hydrated, opened anew',
    (lab, image) => cloneTable(lab, image, CLONE_REGION_SECTORS, '0'),
    { prepare: hydrate, passthrough: true, ownFiles: true },
  ),
  dmfuse('tracked', 'linear through the lanes with the filter blksnap, no snapshot', throughLanes, {
    prepare: track,
  }),
  dmfuse('snapshot-steady', 'the same in a snapshot, every chunk copied already', throughLanes, {
    prepare: copyAll,
  }),
  dmfuse('snapshot-image', 'the image of a snapshot, every second chunk of it in the storage', throughLanes, {
    prepare: copyHalf,
    shown: (mount) => mount.snapshotImage('device'),
    ownFiles: true,
    readOnly: true,
  }),
];
