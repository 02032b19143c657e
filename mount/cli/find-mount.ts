/** Finding dmfuse mounts from outside, by /proc/self/mountinfo: also one whose daemon is dead can be named. */
import { readlinkSync, realpathSync, statfsSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { DmError } from '../../src/errors.js';
import { type MountInfo, readMountInfo } from './mount-info.js';

const FS_TYPE = 'fuse.dmfuse';

/** The mount point that `path` is, absolute; undefined when no dmfuse is mounted there. */
export function findMount(path: string): string | undefined {
  const mounts = readMountInfo().filter(({ type }) => type === FS_TYPE);
  const find = (wanted: string | undefined) =>
    mounts.find(({ mountPoint }) => mountPoint === wanted)?.mountPoint;
  // The file system itself is asked only where it must be: a daemon that stands still does not answer.
  return find(resolve(path)) ?? find(realPath(path));
}

/** As findMount; throws EINVAL where there is none, EBUSY where something else covers it, which all that is asked would reach instead. */
export function requireMount(path: string): string {
  const found = findMount(path);
  if (found) {
    refuseCovered(found);
    return found;
  }
  throw new DmError('EINVAL', `${path}: no dmfuse is mounted there; \`dmfuse mount ${path}\` does that`);
}

/** What is on top of all that is mounted at `path`, if it is a dmfuse. */
export function topMount(path: string): MountInfo | undefined {
  const top = topAt(resolve(path), realPath(path));
  return top?.type === FS_TYPE ? top : undefined;
}

/** Throws EBUSY where something else is mounted over the dmfuse at `mountPoint`. */
export function refuseCovered(mountPoint: string): void {
  const top = topAt(mountPoint);
  if (!top || top.type === FS_TYPE) return;
  throw new DmError(
    'EBUSY',
    `${mountPoint}: a dmfuse mount, which a mount of type ${top.type} covers; \`umount ${mountPoint}\` takes that away`,
  );
}

/** True when nobody serves what is mounted at `mountPoint` any more. (Attributes are cached, so stat(2) may still answer.) */
export function isDead(mountPoint: string): boolean {
  try {
    statfsSync(mountPoint);
    return false;
  } catch (error) {
    return isOfTheDead(error);
  }
}

/** Of all that is mounted at these paths, of any type, what nothing covers. */
function topAt(...paths: readonly (string | undefined)[]): MountInfo | undefined {
  const mounts = readMountInfo().filter(({ mountPoint }) => paths.includes(mountPoint));
  return mounts.filter(({ id }) => !mounts.some(({ parentId }) => parentId === id)).at(-1);
}

/** Without links; undefined where there is nothing. */
function realPath(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch (error) {
    if (!isOfTheDead(error)) return undefined;
  }
  // A dead mount, or a link to one: what is above it can be asked.
  const parent = realPath(dirname(resolve(path)));
  if (parent === undefined) return undefined;
  const here = join(parent, basename(path));
  try {
    return realPath(resolve(parent, readlinkSync(here)));
  } catch {
    return here;
  }
}

/** Whether an error says that nobody serves a mount. ECONNABORTED: its daemon died while it was asked. */
export function isOfTheDead(error: unknown): boolean {
  return ['ENOTCONN', 'ECONNABORTED'].includes((error as NodeJS.ErrnoException).code ?? '');
}
