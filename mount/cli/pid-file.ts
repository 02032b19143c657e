/**
 * The file that holds the daemon's process id while it serves. The daemon keeps it locked (flock(2)), so that one left behind by
 * a daemon that is dead is known as such, whoever has its process id now. It appears whole, by rename.
 */
import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  openSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { DmError, messageOf } from '../../src/errors.js';
import { libcFunction } from '../../src/libc.js';

const LOCK_EX = 2;
const LOCK_NB = 4;

export class PidFile {
  private readonly fd: number;
  private readonly draft: string;

  /**
   * Prepares the file at `path`, absolute. Throws EBUSY where a live daemon has one, EEXIST for what is no such file, EIO where it
   * cannot be made, as below `mountPoint`: there the daemon would wait for itself.
   */
  constructor(
    private readonly path: string,
    mountPoint: string,
  ) {
    refuseTaken(path);
    this.draft = `${path}.${process.pid}`;
    let fd: number | undefined;
    try {
      if (`${realpathSync(dirname(path))}/`.startsWith(`${mountPoint}/`))
        throw new DmError('EINVAL', 'the mount will be there');
      // Anew: where others may write to the folder, it could be their link to any file.
      rmSync(this.draft, { force: true });
      fd = openSync(this.draft, 'wx');
      // For everybody to read, whatever the daemon's umask is.
      fchmodSync(fd, 0o644);
      writeSync(fd, `${process.pid}\n`);
    } catch (error) {
      if (fd !== undefined) unlinkSync(this.draft);
      throw new DmError('EIO', `the pid file ${path} cannot be made: ${messageOf(error)}`);
    }
    tryLock(fd);
    this.fd = fd;
  }

  /** Lets it appear. Throws as rename(2). */
  publish(): void {
    renameSync(this.draft, this.path);
  }

  /** Takes away what this process has made, and nothing of anybody else's. */
  remove(): void {
    for (const path of [this.draft, this.path]) {
      try {
        if (statSync(path).ino === fstatSync(this.fd).ino) unlinkSync(path);
      } catch {
        // It is not there.
      }
    }
    closeSync(this.fd);
  }
}

function refuseTaken(path: string): void {
  let fd: number;
  try {
    // A pipe would wait for a writer.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch {
    return; // None is there, or its folder is not: that is found next.
  }
  try {
    const text = fstatSync(fd).isFile() ? readFileSync(fd, 'utf8') : undefined;
    if (text === undefined || !/^\d*\n?$/.test(text))
      throw new DmError('EEXIST', `${path}: holds something else than a process id`);
    if (!tryLock(fd))
      throw new DmError('EBUSY', `${path}: the pid file of a live daemon, process ${text.trim()}`);
  } finally {
    closeSync(fd);
  }
}

/** False while somebody else has it locked. */
function tryLock(fd: number): boolean {
  try {
    libcFunction<[number, number]>('int flock(int fd, int operation)')(fd, LOCK_EX | LOCK_NB);
    return true;
  } catch {
    return false;
  }
}
