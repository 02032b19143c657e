/**
 * What a mount can be asked about itself at one moment: the counters, latencies and state of every target, and the storage of every
 * snapshot. Read from the control files, as anybody can. What goes away meanwhile is left out.
 */
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DmError } from '../../src/errors.js';
import { SECTOR_BYTES } from '../../src/units.js';
import { type Latency, parseLatencyText, STAT_NAMES, type StatName, type TimedOp } from '../lanes/stats.js';
import { SNAPSHOTS } from '../tree/folder.js';
import { explain, readControlLater, whyNoAnswer } from './control.js';
import { requireMount } from './find-mount.js';
import { PARAMS, parseState } from './snapshot-files.js';
import { parseStatusLine, type StatusLine } from './status-line.js';

export interface Sample {
  readonly mountPoint: string;
  /** Of the daemon. */
  readonly version: string;
  readonly targets: readonly TargetSample[];
  /** Directories that have no target. */
  readonly empty: readonly string[];
  readonly snapshots: readonly SnapshotSample[];
}

export interface TargetSample {
  readonly name: string;
  /** Of its directory: a later target of the same name has another one. */
  readonly inode: number;
  /** When it was read, on a clock that only goes forward. */
  readonly seconds: number;
  readonly status: StatusLine;
  readonly counters: Readonly<Record<StatName, number>>;
  /** Opens of its device. */
  readonly open: number;
  /** Requests that lanes serve now. */
  readonly inFlight: number;
  /** The kernel does the I/O of its opens itself, and nothing of it is counted. */
  readonly isPassedThrough: boolean;
  readonly latencies: Readonly<Record<TimedOp, Latency>>;
}

export interface SnapshotSample {
  readonly name: string;
  /** created, taken or corrupted. */
  readonly state: string;
  readonly storageBytes: number;
  readonly filledBytes: number;
  readonly devices: readonly { readonly name: string; readonly errorCode: number }[];
}

/**
 * Of the mount at an absolute path without links, or of one of its targets: then nothing here blocks the thread, whatever the daemon
 * does. Throws EINVAL where no dmfuse is mounted, ENOTCONN where its daemon is dead, ENOENT for a target that is not there.
 */
export async function readSample(mount: string, name: string | undefined): Promise<Sample> {
  const mountPoint = requireMount(mount);
  const about = await readControlLater(mountPoint, '.dmfuse');
  const names = (await listFolder(mountPoint, mountPoint)).filter((entry) => entry !== SNAPSHOTS);
  if (name !== undefined && !names.includes(name)) {
    throw new DmError('ENOENT', `${name}: there is no target of that name in ${mountPoint}`);
  }
  const wanted = names.filter((entry) => name === undefined || entry === name);
  const found = await Promise.all(
    wanted.map((entry) => unlessGone(() => readTarget(join(mountPoint, entry), entry))),
  );
  const snapshots = await readSnapshots(mountPoint);
  const isWanted = ({ devices }: SnapshotSample) =>
    name === undefined || devices.some((device) => device.name === name);
  return {
    mountPoint,
    version: /^version (.*)$/m.exec(about)?.[1] ?? '',
    targets: found.filter((target) => typeof target === 'object'),
    empty: found.filter((target) => typeof target === 'string'),
    snapshots: snapshots.filter(isWanted),
  };
}

/** Its name where there is no target yet. */
async function readTarget(folder: string, name: string): Promise<TargetSample | string> {
  const { ino: inode } = await stat(folder);
  const status = parseStatusLine(await readControlLater(folder, 'status'));
  if (!status) return name;
  const numbers = parseNumbers(await readControlLater(folder, 'stats'));
  const latencies = parseLatencyText(await readControlLater(folder, 'latency'));
  const counters = Object.fromEntries(STAT_NAMES.map((key) => [key, numbers.get(key) ?? 0]));
  return {
    name,
    inode,
    seconds: performance.now() / 1000,
    status,
    counters: counters as Record<StatName, number>,
    open: numbers.get('open') ?? 0,
    inFlight: numbers.get('in_flight') ?? 0,
    isPassedThrough: numbers.get('passed_through') === 1,
    latencies,
  };
}

function parseNumbers(text: string): Map<string, number> {
  return new Map(text.split('\n').map((line) => [line.split(' ')[0]!, Number(line.split(' ')[1])]));
}

async function readSnapshots(mountPoint: string): Promise<SnapshotSample[]> {
  const folder = join(mountPoint, SNAPSHOTS);
  const names = (await listFolder(folder, mountPoint)).filter((entry) => entry !== PARAMS);
  const found = await Promise.all(
    names.map((name) =>
      unlessGone(async (): Promise<SnapshotSample> => {
        const { state, capacitySectors, filledSectors, devices } = parseState(
          await readControlLater(join(folder, name), 'state'),
        );
        const [storageBytes, filledBytes] = [capacitySectors * SECTOR_BYTES, filledSectors * SECTOR_BYTES];
        return { name, state, storageBytes, filledBytes, devices };
      }),
    ),
  );
  return found.filter((snapshot) => snapshot !== undefined);
}

async function listFolder(folder: string, mountPoint: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    throw explain(error, folder, whyNoAnswer(mountPoint));
  }
}

/** Undefined where it was removed while it was being read. */
async function unlessGone<T>(read: () => Promise<T>): Promise<T | undefined> {
  try {
    return await read();
  } catch (error) {
    if (['ENOENT', 'ENODEV', 'ESTALE'].includes((error as NodeJS.ErrnoException).code ?? ''))
      return undefined;
    throw error;
  }
}
