/**
 * The dm-bow log block: a header of 28 bytes and `count` entries of 24, packed, little endian, in block 0 of the
 * device; the older logs of an overflow are saved whole elsewhere, found through entry 0 of the next newer one.
 * Pure functions: bytes in, values out. What a log means for a device is `targets/bow/undo.ts`.
 *
 *   magic     "BOW\0": writes are logged and can be undone.  "WOB\0": a restore is under way, only going on is right.
 *   entry     "the `sizeBytes` bytes at `destSector` belong at `sourceSector`"; a later entry is undone first.
 *   capacity  floor((block - header) / 24), filled exactly: 512 → 20, 1024 → 41, 2048 → 84, 4096 → 169.
 *
 * bow-L1  Bytes after entry `count - 1` mean nothing: no reader looks at them (the kernel leaves old entries there).
 * bow-L2  A header is refused unless every field is in range: magic, version 1.x, header_size 28..block, block_size a
 *         power of two 512..4096, count 1..capacity, sector0 below 2^53. The message has field, value and range.
 * bow-L3  A value that does not fit its field is an error of the encoder, never a mask; no byte is written before all
 *         fields are known to fit.
 * bow-L4  Entries start at header_size, not at 28 (as vold reads them); the capacity shrinks with it. Only 28 is written.
 * bow-L5  The checksum is CRC-32 without inversion (the kernel's crc32_le), started with the low 32 bits of the source
 *         page number and carried on over all bytes of the entry; 0 on disk means "not checked".
 *
 * Sources: the seed's dm-bow.c and Documentation/device-mapper/dm-bow.txt; vold's Checkpoint.cpp for what a reader
 * accepts. Left out: sector0 of 4 bytes (sector_t of some 32-bit kernels), whose header is no longer 28 bytes.
 */
import crc32 from 'crc-32';
import { DmError } from '../errors.js';
import { isPowerOfTwo } from '../units.js';

/** Bytes 42 4f 57 00, "BOW\0". */
export const BOW_MAGIC = 0x00574f42;
/** Bytes 57 4f 42 00, "WOB\0": vold's kPartialRestoreMagic. */
export const BOW_MAGIC_RESTORING = 0x00424f57;
export const HEADER_VERSION = 0x0100;
export const HEADER_BYTES = 28;
export const ENTRY_BYTES = 24;
export const MIN_BLOCK_BYTES = 512;
export const MAX_BLOCK_BYTES = 4096;

/** A log header, fields in disk order. */
export interface LogHeader {
  /** BOW_MAGIC or BOW_MAGIC_RESTORING. */
  readonly magic: number;
  /** Major version in the high byte. */
  readonly headerVersion: number;
  /** Bytes; where entry 0 starts. */
  readonly headerSize: number;
  /** Bytes. */
  readonly blockSize: number;
  /** Entries in use. */
  readonly count: number;
  /** 0 for the first log of a checkpoint, one more for each overflow. */
  readonly sequence: number;
  /** Sector where the live contents of block 0 are kept. */
  readonly sector0: number;
}

/** One backup, fields in disk order. */
export interface LogEntry {
  /** Sector where the bytes belong. */
  readonly sourceSector: number;
  /** Sector where their backup lies. */
  readonly destSector: number;
  /** Bytes, a whole number of blocks. */
  readonly sizeBytes: number;
  /** `bowChecksum` of the bytes; 0 = not checked. */
  readonly checksum: number;
}

interface Field<Name extends string> {
  readonly name: Name;
  /** Bytes from the start of the header or entry. */
  readonly offset: number;
  /** Bytes. */
  readonly width: 2 | 4 | 8;
  readonly unit: string;
}

export const HEADER_FIELDS: readonly Field<keyof LogHeader>[] = [
  { name: 'magic', offset: 0, width: 4, unit: 'BOW or WOB' },
  { name: 'headerVersion', offset: 4, width: 2, unit: 'major << 8 | minor' },
  { name: 'headerSize', offset: 6, width: 2, unit: 'bytes' },
  { name: 'blockSize', offset: 8, width: 4, unit: 'bytes' },
  { name: 'count', offset: 12, width: 4, unit: 'entries' },
  { name: 'sequence', offset: 16, width: 4, unit: 'overflows' },
  { name: 'sector0', offset: 20, width: 8, unit: 'sectors' },
];

