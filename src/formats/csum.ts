/**
 * The dm-csum volume: where things are, imd sectors and their order, and the superblock in the reserved sector. Sections in
 * brackets are those of the dm-csum format document. Pure: bytes in, values out; bytes from a disk are checked here.
 *
 * 62 data sectors are a group. Its table, an imd sector of 62 tuples, exists in two versions, the brothers M1 and M2.
 */
import crc32 from 'crc-32';
import { DmError } from '../errors.js';
import { SECTOR_BYTES } from '../units.js';
import { crcAfterHeader } from './crc16.js';

/** Data sectors of a group; tuples of an imd sector. */
export const GROUP_SECTORS = 62;
export const GROUP_BYTES = GROUP_SECTORS * SECTOR_BYTES;
/** M1 and M2. */
export const PAIR_BYTES = 2 * SECTOR_BYTES;

/** Which byte of a stored CRC comes first: `be` as the format says, `le` as the reference does on most machines [2]. */
export type CrcOrder = 'be' | 'le';
/** [4.1], and [4.2] with the imd area where the reference has it (R) or where its text has it (C). */
export type Placement = 'interleaved' | 'separate-r' | 'separate-c';

export interface Volume {
  readonly placement: Placement;
  readonly order: CrcOrder;
  /** Bytes; D and I of the document. `imdStart` is not used when interleaved. */
  readonly dataStart: number;
  readonly imdStart: number;
  /** Data sectors. */
  readonly sectors: number;
}

/** Sectors of the imd area before M1 of group 0. */
const IMD_LEAD: Readonly<Record<Placement, number>> = { interleaved: 0, 'separate-r': 3, 'separate-c': 1 };

export function groupsOf({ sectors }: Pick<Volume, 'sectors'>): number {
  return Math.ceil(sectors / GROUP_SECTORS);
}

/** Data sectors of a group: 62, fewer in the last one. */
export function sectorsIn({ sectors }: Volume, group: number): number {
  return Math.min(GROUP_SECTORS, sectors - group * GROUP_SECTORS);
}

/** Byte of the data device at which the first data sector of a group is; the others follow it. */
export function dataOffset({ placement, dataStart }: Volume, group: number): number {
  const sector = placement === 'interleaved' ? 64 * group + 3 : GROUP_SECTORS * group + 1;
  return dataStart + sector * SECTOR_BYTES;
}

/** Byte of the imd device (the data device, when interleaved) at which M1 of a group is; M2 follows it. */
export function pairOffset({ placement, dataStart, imdStart }: Volume, group: number): number {
  if (placement === 'interleaved') return dataStart + (64 * group + 1) * SECTOR_BYTES;
  return imdStart + (2 * group + IMD_LEAD[placement]) * SECTOR_BYTES;
}

/** Data sectors that an interleaved volume of `area` sectors has; 0 where there is no room for one. */
export function interleavedCapacity(area: number): number {
  if (area < 4) return 0;
  return GROUP_SECTORS * Math.floor((area - 1) / 64) + Math.max(0, ((area - 1) % 64) - 2);
}

/** Data sectors of a volume on a data area and an imd area of so many sectors. */
export function separateCapacity(data: number, imd: number, placement: Placement): number {
  const groups = Math.floor((imd - IMD_LEAD[placement]) / 2);
  return Math.max(0, Math.min(data - 1, groups * GROUP_SECTORS));
}

// ---- imd sectors ----

/** byte 0: last_updated; 2: crc of bytes 8 to 511; 8 + 8k: tuple k, of which the first two bytes are the CRC [2] */
const CRC_AT = 2;
const TUPLES_AT = 8;
const TUPLE_BYTES = 8;

/** An imd sector, in place: the 512 bytes that it is given, from a multiple of 4 of their buffer on. */
export class Table {
  readonly bytes: Uint8Array;
  private readonly view: DataView;
  private readonly words: Int32Array;
  private readonly littleEndian: boolean;

  constructor(order: CrcOrder, bytes: Uint8Array = new Uint8Array(SECTOR_BYTES)) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, SECTOR_BYTES);
    this.words = new Int32Array(bytes.buffer, bytes.byteOffset, SECTOR_BYTES / 4);
    this.littleEndian = order === 'le';
  }

  /** `last_updated`: modulo 256. */
  get counter(): number {
    return this.bytes[0]!;
  }

  set counter(counter: number) {
    this.bytes[0] = counter & 255;
  }

  /** The CRC that tuple k holds. */
  crc(k: number): number {
    return this.view.getUint16(TUPLES_AT + TUPLE_BYTES * k, this.littleEndian);
  }

  /** Flags and tag of the tuple stay [2]. */
  setCrc(k: number, crc: number): void {
    this.view.setUint16(TUPLES_AT + TUPLE_BYTES * k, crc, this.littleEndian);
  }

  /** The CRC in the header. */
  get storedCrc(): number {
    return this.view.getUint16(CRC_AT, this.littleEndian);
  }

  /** What the header should hold. */
  get computedCrc(): number {
    return crcAfterHeader(this.words, 0);
  }

  get isSound(): boolean {
    return this.storedCrc === this.computedCrc;
  }

  /** Bytes 1, 4 to 7 and 504 to 511, to which a table that is written has zeros [2]. */
  clearUnused(): void {
    this.bytes
      .fill(0, 1, 2)
      .fill(0, 4, 8)
      .fill(0, TUPLES_AT + TUPLE_BYTES * GROUP_SECTORS);
  }

  /** To be called after the last change of a tuple. */
  seal(): void {
    this.view.setUint16(CRC_AT, this.computedCrc, this.littleEndian);
  }

  /**
   * Puts one flipped bit right, in the table or in its CRC: the difference of the two CRCs says which. False where more
   * than that is wrong. The distance of the code over 504 bytes is 4, so no other single flip has the same difference.
   */
  correctBit(): boolean {
    let difference = this.storedCrc ^ this.computedCrc;
    if ((difference & (difference - 1)) === 0) {
      this.seal();
      return true;
    }
    // Steps back over the message: the CRC of a lone 1 with so many bits after it, until it is the difference.
    for (let bit = 8 * SECTOR_BYTES - 1, crc = 0x8408; bit >= 8 * TUPLES_AT; bit--) {
      if (crc === difference) {
        this.bytes[bit >> 3]! ^= 1 << (bit & 7);
        difference = 0;
        break;
      }
      crc = crc & 1 ? (crc >>> 1) ^ 0x8408 : crc >>> 1;
    }
    return difference === 0;
  }
}

