/**
 * How targets end, on the main thread: by rmdir, with the last close where that was put off until then, by force, or with the mount. What
 * was written to them is made durable first; where that fails and may work the next time, they stay.
 */
import { DmError, errnoOf, messageOf } from '../src/errors.js';
import type { Backings } from './backings.js';
import type { Filters } from './filters.js';
import type { ToLane } from './lanes/protocol.js';
import type { Outputs } from './outputs.js';
import { type LiveTarget, REMOVALS, type Slot } from './slot.js';
import type { Suspension } from './suspension.js';

export interface RemovalsOptions {
  readonly outputs: Outputs;
  readonly backings: Backings;
  readonly filters: Filters;
  readonly suspension: Suspension;
  readonly byName: (name: string) => Slot | undefined;
  readonly byId: (id: number) => Slot | undefined;
  readonly all: () => Slot[];
  /** The slot is there no more. */
  readonly forget: (slot: Slot) => void;
  /** Tells every lane, before it returns. */
  readonly announce: (message: ToLane) => void;
  readonly dismiss: (id: number) => Promise<void>;
  /** Resolves when no request for the target, or for what stands on it, is under way that began before. */
  readonly settle: (id: number) => Promise<void>;
  /** Waits a little for the device of a target to be released. */
  readonly releasesOf: (name: string) => Promise<void>;
  /** Throws EBUSY for a target that is being changed, or is in a snapshot. */
  readonly requireAtRest: (slot: Slot) => void;
  readonly isPassedThrough: (id: number) => boolean;
  /** The kernel is to ask anew for a name in the root. */
  readonly nameGone: (name: string) => void;
}

export class Removals {
  constructor(private readonly options: RemovalsOptions) {}

  /**
   * Says what `remove` does while `device` is open; `deferred` of one that nobody uses removes it. Throws EINVAL, and what keeps it from
   * being removed, whenever that may be; then nothing is deferred.
   */
  async set(slot: Slot, text: string): Promise<void> {
    const removal = REMOVALS.find((known) => known === text);
    if (!removal)
      throw new DmError('EINVAL', `removal: expected one of ${REMOVALS.join(', ')}, found \`${text}\``);
    const before = slot.removal;
    slot.removal = removal;
    try {
      await this.removeIfDue(slot);
    } catch (error) {
      slot.removal = before;
      throw error;
    }
  }

  /** Somebody has closed `device`, or no longer stands on the target: one whose removal was put off until then goes. */
  async onLessUse(slot: Slot): Promise<void> {
    // Refused: that is in its events, and the next close tries again.
    await this.removeIfDue(slot).catch((error) => this.raiseRefused(slot, error));
  }

  /** What kept some target from being removed may have ended. */
  retryDeferred(): void {
    for (const slot of this.options.all()) {
      // What is refused now was refused before, and stands in its events.
      if (!slot.changing) void this.removeIfDue(slot).catch(() => {});
    }
  }

  /**
   * rmdir. Throws ENOENT, EBUSY while `device` is open (unless its removal is forced) or another target stands on this one, and what
   * a flush throws that may work the next time.
   */
  async remove(name: string): Promise<Slot> {
    const asked = this.options.byName(name);
    // By force it is not waited for, but where force does nothing.
    if (asked?.removal !== 'force' || this.options.isPassedThrough(asked.id))
      await this.options.releasesOf(name);
    const slot = this.options.byName(name);
    if (!slot) throw new DmError('ENOENT', `${name}: no such target`);
    let isFlushed: boolean;
    try {
      this.refuseRemoval(slot);
      isFlushed = this.flushLast(slot);
    } catch (error) {
      // Or the next rmdir, perhaps somebody else's, would be by force.
      if (slot.removal === 'force') slot.removal = 'normal';
      throw error;
    }
    // Before the wait: nobody opens it meanwhile, or makes a new one in its place.
    const { live } = slot;
    slot.live = undefined;
    slot.changing = true;
    if (live) await this.end(slot, live, isFlushed);
    this.options.announce({ kind: 'remove', id: slot.id });
    this.options.outputs.remove(slot.id);
    const below = this.options.backings
      .of(slot.id)
      .flatMap((backing) => (backing.kind === 'target' ? backing.id : []));
    this.options.backings.release(slot.id);
    this.options.forget(slot);
    slot.events.close();
    for (const id of new Set(below)) {
      const lower = this.options.byId(id);
      if (lower) void this.onLessUse(lower);
    }
    return slot;
  }