export const ENTRY_FIELDS: readonly Field<keyof LogEntry>[] = [
  { name: 'sourceSector', offset: 0, width: 8, unit: 'sectors' },
  { name: 'destSector', offset: 8, width: 8, unit: 'sectors' },
  { name: 'sizeBytes', offset: 16, width: 4, unit: 'bytes' },
  { name: 'checksum', offset: 20, width: 4, unit: 'CRC-32' },
];

/** Entries that fit in a log block; 0 where not even one does. */
export function logCapacity(blockSize: number, headerSize: number = HEADER_BYTES): number {
  return Math.max(0, Math.floor((blockSize - headerSize) / ENTRY_BYTES));
}

/** Whether a block holds a log, by its first four bytes alone. */
export function sniffMagic(block: Uint8Array): 'none' | 'bow' | 'restoring' {
  if (block.length < 4) return 'none';
  const magic = readUint(viewOf(block), 0, 4);
  if (magic === BOW_MAGIC) return 'bow';
  return magic === BOW_MAGIC_RESTORING ? 'restoring' : 'none';
}

/** The header as it is found, right or wrong; `headerProblem` judges it. `bytes` holds HEADER_BYTES at least. */
export function parseHeader(bytes: Uint8Array): LogHeader {
  return readFields(viewOf(bytes), 0, HEADER_FIELDS);
}

/** The entries as they are found: `count` of them, or as many as lie inside `bytes` (bow-L1, bow-L4). */
export function parseEntries(bytes: Uint8Array, header: LogHeader): LogEntry[] {
  if (header.headerSize < HEADER_BYTES) return [];
  const room = logCapacity(Math.min(bytes.length, header.blockSize), header.headerSize);
  const view = viewOf(bytes);
  return Array.from({ length: Math.min(header.count, room) }, (_, index) =>
    readFields(view, header.headerSize + index * ENTRY_BYTES, ENTRY_FIELDS),
  );
}

/** What is wrong with a header (bow-L2): the field, the value found, the values expected. */
export function headerProblem(header: LogHeader): string | undefined {
  const { magic, headerVersion, headerSize, blockSize, count, sector0 } = header;
  if (magic !== BOW_MAGIC && magic !== BOW_MAGIC_RESTORING) {
    return `magic is ${hex(magic, 8)}, expected ${hex(BOW_MAGIC, 8)} (BOW) or ${hex(BOW_MAGIC_RESTORING, 8)} (WOB)`;
  }
  if (headerVersion >> 8 !== HEADER_VERSION >> 8) {
    return `header_version is ${hex(headerVersion, 4)}, expected ${hex(HEADER_VERSION, 4)} (any low byte)`;
  }
  if (!isPowerOfTwo(blockSize) || blockSize < MIN_BLOCK_BYTES || blockSize > MAX_BLOCK_BYTES) {
    return `block_size is ${blockSize} bytes, expected a power of two ${MIN_BLOCK_BYTES}..${MAX_BLOCK_BYTES}`;
  }
  if (headerSize < HEADER_BYTES || headerSize > blockSize) {
    return `header_size is ${headerSize} bytes, expected ${HEADER_BYTES}..${blockSize}`;
  }
  const capacity = logCapacity(blockSize, headerSize);
  if (count < 1 || count > capacity) return `count is ${count} entries, expected 1..${capacity}`;
  if (!Number.isSafeInteger(sector0)) return `sector0 is ${sector0}, expected less than 2^53`;
  return undefined;
}

