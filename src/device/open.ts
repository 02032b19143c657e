/**
 * Opening a regular file or a block device as a backing: checked, locked, measured. Asynchronous but for what cannot
 * wait: a path may lead into a mount that the calling thread itself serves.
 */
import { closeSync, constants, fstatSync, open as openCallback, type Stats } from 'node:fs';
import { stat } from 'node:fs/promises';
import { constants as osConstants } from 'node:os';
import { promisify } from 'node:util';
import { DmError, type ErrnoName } from '../errors.js';
import { libcFunction } from '../libc.js';
import { type FileDescription, fileSize } from './file.js';

const openFile = promisify(openCallback);
const flock = libcFunction<[number, number]>('int flock(int fd, int operation)');
const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;

export type Access = 'read' | 'write';

/** What is at `path`, before it is opened. Throws ENOENT, EINVAL for what is neither file nor block device. */
export async function statBacking(path: string): Promise<Stats> {
  const stats = await stat(path).catch((error) => rethrow(error, path));
  if (stats.isFile() || stats.isBlockDevice()) return stats;
  throw new DmError('EINVAL', `${path}: neither a regular file nor a block device`);
}

/**
 * Opens what `statBacking` found. One process writes or any number read: O_EXCL keeps a block device from being mounted
 * or opened by another target, flock(2) does so for files. Throws EBUSY, EAGAIN when the path changed meanwhile.
 */
export async function openBackingFile(path: string, found: Stats, access: Access): Promise<FileDescription> {
  const exclusive = found.isBlockDevice() && access === 'write' ? constants.O_EXCL : 0;
  const mode = access === 'write' ? constants.O_RDWR : constants.O_RDONLY;
  const fd = await openFile(path, mode | exclusive).catch((error) => rethrow(error, path));
  try {
    if (inodeKey(fstatSync(fd)) !== inodeKey(found)) {
      throw new DmError('EAGAIN', `${path}: replaced while it was opened; try again`);
    }
    lock(fd, path, access);
    return { fd, path, size: fileSize(fd) };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** A name for a file or block device that is the same for all paths to it. */
export function inodeKey(stats: Stats): string {
  return stats.isBlockDevice() ? `block ${stats.rdev}` : `inode ${stats.dev}:${stats.ino}`;
}

/** `MAJ:MIN` of a dev_t, as glibc and /sys have it. */
export function deviceNumber(dev: number): string {
  const bits = BigInt(dev);
  const major = ((bits >> 8n) & 0xfffn) | ((bits >> 32n) & 0xfffff000n);
  const minor = (bits & 0xffn) | ((bits >> 12n) & 0xffffff00n);
  return `${major}:${minor}`;
}

function lock(fd: number, path: string, access: Access): void {
  try {
    flock(fd, (access === 'write' ? LOCK_EX : LOCK_SH) | LOCK_NB);
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    // Any other errno: a file system without locks, where nobody else can have one either.
    if (code !== 'EAGAIN' && code !== 'EWOULDBLOCK') return;
    throw new DmError('EBUSY', `${path}: in use by another process, which holds a lock on it`);
  }
}

function rethrow(error: NodeJS.ErrnoException, path: string): never {
  // What Node refuses by itself (a NUL in a path) has a code that is no errno.
  const known = error.code === undefined || error.code in osConstants.errno;
  const code = known ? ((error.code ?? 'EIO') as ErrnoName) : 'EINVAL';
  if (code === 'ENOENT') throw new DmError(code, `${path}: no such file or device`);
  if (code === 'EBUSY') throw new DmError(code, `${path}: in use: mounted, or opened by another program`);
  throw new DmError(code, `${path}: ${error.message}`);
}
