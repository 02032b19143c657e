/**
 * The daemon: one mount, its registry, its tree and its lanes, from mount(2) to the last flush.
 *
 * It ends when the mount is gone, whoever took it away: `dmfuse umount`, umount(8), fusermount3 -u, or a signal. Then
 * every target is flushed and the process exits.
 */
import { write } from 'node:fs';
import { stat } from 'node:fs/promises';
import { messageOf } from '../src/errors.js';
import { libcFunction } from '../src/libc.js';
import { closeBacking, connect, openBacking, unmount } from './fuse/connection.js';
import { MainRequests } from './fuse/main-requests.js';
import { encodeAttributesChanged, encodeNameGone } from './fuse/wire.js';
import { HeldRequests } from './held-requests.js';
import { Attendance } from './lanes/attendance.js';
import { LanePool } from './lanes/pool.js';
import type { FromLane, ToLane } from './lanes/protocol.js';
import { lowerOomScore, markIoFlusher } from './lanes/reclaim.js';
import { Registry } from './registry.js';
import { SavedFilters } from './saved-filters.js';
import { MountedSnapshots } from './snapshots.js';
import { deviceNode, ROOT } from './tree/nodes.js';
import { Passthrough } from './tree/passthrough.js';
import { targetsFolder } from './tree/targets-folder.js';
import { Tree } from './tree/tree.js';
import { VERSION } from './version.js';

export interface DaemonOptions {
  /** An absolute path to a directory. */
  readonly mountPoint: string;
  readonly lanes: number;
  readonly allowOther: boolean;
  readonly debug: boolean;
  readonly create: readonly { readonly name: string; readonly table: string }[];
  /** An absolute path to a directory, which may be missing: where the state of filters outlives the mount. */
  readonly stateDir: string | undefined;
  /** A line for whoever runs the daemon. */
  readonly log: (line: string) => void;
}

/** Mounts, creates what was asked for, and serves. Resolves when the mount answers; `ended` with the exit code. */
export async function startDaemon(options: DaemonOptions): Promise<{ ended: Promise<number> }> {
  const { mountPoint, log } = options;
  const connection = await connect(mountPoint, options);
  markIoFlusher();
  lowerOomScore();

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
  const passthrough = new Passthrough(
    connection.passthrough
      ? {
          open: (fd) => openBacking(connection.fd, fd),
          close: (backingId) => closeBacking(connection.fd, backingId),
        }
      : undefined,
  );
  // Asynchronous: the kernel may let it wait for requests that this thread has yet to answer. Nobody needs to know: what it forgets
  // now it would ask anew for in a second.
  const notify = (bytes: Uint8Array) => write(connection.fd, bytes, () => {});
  const announce = (message: ToLane) => pool.announce(message);
  const raise = (id: number, line: string) =>
    (registry.byId(id)?.events ?? snapshots.eventsOf(id))?.raise(line);
  const registry: Registry = new Registry({
    mountPoint,
    mountDevice,
    lanes: options.lanes,
    deviceNode,
    announce,
    attend: (device, target) => attendance.attend(device, target),
    dismiss: (id) => attendance.dismiss(id),
    attendFilter: (id, filter) => attendance.setFilter(id, filter),
    settle: async (nodes) => {
      await Promise.all([pool.settle(nodes), attendance.settle()]);
    },
    isInSnapshot: (id) => snapshots.holds(id),
    isPassedThrough: (id) => passthrough.isOpen(id),
    attributesChanged: (node) => notify(encodeAttributesChanged(node)),
    nameGone: (name) => notify(encodeNameGone(ROOT, name)),
    raise,
    savedFilters: options.stateDir === undefined ? undefined : new SavedFilters(options.stateDir),
  });
  const snapshots: MountedSnapshots = new MountedSnapshots({ registry, lanes: options.lanes, announce });
  const rootFolder = targetsFolder({ registry, passthrough, snapshots });
  const tree = new Tree({
    root: rootFolder,
    folderById: (id) => rootFolder.byId(id) ?? snapshots.folderById(id),
    uid: process.getuid!(),
    gid: process.getgid!(),
    allowOther: options.allowOther,
    version: VERSION,
  });
  const requests = new MainRequests(connection.fd, tree);
  const held = new HeldRequests({
    registry,
    row: options.lanes,
    reply: (unique, errno, body) => requests.reply(unique, errno, body),
    handOver: (bytes) => requests.handle(bytes),
  });
  const report = (failures: readonly string[]): number => {
    for (const failure of failures) log(`flush failed: ${failure}`);
    return failures.length > 0 ? 1 : 0;
  };
  const attendance = new Attendance({
    onEvent: raise,
    onFailure: (error) => fail('an attendant', error),
  });
  const pool = new LanePool({
    fuseFd: connection.fd,
    lanes: options.lanes,
    debug: options.debug,
    onMessage: (message: FromLane) => {
      if (message.kind === 'request') requests.handle(message.bytes);
      else if (message.kind === 'held') void held.handle(message.bytes);
      else if (message.kind === 'event') raise(message.id, message.line);
      else log(message.line);
    },
    onEnd: () => void registry.close().then((failures) => end(report(failures))),
    onFailure: (error) => fail('a lane', error),
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

  // It answers.
  await mountDevice();
  try {
    for (const { name, table } of options.create) await registry.load(registry.add(name), table);
  } catch (error) {
    // What was wrong with the table is news, whatever becomes of the mount.
    await unmount(mountPoint, { lazy: true }).then(
      () => ended,
      (failure) => log(messageOf(failure)),
    );
    throw error;
  }
  return { ended };
}

/** Ends the process whatever its lanes do. process.exit would wait for them, and they for the next request. */
export function exitNow(code: number): never {
  libcFunction<[number]>('void _exit(int status)')(code);
  throw new Error('_exit returned');
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
