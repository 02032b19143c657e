/**
 * The daemon: one mount, its registry, its tree and its transport, from mount(2) to the last flush.
 *
 * It ends when the mount is gone, whoever took it away: `dmfuse umount`, umount(8), fusermount3 -u, or a signal. Then
 * every target is flushed and the process exits.
 */
import { stat } from 'node:fs/promises';
import { DmError, type ErrnoName, messageOf } from '../src/errors.js';
import { exitNow } from './exit-now.js';
import { unmount } from './fuse/connection.js';
import { openKernelTransport } from './fuse/transport.js';
import { Attendance } from './lanes/attendance.js';
import type { ToLane } from './lanes/protocol.js';
import { lockProgram, lowerOomScore, markIoFlusher } from './lanes/reclaim.js';
import { Registry } from './registry.js';
import { SavedFilters } from './saved-filters.js';
import { MountedSnapshots } from './snapshots.js';
import { factsText, type Service, type Transport, type TransportChoice } from './transport.js';
import { deviceNode } from './tree/nodes.js';
import { Passthrough } from './tree/passthrough.js';
import { targetsFolder } from './tree/targets-folder.js';
import { Tree } from './tree/tree.js';
import { VERSION } from './version.js';

const UNSAFE_UNDER_PRESSURE =
  'no CAP_SYS_RESOURCE here: the daemon may wait for memory that its own devices are to free; dmfuse-loop-safety(7) tells when';

/** A target that is there when the mount begins. */
export interface TargetToCreate {
  /** What messages call the place that asks for it; undefined: nothing. */
  readonly where: string | undefined;
  readonly name: string;
  readonly table: string;
  /** What is written to its `filter`. */
  readonly filter: { readonly where: string | undefined; readonly line: string } | undefined;
}

export interface DaemonOptions {
  /** An absolute path to a directory. */
  readonly mountPoint: string;
  readonly transport: TransportChoice;
  readonly lanes: number;
  readonly allowOther: boolean;
  readonly debug: boolean;
  /** In this order. */
  readonly create: readonly TargetToCreate[];
  /** What mount(8) and df show as the mount's source. */
  readonly source: string;
  /** An absolute path to a directory, which may be missing: where the state of filters outlives the mount. */
  readonly stateDir: string | undefined;
  /** A line for whoever runs the daemon. */
  readonly log: (line: string) => void;
  /** All of `create` is made. Where this throws, nothing stays mounted. */
  readonly onMade: () => void;
}

