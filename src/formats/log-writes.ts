/**
 * The log of Linux's dm-log-writes: all that was written to a device, in its order, with the data. Pure functions: numbers and
 * bytes in, values out. Who writes it is `filters/log-writes`.
 *
 *   sectors of the log             content
 *   0                              super block
 *   1                              first entry; each is one sector and the data that follow it
 *
 *   super block                    entry
 *   0   8 bytes   magic            0   8 bytes   sector of the device
 *   8   8 bytes   version, 1       8   8 bytes   sectors
 *   16  8 bytes   entries          16  8 bytes   flags
 *   24  4 bytes   sector size      24  8 bytes   data length: bytes of a mark's text, which is from byte 32 on
 *
 * All numbers are little endian; the rest of a sector is zero.
 *
 * logw-L1  All sectors, of the device and of the log, are of the super block's sector size (bytes): dm-log-writes takes the
 *          logical block size of the device.
 * logw-L2  After an entry's own sector come as many as it says, except that a DISCARD has none of them. A FLUSH and a MARK say 0.
 * logw-L3  xfstests' replay-log refuses an entry with neither flags nor sectors, and one with anything but zeros after its 32
 *          bytes that is not a MARK.
 * logw-L4  The tools compare the text of a mark up to a zero byte, so that there must be one in its sector.
 *
 * Source: drivers/md/dm-log-writes.c and Documentation/admin-guide/device-mapper/log-writes.rst in Linux, the readers
 * github.com/josefbacik/log-writes and src/log-writes in xfstests.
 */
import { DmError } from '../errors.js';
import { isPowerOfTwo, SECTOR_BYTES } from '../units.js';

/** The bytes `rhswfsj` and a zero. */
export const LOG_MAGIC = 0x6a736677736872n;
const VERSION = 1n;
/** Bytes. */
const SUPER_BYTES = 28;
const ENTRY_BYTES = 32;
/** Bytes of the longest mark in a log of 512-byte sectors (logw-L4). */
export const MARK_BYTES_MAX = SECTOR_BYTES - ENTRY_BYTES - 1;
/** Bytes; the largest logical block that Linux has. */
const SECTOR_SIZE_MAX = 65_536;

/** The bits of an entry's flags. */
export const LogFlag = { FLUSH: 1, FUA: 2, DISCARD: 4, MARK: 8, METADATA: 16 } as const;
const ALL_FLAGS = 31n;

export interface LogSuper {
  readonly entries: number;
  /** Bytes. */
  readonly sectorSize: number;
}

export interface LogEntry {
  /** Of the device, in sectors of the log's size (logw-L1). */
  readonly sector: number;
  readonly sectors: number;
  /** A union of LogFlag. */
  readonly flags: number;
  /** Of a MARK, its text. */
  readonly mark: Uint8Array;
}

const NO_MARK = new Uint8Array(0);

/** The super block of a log of 512-byte sectors. */
export function encodeSuper(entries: number): Uint8Array {
  const bytes = new Uint8Array(SECTOR_BYTES);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, LOG_MAGIC, true);
  view.setBigUint64(8, VERSION, true);
  view.setBigUint64(16, BigInt(entries), true);
  view.setUint32(24, SECTOR_BYTES, true);
  return bytes;
}

/** What the first bytes of a log say, 28 at least. Throws EINVAL for anything but a super block. */
export function decodeSuper(bytes: Uint8Array): LogSuper {
  if (bytes.length < SUPER_BYTES) throw malformed(`${bytes.length} bytes of super block`, `${SUPER_BYTES}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, SUPER_BYTES);
  const magic = view.getBigUint64(0, true);
  if (magic !== LOG_MAGIC) throw malformed(`magic 0x${magic.toString(16)}`, `0x${LOG_MAGIC.toString(16)}`);
  const version = view.getBigUint64(8, true);
  if (version !== VERSION) throw malformed(`version ${version}`, `${VERSION}`);
  const sectorSize = view.getUint32(24, true);
  if (!isPowerOfTwo(sectorSize) || sectorSize < SECTOR_BYTES || sectorSize > SECTOR_SIZE_MAX) {
    throw malformed(`a sector size of ${sectorSize} bytes`, 'a power of two, 512..65536');
  }
  return { entries: count(view, 16, 'entries'), sectorSize };
}

/** The first sector of an entry, in a log of 512-byte sectors. Without `mark` for all but a MARK. */
export function encodeEntry({ sector, sectors, flags, mark = NO_MARK }: Partial<LogEntry>): Uint8Array {
  if (mark.length > MARK_BYTES_MAX) throw new RangeError(`logw-L4: a mark of ${mark.length} bytes`);
  const bytes = new Uint8Array(SECTOR_BYTES);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(sector ?? 0), true);
  view.setBigUint64(8, BigInt(sectors ?? 0), true);
  view.setBigUint64(16, BigInt(flags ?? 0), true);
  view.setBigUint64(24, BigInt(mark.length), true);
  bytes.set(mark, ENTRY_BYTES);
  return bytes;
}

/** What the first sector of an entry says, which `bytes` is. Throws EINVAL for what none may say. */
export function decodeEntry(bytes: Uint8Array): LogEntry {
  if (bytes.length < SECTOR_BYTES) throw malformed(`${bytes.length} bytes of an entry`, 'a sector');
  const view = new DataView(bytes.buffer, bytes.byteOffset, ENTRY_BYTES);
  const sector = count(view, 0, 'sector');
  const sectors = count(view, 8, 'sectors');
  const bits = view.getBigUint64(16, true);
  const length = count(view, 24, 'bytes of data');
  if (bits > ALL_FLAGS) throw malformed(`flags 0x${bits.toString(16)}`, '0x1f at most');
  const flags = Number(bits);
  // The byte that it ends at must be in the log as a number, in the largest sectors.
  if ((sector + sectors) * SECTOR_SIZE_MAX > Number.MAX_SAFE_INTEGER) {
    throw malformed(`sectors ${sector}..${sector + sectors}`, 'less than 2^37');
  }
  if (flags === 0 && sectors === 0) throw malformed('neither flags nor sectors', 'one of them (logw-L3)');
  const isMark = (flags & LogFlag.MARK) !== 0;
  if (isMark && length > bytes.length - ENTRY_BYTES) {
    throw malformed(`a mark of ${length} bytes`, `${bytes.length - ENTRY_BYTES} at most`);
  }
  const mark = isMark ? bytes.slice(ENTRY_BYTES, ENTRY_BYTES + length) : NO_MARK;
  return { sector, sectors, flags, mark };
}

/** Sectors that follow the first one of an entry (logw-L2). */
export function dataSectors({ sectors, flags }: Pick<LogEntry, 'sectors' | 'flags'>): number {
  return flags & LogFlag.DISCARD ? 0 : sectors;
}

function count(view: DataView, at: number, what: string): number {
  const value = view.getBigUint64(at, true);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw malformed(`${value} ${what}`, 'less than 2^53');
  return Number(value);
}

function malformed(found: string, expected: string): DmError {
  return new DmError('EINVAL', `not a log of dm-log-writes: found ${found}, expected ${expected}`);
}
