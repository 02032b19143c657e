/** Files and block devices that a command works on while they are not attached. */
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { type FileDescription, FileDevice } from '../../src/device/file.js';
import { type Access, inodeKey, openBackingFile, statBacking } from '../../src/device/open.js';
import { DmError, errnoOf } from '../../src/errors.js';

/** How long a command waits for a daemon that is just ending to let go of an image. */
const LOCK_WAIT_MS = 5000;
const LOCK_POLL_MS = 50;

/** Has `use` work on an image; it is this process's alone meanwhile, or everybody's to read. */
export async function withImage<T>(
  path: string,
  access: Access,
  use: (device: FileDevice) => T | Promise<T>,
): Promise<T> {
  const file = await openWhenFree(path, access);
  try {
    return await use(new FileDevice(file));
  } finally {
    closeSync(file.fd);
  }
}

/** As withImage, with one image or two. Throws EINVAL where both paths lead to the same. */
export async function withImages<T>(
  [path, second]: readonly [string, string | undefined],
  access: Access,
  use: (device: FileDevice, second: FileDevice | undefined) => T | Promise<T>,
): Promise<T> {
  if (second === undefined) return await withImage(path, access, (device) => use(device, undefined));
  const keys = await Promise.all([path, second].map(async (each) => inodeKey(await statBacking(each))));
  if (keys[0] === keys[1]) throw new DmError('EINVAL', `${path} and ${second} are the same device`);
  return await withImage(path, access, (device) =>
    withImage(second, access, (secondDevice) => use(device, secondDevice)),
  );
}

/** Opens and locks a file or block device, after a while where a daemon that ends has it still. The caller closes it. */
export async function openWhenFree(path: string, access: Access): Promise<FileDescription> {
  for (let waited = 0; ; waited += LOCK_POLL_MS) {
    try {
      return await openBackingFile(path, await statBacking(path), access);
    } catch (error) {
      if (errnoOf(error) !== errnoOf({ code: 'EBUSY' }) || waited >= LOCK_WAIT_MS) throw error;
      await sleep(LOCK_POLL_MS);
    }
  }
}
