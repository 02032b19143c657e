/**
 * What the main thread and the lanes say to each other.
 *
 * Main → lane: the devices there are. A lane sits in read(2) and not in its event loop, so main posts the change to
 * every lane's port first and then raises the version word; each lane compares that word once per request and drains
 * its port when it differs. Main answers the user after that, so no request for a new device can come before it.
 *
 * Lane → main: requests that are not for the data path, events of targets, lines of --debug.
 */
import type { MessagePort } from 'node:worker_threads';

/** Words of the control buffer that main shares with all lanes. */
export const REGISTRY_VERSION = 0;
export const CONTROL_WORDS = 1;

/** A live target as it crosses to the lanes. */
export interface DeviceDescription {
  readonly id: number;
  /** Node id of its `device` file. */
  readonly node: number;
  readonly typeName: string;
  readonly descriptor: unknown;
  readonly stats: SharedArrayBuffer;
}

export type ToLane =
  | { readonly kind: 'add'; readonly device: DeviceDescription }
  | { readonly kind: 'remove'; readonly id: number };

export type FromLane =
  | { readonly kind: 'request'; readonly bytes: Uint8Array }
  | { readonly kind: 'event'; readonly id: number; readonly line: string }
  | { readonly kind: 'trace'; readonly line: string };

/** What an attendant calls of a target. */
export type Duty = 'commitRegularly' | 'workInBackground';

export interface AttendantData {
  readonly duty: Duty;
}

/** What an attendant, which hears the same as the lanes, says. */
export type FromAttendant =
  | { readonly kind: 'event'; readonly id: number; readonly line: string }
  | { readonly kind: 'dismissed'; readonly id: number };

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
