/**
 * What a read, a write or a sync of a `device` file does, whatever transport it came by. Here, at the edge, it is cut to the
 * device (reads end there, writes past it are ENOSPC); targets see only what is inside.
 */
import { DmError, errnoOf, messageOf } from '../src/errors.js';
import { SECTOR_BYTES } from '../src/units.js';
import type { LaneStats } from './lanes/stats.js';
import type { Output } from './outputs.js';

// <fcntl.h>; O_SYNC contains this bit.
const O_DSYNC = 0o10000;

/** A `device` file as the thread that serves it sees it. */
export interface ServedDevice {
  readonly id: number;
  readonly output: Output;
  readonly stats: LaneStats;
}

/** Fills `into` from byte `offset` on as far as the device goes: how many bytes that are. */
export function readDevice({ output, stats }: ServedDevice, offset: number, into: Uint8Array): number {
  const length = clampLength(output.size, offset, into.length);
  if (length > 0) output.read(offset, into.subarray(0, length));
  stats.add('reads', 1);
  stats.add('read_bytes', length);
  return length;
}

/** Writes what the device has room for, durably where the `flags` of open(2) ask for it: how many bytes. Throws ENOSPC. */
export function writeDevice(device: ServedDevice, offset: number, data: Uint8Array, flags: number): number {
  const { output, stats } = device;
  const length = clampLength(output.size, offset, data.length);
  if (length === 0 && data.length > 0)
    throw new DmError('ENOSPC', `WRITE at ${offset}: the device ends before it`);
  if (length > 0) output.write(offset, data.subarray(0, length));
  stats.add('writes', 1);
  stats.add('written_bytes', length);
  if (flags & O_DSYNC) syncDevice(device);
  return length;
}

/** fsync(2). */
export function syncDevice({ output, stats }: ServedDevice): void {
  stats.add('flushes', 1);
  output.flush();
}

/**
 * Counts a request that failed: its errno. EIO means that something is broken, and an errno alone tells nobody what: then
 * `raise` gets a line for the device's events. `offset`, bytes, is left out where the request has none.
 */
export function failDevice(
  { stats }: ServedDevice,
  error: unknown,
  { operation, offset }: { readonly operation: string; readonly offset?: number | undefined },
  raise: (line: string) => void,
): number {
  stats.add('errors', 1);
  const errno = errnoOf(error);
  if (errno === errnoOf({ code: 'EIO' })) {
    const at = offset === undefined ? '' : ` sector=${Math.floor(offset / SECTOR_BYTES)}`;
    raise(`io_error op=${operation.toLowerCase()}${at} reason=${JSON.stringify(messageOf(error))}`);
  }
  return errno;
}

/** How many of `length` bytes from `offset` on are inside a device of `size` bytes. */
export function clampLength(size: number, offset: number, length: number): number {
  return Math.max(0, Math.min(length, size - offset));
}
