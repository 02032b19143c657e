/**
 * What the main thread and the lanes say to each other.
 *
 * Main → lane: the devices there are. A lane sits in read(2) and not in its event loop, so main posts the change to
 * every lane's port first and then raises the version word; each lane compares that word once per request and drains
 * its port when it differs. Main answers the user after that, so no request for a new device can come before it. A lane that was inside a
 * request at that moment serves it to its end in the old state: main waits for it where that matters (LanePool.settle).
 *
 * Lane → main: requests that are not for the data path, or for a device that is held, events of targets, lines of --debug.
 */
import type { MessagePort } from 'node:worker_threads';
import type { ImageDescriptor } from '../../src/filters/blksnap/image.js';

/** Words of the control buffer that main shares with all lanes. */
export const REGISTRY_VERSION = 0;
export const CONTROL_WORDS = 1;

/** What has a `device` file, as it crosses to the lanes: a live target, or the image of a snapshot. */
export type DeviceDescription = TargetDescription | ImageDescription;

interface Served {
  readonly id: number;
  /** Node id of its `device` file. */
  readonly node: number;
  readonly stats: SharedArrayBuffer;
}

export interface TargetDescription extends Served {
  readonly kind: 'target';
  readonly typeName: string;
  readonly descriptor: unknown;
}

export interface ImageDescription extends Served {
  readonly kind: 'image';
  /** The target that it is an image of. */
  readonly originId: number;
  readonly descriptor: ImageDescriptor;
}

export interface FilterDescription {
  readonly typeName: string;
  readonly descriptor: unknown;
}

export type ToLane =
  | { readonly kind: 'add'; readonly device: DeviceDescription }
  | { readonly kind: 'remove'; readonly id: number }
  /** A target that has grown: the same device, as another descriptor has it. */
  | { readonly kind: 'replace'; readonly device: TargetDescription }
  /** All `device` files whose requests are not to be served now but handed to main. */
  | { readonly kind: 'hold'; readonly nodes: readonly number[] }
  /** Attaches a filter to a target, replaces its descriptor, or detaches it. */
  | { readonly kind: 'filter'; readonly id: number; readonly filter: FilterDescription | undefined };

export type FromLane =
  | { readonly kind: 'request'; readonly bytes: Uint8Array }
  /** A request for a device that is held. */
  | { readonly kind: 'held'; readonly bytes: Uint8Array }
  | { readonly kind: 'event'; readonly id: number; readonly line: string }
  | { readonly kind: 'trace'; readonly line: string };

/** What an attendant calls of a target. */
export type Duty = 'commitRegularly' | 'workInBackground';

export interface AttendantData {
  readonly duty: Duty;
}

/** Attendants hear of targets as the lanes do; nobody stands on an image. */
export type ToAttendant =
  | Extract<ToLane, { readonly kind: 'remove' | 'filter' }>
  | { readonly kind: 'add'; readonly device: TargetDescription };

/** What an attendant says. */
export type FromAttendant =
  | { readonly kind: 'event'; readonly id: number; readonly line: string }
  /** It has acted on the next of what main has told it. */
  | { readonly kind: 'heard' };

export interface LaneData {
  readonly fuseFd: number;
  /** From 0 on; also the lane's row in every target's statistics. */
  readonly lane: number;
  readonly control: SharedArrayBuffer;
  /** Words of the Crew. */
  readonly crew: SharedArrayBuffer;
  /** Lanes that never rest. */
  readonly regulars: number;
  readonly port: MessagePort;
  readonly debug: boolean;
}
