/**
 * The live targets of a mount, on the main thread: made from a table, announced to the lanes, removed.
 *
 * A slot is a directory of the mount. It begins empty (mkdir), gets a target when a table is written to it, and goes
 * with rmdir. Tables load one after the other: a claim on a backing is decided before the next one asks.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { DmError, messageOf } from '../src/errors.js';
import type { FilterType } from '../src/filters/filter.js';
import { filterType } from '../src/filters/index.js';
import { parseTableLine, splitWords } from '../src/table.js';
import { targetType } from '../src/targets/index.js';
import type { Backing, FileBacking, Target } from '../src/targets/target.js';
import { Backings } from './backings.js';
import { Filters } from './filters.js';
import type { DeviceDescription, FilterDescription, TargetDescription, ToLane } from './lanes/protocol.js';
import { createStats } from './lanes/stats.js';
import { type Output, Outputs } from './outputs.js';
import { close, Removals } from './removal.js';
import { Identity, type SavedFilters } from './saved-filters.js';
import type { LiveTarget, Slot } from './slot.js';
import { Suspension } from './suspension.js';
import { EventLog } from './tree/events.js';
import { NAME_BYTES_MAX, NAME_RULE, SNAPSHOTS } from './tree/folder.js';

export interface RegistryOptions {
  readonly mountPoint: string;
  readonly mountDevice: () => Promise<number>;
  /** Threads that count I/O. */
  readonly statRows: number;
  /** Node id of the `device` file of slot `id`. */
  readonly deviceNode: (id: number) => number;
  /** Tells every lane, before it returns. */
  readonly announce: (message: ToLane) => void;
  /** Has a target's work in the background done, and ends that: when this resolves, nothing of it goes on. */
  readonly attend: (device: TargetDescription, target: Target) => void;
  readonly dismiss: (id: number) => Promise<void>;
  /** Tells the attendants too of a filter. */
  readonly attendFilter: (id: number, filter: FilterDescription | undefined) => void;
  /** Resolves when every thread knows what it was told and is done with requests for `nodes` that began before. */
  readonly settle: (nodes: ReadonlySet<number>) => Promise<void>;
  /** True while the blksnap tracker of target `id` is in a snapshot. */
  readonly isInSnapshot: (id: number) => boolean;
  /** Puts a line in the events of a slot or a snapshot. */
  readonly raise: (id: number, line: string) => void;
  /** Undefined: what filters know ends with the mount. */
  readonly savedFilters: SavedFilters | undefined;
  /** True while the kernel does I/O of target `id` itself. */
  readonly isPassedThrough: (id: number) => boolean;
  /** The kernel is to ask anew for the attributes of a node, or for a name in the root; the former resolves when it will. */
  readonly attributesChanged: (node: number) => Promise<void>;
  readonly nameGone: (name: string) => void;
}

const RELEASE_WAIT_MS = 1000;
const RELEASE_POLL_MS = 5;

export class Registry {
  private readonly slots = new Map<string, Slot>();
  private readonly slotsById = new Map<number, Slot>();
  private readonly backings: Backings;
  private readonly outputs: Outputs;
  private readonly filters: Filters;
  private readonly suspension: Suspension;
  private readonly removals: Removals;
  private lastId = 0;
  private lastLoaded = 0;
  private lastChange: Promise<void> = Promise.resolve();

