/**
 * A regular file or a block device as a BlockDevice. The descriptor is opened once, on the main thread; every
 * thread builds its own FileDevice over the same descriptor number, so nothing here keeps state that must agree.
 *
 * I/O is buffered: a write is in the page cache (safe from kill -9) when it returns and durable after a flush.
 */
import { fdatasyncSync, fstatSync, ftruncateSync, readSync, writeSync } from 'node:fs';
import { DmError } from '../errors.js';
import { libcFunction, SystemCallError } from '../libc.js';
import { type BlockDevice, type Extent, isUnsupported } from './block-device.js';

// <linux/falloc.h>
const FALLOC_KEEP_SIZE = 0x01;
const FALLOC_PUNCH_HOLE = 0x02;
const FALLOC_ZERO_RANGE = 0x10;
// <unistd.h>
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

const fallocate = libcFunction<[number, number, number, number]>(
  'int fallocate(int fd, int mode, int64_t offset, int64_t length)',
);
const lseek = libcFunction<[number, number, number]>('int64_t lseek(int fd, int64_t offset, int whence)');

const copyFileRange = libcFunction<[number, [number], number, [number], number, number]>(
  'int64_t copy_file_range(int from, _Inout_ int64_t *fromOffset, int to, _Inout_ int64_t *toOffset, size_t length, unsigned int flags)',
);

const ZEROES = new Uint8Array(1 << 20);
/** Bytes; the largest logical block that disks have. */
const BLOCK_ALIGNMENT = 4096;

export interface FileDescription {
  readonly fd: number;
  /** Bytes. */
  readonly size: number;
  /** For messages. */
  readonly path: string;
}

/** Bytes of an open regular file or block device. */
export function fileSize(fd: number): number {
  return lseek(fd, 0, SEEK_END);
}

/** Makes an open regular file `bytes` long, where it is shorter. False for a block device. */
export function extendFile(fd: number, bytes: number): boolean {
  const stats = fstatSync(fd);
  if (!stats.isFile()) return false;
  if (stats.size < bytes) ftruncateSync(fd, bytes);
  return true;
}

/** Whether an open file holds data from byte `offset` on, and not a hole alone. */
export function hasData(fd: number, offset: number): boolean {
  try {
    lseek(fd, offset, SEEK_DATA);
    return true;
  } catch (error) {
    if ((error as { code?: unknown }).code === 'ENXIO') return false;
    throw error;
  }
}

/**
 * Space on the medium for `length` bytes at `offset` of an open regular file, which grows where it is too short. Without a
 * promise of space where the file system cannot give one. Throws ENOSPC.
 */
export function reserveSpace(fd: number, offset: number, length: number): void {
  try {
    fallocate(fd, 0, offset, length);
  } catch (error) {
    if (!isUnsupported(error)) throw error;
    if (fileSize(fd) < offset + length) ftruncateSync(fd, offset + length);
  }
}

export class FileDevice implements BlockDevice {
  readonly size: number;
  private readonly fd: number;
  private readonly path: string;
  /** False once the medium has refused: a block device, some file systems. */
  private canAllocate = true;
  private canCopy = true;

  constructor(file: FileDescription) {
    this.fd = file.fd;
    this.size = file.size;
    this.path = file.path;
  }

  read(offset: number, into: Uint8Array): void {
    let done = 0;
    while (done < into.length) {
      const n = readSync(this.fd, into, done, into.length - done, offset + done);
      if (n === 0) throw new DmError('EIO', `${this.path}: ends before byte ${offset + into.length}`);
      done += n;
    }
  }

  write(offset: number, from: Uint8Array): void {
    let done = 0;
    while (done < from.length) {
      done += writeSync(this.fd, from, done, from.length - done, offset + done);
    }
  }

  flush(): void {
    fdatasyncSync(this.fd);
  }

  discard(offset: number, length: number): void {
    try {
      this.fallocate(FALLOC_PUNCH_HOLE, offset, length);
    } catch (error) {
      // A TRIM is advice: a medium that cannot take it has still done all that was asked.
      if (!isUnsupported(error)) throw error;
    }
  }

  writeZeroes(offset: number, length: number, { unmap = false } = {}): void {
    try {
      const { start, end } = this.fallocate(unmap ? FALLOC_PUNCH_HOLE : FALLOC_ZERO_RANGE, offset, length);
      this.writeOutZeroes(offset, start - offset);
      this.writeOutZeroes(end, offset + length - end);
    } catch (error) {
      if (unmap || !isUnsupported(error)) throw error;
      this.writeOutZeroes(offset, length);
    }
  }

  allocate(offset: number, length: number): void {
    if (!this.canAllocate) return;
    try {
      fallocate(this.fd, FALLOC_KEEP_SIZE, offset, length);
    } catch (error) {
      if (error instanceof SystemCallError && error.code === 'ENOSPC') throw error;
      this.canAllocate = false;
    }
  }

  copyFrom(source: BlockDevice, offset: number, length: number): number {
    let done = 0;
    while (this.canCopy && source instanceof FileDevice && done < length) {
      const at = offset + done;
      try {
        const copied = copyFileRange(source.fd, [at], this.fd, [at], length - done, 0);
        if (copied === 0) break;
        done += copied;
      } catch (error) {
        const code = (error as SystemCallError).code;
        if (code === 'EIO' || code === 'ENOSPC') throw error;
        // A block device, another file system: whatever it is, reading and writing works.
        this.canCopy = false;
      }
    }
    return done;
  }

  extentAt(offset: number): Extent {
    // The file position that lseek moves is shared by all threads and used by none: all I/O names its offset.
    try {
      const data = lseek(this.fd, offset, SEEK_DATA);
      if (data >= this.size) return { data: false, end: this.size };
      if (data > offset) return { data: false, end: data };
      return { data: true, end: Math.min(lseek(this.fd, offset, SEEK_HOLE), this.size) };
    } catch (error) {
      // ENXIO: nothing but a hole from here on, or the file has lost its end: a read says so. EINVAL: a block device, which
      // cannot tell.
      const isHole =
        error instanceof SystemCallError && error.code === 'ENXIO' && fileSize(this.fd) >= this.size;
      return { data: !isHole, end: this.size };
    }
  }

  /**
   * fallocate, on as much of the range as the medium takes: the part from `start` to `end`. A file takes any range, a
   * block device whole blocks of its own; it refuses others with EINVAL.
   */
  private fallocate(mode: number, offset: number, length: number): { start: number; end: number } {
    try {
      fallocate(this.fd, mode | FALLOC_KEEP_SIZE, offset, length);
      return { start: offset, end: offset + length };
    } catch (error) {
      if (!(error instanceof SystemCallError && error.code === 'EINVAL')) throw error;
    }
    const start = Math.ceil(offset / BLOCK_ALIGNMENT) * BLOCK_ALIGNMENT;
    const end = Math.floor((offset + length) / BLOCK_ALIGNMENT) * BLOCK_ALIGNMENT;
    if (start >= end) return { start: offset + length, end: offset + length };
    fallocate(this.fd, mode | FALLOC_KEEP_SIZE, start, end - start);
    return { start, end };
  }

  private writeOutZeroes(offset: number, length: number): void {
    for (let done = 0; done < length; done += ZEROES.length) {
      this.write(offset + done, ZEROES.subarray(0, Math.min(ZEROES.length, length - done)));
    }
  }
}
