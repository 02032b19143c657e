/** The filters of live targets, on the main thread: attached, told to every thread, replaced, kept for the next mount. */
import { DmError, messageOf } from '../src/errors.js';
import type { Filter, FilterType } from '../src/filters/filter.js';
import { filterTypes } from '../src/filters/index.js';
import type { Backings } from './backings.js';
import type { FilterDescription, ToLane } from './lanes/protocol.js';
import type { Outputs } from './outputs.js';
import { Identity, ripeIdentity, type SavedFilters } from './saved-filters.js';
import { type LiveFilter, type LiveTarget, type Slot, tableLine } from './slot.js';

export interface FiltersOptions {
  readonly outputs: Outputs;
  readonly backings: Backings;
  readonly newId: () => number;
  /** Tells every lane, before it returns. */
  readonly announce: (message: ToLane) => void;
  /** Tells the attendants too. */
  readonly attendFilter: (id: number, filter: FilterDescription | undefined) => void;
  /** Undefined: what filters know ends with the mount. */
  readonly savedFilters: SavedFilters | undefined;
}

type FilterOfType = Pick<LiveFilter, 'type' | 'descriptor'>;

export class Filters {
  constructor(private readonly options: FiltersOptions) {}

  /** Requests for target `id` that begin from now on meet the filter. Throws what its type throws. */
  async attach(id: number, live: LiveTarget, type: FilterType, args: readonly string[]): Promise<void> {
    const { backings, outputs, newId } = this.options;
    const owner = newId();
    try {
      const descriptor = await type.attach(args, {
        size: live.target.size,
        device: outputs.device,
        openBacking: (device, access) => backings.openFile(device, access, owner),
      });
      this.install(id, live, { type, descriptor }, owner);
    } catch (error) {
      backings.release(owner);
      throw error;
    }
  }

  /** Requests that begin from now on do not meet it any more. It is yet to be closed, and its backings released. */
  detach(id: number, live: LiveTarget): void {
    live.filter = undefined;
    this.tell(id, undefined);
  }

  install(id: number, live: LiveTarget, { type, descriptor }: FilterOfType, owner: number): void {
    const view = this.tell(id, { typeName: type.name, descriptor })!;
    live.filter = { type, descriptor, view, owner };
  }

  /** Another descriptor for the filter that is attached. Throws ENOENT where there is none. */
  replace(id: number, live: LiveTarget, descriptor: unknown): void {
    const { filter } = live;
    if (!filter) throw new DmError('ENOENT', 'no filter is attached');
    this.install(id, live, { type: filter.type, descriptor }, filter.owner);
  }

  /**
   * The filter that was attached when the mount, or the target, ended in good order: with what it knew, where the device is as it was
   * then, else as a new one.
   */
  async takeSaved(slot: Slot, live: LiveTarget, identity: Identity): Promise<FilterOfType | undefined> {
    const { savedFilters } = this.options;
    for (const type of savedFilters ? filterTypes() : []) {
      const bytes = type.restore && (await savedFilters!.take(slot.name, type.name));
      if (bytes) return { type, descriptor: await this.restore(slot, live, type, identity, bytes) };
    }
    return undefined;
  }

  /** After the last change of a device, while its backings are still open. */
  async save(slot: Slot, live: LiveTarget): Promise<void> {
    const { savedFilters, backings } = this.options;
    const { filter } = live;
    if (!savedFilters || !filter?.type.save) return;
    const identity = await ripeIdentity(() => {
      const found = new Identity();
      for (const backing of backings.of(slot.id)) found.add(backing);
      return found;
    });
    const bytes = filter.type.save(filter.descriptor, identity.text(tableLine(live)) ?? '');
    await savedFilters.save(slot.name, filter.type.name, bytes);
  }

  private async restore(
    slot: Slot,
    live: LiveTarget,
    type: FilterType,
    identity: Identity,
    bytes: Uint8Array,
  ): Promise<unknown> {
    const { size } = live.target;
    const text = identity.text(tableLine(live));
    try {
      if (text !== undefined) return type.restore!(bytes, { identity: text, size });
      throw new DmError('EINVAL', 'a block device or a target that it stands on may have changed unseen');
    } catch (error) {
      slot.events.raise(`tracking_restarted reason=${JSON.stringify(messageOf(error))}`);
      const openBacking = () => Promise.reject(new DmError('EINVAL', `${type.name} has no backing`));
      return await type.attach([], { size, device: this.options.outputs.device, openBacking });
    }
  }

  /** Every thread, this one at once; returns its own view. */
  private tell(id: number, filter: FilterDescription | undefined): Filter | undefined {
    const { outputs, announce, attendFilter } = this.options;
    const view = outputs.setFilter(id, filter);
    announce({ kind: 'filter', id, filter });
    attendFilter(id, filter);
    return view;
  }
}