  /** The mount is gone: as `flushAll`, and every target is closed. */
  async closeAll(): Promise<string[]> {
    const slots = this.options.all().filter(({ live }) => live);
    await Promise.all(slots.map(({ id }) => this.options.dismiss(id)));
    const failures = this.flushFailures();
    // Those that stand on others first.
    for (const { live } of slots.sort((a, b) => b.live!.loaded - a.live!.loaded)) close(live!);
    for (const slot of slots) {
      if (failures.has(slot)) continue;
      await this.options.filters.save(slot, slot.live!).catch((error) => failures.set(slot, notSaved(error)));
    }
    return textsOf(failures);
  }

  /** Makes every completed write of every target durable: the errors of those that could not. */
  flushAll(): string[] {
    return textsOf(this.flushFailures());
  }

  private async removeIfDue(slot: Slot): Promise<void> {
    const { id, name, removal, opens } = slot;
    const isUsed = opens > 0 || this.options.backings.userOf(id) !== undefined;
    if (removal !== 'deferred' || isUsed || this.options.byName(name) !== slot) return;
    await this.remove(name);
    this.options.nameGone(name);
  }

  /** Throws EBUSY for a target that cannot go now. */
  private refuseRemoval(slot: Slot): void {
    const { id, name, opens, removal } = slot;
    this.options.requireAtRest(slot);
    // Its last flush would go to what is suspended.
    if (this.options.suspension.isHeldFromBelow(slot)) this.options.suspension.refuseHeld(slot);
    const isForced = removal === 'force';
    if (opens > 0 && (!isForced || this.options.isPassedThrough(id))) {
      const who = isForced
        ? 'the kernel passes its I/O through, which nothing stops'
        : 'its device file is open';
      throw new DmError('EBUSY', `${name}: ${who}`);
    }
    const user = this.options.backings.userOf(id);
    if (user) throw new DmError('EBUSY', `${name}: ${this.options.byId(user.owner)?.name} stands on it`);
  }

  /** The flush before a removal: false where it failed and would fail for ever, or nobody minds. Throws what may work the next time. */
  private flushLast(slot: Slot): boolean {
    try {
      slot.live?.output.flush();
      return true;
    } catch (error) {
      if (slot.removal === 'force' || this.cannotFlush(slot)) return false;
      this.raiseRefused(slot, error);
      throw error;
    }
  }

  private raiseRefused({ events }: Slot, error: unknown): void {
    events.raise(`remove_refused errno=${errnoOf(error)} reason=${JSON.stringify(messageOf(error))}`);
  }

  /** Nothing uses the target any more, and what it has is closed but for its backings. */
  private async end(slot: Slot, live: LiveTarget, isFlushed: boolean): Promise<void> {
    if (slot.opens > 0) {
      // By force. Requests that come from now on fail, and those that were held with them.
      this.options.announce({ kind: 'remove', id: slot.id });
      await this.options.settle(slot.id);
    }
    if (slot.suspended) this.options.suspension.resumeAll([slot]);
    await this.options.dismiss(slot.id);
    if (slot.opens > 0) {
      try {
        live.output.flush();
      } catch {
        isFlushed = false;
      }
    }
    close(live);
    if (isFlushed) {
      await this.options.filters.save(slot, live).catch((error) => slot.events.raise(notSaved(error)));
    }
    if (live.filter) this.options.backings.release(live.filter.owner);
  }

  private flushFailures(): Map<Slot, string> {
    const failures = new Map<Slot, string>();
    for (const slot of this.options.all()) {
      try {
        slot.live?.output.flush();
      } catch (error) {
        failures.set(slot, messageOf(error));
      }
    }
    return failures;
  }

  /** A target whose flushes are lost, or that writes to such a one. */
  private cannotFlush({ id, live }: Slot): boolean {
    return (
      live?.target.cannotFlush?.() === true ||
      this.options.all().some((below) => {
        const user = this.options.backings.userOf(below.id);
        return user?.owner === id && user.access === 'write' && this.cannotFlush(below);
      })
    );
  }
}

function textsOf(failures: ReadonlyMap<Slot, string>): string[] {
  return [...failures].map(([{ name }, text]) => `${name}: ${text}`);
}

function notSaved(error: unknown): string {
  return `tracking_not_saved reason=${JSON.stringify(messageOf(error))}`;
}

/** No request will come any more. */
export function close({ target, filter }: LiveTarget): void {
  for (const part of [filter?.view, target]) {
    try {
      part?.close?.();
    } catch {
      // The next start has more to do, and does it.
    }
  }
}