/** Mounts, creates what was asked for, and serves. Resolves when the mount answers; `ended` with the exit code. */
export async function startDaemon(options: DaemonOptions): Promise<{ ended: Promise<number> }> {
  const { mountPoint, log } = options;
  const transport = await openTransport(options);
  const { statRows } = transport;
  const isSafe = markIoFlusher() && lowerOomScore();
  if (!isSafe && process.getuid!() === 0) log(UNSAFE_UNDER_PRESSURE);

  // Async: this thread answers the request that it makes here, once the lanes run.
  let mountStat: Promise<{ dev: number }> | undefined;
  const mountDevice = async () => {
    mountStat ??= stat(mountPoint);
    return (await mountStat).dev;
  };
  let end: (code: number) => void;
  const ended = new Promise<number>((resolve) => {
    end = resolve;
  });
  const passthrough = new Passthrough(transport.backingIds);
  const announce = (message: ToLane) => service.announce(message);
  const raise = (id: number, line: string) =>
    (registry.byId(id)?.events ?? snapshots.eventsOf(id))?.raise(line);
  const registry: Registry = new Registry({
    mountPoint,
    mountDevice,
    statRows,
    deviceNode,
    announce,
    attend: (device, target) => attendance.attend(device, target),
    dismiss: (id) => attendance.dismiss(id),
    attendFilter: (id, filter) => attendance.setFilter(id, filter),
    settle: async (nodes) => {
      await Promise.all([service.settle(nodes), attendance.settle()]);
    },
    isInSnapshot: (id) => snapshots.holds(id),
    isPassedThrough: (id) => passthrough.isOpen(id),
    attributesChanged: (node) => service.attributesChanged(node),
    nameGone: (name) => service.nameGone(name),
    raise,
    savedFilters: options.stateDir === undefined ? undefined : new SavedFilters(options.stateDir),
  });
  const snapshots: MountedSnapshots = new MountedSnapshots({ registry, statRows, announce });
  const inFlight = (node: number) => service.inFlight(node);
  const rootFolder = targetsFolder({ registry, passthrough, snapshots, inFlight });
  const tree = new Tree({
    root: rootFolder,
    folderById: (id) => rootFolder.byId(id) ?? snapshots.folderById(id),
    uid: process.getuid!(),
    gid: process.getgid!(),
    allowOther: options.allowOther,
    daemonText: `version ${VERSION}\n${factsText(transport.facts)}`,
  });
  const report = (failures: readonly string[]): number => {
    for (const failure of failures) log(`flush failed: ${failure}`);
    return failures.length > 0 ? 1 : 0;
  };
  const attendance = new Attendance({
    onEvent: raise,
    onFailure: (error) => fail('an attendant', error),
  });
  const fail = (who: string, error: Error) => {
    log(`${who} failed: ${error.stack ?? messageOf(error)}`);
    report(registry.flushAll());
    end(1);
  };
  process.on('uncaughtException', (error) => fail('the main thread', error));
  takeSignals(mountPoint, log, () => {
    registry.resumeAll();
    registry.closeEvents();
    snapshots.closeEvents();
    report(registry.flushAll());
  });

  const service: Service = await transport.start({
    tree,
    outputOf: (device) => registry.outputOf(device),
    whenFree: (id) => registry.whenFree(id),
    onEvent: raise,
    log,
    onEnd: () => void registry.close().then((failures) => end(report(failures))),
    onFailure: fail,
  });

  // It answers.
  await mountDevice();
  lockProgram();
  try {
    for (const target of options.create) await createTarget(registry, target);
    options.onMade();
  } catch (error) {
    // What was wrong with the table is news, whatever becomes of the mount.
    await unmount(mountPoint, { lazy: true }).then(
      () => ended,
      (failure) => log(messageOf(failure)),
    );
    throw error;
  }
  // Once whoever waits for the mount has been told.
  setImmediate(() => service.startSpares());
  return { ended };
}

async function openTransport(options: DaemonOptions): Promise<Transport> {
  if (options.transport === 'kernel') return await openKernelTransport(options);
  return (await import('./fuse-native/transport.js')).openNativeTransport(options);
}

async function createTarget(
  registry: Registry,
  { where, name, table, filter }: TargetToCreate,
): Promise<void> {
  const slot = await namingAsync(where, async () => {
    const added = registry.add(name);
    await registry.load(added, table);
    return added;
  });
  if (!filter) return;
  await namingAsync(filter.where, async () => {
    try {
      await registry.setFilter(slot, filter.line);
    } catch (error) {
      // EALREADY: it came back with what the state directory knows of the device.
      if ((error as { code?: unknown }).code !== 'EALREADY') throw error;
    }
  });
}

/** As `naming`. */
async function namingAsync<T>(where: string | undefined, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (where === undefined || !(error instanceof Error)) throw error;
    throw new DmError((error as { code?: ErrnoName }).code ?? 'EIO', `${where}: ${error.message}`);
  }
}

/** SIGTERM and SIGINT flush and unmount; while files are open the mount is only detached and served to its end. */
function takeSignals(mountPoint: string, log: (line: string) => void, prepare: () => void): void {
  let leaving = false;
  const leave = async (signal: NodeJS.Signals) => {
    prepare();
    if (leaving) {
      log(`${signal} again: leaving while files are open`);
      exitNow(1);
    }
    leaving = true;
    try {
      await unmount(mountPoint);
    } catch (error) {
      log(`${signal}: ${messageOf(error)}: detached; the daemon ends when the last open file is closed`);
      await unmount(mountPoint, { lazy: true }).catch((lazyError) => log(messageOf(lazyError)));
    }
  };
  process.on('SIGTERM', leave);
  process.on('SIGINT', leave);
  process.on('SIGHUP', () => {});
}
