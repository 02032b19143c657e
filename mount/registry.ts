/**
 * The live targets of a mount, on the main thread: made from a table, announced to the lanes, removed.
 *
 * A slot is a directory of the mount. It begins empty (mkdir), gets a target when a table is written to it, and goes
 * with rmdir. Tables load one after the other: a claim on a backing is decided before the next one asks.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { DmError, errnoOf, messageOf } from '../src/errors.js';
import { parseTableLine } from '../src/table.js';
import { targetType } from '../src/targets/index.js';
import type { Target, TargetType } from '../src/targets/target.js';
import { SECTOR_BYTES } from '../src/units.js';
import { Backings } from './backings.js';
import type { DeviceDescription, ToLane } from './lanes/protocol.js';
import { createStats } from './lanes/stats.js';
import { openDevice, openTarget } from './open-target.js';
import { EventLog } from './tree/events.js';

/** A target that is at work. */
export interface LiveTarget {
  readonly type: TargetType;
  /** Main's own view. */
  readonly target: Target;
  readonly stats: SharedArrayBuffer;
  /** Its number among all that were loaded: what it stands on has a lower one. */
  readonly loaded: number;
}

export interface Slot {
  readonly id: number;
  readonly name: string;
  readonly events: EventLog;
  live: LiveTarget | undefined;
  /** Its table is being loaded or removed. */
  loading: boolean;
  /** Why the last table was refused. */
  failure: string | undefined;
  /** Opens of `device`. */
  opens: number;
}

export interface RegistryOptions {
  readonly mountPoint: string;
  readonly mountDevice: () => Promise<number>;
  readonly lanes: number;
  /** Node id of the `device` file of slot `id`. */
  readonly deviceNode: (id: number) => number;
  /** Tells every lane, before it returns. */
  readonly announce: (message: ToLane) => void;
  /** Has a target's work in the background done, and ends that: when this resolves, nothing of it goes on. */
  readonly attend: (device: DeviceDescription, target: Target) => void;
  readonly dismiss: (id: number) => Promise<void>;
}

const NAME_BYTES_MAX = 128;
const RELEASE_WAIT_MS = 1000;
const RELEASE_POLL_MS = 5;
const RESERVED_NAMES = ['snapshots'];

export class Registry {
  private readonly slots = new Map<string, Slot>();
  private readonly slotsById = new Map<number, Slot>();
  private readonly backings: Backings;
  private lastId = 0;
  private lastLoaded = 0;
  private lastLoad: Promise<void> = Promise.resolve();

  constructor(private readonly options: RegistryOptions) {
    this.backings = new Backings(options.mountPoint, options.mountDevice, async (name) => {
      await this.releasesOf(name);
      const slot = this.slots.get(name);
      return slot?.live && { id: slot.id, target: slot.live.target, isOpen: slot.opens > 0 };
    });
  }

  get(name: string): Slot | undefined {
    return this.slots.get(name);
  }

  byId(id: number): Slot | undefined {
    return this.slotsById.get(id);
  }

  all(): Slot[] {
    return [...this.slots.values()];
  }

  /** mkdir. Throws EEXIST, EINVAL. */
  add(name: string): Slot {
    if (this.slots.has(name)) throw new DmError('EEXIST', `${name}: exists`);
    if (
      !/^[^\s/@.][^\s/]*$/.test(name) ||
      Buffer.byteLength(name) > NAME_BYTES_MAX ||
      RESERVED_NAMES.includes(name)
    ) {
      throw new DmError(
        'EINVAL',
        `\`${name}\` cannot name a target: no blanks, no leading dot or @, not ${RESERVED_NAMES.join(', ')}`,
      );
    }
    const slot: Slot = {
      id: ++this.lastId,
      name,
      events: new EventLog(),
      live: undefined,
      loading: false,
      failure: undefined,
      opens: 0,
    };
    this.slots.set(name, slot);
    this.slotsById.set(slot.id, slot);
    return slot;
  }

  /** Makes a slot's target from a table line. Throws what is wrong and keeps the sentence in `failure`. */
  async load(slot: Slot, line: string): Promise<void> {
    if (slot.live || slot.loading) {
      throw new DmError('EBUSY', `${slot.name} has a table: rmdir it to make it anew`);
    }
    slot.loading = true;
    const load = this.lastLoad.then(() => this.loadNow(slot, line));
    this.lastLoad = load.catch(() => {});
    try {
      await load;
      slot.failure = undefined;
    } catch (error) {
      slot.failure = messageOf(error);
      this.backings.release(slot.id);
      throw error;
    } finally {
      slot.loading = false;
    }
  }

