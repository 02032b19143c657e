/**
 * Suspended targets, on the main thread: their I/O is held, what was written is durable, and nothing of theirs goes on in the
 * background. As `dmsetup suspend` and `resume`.
 *
 * What stands on a suspended target is held with it, or its requests would go through. A held request does not wait in its lane,
 * for eight of them would hold the whole mount: lanes hand it to main, which serves it when the device is resumed. A resume is also the
 * instant at which a target whose backing has grown becomes longer.
 *
 *   suspend-S1  When `suspend` resolves, no request is under way, in a lane or an attendant, and all that were answered are durable.
 *   suspend-S2  Once resumed, every request that was held is served, whoever still waits for it.
 */
import { DmError } from '../src/errors.js';
import type { Target } from '../src/targets/target.js';
import { SECTOR_BYTES } from '../src/units.js';
import type { Backings } from './backings.js';
import type { Filters } from './filters.js';
import type { FilterDescription, TargetDescription, ToLane } from './lanes/protocol.js';
import type { Outputs } from './outputs.js';
import type { LiveTarget, Slot } from './slot.js';

export interface SuspensionOptions {
  readonly outputs: Outputs;
  readonly backings: Backings;
  readonly filters: Filters;
  readonly byId: (id: number) => Slot | undefined;
  readonly all: () => readonly Slot[];
  /** Node id of the `device` file of slot `id`. */
  readonly deviceNode: (id: number) => number;
  /** Tells every lane, before it returns. */
  readonly announce: (message: ToLane) => void;
  readonly attend: (device: TargetDescription, target: Target) => void;
  readonly attendFilter: (id: number, filter: FilterDescription | undefined) => void;
  readonly dismiss: (id: number) => Promise<void>;
  /** Resolves when no request for the target, or for what stands on it, is under way that began before. */
  readonly settle: (id: number) => Promise<void>;
  readonly isPassedThrough: (id: number) => boolean;
  readonly isInSnapshot: (id: number) => boolean;
  /** The kernel is to ask anew for the attributes of a node; resolves when it will. */
  readonly attributesChanged: (node: number) => Promise<void>;
}

export class Suspension {
  /** Slots whose requests are held: those that are suspended, and what stands on them. */
  private held = new Set<number>();
  private readonly waiting = new Map<number, (() => void)[]>();

  constructor(private readonly options: SuspensionOptions) {}

  holds(id: number): boolean {
    return this.held.has(id);
  }

  /** Throws EBUSY for what is suspended, or stands on what is. */
  refuseHeld({ id, name }: Slot): void {
    if (this.holds(id)) {
      throw new DmError('EBUSY', `${name}: it, or what it stands on, is suspended; resume that first`);
    }
  }

  /** Whether a target that this one stands on is suspended. */
  isHeldFromBelow(slot: Slot): boolean {
    return this.options
      .all()
      .some((other) => other !== slot && other.suspended && this.standingOn(other).includes(slot));
  }

  /** Resolves when requests for slot `id` may be served; undefined: now. */
  whenFree(id: number): Promise<void> | undefined {
    if (!this.held.has(id)) return undefined;
    return new Promise((resolve) => {
      const others = this.waiting.get(id) ?? [];
      this.waiting.set(id, [...others, resolve]);
    });
  }

  /** Throws EBUSY where the kernel does the I/O itself, and what a flush throws; then nothing is held that was not before. */
  async suspend(slot: Slot): Promise<void> {
    if (slot.suspended) return;
    const standing = this.standingOn(slot);
    // It would write its last to what is suspended.
    const leaving = standing.find(({ live, changing }) => !live && changing);
    if (leaving) {
      throw new DmError(
        'EBUSY',
        `${slot.name}: ${leaving.name}, which stands on it, is being removed; try again`,
      );
    }
    const passed = standing.find(({ id }) => this.options.isPassedThrough(id));
    if (passed) {
      throw new DmError(
        'EBUSY',
        `${passed.name}: its device was opened for passthrough, so the kernel does I/O that cannot be held: close it, or make the target ` +
          'with no_passthrough',
      );
    }
    await this.hold(slot);
  }

  /**
   * Serves what was held. Before, a target whose backings have grown becomes longer; one that is not suspended too, but none that stands
   * on one that is. Throws what keeps it from growing, and has resumed it then.
   */
  async resume(slot: Slot): Promise<void> {
    // What the kernel passes through is not held meanwhile, and need not be: where it goes stays as it is.
    if (!slot.suspended) {
      if (!this.canGrow(slot)) return;
      await this.hold(slot);
    }
    try {
      await this.grow(slot);
    } finally {
      this.release(slot);
    }
  }

