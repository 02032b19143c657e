/**
 * FUSE passthrough: the kernel does the I/O of an open itself, at the speed of the backing file. It takes one backing
 * id per inode, shared by all its passthrough opens. The inode may keep it longer than they last, while a write of an
 * older open that comes to the lanes is under way: so it is given back with the last open of any kind.
 */
import type { FileBacking, Target } from '../../src/targets/target.js';

/** What the connection offers; throws where the kernel will not take a file. */
export interface BackingIds {
  open(fd: number): number;
  close(backingId: number): void;
}

export class Passthrough {
  private readonly passed = new Map<number, { readonly backingId: number; readonly file: FileBacking }>();

  /** `ids` undefined: the kernel has no passthrough. */
  constructor(private readonly ids: BackingIds | undefined) {}

  /** The backing id for an open of slot `id`'s device; undefined: its requests come to the lanes. */
  open(id: number, target: Target): number | undefined {
    const known = this.passed.get(id);
    if (known) return known.backingId;
    const file = this.ids && target.passthrough?.();
    if (!this.ids || !file) return undefined;
    try {
      const backingId = this.ids.open(file.fd);
      this.passed.set(id, { backingId, file });
      return backingId;
    } catch {
      // No regular file, or one on a stacked file system: the lanes serve what the kernel will not.
      return undefined;
    }
  }

  /** Whether an open of slot `id`'s device is passed through, or one was that others have outlived. */
  isOpen(id: number): boolean {
    return this.passed.has(id);
  }

  /** Where the kernel does that I/O; undefined: nowhere. */
  fileOf(id: number): FileBacking | undefined {
    return this.passed.get(id)?.file;
  }

  /** No open of slot `id`'s device is left, of whatever kind. */
  close(id: number): void {
    const known = this.passed.get(id);
    if (!known) return;
    this.passed.delete(id);
    this.ids?.close(known.backingId);
  }
}
