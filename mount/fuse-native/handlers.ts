/**
 * What fuse-native calls, served by the tree and by the main thread's own view of the devices. All of it runs on the main
 * thread, a request after the other; only what waits for something (an event, a table, a removal) is answered later.
 *
 * libfuse 2 knows files by their paths and holds the path of a request until it is answered, so that a read that waits in
 * `x/events` would keep `rmdir x` waiting, and it tells nobody that a reader was interrupted. So a read waits a second at
 * most and then fails with EINTR, at which readers read again: cat, dd, the shells and Python do.
 */
import { basename, dirname } from 'node:path';
import { errnoOf } from '../../src/errors.js';
import { failDevice, readDevice, type ServedDevice, syncDevice, writeDevice } from '../device-io.js';
import type { TimedOp } from '../lanes/stats.js';
import { ROOT } from '../tree/nodes.js';
import { isNonBlocking, type NodeAttributes, type Tree } from '../tree/tree.js';
import type { NativeHandlers, NativeStat, Reply } from './package.js';

const WAIT_MS = 1000;
/** chown(2): leave it as it is. */
const UNCHANGED = 0xffff_ffff;

export interface HandlersOptions {
  readonly tree: Tree;
  /** What is served at the node of a `device` file; undefined for anything else, and for a device that is gone. */
  readonly deviceAt: (node: number) => ServedDevice | undefined;
  /** Resolves when requests for what has the id may be served; undefined: now. */
  readonly whenFree: (id: number) => Promise<void> | undefined;
  /** A line for the events of what has the id. */
  readonly onEvent: (id: number, line: string) => void;
}

interface Open {
  readonly node: number;
  /** Of open(2). */
  readonly flags: number;
}

export function nativeHandlers(options: HandlersOptions): NativeHandlers {
  const { tree } = options;
  const opens = new Map<number, Open>();
  const nodeAt = (path: string) => attributesAt(tree, path).node;
  const parentOf = (path: string) => nodeAt(dirname(path));
  return {
    getattr: (path, reply) => answer(reply, () => statOf(attributesAt(tree, path))),
    readdir(path, reply) {
      const entries = () => entriesAt(tree, nodeAt(path));
      answer<ReturnType<typeof entries>>(
        (code, found) =>
          reply(
            code,
            found?.map(({ name }) => name),
            found?.map(({ stat }) => stat),
          ),
        entries,
      );
    },
    open: (path, flags, reply) =>
      answer(reply, () => {
        const node = nodeAt(path);
        const { handle } = tree.open(node, flags);
        opens.set(handle, { node, flags });
        return handle;
      }),
    ...dataHandlers(options, opens),
    flush: (_path, handle, reply) => answer(reply, () => tree.flush(handle)),
    release: (_path, handle, reply) =>
      answer(reply, () => {
        opens.delete(handle);
        tree.release(handle);
      }),
    mkdir: (path, _mode, reply) =>
      answer(reply, () => void tree.makeDirectory(parentOf(path), basename(path))),
    rename: (path, newPath, reply) =>
      answer(reply, () => tree.rename(parentOf(path), basename(path), parentOf(newPath), basename(newPath))),
    rmdir: (path, reply) => answer(reply, () => tree.removeDirectory(parentOf(path), basename(path))),
    // A size cannot be set, nor a time: as the other transports, it is taken and means nothing.
    truncate: (path, _size, reply) => answer(reply, () => void nodeAt(path)),
    ftruncate: (path, _handle, _size, reply) => answer(reply, () => void nodeAt(path)),
    utimens: (path, _accessed, _modified, reply) => answer(reply, () => void nodeAt(path)),
    chmod: (path, mode, reply) => answer(reply, () => void tree.setAttributes(nodeAt(path), { mode })),
    chown: (path, uid, gid, reply) =>
      answer(reply, () => {
        const owner = { ...(uid === UNCHANGED ? {} : { uid }), ...(gid === UNCHANGED ? {} : { gid }) };
        tree.setAttributes(nodeAt(path), owner);
      }),
    statfs: (path, reply) =>
      answer(reply, () => {
        const bytes = tree.granularity(nodeAt(path));
        return { bsize: bytes, frsize: bytes, namemax: 255 };
      }),
  };
}