  /** All at once: the mount goes. */
  resumeAll(slots: readonly Slot[]): void {
    for (const slot of slots) if (slot.suspended) this.release(slot);
  }

  private async hold(slot: Slot): Promise<void> {
    slot.suspended = true;
    const newly = this.standingOn(slot).filter(({ id }) => !this.held.has(id));
    this.announce();
    try {
      await this.options.settle(slot.id);
      for (const { id } of newly) await this.options.dismiss(id);
      // Those on top first: what they flush is written to the others.
      for (const { live } of newly) live?.output.flush();
    } catch (error) {
      this.release(slot);
      throw error;
    }
  }

  private release(slot: Slot): void {
    const { attend, attendFilter } = this.options;
    const before = this.held;
    slot.suspended = false;
    this.announce();
    const freed = this.standingOn(slot).filter(({ id }) => before.has(id) && !this.held.has(id));
    // What others stand on comes first.
    for (const { id, live } of freed.reverse()) {
      if (!live) continue;
      attend(live.device, live.target);
      const { filter } = live;
      if (filter) attendFilter(id, { typeName: filter.type.name, descriptor: filter.descriptor });
    }
    for (const { id } of freed) {
      const waiting = this.waiting.get(id) ?? [];
      this.waiting.delete(id);
      for (const resolve of waiting) resolve();
    }
  }

  /** Tells the lanes which devices are held now. */
  private announce(): void {
    const { all, deviceNode, announce } = this.options;
    const suspended = all().filter((slot) => slot.suspended);
    this.held = new Set(suspended.flatMap((slot) => this.standingOn(slot).map(({ id }) => id)));
    announce({ kind: 'hold', nodes: [...this.held].map(deviceNode) });
  }

  /** A target and all that stands on it; what was loaded last comes first. */
  private standingOn(slot: Slot): Slot[] {
    const { backings, byId } = this.options;
    const found = new Set<Slot>();
    const pending: (Slot | undefined)[] = [slot];
    for (let next = pending.pop(); next; next = pending.pop()) {
      found.add(next);
      for (const { owner } of backings.usersOf(next.id)) {
        const user = byId(owner);
        if (user) pending.push(user);
      }
    }
    return [...found].sort((a, b) => loadedOf(b) - loadedOf(a));
  }

  private canGrow(slot: Slot): boolean {
    const { backings } = this.options;
    return (
      slot.live?.type.grow !== undefined &&
      backings.of(slot.id).some((backing) => backings.sizeOf(backing) > backing.size) &&
      // Growing may write.
      !this.isHeldFromBelow(slot)
    );
  }

  private async grow(slot: Slot): Promise<void> {
    const { backings, outputs, isInSnapshot, deviceNode, attributesChanged } = this.options;
    const { live, id, name } = slot;
    if (!live || !this.canGrow(slot)) return;
    if (isInSnapshot(id)) {
      throw new DmError(
        'EBUSY',
        `${name}: in a snapshot, so it cannot grow; destroy that first and resume again`,
      );
    }
    const descriptor = live.type.grow!(live.device.descriptor, {
      device: outputs.device,
      raise: (event) => slot.events.raise(event),
      sizeOf: (backing) => backings.sizeOf(backing),
    });
    if (descriptor === undefined) return;
    backings.remeasure(id);
    this.replace(slot, live, descriptor);
    slot.events.raise(`grown sectors=${slot.live!.target.size / SECTOR_BYTES}`);
    // Now: whoever resumed it looks at its size next.
    await attributesChanged(deviceNode(id));
  }

  /** Every thread has another view from its next request on. Attendants hear of it when they are told of the target anew. */
  private replace(slot: Slot, live: LiveTarget, descriptor: unknown): void {
    const { outputs, announce, filters } = this.options;
    const device = { ...live.device, descriptor };
    const target = outputs.replaceTarget(device)!;
    announce({ kind: 'replace', device });
    slot.live = { ...live, device, target };
    const { filter } = live;
    if (!filter) return;
    const grown = filter.type.resized?.(target.size) ?? filter.descriptor;
    filters.install(slot.id, slot.live, { type: filter.type, descriptor: grown }, filter.owner);
  }
}

function loadedOf({ live }: Slot): number {
  return live?.loaded ?? 0;
}
