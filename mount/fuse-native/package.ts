/**
 * The npm package fuse-native (libfuse 2), as far as it is used here: an optional dependency, loaded when it is asked for. It
 * works on a main thread only.
 */
import { createRequire } from 'node:module';
import { DmError, messageOf } from '../../src/errors.js';

/** 0 or a negative errno, and what there is to say. */
export type Reply<T = void> = (code: number, value?: T) => void;
/** A number of bytes or a negative errno. */
export type CountReply = (count: number) => void;

export interface NativeStat {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes. */
  readonly size: number;
  readonly nlink: number;
  readonly ino: number;
  readonly blksize: number;
  /** Of 512 bytes. */
  readonly blocks: number;
  /** Milliseconds since the epoch. */
  readonly atime: number;
  readonly mtime: number;
  readonly ctime: number;
}

export interface NativeStatfs {
  readonly bsize: number;
  readonly frsize: number;
  readonly namemax: number;
}

/** The handlers that the package calls, on the main thread; what is left out is ENOSYS. Paths begin at the mount point. */
export interface NativeHandlers {
  getattr(path: string, reply: Reply<NativeStat>): void;
  readdir(path: string, reply: (code: number, names?: string[], stats?: NativeStat[]) => void): void;
  open(path: string, flags: number, reply: Reply<number>): void;
  read(path: string, handle: number, into: Buffer, length: number, at: number, reply: CountReply): void;
  write(path: string, handle: number, from: Buffer, length: number, at: number, reply: CountReply): void;
  fsync(path: string, dataOnly: number, handle: number, reply: Reply): void;
  flush(path: string, handle: number, reply: Reply): void;
  release(path: string, handle: number, reply: Reply): void;
  mkdir(path: string, mode: number, reply: Reply): void;
  rmdir(path: string, reply: Reply): void;
  rename(path: string, newPath: string, reply: Reply): void;
  truncate(path: string, size: number, reply: Reply): void;
  ftruncate(path: string, handle: number, size: number, reply: Reply): void;
  utimens(path: string, accessed: number, modified: number, reply: Reply): void;
  chmod(path: string, mode: number, reply: Reply): void;
  chown(path: string, uid: number, gid: number, reply: Reply): void;
  statfs(path: string, reply: Reply<NativeStatfs>): void;
}

export interface FuseNative {
  new (
    mountPoint: string,
    handlers: NativeHandlers,
    options: { fsname: string; timeout: false },
  ): { mount(done: (error?: Error | null) => void): void };
}

/** Throws ENOSYS where it is not installed or has no binary for this machine. */
export function loadFuseNative(): FuseNative {
  try {
    return createRequire(import.meta.url)('fuse-native');
  } catch (error) {
    throw new DmError(
      'ENOSYS',
      `--transport fuse-native: the npm package fuse-native cannot be loaded (${messageOf(error).split('\n')[0]}): ` +
        '`npm install fuse-native` where dmfuse is installed, or mount without --transport',
    );
  }
}
