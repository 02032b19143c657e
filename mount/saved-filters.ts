/**
 * The states of filters that survive a clean unmount (`--state-dir`): a file for each, written when nothing changes the device
 * any more and taken away, durably, before the next request can. So after any other end there is none.
 *
 * A state belongs to what the device's backings held when it was saved. They are known by their inodes, sizes and times of change:
 * whoever writes to a file meanwhile changes those. A block device has none, nor has a device that stands on another target, so
 * theirs are not saved.
 */
import { type BigIntStats, fstatSync } from 'node:fs';
import { mkdir, open, readFile, rename, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { quoteWord } from '../src/table.js';
import type { Backing } from '../src/targets/target.js';

/** Times of change are as coarse as a tick of the kernel's clock, 10 ms at most: of two changes in one, the second may not show. */
const TICK_MS = 20;

/** What a device stands on, and the state that it is in. */
export class Identity {
  private readonly paths: string[] = [];
  private readonly parts: string[] = [];
  private isKnown = true;
  private changedMs = 0;

  constructor(private readonly typeName: string) {}

  add(backing: Backing): void {
    this.paths.push(quoteWord(backing.path));
    const stats = backing.kind === 'file' ? fstatSync(backing.fd, { bigint: true }) : undefined;
    if (!stats?.isFile()) {
      this.isKnown = false;
      return;
    }
    this.parts.push(partOf(stats));
    this.changedMs = Math.max(this.changedMs, Number(stats.ctimeMs), Number(stats.mtimeMs));
  }

  /** The type of the target and what it stands on. */
  get device(): string {
    return [this.typeName, ...this.paths].join(' ');
  }

  /** The state; undefined where there is nothing to know it by. */
  get state(): string | undefined {
    return this.isKnown ? this.parts.join('\n') : undefined;
  }

  /** Milliseconds until a change of a backing cannot be taken for the last one that this has seen. */
  get unripeMs(): number {
    return Math.max(0, this.changedMs + TICK_MS - Date.now());
  }
}

function partOf({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return `${dev}:${ino} size=${size} mtime=${mtimeNs} ctime=${ctimeNs}`;
}

/** What is saved for a device. */
export interface SavedFilter {
  /** Of what device: Identity.device. */
  readonly device: string;
  readonly bytes: Uint8Array;
}

export class SavedFilters {
  /** `folder`: an absolute path; it is made when it is missing. */
  constructor(private readonly folder: string) {}

  /**
   * Takes away what is saved for a device; undefined where nothing is. When this resolves it is gone for ever. Throws where it
   * cannot be taken away.
   */
  async take(name: string, filter: string): Promise<SavedFilter | undefined> {
    const path = this.path(name, filter);
    const content = await readFile(path).catch(() => Buffer.alloc(0));
    try {
      await unlink(path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
    await this.syncFolder();
    const end = content.indexOf('\n');
    return { device: stringIn(content.subarray(0, Math.max(0, end))), bytes: content.subarray(end + 1) };
  }

  /** Durable when it resolves. */
  async save(name: string, filter: string, { device, bytes }: SavedFilter): Promise<void> {
    await mkdir(this.folder, { recursive: true, mode: 0o700 });
    const path = this.path(name, filter);
    const file = await open(`${path}.new`, 'w', 0o600);
    try {
      await file.writeFile(Buffer.concat([Buffer.from(`${JSON.stringify(device)}\n`), bytes]));
      await file.sync();
    } finally {
      await file.close();
    }
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

/** '' for what is no JSON string. */
function stringIn(bytes: Buffer): string {
  try {
    return String(JSON.parse(bytes.toString()));
  } catch {
    return '';
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
