/**
 * The file tree, whatever transport shows it: nodes, their attributes, open handles, and what a read or write of a
 * control file means. Runs on the main thread; the data of `device` files does not come here.
 */
import { constants as fsConstants } from 'node:fs';
import { DmError, errnoOf, messageOf } from '../../src/errors.js';
import type { EventCursor, EventLog } from './events.js';
import { type Folder, type TreeFile, textFile } from './folder.js';
import { DAEMON_NODE, folderIdOf, folderNode, isDirectory, placeOf, ROOT } from './nodes.js';

const DAEMON_NAME = '.dmfuse';

const {
  S_IFDIR,
  S_IFREG,
  O_ACCMODE = 3,
  O_RDONLY,
  O_NONBLOCK,
} = fsConstants as typeof fsConstants & { O_ACCMODE?: number };

export interface NodeAttributes {
  readonly node: number;
  /** Bytes. */
  readonly size: number;
  readonly mode: number;
  readonly links: number;
  readonly uid: number;
  readonly gid: number;
  readonly time: number;
}

export interface OpenResult {
  readonly handle: number;
  readonly kind: 'device' | 'events' | 'text';
  /** The kernel may do the I/O of this open itself. */
  readonly backingId: number | undefined;
}

interface Owner {
  mode?: number;
  uid?: number;
  gid?: number;
}

interface Handle {
  /** Undefined: a directory. */
  readonly file: TreeFile | undefined;
  /** Of the file's folder. */
  readonly folderEvents: EventLog | undefined;
  /** Its writes do not come to us. */
  readonly writesPassedThrough: boolean;
  /** What a text file said when its reader was at the start. */
  text: Buffer | undefined;
  readonly cursor: EventCursor;
  /** Takes back what poll(2) has left behind. */
  stopPolling: (() => void) | undefined;
  readonly entries: readonly TreeEntry[];
}

export interface TreeEntry {
  readonly name: string;
  readonly node: number;
  readonly mode: number;
}

export interface TreeOptions {
  readonly root: Pick<Folder, 'folders' | 'make' | 'remove' | 'rename'>;
  readonly folderById: (id: number) => Folder | undefined;
  /** Of whoever mounts: he owns all files. */
  readonly uid: number;
  readonly gid: number;
  /** Others may pass through the directories; files stay the owner's until he says otherwise (chmod). */
  readonly allowOther: boolean;
  /** What stands in `.dmfuse` beside the pid, in whole lines. */
  readonly daemonText: string;
}

export class Tree {
  private readonly handles = new Map<number, Handle>();
  private readonly owners = new Map<number, Owner>();
  private readonly daemonFile: TreeFile;
  private lastHandle = 0;
  private readonly startTime = Date.now() / 1000;

  constructor(private readonly options: TreeOptions) {
    this.daemonFile = textFile(DAEMON_NAME, { read: () => daemonText(options.daemonText) });
  }

  /** The attributes of `name` in directory `parent`. Throws ENOENT. */
  lookup(parent: number, name: string): NodeAttributes {
    if (parent === ROOT && name === DAEMON_NAME) return this.attributes(DAEMON_NODE);
    const directory = this.directory(parent);
    const folder = directory.folders().find((candidate) => candidate.name === name);
    if (folder) return this.attributes(folderNode(folder.id));
    const place = filesIn(directory).findIndex((file) => file.isShown && file.name === name);
    if (place >= 0) return this.attributes(parent + 1 + place);
    throw new DmError('ENOENT', `${name}: no such file`);
  }

  /** Throws ENOENT for a node that is gone. */
  attributes(node: number): NodeAttributes {
    const { uid, gid, allowOther } = this.options;
    const owner = this.owners.get(node) ?? {};
    let links = 1;
    let size = 0;
    let mode: number;
    if (isDirectory(node)) {
      links = 2 + this.directory(node).folders().filter(isListed).length;
      mode = S_IFDIR | (owner.mode ?? (allowOther ? 0o755 : 0o700));
    } else {
      const { file } = this.fileOf(node);
      mode = S_IFREG | (owner.mode ?? file.permissions);
      size = file.device?.size ?? (file.isShown ? (file.text?.bytes?.().length ?? 0) : 0);
    }
    return { node, size, mode, links, uid: owner.uid ?? uid, gid: owner.gid ?? gid, time: this.startTime };
  }

