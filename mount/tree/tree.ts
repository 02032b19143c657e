/**
 * The file tree, whatever transport shows it: nodes, their attributes, open handles, and what a read or write of a
 * control file means. Runs on the main thread; the data of `device` files does not come here but for transports
 * without lanes.
 *
 *   node 1              the mount's root            node 2             .dmfuse, which tells who serves the mount
 *   node id × 256       the directory of slot id    node id × 256 + 1  its first file (`device`), and so on
 *
 * Ids of slots are never used again, so a node id always means the same thing or nothing.
 */
import { constants as fsConstants, fstatSync, ftruncateSync } from 'node:fs';
import { DmError, errnoOf, messageOf } from '../../src/errors.js';
import type { Registry, Slot } from '../registry.js';
import type { EventCursor } from './events.js';
import { daemonText, filesOf, type TreeFile } from './files.js';
import type { Passthrough } from './passthrough.js';

export const ROOT = 1;
const DAEMON_NODE = 2;
const DAEMON_NAME = '.dmfuse';
const NODES_PER_SLOT = 256;

const {
  S_IFDIR,
  S_IFREG,
  O_ACCMODE = 3,
  O_RDONLY,
  O_NONBLOCK,
} = fsConstants as typeof fsConstants & { O_ACCMODE?: number };

/** The node id of a slot's `device` file. */
export function deviceNode(slotId: number): number {
  return slotId * NODES_PER_SLOT + 1;
}

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
  readonly kind: TreeFile['kind'];
  /** The kernel may do the I/O of this open itself. */
  readonly backingId: number | undefined;
}

interface Owner {
  mode?: number;
  uid?: number;
  gid?: number;
}

interface FileNode {
  readonly slot: Slot;
  readonly file: TreeFile;
}

interface Handle {
  readonly node: FileNode | 'daemon' | 'directory';
  readonly passedThrough: boolean;
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
  readonly registry: Registry;
  readonly passthrough: Passthrough;
  /** Of whoever mounts: he owns all files. */
  readonly uid: number;
  readonly gid: number;
  /** Others may pass through the directories; files stay the owner's until he says otherwise (chmod). */
  readonly allowOther: boolean;
  readonly version: string;
}

export class Tree {
  private readonly handles = new Map<number, Handle>();
  private readonly owners = new Map<number, Owner>();
  private lastHandle = 0;
  private readonly startTime = Date.now() / 1000;

  constructor(private readonly options: TreeOptions) {}

  /** The attributes of `name` in directory `parent`. Throws ENOENT. */
  lookup(parent: number, name: string): NodeAttributes {
    if (parent === ROOT) {
      if (name === DAEMON_NAME) return this.attributes(DAEMON_NODE);
      const slot = this.options.registry.get(name);
      if (slot) return this.attributes(slot.id * NODES_PER_SLOT);
    } else {
      const entry = this.entriesOf(this.slotOfDirectory(parent)).find((e) => e.name === name);
      if (entry) return this.attributes(entry.node);
    }
    throw new DmError('ENOENT', `${name}: no such file`);
  }

