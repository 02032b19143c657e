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
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { DmError, messageOf } from '../../src/errors.js';
import { libcFunction } from '../../src/libc.js';

const LOCK_EX = 2;
const LOCK_NB = 4;

export class PidFile {
  private readonly fd: number;
  private readonly draft: string;

  /** Prepares the file at `path`, absolute. Throws EBUSY where a live daemon has one, EEXIST for what is no such file, and as open(2). */
  constructor(private readonly path: string) {
    refuseTaken(path);
    this.draft = `${path}.${process.pid}`;
    try {
      // Anew: where others may write to the folder, it could be their link to any file.
      rmSync(this.draft, { force: true });
      this.fd = openSync(this.draft, 'wx');
      // For everybody to read, whatever the daemon's umask is.
      fchmodSync(this.fd, 0o644);
    } catch (error) {
      throw new DmError('EIO', `the pid file ${path} cannot be made: ${messageOf(error)}`);
    }
    writeSync(this.fd, `${process.pid}\n`);
    tryLock(this.fd);
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
