/** The directory that a mount takes: what may be there before, and how a dead mount is taken away (`mount --replace`). */
import { realpathSync, statSync } from 'node:fs';
import { DmError } from '../../src/errors.js';
import { unmount } from '../fuse/connection.js';
import { findMount, isDead, isOfTheDead, refuseCovered, topMount } from './find-mount.js';
import { note } from './output.js';
import { loopsOn } from './umount.js';

/** The path, absolute and without links. Throws ENOENT, ENOTDIR, EBUSY for a dmfuse mount, ENOTCONN for a dead mount. */
export function checkMountPoint(argument: string): string {
  refuseMounted(argument);
  let path: string;
  try {
    path = realpathSync(argument);
  } catch (error) {
    if (isOfTheDead(error)) {
      throw new DmError(
        'ENOTCONN',
        `${argument}: a dead mount of something else; \`umount ${argument}\` clears it away`,
      );
    }
    throw new DmError('ENOENT', `${argument}: no such directory; make it with mkdir`);
  }
  if (!statSync(path).isDirectory()) throw new DmError('ENOTDIR', `${argument}: not a directory`);
  return path;
}

/**
 * Detaches a dmfuse mount whose daemon is dead, and those below it that are dead too. Whoever has its files open keeps what he has,
 * and gets ENOTCONN of it: who that is among loop devices is told. No mount at all is fine.
 */
export async function detachDead(argument: string): Promise<void> {
  for (let mount = topMount(argument); mount && isDead(mount.mountPoint); mount = topMount(argument)) {
    const { mountPoint } = mount;
    // Before: from then on, its files have no path.
    const loops = loopsOn(mountPoint);
    await unmount(mountPoint, { lazy: true });
    note(`${mountPoint}: detached a mount whose daemon is dead`);
    for (const { device, file } of loops) {
      note(`${device} stays dead, it was on ${file}: unmount what is on it, and losetup -d ${device}`);
    }
  }
}

function refuseMounted(argument: string): void {
  const mountPoint = findMount(argument);
  if (!mountPoint) return;
  refuseCovered(mountPoint);
  if (!isDead(mountPoint)) {
    throw new DmError('EBUSY', `${argument}: a dmfuse mount already; \`dmfuse umount ${argument}\` ends it`);
  }
  const remedy = `\`dmfuse mount --replace ${argument} …\` mounts anew, \`dmfuse umount ${argument}\` clears it away`;
  throw new DmError('ENOTCONN', `${argument}: a dmfuse mount whose daemon is dead; ${remedy}`);
}