/**
 * Which brother is newer: 0 for M1, 1 for M2; undefined for counters that no update leaves [5]: never formatted, or
 * damaged.
 */
export function newerOf(m1: number, m2: number): 0 | 1 | undefined {
  const ahead = (m1 - m2) & 255;
  return ahead === 1 ? 0 : ahead === 255 ? 1 : undefined;
}

/** The order that a group's brothers speak for; undefined where they say nothing [2]. */
export function orderVote(m1: Uint8Array, m2: Uint8Array): CrcOrder | undefined {
  for (const bytes of [m1, m2]) {
    const [be, le] = [new Table('be', bytes), new Table('le', bytes)];
    if (be.storedCrc === le.storedCrc) continue;
    if (be.isSound) return 'be';
    if (le.isSound) return 'le';
  }
  return undefined;
}

// ---- the superblock ----

/**
 * What the reserved sector at the start of the data area holds, ours alone [10], little-endian:
 *
 *   0   8  magic        8  4  version      12  1  CRC order      13  1  placement     14  1  state
 *   16  8  sectors     24  8  groups formatted so far            32 16  id           508  4  CRC-32 of bytes 0 to 507
 *
 * The reserved sector of a separate imd area holds the same with another magic; of that, only the id is used.
 */
export interface Superblock {
  readonly order: CrcOrder;
  readonly placement: Placement;
  /** `clean`: nothing was in flight when it was last in use. */
  readonly state: 'formatting' | 'in-use' | 'clean';
  /** Data sectors. */
  readonly sectors: number;
  readonly groupsFormatted: number;
  /** 16 bytes that data and imd area have in common. */
  readonly id: Uint8Array;
}

export type Area = 'data' | 'imd';
const MAGIC: Readonly<Record<Area, string>> = { data: 'dmfuseCS', imd: 'dmfuseCI' };
const VERSION = 1;
const ORDERS = [undefined, 'be', 'le'] as const;
const PLACEMENTS = [undefined, 'interleaved', 'separate-r', 'separate-c'] as const;
const STATES = [undefined, 'formatting', 'in-use', 'clean'] as const;
export const ID_AT = 32;
export const ID_BYTES = 16;
const CHECKSUM_AT = 508;

export function encodeSuperblock(area: Area, superblock: Superblock): Uint8Array {
  const { order, placement, state, sectors, groupsFormatted, id } = superblock;
  const bytes = new Uint8Array(SECTOR_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set(Buffer.from(MAGIC[area]));
  view.setUint32(8, VERSION, true);
  bytes[12] = ORDERS.indexOf(order);
  bytes[13] = PLACEMENTS.indexOf(placement);
  bytes[14] = STATES.indexOf(state);
  view.setBigUint64(16, BigInt(sectors), true);
  view.setBigUint64(24, BigInt(groupsFormatted), true);
  bytes.set(id, ID_AT);
  view.setInt32(CHECKSUM_AT, crc32.buf(bytes.subarray(0, CHECKSUM_AT)), true);
  return bytes;
}

/** Undefined for what is no superblock, or a damaged one. Throws EINVAL for one of a later version. */
export function decodeSuperblock(area: Area, bytes: Uint8Array): Superblock | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, SECTOR_BYTES);
  if (Buffer.from(bytes.subarray(0, 8)).toString('latin1') !== MAGIC[area]) return undefined;
  if (view.getInt32(CHECKSUM_AT, true) !== crc32.buf(bytes.subarray(0, CHECKSUM_AT))) return undefined;
  const version = view.getUint32(8, true);
  if (version !== VERSION) {
    throw new DmError('EINVAL', `csum superblock of version ${version}: this dmfuse knows ${VERSION}`);
  }
  const order = ORDERS[bytes[12]!];
  const placement = PLACEMENTS[bytes[13]!];
  const state = STATES[bytes[14]!];
  const sectors = Number(view.getBigUint64(16, true));
  const groupsFormatted = Number(view.getBigUint64(24, true));
  if (!order || !placement || !state || sectors < 1 || !Number.isSafeInteger(sectors * SECTOR_BYTES * 2)) {
    return undefined;
  }
  if (groupsFormatted > groupsOf({ sectors })) return undefined;
  return { order, placement, state, sectors, groupsFormatted, id: bytes.slice(ID_AT, ID_AT + ID_BYTES) };
}
