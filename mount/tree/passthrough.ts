/**
 * FUSE passthrough: the kernel does the I/O of an open itself, at the speed of the backing file. It takes one backing
 * id per inode, shared by all its passthrough opens, and given back with the last of them.
 */
import type { Target } from '../../src/targets/target.js';

/** What the connection offers; throws where the kernel will not take a file. */
export interface BackingIds {
  open(fd: number): number;
  close(backingId: number): void;
}

export class Passthrough {
  private readonly active = new Map<number, { readonly backingId: number; opens: number }>();

  /** `ids` undefined: the kernel has no passthrough. */
  constructor(private readonly ids: BackingIds | undefined) {}

  /** The backing id for one more open of slot `id`'s device; undefined: its requests come to the lanes. */
  open(id: number, target: Target): number | undefined {
    const active = this.active.get(id);
    if (active) {
      active.opens++;
      return active.backingId;
    }
    const file = this.ids && target.passthrough?.();
    if (!this.ids || !file) return undefined;
    try {
      const backingId = this.ids.open(file.fd);
      this.active.set(id, { backingId, opens: 1 });
      return backingId;
    } catch {
      // No regular file, or one on a stacked file system: the lanes serve what the kernel will not.
      return undefined;
    }
  }

  close(id: number): void {
    const active = this.active.get(id);
    if (!active || --active.opens > 0) return;
    this.active.delete(id);
    this.ids?.close(active.backingId);
  }
}
