/** `dmfuse umount`: refuses while a file in it stays open and says by whom; waits until the daemon has flushed and gone. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DmError, errnoOf } from '../../src/errors.js';
import { unmount } from '../fuse/connection.js';
import { requireMount, topMount } from './find-mount.js';
import { readMountInfo } from './mount-info.js';
import { note } from './output.js';

/** `dmfuse top`, or whatever scrapes the counters, has control files open for a moment: that is no reason to refuse. */
const ATTEMPTS = 10;
const RETRY_MS = 50;
const POLL_MS = 10;
/** How long a daemon may take to end before it is said what it may wait for. */
const PATIENCE_MS = 3000;
const PROCESSES_SHOWN = 5;

export async function umount(mountArgument: string): Promise<void> {
  const mountPoint = requireMount(mountArgument);
  const daemon = daemonPid(mountPoint);
  const device = topMount(mountPoint)?.device;
  // Only this one: somebody else may unmount it meanwhile, and another dmfuse be below it.
  for (let attempt = 1; topMount(mountPoint)?.device === device; attempt++) {
    const users = await unmountUnlessUsed(mountPoint);
    if (users === undefined) break;
    if (attempt === ATTEMPTS) throw new DmError('EBUSY', `${mountPoint}: in use: ${users}`);
    await sleep(RETRY_MS);
  }
  if (daemon === undefined) return;
  const patience = setTimeout(() => note(stillServed(mountPoint, daemon, device)), PATIENCE_MS);
  while (isAlive(daemon)) await sleep(POLL_MS);
  clearTimeout(patience);
}

/** Returns by whom it is used; undefined when it has been unmounted. */
async function unmountUnlessUsed(mountPoint: string): Promise<string | undefined> {
  const users = usersOf(mountPoint);
  if (users.length > 0) return users.join('; ');
  try {
    await unmount(mountPoint);
    return undefined;
  } catch (error) {
    if (errnoOf(error) === errnoOf({ code: 'EBUSY' })) return `fuser -vm ${mountPoint} tells by whom`;
    throw error;
  }
}

/** Why the daemon of a mount that is gone here may go on: the mount is in other mount namespaces too (containers, services). */
function stillServed(mountPoint: string, daemon: number, device: string | undefined): string {
  const others = processes().filter((pid) => {
    try {
      return readMountInfo(pid).some((mount) => mount.device === device);
    } catch {
      return false;
    }
  });
  const who = others.slice(0, PROCESSES_SHOWN).map((pid) => `${pid} (${processName(pid)})`);
  const why =
    others.length > 0
      ? `other mount namespaces have it too, as that of process ${who.join(', ')}; it ends when they unmount it`
      : 'it is flushing, or waits for a disk';
  return `${mountPoint} is gone here, and its daemon, process ${daemon}, still runs: ${why}`;
}

/** Who serves the mount; undefined when he is dead. */
function daemonPid(mountPoint: string): number | undefined {
  try {
    return Number(/^pid (\d+)$/m.exec(readFileSync(join(mountPoint, '.dmfuse'), 'utf8'))?.[1]);
  } catch {
    return undefined;
  }
}

/** Whether a process runs. */
export function isAlive(pid: number): boolean {
  try {
    // A zombie waits for its parent, not we for it; but threads of it may still have its files.
    if (readdirSync(`/proc/${pid}/task`).length > 1) return true;
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

/** Loop devices on files of a mount. */
export function loopsOn(mountPoint: string): { device: string; file: string }[] {
  const names = readdirSync('/sys/block').filter((block) => block.startsWith('loop'));
  return names.flatMap((name) => {
    const file = backingFile(name);
    return isInside(file, mountPoint) ? [{ device: `/dev/${name}`, file }] : [];
  });
}

/** What a loop device is on; '' where it is on nothing, or is being detached just now. */
function backingFile(loop: string): string {
  try {
    return readFileSync(`/sys/block/${loop}/loop/backing_file`, 'utf8').trim();
  } catch {
    return '';
  }
}

/** `FILE by WHOM`, for each file of the mount that is open or somebody's working directory. */
function usersOf(mountPoint: string): string[] {
  const users = loopsOn(mountPoint).map(({ device, file }) => `${file} by ${device} (losetup -d)`);
  for (const pid of processes()) {
    for (const path of openFiles(pid).filter((open) => isInside(open, mountPoint))) {
      users.push(`${path} by process ${pid} (${processName(pid)})`);
    }
  }
  return users;
}

function isInside(path: string, mountPoint: string): boolean {
  return path === mountPoint || path.startsWith(`${mountPoint}/`);
}

function processes(): string[] {
  return readdirSync('/proc').filter((entry) => /^\d+$/.test(entry));
}

function openFiles(pid: string): string[] {
  try {
    const descriptors = readdirSync(`/proc/${pid}/fd`).map((fd) => `fd/${fd}`);
    return ['cwd', 'root', ...descriptors].map((link) => {
      try {
        return readlinkSync(`/proc/${pid}/${link}`);
      } catch {
        return '';
      }
    });
  } catch {
    return []; // another user's process, or one that has ended
  }
}

function processName(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
  } catch {
    return '?';
  }
}
