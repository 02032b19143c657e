/** Finding dmfuse mounts from outside, by /proc/self/mountinfo: also one whose daemon is dead can be named. */
import { realpathSync } from 'node:fs';
import { resolve } from 'node:path';
import { DmError } from '../../src/errors.js';
import { readMountInfo } from './mount-info.js';

/** The mount point that `path` is, absolute; undefined when no dmfuse is mounted there. */
export function findMount(path: string): string | undefined {
  const wanted = [resolve(path), realPath(path)];
  return readMountInfo().find(({ type, mountPoint }) => type === 'fuse.dmfuse' && wanted.includes(mountPoint))
    ?.mountPoint;
}

/** As findMount; throws EINVAL where there is none. */
export function requireMount(path: string): string {
  const found = findMount(path);
  if (found) return found;
  throw new DmError('EINVAL', `${path}: no dmfuse is mounted there; \`dmfuse mount ${path}\` does that`);
}

function realPath(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined;
  }
}