  constructor(private readonly options: RegistryOptions) {
    this.outputs = new Outputs(options.raise);
    const targetByName = async (name: string) => {
      await this.releasesOf(name);
      const slot = this.slots.get(name);
      if (!slot?.live) return undefined;
      const { id, live } = slot;
      return { id, target: live.target, isOpen: slot.opens > 0, isHeld: this.suspension.holds(id) };
    };
    const sizeOfTarget = (id: number) => this.byId(id)?.live?.target.size ?? 0;
    this.backings = new Backings(options.mountPoint, options.mountDevice, targetByName, sizeOfTarget);
    const { announce, attendFilter, savedFilters } = options;
    const { outputs, backings } = this;
    this.filters = new Filters({
      ...{ outputs, backings, announce, attendFilter, savedFilters },
      newId: () => this.newId(),
    });
    this.suspension = new Suspension({
      ...options,
      ...{ outputs, backings, filters: this.filters },
      byId: (id) => this.byId(id),
      all: () => this.all(),
      settle: (id) => this.settle([id]),
    });
    this.removals = new Removals({
      ...options,
      ...{ outputs, backings, filters: this.filters, suspension: this.suspension },
      byName: (name) => this.slots.get(name),
      byId: (id) => this.byId(id),
      all: () => this.all(),
      forget: (slot) => {
        this.slots.delete(slot.name);
        this.slotsById.delete(slot.id);
      },
      settle: (id) => this.settle([id]),
      releasesOf: (name) => this.releasesOf(name),
      requireAtRest: (slot) => {
        this.refuseChanging(slot);
        this.refuseInSnapshot(slot);
      },
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

  /** A number that nothing in this mount has: slots, snapshots, images and owners of backings share them. */
  newId(): number {
    return ++this.lastId;
  }

  /** mkdir. Throws EEXIST, EINVAL. */
  add(name: string): Slot {
    this.requireFree(name);
    const slot: Slot = {
      id: this.newId(),
      name,
      events: new EventLog(),
      live: undefined,
      changing: false,
      failure: undefined,
      opens: 0,
      removal: 'normal',
      suspended: false,
    };
    this.slots.set(name, slot);
    this.slotsById.set(slot.id, slot);
    return slot;
  }

  /** Makes a slot's target from a table line. Throws what is wrong and keeps the sentence in `failure`. */
  async load(slot: Slot, line: string): Promise<void> {
    if (slot.live || slot.changing) {
      throw new DmError('EBUSY', `${slot.name} has a table: rmdir it to make it anew`);
    }
    try {
      await this.change(slot, () => this.loadNow(slot, line));
      slot.failure = undefined;
    } catch (error) {
      slot.failure = messageOf(error);
      this.backings.release(slot.id);
      this.retryDeferred();
      throw error;
    }
  }

  /**
   * Attaches the filter of a line `NAME ARGS`, or detaches it: `none`. When this resolves, no request is under way that has not met
   * the filter, or that has. Throws EALREADY, EBUSY, ENOENT, and what the filter's type throws.
   */
  async setFilter(slot: Slot, line: string): Promise<void> {
    const [name = '', ...args] = splitWords(line);
    this.refuseChanging(slot);
    this.refuseHeld(slot);
    if (name !== 'none') {
      const type = filterType(name);
      const settle = () => this.settle([slot.id]);
      await this.change(slot, () => this.attachFilter(slot, type, args), settle);
    } else if (args.length > 0) {
      throw new DmError('EINVAL', `filter: found \`${args[0]}\` after none`);
    } else {
      await this.detachFilter(slot);
    }
  }

  /** Another descriptor for the filter that is attached, in force on each thread from its next request on. */
  replaceFilter(slot: Slot, descriptor: unknown): void {
    this.filters.replace(slot.id, this.requireLive(slot), descriptor);
  }

  /**
   * Resolves when every request for one of these targets, for one that stands on one, or for one of the other nodes, has been served
   * that began before.
   */
  async settle(ids: Iterable<number>, otherNodes: Iterable<number> = []): Promise<void> {
    const pending = [...ids];
    const nodes = new Set(otherNodes);
    for (let id = pending.pop(); id !== undefined; id = pending.pop()) {
      nodes.add(this.options.deviceNode(id));
      pending.push(...this.backings.usersOf(id).map(({ owner }) => owner));
    }
    await this.options.settle(nodes);
  }

  /** Throws ENODEV, EBUSY, and what a flush throws. */
  async suspend(slot: Slot): Promise<void> {
    if (this.options.isPassedThrough(slot.id)) await this.releasesOf(slot.name);
    this.requireLive(slot);
    this.refuseChanging(slot);
    await this.change(slot, () => this.suspension.suspend(slot));
  }

  /** Serves what was held, at the size that the backings have now. Throws ENODEV, EBUSY, and what keeps it from growing. */
  async resume(slot: Slot): Promise<void> {
    this.requireLive(slot);
    this.refuseChanging(slot);
    await this.change(slot, () => this.suspension.resume(slot));
  }

  /** Serves all that is held: the mount goes. */
  resumeAll(): void {
    this.suspension.resumeAll(this.all());
  }

  /** Throws EBUSY for what is suspended, or stands on what is. */
  refuseHeld(slot: Slot): void {
    this.suspension.refuseHeld(slot);
  }

  isHeld({ id }: Slot): boolean {
    return this.suspension.holds(id);
  }

  /** Resolves when requests for slot `id` may be served; undefined: now. */
  whenFree(id: number): Promise<void> | undefined {
    return this.suspension.whenFree(id);
  }

  /** What the target and its filter have for backings. */
  claimsOf({ id, live }: Slot): readonly { access: 'read' | 'write'; backing: Backing }[] {
    return [id, live?.filter?.owner ?? []].flat().flatMap((owner) => this.backings.claimsOf(owner));
  }

  /** rename(2). What stands on the target follows. Throws ENOENT, EEXIST, EINVAL, EBUSY while it is in a snapshot. */
  rename(name: string, newName: string): void {
    const slot = this.slots.get(name);
    if (!slot) throw new DmError('ENOENT', `${name}: no such target`);
    if (name === newName) return;
    this.requireFree(newName);
    this.refuseChanging(slot);
    this.refuseInSnapshot(slot);
    this.slots.delete(name);
    slot.name = newName;
    this.slots.set(newName, slot);
    this.backings.rename(slot.id, newName);
    slot.events.raise(`renamed from=${name} to=${newName}`);
  }

  /** As Removals. */
  async setRemoval(slot: Slot, text: string): Promise<void> {
    await this.removals.set(slot, text);
  }

  async onLessUse(slot: Slot): Promise<void> {
    await this.removals.onLessUse(slot);
  }

  /** As Removals. */
  retryDeferred(): void {
    this.removals.retryDeferred();
  }

  async remove(name: string): Promise<Slot> {
    return await this.removals.remove(name);
  }

  async close(): Promise<string[]> {
    return await this.removals.closeAll();
  }

  flushAll(): string[] {
    return this.removals.flushAll();
  }

  /** Main's own view of what is announced. Throws ENXIO where it is gone, or what an image is of. */
  outputOf(device: DeviceDescription): Output {
    const output = device.kind === 'target' ? this.outputs.get(device.id) : this.outputs.openImage(device);
    if (output) return output;
    throw new DmError('ENXIO', 'the target is gone');
  }

  /** Opens and claims a file or block device for `owner`, for writing. Errors as CreateContext.openBacking. */
  async openFile(path: string, owner: number): Promise<FileBacking> {
    return await this.backings.openFile(path, 'write', owner);
  }

  /** Closes all that `owner` has. */
  releaseFiles(owner: number): void {
    this.backings.release(owner);
  }

  /** Ends the event streams: their readers would keep the mount busy for ever. */
  closeEvents(): void {
    for (const slot of this.slots.values()) slot.events.close();
  }

  /** The access that another target has to this one; a user's writes past it would pull the rug from under it. */
  claimOn(slot: Slot): 'read' | 'write' | undefined {
    return this.backings.userOf(slot.id)?.access;
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

  /**
   * Runs one change of a slot after the other, for a claim on a backing is decided before the next one asks; and then what others
   * need not wait for.
   */
  private async change(
    slot: Slot,
    work: () => Promise<void>,
    afterwards: () => Promise<void> = async () => {},
  ): Promise<void> {
    slot.changing = true;
    const change = this.lastChange.then(work);
    this.lastChange = change.catch(() => {});
    try {
      await change;
      await afterwards();
    } finally {
      slot.changing = false;
      this.retryDeferred();
    }
  }

  private async loadNow(slot: Slot, line: string): Promise<void> {
    const table = parseTableLine(line);
    const type = targetType(table.type);
    const identity = new Identity();
    const descriptor = await type.create(table.args, {
      length: table.length,
      device: this.outputs.device,
      openBacking: async (device, access) => {
        const backing = await this.backings.open(device, access, slot.id);
        // Now: `create` may write to it.
        identity.add(backing);
        return backing;
      },
      raise: (event: string) => slot.events.raise(event),
    });
    const device: TargetDescription = {
      kind: 'target',
      id: slot.id,
      node: this.options.deviceNode(slot.id),
      typeName: type.name,
      descriptor,
      stats: createStats(this.options.statRows),
    };
    const output = this.outputs.addTarget(device);
    const { target } = output;
    const live: LiveTarget = {
      ...{ type, target, output, device, stats: device.stats, loaded: ++this.lastLoaded },
      filter: undefined,
    };
    const saved = await this.filters.takeSaved(slot, live, identity).catch((error) => {
      this.outputs.remove(slot.id);
      close(live);
      throw error;
    });
    // From here on in one go: nobody opens the device before its filter is there.
    slot.live = live;
    this.options.announce({ kind: 'add', device });
    this.options.attend(device, target);
    if (saved) this.filters.install(slot.id, live, saved, this.newId());
  }

  private async attachFilter(slot: Slot, type: FilterType, args: readonly string[]): Promise<void> {
    const live = this.requireLive(slot);
    if (live.filter?.type === type)
      throw new DmError('EALREADY', `${slot.name}: ${type.name} is attached already`);
    if (live.filter) {
      const remedy = `\`echo none > ${slot.name}/filter\` detaches it`;
      throw new DmError('EBUSY', `${slot.name}: filter ${live.filter.type.name} is attached; ${remedy}`);
    }
    if (this.options.isPassedThrough(slot.id)) {
      throw new DmError(
        'EBUSY',
        `${slot.name}: its device was opened for passthrough, so the kernel does I/O that no filter would see: close it and ` +
          'attach the filter first, or make the target with no_passthrough',
      );
    }
    await this.filters.attach(slot.id, live, type, args);
  }

  private async detachFilter(slot: Slot): Promise<void> {
    const live = this.requireLive(slot);
    const { filter } = live;
    if (!filter) throw new DmError('ENOENT', `${slot.name}: no filter is attached`);
    this.refuseInSnapshot(slot);
    this.filters.detach(slot.id, live);
    slot.changing = true;
    try {
      await this.settle([slot.id]);
      filter.view.close?.();
    } finally {
      slot.changing = false;
      this.backings.release(filter.owner);
      this.retryDeferred();
    }
  }

  /** Throws EEXIST, EINVAL for what cannot be the name of a new target. */
  private requireFree(name: string): void {
    if (this.slots.has(name)) throw new DmError('EEXIST', `${name}: exists`);
    if (
      !/^[^\s/@.\p{Cc}][^\s/\p{Cc}]*$/u.test(name) ||
      Buffer.byteLength(name) > NAME_BYTES_MAX ||
      name === SNAPSHOTS
    ) {
      throw new DmError('EINVAL', `\`${name}\` cannot name a target: ${NAME_RULE}`);
    }
  }

  private refuseChanging({ name, changing }: Slot): void {
    if (changing) throw new DmError('EBUSY', `${name}: its table or filter is being changed`);
  }

  private requireLive(slot: Slot): LiveTarget {
    if (slot.live) return slot.live;
    throw new DmError('ENODEV', `${slot.name}: no table is loaded`);
  }

  private refuseInSnapshot({ id, name }: Slot): void {
    if (!this.options.isInSnapshot(id)) return;
    throw new DmError('EBUSY', `${name}: in a snapshot; destroy that first (rmdir snapshots/…)`);
  }
}