  /** chmod and chown. Sizes cannot be set: a device's is fixed, and `> file` of a shell means nothing here. */
  setAttributes(node: number, change: Owner): NodeAttributes {
    this.attributes(node);
    const mode = change.mode === undefined ? {} : { mode: change.mode & 0o777 };
    this.owners.set(node, { ...this.owners.get(node), ...change, ...mode });
    return this.attributes(node);
  }

  /** The trim granularity of the device at the node, bytes; that of a page for anything else. */
  granularity(node: number): number {
    const device = isDirectory(node) ? undefined : this.fileOf(node).file.device;
    return device?.trimGranularity ?? 4096;
  }

  makeDirectory(parent: number, name: string): NodeAttributes {
    const folder = this.directory(parent);
    if (!folder.make) throw new DmError('EPERM', 'directories are made in the root and in snapshots alone');
    return this.attributes(folderNode(folder.make(name).id));
  }

  async removeDirectory(parent: number, name: string): Promise<void> {
    const folder = this.directory(parent);
    if (!folder.remove) throw new DmError('EPERM', `${name}: goes with what it belongs to`);
    const gone = await folder.remove(name);
    for (const node of this.owners.keys()) {
      if (gone.includes(folderIdOf(node))) this.owners.delete(node);
    }
  }

  /** rename(2) of a folder in its own parent. Throws EPERM, EXDEV, and what the parent throws. */
  rename(parent: number, name: string, newParent: number, newName: string): void {
    const folder = this.directory(parent);
    if (!folder.rename) throw new DmError('EPERM', `${name}: only targets are renamed`);
    if (newParent !== parent) throw new DmError('EXDEV', `${name}: stays in its directory`);
    folder.rename(name, newName);
  }

  openDirectory(node: number): number {
    const directory = this.directory(node);
    const folders = directory.folders().filter(isListed);
    return this.addHandle({
      entries: [
        ...folders.map(({ name, id }) => ({ name, node: folderNode(id), mode: S_IFDIR })),
        ...filesIn(directory).flatMap(({ name, isShown }, place) =>
          isShown ? [{ name, node: node + 1 + place, mode: S_IFREG }] : [],
        ),
      ],
    });
  }

  /** The entries of an open directory, as they were when it was opened. */
  directoryEntries(handle: number): readonly TreeEntry[] {
    return this.handle(handle).entries;
  }

  /** `flags` as open(2). Throws EBUSY, ENODEV. */
  open(node: number, flags: number): OpenResult {
    const { file, folder } = this.fileOf(node);
    const writable = (flags & O_ACCMODE) !== O_RDONLY;
    const backingId = file.device?.open(writable);
    const writesPassedThrough = writable && backingId !== undefined;
    const handle = this.addHandle({ file, folderEvents: folder?.events, writesPassedThrough });
    return { handle, kind: file.device ? 'device' : file.events ? 'events' : 'text', backingId };
  }

  /** Each close(2): tells of what only the end of a write can tell. Throws ENOSPC. */
  flush(handle: number): void {
    const { file, writesPassedThrough } = this.handle(handle);
    if (writesPassedThrough) file?.device?.flush();
  }

  release(handle: number): void {
    const open = this.handles.get(handle);
    this.handles.delete(handle);
    open?.stopPolling?.();
    open?.file?.device?.release(open.writesPassedThrough);
  }

  /** Reads a control file. `events` waits until there is one, EAGAIN if it may not, EINTR when `signal` aborts it. */
  read(
    handle: number,
    offset: number,
    length: number,
    { nonBlocking, signal }: { nonBlocking: boolean; signal: AbortSignal },
  ): Buffer | Promise<Buffer> {
    const open = this.handle(handle);
    const { device, events, text } = open.file ?? {};
    if (events) return readEvents(events, open.cursor, length, nonBlocking, signal);
    if (device) throw new DmError('EIO', 'the device is gone');
    const bytes = text?.bytes?.();
    // A copy: they change while the reply is on its way.
    if (bytes) return Buffer.from(bytes.slice(offset, offset + length));
    if (!text?.read) throw new DmError('EBADF', 'not open for reading');
    if (offset === 0 || open.text === undefined) open.text = Buffer.from(text.read());
    return open.text.subarray(offset, offset + length);
  }

