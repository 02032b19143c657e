/**
 * The states of filters that survive a clean unmount (`--state-dir`): a file for each, written when nothing changes the device
 * any more and taken away, durably, before the next request can. So after any other end there is none.
 *
 * A state belongs to what the device's backings held when it was saved. They are known by their inodes, sizes and times of change:
 * whoever writes to a file meanwhile changes those. A block device has none, nor has a device that stands on another target, so
 * theirs are not saved.
 */
import { accessSync, type BigIntStats, constants, existsSync, fstatSync, mkdirSync, statSync } from 'node:fs';
import { open, readFile, rename, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DmError, type ErrnoName, messageOf } from '../src/errors.js';
import type { Backing } from '../src/targets/target.js';
import { writeDraft } from './draft.js';

/** Times of change are as coarse as a tick of the kernel's clock, 10 ms at most: of two changes in one, the second may not show. */
const TICK_MS = 20;

/** The state of the backings of a device. */
export class Identity {
  private readonly parts: string[] = [];
  private isKnown = true;
  private changedMs = 0;

  add(backing: Backing): void {
    const stats = backing.kind === 'file' ? fstatSync(backing.fd, { bigint: true }) : undefined;
    if (!stats?.isFile()) {
      this.isKnown = false;
      return;
    }
    this.parts.push(partOf(stats));
    this.changedMs = Math.max(this.changedMs, Number(stats.ctimeMs), Number(stats.mtimeMs));
  }

  /** With the table of the target; undefined where there is nothing to know the state by. */
  text(table: string): string | undefined {
    return this.isKnown ? [table, ...this.parts].join('\n') : undefined;
  }

  /**
   * Milliseconds until a change of a backing cannot be taken for the last one that this has seen. That may lie far ahead where
   * somebody has set a clock back: a change does not.
   */
  get unripeMs(): number {
    const age = Date.now() - this.changedMs;
    return Math.abs(age) < TICK_MS ? TICK_MS - age : 0;
  }
}

function partOf({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return `${dev}:${ino} size=${size} mtime=${mtimeNs} ctime=${ctimeNs}`;
}

/** Makes the folder where it is missing. Throws where nothing could be saved in it. */
export function prepareStateDir(folder: string): void {
  try {
    makeFolder(folder);
    if (!statSync(folder).isDirectory()) throw new Error('not a directory');
    accessSync(folder, constants.W_OK | constants.X_OK);
  } catch (error) {
    const { code = 'ENOTDIR' } = error as { code?: ErrnoName };
    throw new DmError(code, `--state-dir ${folder}: nothing can be saved there: ${messageOf(error)}`);
  }
}

/** By hand: Node's own `recursive` never ends where mkdir(2) says ENOENT of a folder whose parent is there, as in /proc. */
function makeFolder(path: string): void {
  if (existsSync(path)) return;
  makeFolder(dirname(path));
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    // Another daemon that begins just now, with the same folder, may have made it.
    if (!existsSync(path)) throw error;
  }
}

export class SavedFilters {
  /** `folder`: an absolute path; it is made when it is missing. */
  constructor(private readonly folder: string) {}

  /**
   * Takes away what is saved for a device; undefined where nothing is. When this resolves it is gone for ever. Throws where it
   * cannot be taken away.
   */
  async take(name: string, filter: string): Promise<Uint8Array | undefined> {
    const path = this.path(name, filter);
    const bytes = await readFile(path).catch(() => Buffer.alloc(0));
    try {
      await unlink(path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
    await this.syncFolder();
    return bytes;
  }

  /** Durable when it resolves. */
  async save(name: string, filter: string, bytes: Uint8Array): Promise<void> {
    makeFolder(this.folder);
    const path = this.path(name, filter);
    await writeDraft(`${path}.new`, bytes, 0o600);
    await rename(`${path}.new`, path);
    await this.syncFolder();
  }

  private path(name: string, filter: string): string {
    return join(this.folder, `${name}.${filter}`);
  }

  private async syncFolder(): Promise<void> {
    const folder = await open(this.folder);
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  }
}

/** Waits until the identity that `look` gives is one that a later change must differ from. */
export async function ripeIdentity(look: () => Identity): Promise<Identity> {
  for (;;) {
    const identity = look();
    const { unripeMs } = identity;
    if (unripeMs === 0) return identity;
    await sleep(unripeMs);
  }
}
