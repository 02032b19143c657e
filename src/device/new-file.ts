/**
 * A file that has no name of its own until it is complete: made under a temporary name beside it, and renamed when it is
 * on disk. So nobody takes half of it for the whole.
 */
import {
  closeSync,
  constants,
  fsyncSync,
  ftruncateSync,
  linkSync,
  openSync,
  renameSync,
  rmSync,
} from 'node:fs';
import { lstat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { DmError, type ErrnoName } from '../errors.js';
import { FileDevice } from './file.js';

export class NewFile {
  /** Zeros at first, all of it a hole. */
  readonly device: FileDevice;
  private static made = 0;
  private isThere = true;

  private constructor(
    private readonly path: string,
    private readonly temporary: string,
    private readonly fd: number,
    size: number,
  ) {
    this.device = new FileDevice({ fd, path, size });
  }

  /** Begins a file of `size` bytes that only its owner may read and write. Throws EEXIST where there is one, ENOENT, ENOSPC. */
  static async create(path: string, size: number): Promise<NewFile> {
    await requireAbsent(path);
    const temporary = join(dirname(path), `.dmfuse-${process.pid}-${NewFile.made++}`);
    const fd = attempt(path, () =>
      openSync(temporary, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600),
    );
    const file = new NewFile(path, temporary, fd, size);
    try {
      attempt(path, () => ftruncateSync(fd, size));
      return file;
    } catch (error) {
      file.drop();
      throw error;
    }
  }

  /** Makes it durable and gives it its name. Throws EEXIST where another file has got it meanwhile; then it is as it was. */
  publish(): void {
    attempt(this.path, () => fsyncSync(this.fd));
    attempt(this.path, () => this.rename());
    this.isThere = false;
    closeSync(this.fd);
    syncFolder(dirname(this.path));
  }

  /** Takes it away, unless it is published. */
  drop(): void {
    if (!this.isThere) return;
    this.isThere = false;
    closeSync(this.fd);
    rmSync(this.temporary, { force: true });
  }

  private rename(): void {
    try {
      // Unlike a rename it never replaces a file.
      linkSync(this.temporary, this.path);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      // A file system without links.
      if (code !== 'EPERM' && code !== 'EOPNOTSUPP' && code !== 'ENOTSUP') throw error;
      renameSync(this.temporary, this.path);
      return;
    }
    rmSync(this.temporary);
  }
}

/** Throws EEXIST where there is anything at `path`, a dangling link too. */
export async function requireAbsent(path: string): Promise<void> {
  const isThere = await lstat(path).then(
    () => true,
    () => false,
  );
  if (isThere) throw exists(path);
}

function exists(path: string): DmError {
  return new DmError('EEXIST', `${path}: exists already; take another name, or remove it`);
}

function syncFolder(folder: string): void {
  const fd = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Runs `action`; its errors name the file that is meant, not the temporary one. */
function attempt<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    const { code = 'EIO', message } = error as { code?: ErrnoName; message?: string };
    if (code === 'EEXIST') throw exists(path);
    if (code === 'ENOENT') throw new DmError(code, `${path}: there is no such folder`);
    if (code === 'EFBIG' || code === 'EINVAL') {
      throw new DmError('EFBIG', `${path}: this file system takes no file of that size`);
    }
    throw new DmError(code, `${path}: ${message?.replace(/, \w+ '.*$/, '')}`);
  }
}
