/**
 * What every block device of dmfuse is: a file, memory, the simulated disk, a target's output.
 *
 * Synchronous and byte-addressed: offsets and lengths are bytes and need no alignment. Callers keep a request
 * inside `size` (`checkRange` at the edge); a device may assert it and never has to be polite about it.
 *
 * Durability: a completed `flush` makes every earlier completed change durable. Until then each 512-byte sector
 * holds its old or its new content after a power cut, never anything else.
 *
 * `discard` reads back as zeros, like fallocate(2)'s PUNCH_HOLE. It must: the kernel's loop driver sends both a
 * discard and an unmapping write-zeroes (ext4 uses those for file contents) as one and the same PUNCH_HOLE.
 */
export interface BlockDevice {
  /** Bytes. Fixed for the life of the device. */
  readonly size: number;
  /** Fills `into` from byte `offset` on. Throws EIO where the medium fails. */
  read(offset: number, into: Uint8Array): void;
  /** Writes all of `from` at byte `offset`. */
  write(offset: number, from: Uint8Array): void;
  /** Makes every completed write, discard and writeZeroes durable. */
  flush(): void;
  /** The `length` bytes at `offset` are no longer needed: they read as zeros, their space may be given back. */
  discard(offset: number, length: number): void;
  /** The `length` bytes at `offset` read as zeros; their space stays allocated. */
  writeZeroes(offset: number, length: number): void;
  /**
   * The extent of data or hole that byte `offset` (< size) lies in, for SEEK_DATA and SEEK_HOLE. `end` is in
   * bytes. Left out where a device cannot tell: all of it is data.
   */
  extentAt?(offset: number): Extent;
}

export interface Extent {
  readonly data: boolean;
  /** First byte after the extent; bytes. */
  readonly end: number;
}

/** The bytes of [offset, offset + length) that lie inside a device of `size` bytes: the length, 0 when none. */
export function clampLength(size: number, offset: number, length: number): number {
  return Math.max(0, Math.min(length, size - offset));
}