  /** One write(2) is one command; its offset means nothing. Why one was refused stands in the folder's events. */
  async write(handle: number, data: Uint8Array): Promise<void> {
    const { file, folderEvents } = this.handle(handle);
    if (file?.device) throw new DmError('EIO', 'the device is gone');
    if (!file?.text?.write) throw new DmError('EBADF', 'not open for writing');
    try {
      await file.text.write(Buffer.from(data).toString('utf8').replace(/\n$/, ''));
    } catch (error) {
      const reason = JSON.stringify(messageOf(error));
      folderEvents?.raise(`refused file=${file.name} errno=${errnoOf(error)} reason=${reason}`);
      throw error;
    }
  }

  /** fsync(2), or another request that means nothing to a control file, of what no lane serves. Throws EIO for a device that is gone. */
  sync(handle: number): void {
    if (this.handle(handle).file?.device) throw new DmError('EIO', 'the device is gone');
  }

  /** True when a read of the handle would not wait. `wake` is called once as soon as that changes. */
  poll(handle: number, wake: (() => void) | undefined): boolean {
    const open = this.handle(handle);
    const events = open.file?.events;
    if (!events) return true;
    const ready = events.hasNews(open.cursor);
    open.stopPolling?.();
    open.stopPolling = !ready && wake ? events.onNews(wake) : undefined;
    return ready;
  }

  private directory(node: number): Folder | TreeOptions['root'] {
    if (node === ROOT) return this.options.root;
    const folder = isDirectory(node) ? this.options.folderById(folderIdOf(node)) : undefined;
    if (!folder) throw new DmError('ENOENT', 'the directory is gone');
    return folder;
  }

  private fileOf(node: number): { file: TreeFile; folder?: Folder } {
    if (node === DAEMON_NODE) return { file: this.daemonFile };
    const folder = this.options.folderById(folderIdOf(node));
    const file = folder?.files()[placeOf(node)];
    if (!folder || !file) throw new DmError('ENOENT', 'the file is gone');
    return { file, folder };
  }

  private addHandle(handle: Partial<Handle>): number {
    const id = ++this.lastHandle;
    this.handles.set(id, {
      file: undefined,
      folderEvents: undefined,
      writesPassedThrough: false,
      text: undefined,
      cursor: { next: 0, rest: Buffer.alloc(0) },
      stopPolling: undefined,
      entries: [],
      ...handle,
    });
    return id;
  }

  private handle(id: number): Handle {
    const handle = this.handles.get(id);
    if (!handle) throw new DmError('EBADF', 'no such handle');
    return handle;
  }
}

function readEvents(
  events: EventLog,
  cursor: EventCursor,
  length: number,
  nonBlocking: boolean,
  signal: AbortSignal,
): Buffer | Promise<Buffer> {
  if (events.hasNews(cursor)) return events.take(cursor, length);
  if (nonBlocking) throw new DmError('EAGAIN', 'no event yet');
  return new Promise((resolve, reject) => {
    const stopWaiting = events.onNews(() => {
      signal.removeEventListener('abort', interrupt);
      resolve(readEvents(events, cursor, length, nonBlocking, signal));
    });
    const interrupt = () => {
      stopWaiting();
      reject(new DmError('EINTR', 'interrupted'));
    };
    signal.addEventListener('abort', interrupt, { once: true });
  });
}

function filesIn(directory: Folder | TreeOptions['root']): readonly TreeFile[] {
  return 'files' in directory ? directory.files() : [];
}

function isListed(folder: Folder): boolean {
  return folder.isListed?.() ?? true;
}

/** What a user sees when he opens the daemon's own file: who serves this mount. */
function daemonText(rest: string): string {
  return `pid ${process.pid}\n${rest}`;
}

/** Whether a READ carries O_NONBLOCK, from its open(2) flags. */
export function isNonBlocking(flags: number): boolean {
  return (flags & O_NONBLOCK) !== 0;
}