  /** Throws ENOENT for a node that is gone. */
  attributes(node: number): NodeAttributes {
    const { uid, gid, allowOther } = this.options;
    const owner = this.owners.get(node) ?? {};
    let links = 1;
    let size = 0;
    let mode: number;
    if (node === ROOT || (node !== DAEMON_NODE && node % NODES_PER_SLOT === 0)) {
      links = node === ROOT ? 2 + this.options.registry.all().length : 2;
      if (node !== ROOT) this.slotOfDirectory(node);
      mode = S_IFDIR | (owner.mode ?? (allowOther ? 0o755 : 0o700));
    } else {
      const permissions = node === DAEMON_NODE ? 0o400 : this.fileOf(node).file.permissions;
      mode = S_IFREG | (owner.mode ?? permissions);
      if (node !== DAEMON_NODE) size = this.sizeOf(node);
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

  /** The trim granularity of whatever lies at the node, bytes. */
  granularity(node: number): number {
    const slot = this.options.registry.byId(Math.floor(node / NODES_PER_SLOT));
    return slot?.live?.target.trimGranularity ?? 4096;
  }

  makeDirectory(parent: number, name: string): NodeAttributes {
    if (parent !== ROOT) throw new DmError('EPERM', 'targets are directories of the root alone');
    return this.attributes(this.options.registry.add(name).id * NODES_PER_SLOT);
  }

  async removeDirectory(parent: number, name: string): Promise<void> {
    if (parent !== ROOT) throw new DmError('ENOENT', `${name}: no such target`);
    const slot = await this.options.registry.remove(name);
    for (const node of this.owners.keys()) {
      if (Math.floor(node / NODES_PER_SLOT) === slot.id) this.owners.delete(node);
    }
  }

  openDirectory(node: number): number {
    const entries =
      node === ROOT
        ? this.options.registry.all().map((s) => this.entry(s.name, s.id * NODES_PER_SLOT))
        : this.entriesOf(this.slotOfDirectory(node));
    return this.addHandle({ node: 'directory', entries });
  }

  /** The entries of an open directory, as they were when it was opened. */
  directoryEntries(handle: number): readonly TreeEntry[] {
    return this.handle(handle).entries;
  }

  /** `flags` as open(2). Throws EBUSY, ENODEV. */
  open(node: number, flags: number): OpenResult {
    if (node === DAEMON_NODE) return this.opened({ node: 'daemon' }, 'text');
    const { slot, file } = this.fileOf(node);
    const writable = (flags & O_ACCMODE) !== O_RDONLY;
    if (file.kind !== 'device') return this.opened({ node: { slot, file } }, file.kind);

    if (!slot.live) throw new DmError('ENODEV', `${slot.name}: no table is loaded`);
    const claim = this.options.registry.claimOn(slot);
    if (claim === 'write' || (claim === 'read' && writable)) {
      throw new DmError('EBUSY', `${slot.name}: another target stands on it`);
    }
    const backingId = this.options.passthrough.open(slot.id, slot.live.target);
    slot.opens++;
    const passedThrough = backingId !== undefined;
    return this.opened({ node: { slot, file }, passedThrough }, 'device', backingId);
  }

  /** Each close(2): tells of what only the end of a write can tell. Throws ENOSPC. */
  flush(handle: number): void {
    const { node, passedThrough } = this.handle(handle);
    if (passedThrough) this.cutOverrun((node as FileNode).slot);
  }

  release(handle: number): void {
    const open = this.handles.get(handle);
    this.handles.delete(handle);
    open?.stopPolling?.();
    if (!open || typeof open.node === 'string' || open.node.file.kind !== 'device') return;
    const { slot } = open.node;
    slot.opens--;
    if (slot.opens === 0) this.options.passthrough.close(slot.id);
    if (open.passedThrough) {
      try {
        this.cutOverrun(slot);
      } catch {
        // FLUSH has told the writer, or nobody is left to tell.
      }
    }
  }

  /** The device behind an open `device`, for transports without lanes. */
  targetOf(handle: number) {
    const { node } = this.handle(handle);
    const live = typeof node === 'string' ? undefined : node.slot.live;
    if (!live) throw new DmError('EBADF', 'not a device');
    return live.target;
  }

  /** Reads a control file. `events` waits until there is one, EAGAIN if it may not, EINTR when `signal` aborts it. */
  read(
    handle: number,
    offset: number,
    length: number,
    { nonBlocking, signal }: { nonBlocking: boolean; signal: AbortSignal },
  ): Buffer | Promise<Buffer> {
    const open = this.handle(handle);
    if (typeof open.node !== 'string' && open.node.file.kind === 'events') {
      return this.readEvents(open.node.slot, open.cursor, length, nonBlocking, signal);
    }
    const bytes = bytesOf(open.node);
    // A copy: they change while the reply is on its way.
    if (bytes) return Buffer.from(bytes.slice(offset, offset + length));
    if (offset === 0 || open.text === undefined) open.text = Buffer.from(this.textOf(open.node));
    return open.text.subarray(offset, offset + length);
  }

  /** One write(2) is one command; its offset means nothing. Why one was refused stands in the target's events. */
  async write(handle: number, data: Uint8Array): Promise<void> {
    const { node } = this.handle(handle);
    if (typeof node === 'string' || !node.file.write) throw new DmError('EBADF', 'not open for writing');
    try {
      await node.file.write(node.slot, Buffer.from(data).toString('utf8').replace(/\n$/, ''));
    } catch (error) {
      const reason = JSON.stringify(messageOf(error));
      node.slot.events.raise(`refused file=${node.file.name} errno=${errnoOf(error)} reason=${reason}`);
      throw error;
    }
  }

  /** True when a read of the handle would not wait. `wake` is called once as soon as that changes. */
  poll(handle: number, wake: (() => void) | undefined): boolean {
    const open = this.handle(handle);
    if (typeof open.node === 'string' || open.node.file.kind !== 'events') return true;
    const { events } = open.node.slot;
    const ready = events.hasNews(open.cursor);
    open.stopPolling?.();
    open.stopPolling = !ready && wake ? events.onNews(wake) : undefined;
    return ready;
  }

  private readEvents(
    slot: Slot,
    cursor: EventCursor,
    length: number,
    nonBlocking: boolean,
    signal: AbortSignal,
  ): Buffer | Promise<Buffer> {
    const { events } = slot;
    if (events.hasNews(cursor)) return events.take(cursor, length);
    if (nonBlocking) throw new DmError('EAGAIN', 'no event yet');
    return new Promise((resolve, reject) => {
      const stopWaiting = events.onNews(() => {
        signal.removeEventListener('abort', interrupt);
        resolve(this.readEvents(slot, cursor, length, nonBlocking, signal));
      });
      const interrupt = () => {
        stopWaiting();
        reject(new DmError('EINTR', 'interrupted'));
      };
      signal.addEventListener('abort', interrupt, { once: true });
    });
  }

  private textOf(node: Handle['node']): string {
    if (node === 'daemon') return daemonText(this.options.version);
    if (node === 'directory' || !node.file.read) throw new DmError('EBADF', 'not open for reading');
    return node.file.read(node.slot);
  }

  /**
   * With passthrough the kernel writes to the backing file itself, and past the device's end it makes the file longer.
   * A device's size is fixed: what is too much goes, and whoever wrote it hears ENOSPC from close(2).
   */
  private cutOverrun(slot: Slot): void {
    const { fd, size, path } = slot.live?.target.passthrough?.() ?? {};
    if (fd === undefined || size === undefined || fstatSync(fd).size <= size) return;
    ftruncateSync(fd, size);
    slot.events.raise(`write_past_end size=${size}`);
    throw new DmError('ENOSPC', `${path}: written past the device's end`);
  }

  private sizeOf(node: number): number {
    const { slot, file } = this.fileOf(node);
    if (file.kind === 'device') return slot.live?.target.size ?? 0;
    return slot.live ? (file.bytes?.(slot).length ?? 0) : 0;
  }

  private slotOfDirectory(node: number): Slot {
    const slot = node % NODES_PER_SLOT === 0 ? this.options.registry.byId(node / NODES_PER_SLOT) : undefined;
    if (!slot) throw new DmError('ENOENT', 'the target is gone');
    return slot;
  }

  private fileOf(node: number): FileNode {
    const slot = this.options.registry.byId(Math.floor(node / NODES_PER_SLOT));
    const file = slot && filesOf(slot, this.options.registry)[(node % NODES_PER_SLOT) - 1];
    if (!slot || !file) throw new DmError('ENOENT', 'the target is gone');
    return { slot, file };
  }

  private entriesOf(slot: Slot): TreeEntry[] {
    return filesOf(slot, this.options.registry).flatMap((file, i) =>
      slot.live || file.always ? [this.entry(file.name, slot.id * NODES_PER_SLOT + 1 + i)] : [],
    );
  }

  private entry(name: string, node: number): TreeEntry {
    return { name, node, mode: node % NODES_PER_SLOT === 0 ? S_IFDIR : S_IFREG };
  }

  private opened(
    handle: Partial<Handle> & Pick<Handle, 'node'>,
    kind: TreeFile['kind'],
    backingId?: number,
  ): OpenResult {
    return { handle: this.addHandle(handle), kind, backingId };
  }

  private addHandle(handle: Partial<Handle> & Pick<Handle, 'node'>): number {
    const id = ++this.lastHandle;
    this.handles.set(id, {
      passedThrough: false,
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

/** The content of a binary file; undefined for another one. */
function bytesOf(node: Handle['node']): Uint8Array | undefined {
  return typeof node === 'string' ? undefined : node.file.bytes?.(node.slot);
}

/** Whether a READ carries O_NONBLOCK, from its open(2) flags. */
export function isNonBlocking(flags: number): boolean {
  return (flags & O_NONBLOCK) !== 0;
}
