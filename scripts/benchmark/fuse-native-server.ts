/**
 * Serves one file with the fuse-native package until it is killed: `fuse-native-server.js MNT FILE`, shown as
 * MNT/device. With `--check` it only tries to load the package. A process of its own: the package works on a main
 * thread only.
 */
import { close, fsync, open, read, type Stats, stat, statSync, write } from 'node:fs';
import { createRequire } from 'node:module';
import { errnoOf, messageOf } from '../../src/errors.js';

type Reply<T> = (code: number, value?: T) => void;

interface FuseNative {
  new (
    mountPoint: string,
    handlers: object,
    options: { fsname: string },
  ): { mount(done: (error?: Error) => void): void };
}

const ENOENT = -2;
const DEVICE = '/device';

function load(): FuseNative {
  try {
    return createRequire(import.meta.url)('fuse-native');
  } catch (error) {
    process.stderr.write(`fuse-native cannot be loaded: ${messageOf(error).split('\n')[0]}\n`);
    process.exit(1);
  }
}

function handlers(backing: string) {
  const answer =
    <T>(reply: Reply<T>) =>
    (error: unknown, value?: T) =>
      error ? reply(-errnoOf(error)) : reply(0, value);
  const count = (reply: (count: number) => void) => (error: unknown, bytes: number) =>
    reply(error ? -errnoOf(error) : bytes);
  const root = statSync('/');
  return {
    getattr(path: string, reply: Reply<Stats>) {
      if (path === '/') reply(0, root);
      else if (path === DEVICE) stat(backing, answer(reply));
      else reply(ENOENT);
    },
    readdir: (_path: string, reply: Reply<string[]>) => reply(0, [DEVICE.slice(1)]),
    open: (_path: string, _flags: number, reply: Reply<number>) => open(backing, 'r+', answer(reply)),
    release: (_path: string, fd: number, reply: Reply<void>) => close(fd, (error) => answer(reply)(error)),
    read: (_path: string, fd: number, into: Buffer, length: number, at: number, reply: Reply<never>) =>
      read(fd, into, 0, length, at, count(reply)),
    write: (_path: string, fd: number, from: Buffer, length: number, at: number, reply: Reply<never>) =>
      write(fd, from, 0, length, at, count(reply)),
    fsync: (_path: string, fd: number, _dataOnly: boolean, reply: Reply<void>) =>
      fsync(fd, (error) => answer(reply)(error)),
  };
}

const Fuse = load();
const [mountPoint, backing] = process.argv.slice(2);
if (backing !== undefined) {
  // The package knows few options; those of libfuse ride along with one of them.
  new Fuse(mountPoint!, handlers(backing), { fsname: 'fuse-native,direct_io,big_writes' }).mount((error) => {
    if (!error) return;
    process.stderr.write(`${messageOf(error)}\n`);
    process.exit(1);
  });
}