/** A whole log, checked (bow-L2); the inverse of `encodeHeader` and `encodeEntry`. Throws EIO and says what is wrong. */
export function decodeLog(bytes: Uint8Array): { header: LogHeader; entries: LogEntry[] } {
  if (bytes.length < HEADER_BYTES) {
    throw new DmError('EIO', `bow log: ${bytes.length} bytes, expected ${HEADER_BYTES} at least`);
  }
  const header = parseHeader(bytes);
  const problem = headerProblem(header);
  if (problem !== undefined) throw new DmError('EIO', `bow log: ${problem}`);
  if (bytes.length < header.blockSize) {
    throw new DmError(
      'EIO',
      `bow log: block_size is ${header.blockSize} bytes, expected ${bytes.length} at most`,
    );
  }
  const entries = parseEntries(bytes, header);
  for (const [index, entry] of entries.entries()) {
    for (const { name } of ENTRY_FIELDS) {
      if (Number.isSafeInteger(entry[name])) continue;
      throw new DmError('EIO', `bow log: entry ${index}: ${name} is ${entry[name]}, expected less than 2^53`);
    }
  }
  return { header, entries };
}

/** Puts a header into a block image; every other byte of the block stays. */
export function encodeHeader(block: Uint8Array, header: LogHeader): void {
  writeFields(viewOf(block), 0, HEADER_FIELDS, header);
}

/** Puts one entry into a block image with a header of HEADER_BYTES; every other byte of the block stays. */
export function encodeEntry(block: Uint8Array, index: number, entry: LogEntry): void {
  const capacity = logCapacity(block.length);
  if (!(Number.isInteger(index) && index >= 0 && index < capacity)) {
    throw new RangeError(`bow-L3: entry ${index} does not fit a log block of ${capacity} entries`);
  }
  writeFields(viewOf(block), HEADER_BYTES + index * ENTRY_BYTES, ENTRY_FIELDS, entry);
}

/**
 * The checksum of an entry (bow-L5), unsigned. For data that comes in pieces, pass what the piece before returned as
 * `carry`; `seedPage` (source sector / sectors per block) then no longer counts.
 */
export function bowChecksum(seedPage: number, bytes: Uint8Array, carry?: number): number {
  // crc-32 inverts before and after and returns signed numbers; inverting once more on both sides undoes it.
  return ~crc32.buf(bytes, ~(carry ?? seedPage)) >>> 0;
}

function readFields<Name extends string>(view: DataView, base: number, fields: readonly Field<Name>[]) {
  const record = {} as Record<Name, number>;
  for (const { name, offset, width } of fields) record[name] = readUint(view, base + offset, width);
  return record;
}

function writeFields<Name extends string>(
  view: DataView,
  base: number,
  fields: readonly Field<Name>[],
  record: Readonly<Record<Name, number>>,
): void {
  for (const { name, width, unit } of fields) {
    const limit = width === 8 ? Number.MAX_SAFE_INTEGER : 2 ** (8 * width) - 1;
    const value = record[name];
    if (Number.isInteger(value) && value >= 0 && value <= limit) continue;
    throw new RangeError(
      `bow-L3: ${name} ${value} (${unit}) does not fit: expected a whole number 0..${limit}`,
    );
  }
  for (const { name, offset, width } of fields) writeUint(view, base + offset, width, record[name]);
}

/**
 * A little-endian unsigned number. A u64 of 2^53 or more comes back rounded, and so is no safe integer: whoever
 * reads one checks `Number.isSafeInteger`.
 */
function readUint(view: DataView, at: number, width: 2 | 4 | 8): number {
  if (width === 8) return Number(view.getBigUint64(at, true));
  return width === 4 ? view.getUint32(at, true) : view.getUint16(at, true);
}

/** The inverse of `readUint`, for values below 2^53 that fit `width` bytes. */
function writeUint(view: DataView, at: number, width: 2 | 4 | 8, value: number): void {
  if (width === 8) view.setBigUint64(at, BigInt(value), true);
  else if (width === 4) view.setUint32(at, value, true);
  else view.setUint16(at, value, true);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function hex(value: number, digits: number): string {
  return `0x${value.toString(16).padStart(digits, '0')}`;
}