  /**
   * rmdir. Throws ENOENT, EBUSY while `device` is open or another target stands on this one, and what a flush throws that may
   * work the next time.
   */
  async remove(name: string): Promise<Slot> {
    await this.releasesOf(name);
    const slot = this.slots.get(name);
    if (!slot) throw new DmError('ENOENT', `${name}: no such target`);
    if (slot.loading) throw new DmError('EBUSY', `${slot.name}: its table is being loaded or removed`);
    if (slot.opens > 0) throw new DmError('EBUSY', `${slot.name}: its device file is open`);
    const user = this.backings.userOf(slot.id);
    if (user) throw new DmError('EBUSY', `${slot.name}: ${this.byId(user.owner)?.name} stands on it`);
    const { live } = slot;
    try {
      live?.target.flush();
    } catch (error) {
      if (!this.cannotFlush(slot)) {
        const reason = JSON.stringify(messageOf(error));
        slot.events.raise(`remove_refused errno=${errnoOf(error)} reason=${reason}`);
        throw error;
      }
    }
    if (live) {
      // Before the wait: nobody opens it meanwhile, or makes a new one in its place.
      slot.live = undefined;
      slot.loading = true;
      await this.options.dismiss(slot.id);
      close(live);
    }
    this.options.announce({ kind: 'remove', id: slot.id });
    this.backings.release(slot.id);
    this.slots.delete(slot.name);
    this.slotsById.delete(slot.id);
    slot.events.close();
    return slot;
  }

  /** Ends the event streams: their readers would keep the mount busy for ever. */
  closeEvents(): void {
    for (const slot of this.slots.values()) slot.events.close();
  }

  /** The access that another target has to this one; a user's writes past it would pull the rug from under it. */
  claimOn(slot: Slot): 'read' | 'write' | undefined {
    return this.backings.userOf(slot.id)?.access;
  }

  /** The mount is gone: as `flushAll`, and every target is closed. */
  async close(): Promise<string[]> {
    const slots = this.all().filter(({ live }) => live);
    await Promise.all(slots.map(({ id }) => this.options.dismiss(id)));
    const failures = this.flushAll();
    // Those that stand on others first.
    for (const { live } of slots.sort((a, b) => b.live!.loaded - a.live!.loaded)) close(live!);
    return failures;
  }

  /** Makes every completed write of every target durable: the errors of those that could not. */
  flushAll(): string[] {
    const failures: string[] = [];
    for (const slot of this.slots.values()) {
      try {
        slot.live?.target.flush();
      } catch (error) {
        failures.push(`${slot.name}: ${messageOf(error)}`);
      }
    }
    return failures;
  }

  /** A target whose flushes are lost, or that writes to such a one. */
  private cannotFlush({ id, live }: Slot): boolean {
    return (
      live?.target.cannotFlush?.() === true ||
      this.all().some((below) => {
        const user = this.backings.userOf(below.id);
        return user?.owner === id && user.access === 'write' && this.cannotFlush(below);
      })
    );
  }

  /**
   * Waits a little for the device of a target to be released. Nobody waits for a RELEASE and lanes hand requests over in
   * no order: that of a file closed just now may come after what its owner asked for next.
   */
  private async releasesOf(name: string): Promise<void> {
    for (let waited = 0; waited < RELEASE_WAIT_MS && this.slots.get(name)?.opens; waited += RELEASE_POLL_MS) {
      await sleep(RELEASE_POLL_MS);
    }
  }

  private async loadNow(slot: Slot, line: string): Promise<void> {
    const table = parseTableLine(line);
    const type = targetType(table.type);
    const targetById = (id: number) => this.slotsById.get(id)?.live?.target;
    const raise = (event: string) => slot.events.raise(event);
    const descriptor = await type.create(table.args, {
      length: table.length,
      device: (backing) => openDevice(backing, targetById),
      openBacking: (device, access) => this.backings.open(device, access, slot.id),
      raise,
    });
    const device: DeviceDescription = {
      id: slot.id,
      node: this.options.deviceNode(slot.id),
      typeName: type.name,
      descriptor,
      stats: createStats(this.options.lanes),
    };
    const target = openTarget(device, targetById, raise);
    slot.live = { type, target, stats: device.stats, loaded: ++this.lastLoaded };
    this.options.announce({ kind: 'add', device });
    this.options.attend(device, target);
  }
}

function close({ target }: LiveTarget): void {
  try {
    target.close?.();
  } catch {
    // The next start has more to do, and does it.
  }
}

/** `0 LENGTH TYPE ARGS`: what `create` accepts. */
export function tableLine({ type, target }: LiveTarget): string {
  return `0 ${target.size / SECTOR_BYTES} ${type.name} ${target.tableArgs()}`;
}

/** `0 LENGTH TYPE …`, as dmsetup status; what is missing while there is no target. */
export function statusLine(slot: Slot): string {
  if (!slot.live) return slot.failure === undefined ? 'no table' : `failed: ${slot.failure}`;
  const { type, target } = slot.live;
  return `0 ${target.size / SECTOR_BYTES} ${type.name} ${target.statusArgs()}`.trimEnd();
}