/** What moves bytes. */
function dataHandlers(
  { tree, deviceAt, whenFree, onEvent }: HandlersOptions,
  opens: ReadonlyMap<number, Open>,
): Pick<NativeHandlers, 'read' | 'write' | 'fsync'> {
  const deviceOf = (handle: number) => {
    const open = opens.get(handle);
    return open && deviceAt(open.node);
  };
  const flagsOf = (handle: number) => opens.get(handle)?.flags ?? 0;
  /** At once, or when its device is resumed; what is gone by then is EIO. */
  const serveDevice = async (
    handle: number,
    what: { operation: TimedOp; offset?: number },
    reply: (count: number) => void,
    work: (device: ServedDevice) => number,
  ): Promise<void> => {
    const { id } = deviceOf(handle)!;
    for (let free = whenFree(id); free; free = whenFree(id)) await free;
    const device = deviceOf(handle);
    if (!device) {
      reply(-errnoOf({ code: 'EIO' }));
      return;
    }
    let count: number;
    const began = performance.now();
    try {
      count = work(device);
      device.stats.time(what.operation, performance.now() - began);
    } catch (error) {
      count = -failDevice(device, error, what, (line) => onEvent(id, line));
    }
    reply(count);
  };
  return {
    read(_path, handle, into, length, at, reply) {
      if (deviceOf(handle)) {
        const what = { operation: 'read', offset: at } as const;
        void serveDevice(handle, what, reply, (device) => readDevice(device, at, into.subarray(0, length)));
        return;
      }
      answerCount(reply, () =>
        readText(tree, { handle, offset: at, into: into.subarray(0, length), flags: flagsOf(handle) }),
      );
    },
    write(_path, handle, from, length, at, reply) {
      const data = from.subarray(0, length);
      if (deviceOf(handle)) {
        const what = { operation: 'write', offset: at } as const;
        void serveDevice(handle, what, reply, (device) => writeDevice(device, at, data, flagsOf(handle)));
        return;
      }
      // A copy: libfuse's buffer is not ours once this returns, as a table may load late.
      answerCount(reply, () => tree.write(handle, Buffer.from(data)).then(() => length));
    },
    fsync(_path, _dataOnly, handle, reply) {
      if (!deviceOf(handle)) {
        answer(reply, () => tree.sync(handle));
        return;
      }
      void serveDevice(handle, { operation: 'flush' }, reply, (device) => {
        syncDevice(device);
        return 0;
      });
    },
  };
}

/** Reads a control file: how many bytes. Throws EINTR where there is nothing for WAIT_MS. */
function readText(
  tree: Tree,
  {
    handle,
    offset,
    into,
    flags,
  }: { readonly handle: number; readonly offset: number; readonly into: Buffer; readonly flags: number },
): number | Promise<number> {
  const abort = new AbortController();
  const fill = (bytes: Buffer) => bytes.copy(into);
  const text = tree.read(handle, offset, into.length, {
    nonBlocking: isNonBlocking(flags),
    signal: abort.signal,
  });
  if (!(text instanceof Promise)) return fill(text);
  const patience = setTimeout(() => abort.abort(), WAIT_MS);
  return text.then(fill).finally(() => clearTimeout(patience));
}

function answer<T>(reply: Reply<T>, work: () => T | Promise<T>): void {
  let result: T | Promise<T>;
  try {
    result = work();
  } catch (error) {
    reply(-errnoOf(error));
    return;
  }
  if (!(result instanceof Promise)) reply(0, result);
  else
    result.then(
      (value) => reply(0, value),
      (error) => reply(-errnoOf(error)),
    );
}

function answerCount(reply: (count: number) => void, work: () => number | Promise<number>): void {
  answer<number>((code, count) => reply(code === 0 ? (count ?? 0) : code), work);
}

function attributesAt(tree: Tree, path: string): NodeAttributes {
  const names = path.split('/').filter(Boolean);
  return names.reduce((found, name) => tree.lookup(found.node, name), tree.attributes(ROOT));
}

function entriesAt(tree: Tree, node: number): { name: string; stat: NativeStat }[] {
  const handle = tree.openDirectory(node);
  try {
    return tree
      .directoryEntries(handle)
      .map((entry) => ({ name: entry.name, stat: statOf(tree.attributes(entry.node)) }));
  } finally {
    tree.release(handle);
  }
}

function statOf({ node, size, mode, links, uid, gid, time }: NodeAttributes): NativeStat {
  const milliseconds = Math.floor(time) * 1000;
  return {
    ...{ mode, uid, gid, size, nlink: links, ino: node, blksize: 4096, blocks: Math.ceil(size / 512) },
    ...{ atime: milliseconds, mtime: milliseconds, ctime: milliseconds },
  };
}
