/**
 * What every block device of dmfuse is: a file, memory, the simulated disk, a target's output.
 *
 * Synchronous and byte-addressed: offsets and lengths are bytes and need no alignment. Callers keep a request
 * inside `size`; a device may assert that and never has to be polite about it.
 *
 * Durability: a completed `flush` makes every earlier completed change durable. Until then each 512-byte sector
 * holds its old or its new content after a power cut, never anything else.
 */
export interface BlockDevice {
  /** Bytes. Fixed for the life of the device. */
  readonly size: number;
  /** Fills `into` from byte `offset` on. Throws EIO where the medium fails. */
  read(offset: number, into: Uint8Array): void;
  /** Writes all of `from` at byte `offset`. */
  write(offset: number, from: Uint8Array): void;
  /** Makes every completed change durable. Throws when any write since the last flush was lost. */
  flush(): void;
  /** A TRIM: nobody needs the `length` bytes at `offset` any more. What they read as afterwards is not promised. */
  discard(offset: number, length: number): void;
  /**
   * The `length` bytes at `offset` read as zeros. With `unmap` their space may be given back, and where a device
   * could only write the zeros out it throws EOPNOTSUPP instead.
   *
   * fallocate's PUNCH_HOLE arrives here and not as `discard`: the kernel's loop driver sends a discard and an
   * unmapping write-zeroes (which ext4 uses for file contents) as one and the same PUNCH_HOLE.
   */
  writeZeroes(offset: number, length: number, options?: { unmap?: boolean }): void;
  /**
   * Space for `length` bytes at `offset` that are about to be written, where there is none yet: a long write is faster so. What
   * they read as does not change. Advice, but ENOSPC is thrown.
   */
  allocate?(offset: number, length: number): void;
  /**
   * Writes `length` bytes at `offset` with what `source` has there, where the system can do that by itself. Returns how many
   * it did, from the first on; 0 where it cannot.
   */
  copyFrom?(source: BlockDevice, offset: number, length: number): number;
  /** The extent that byte `offset` (< size) lies in, for SEEK_DATA and SEEK_HOLE. Left out: all of it is data. */
  extentAt?(offset: number): Extent;
}

export interface Extent {
  readonly data: boolean;
  /** First byte after the extent. */
  readonly end: number;
}

/** The extent that byte `offset` of a device lies in; all of it is data where it cannot tell. */
export function extentOf(device: BlockDevice, offset: number): Extent {
  return device.extentAt?.(offset) ?? { data: true, end: device.size };
}

/** Makes a range zeros: a hole, where the medium can make one. */
export function zeroOut(device: BlockDevice, offset: number, length: number): void {
  try {
    device.writeZeroes(offset, length, { unmap: true });
  } catch (error) {
    if (!isUnsupported(error)) throw error;
    device.writeZeroes(offset, length);
  }
}

/** Whether an error says that a medium cannot do what was asked: it has two names. */
export function isUnsupported(error: unknown): boolean {
  const { code } = error as { code?: unknown };
  return code === 'EOPNOTSUPP' || code === 'ENOTSUP';
}
