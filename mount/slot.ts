/** What there is in a place of the mount: a slot, its target once a table is loaded, and the target's filter. */
import type { Filter, FilterType } from '../src/filters/filter.js';
import type { Target, TargetType } from '../src/targets/target.js';
import { SECTOR_BYTES } from '../src/units.js';
import type { TargetDescription } from './lanes/protocol.js';
import type { Output } from './outputs.js';
import type { EventLog } from './tree/events.js';

/** A target that is at work. */
export interface LiveTarget {
  readonly type: TargetType;
  /** Main's own view. */
  readonly target: Target;
  /** The same with its filter before it. */
  readonly output: Output;
  readonly stats: SharedArrayBuffer;
  /** As the other threads know it. */
  readonly device: TargetDescription;
  /** Its number among all that were loaded: what it stands on has a lower one. */
  readonly loaded: number;
  filter: LiveFilter | undefined;
}

/** What becomes of a target whose `device` is open: not now; with the last close; now, and its users get EIO. */
export const REMOVALS = ['normal', 'deferred', 'force'] as const;
export type Removal = (typeof REMOVALS)[number];

export interface Slot {
  readonly id: number;
  name: string;
  readonly events: EventLog;
  live: LiveTarget | undefined;
  /** Its table is being loaded or removed, or its filter attached or detached. */
  changing: boolean;
  /** Why the last table was refused. */
  failure: string | undefined;
  /** Opens of `device`. */
  opens: number;
  removal: Removal;
  /** No request is served until it is resumed. */
  suspended: boolean;
}

/** A filter that is attached. */
export interface LiveFilter {
  readonly type: FilterType;
  readonly descriptor: unknown;
  /** Main's own view. */
  readonly view: Filter;
  /** What owns its backings. */
  readonly owner: number;
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
