/**
 * A change map in a file, so that a device keeps it when it is gone for a while in good order. Pure: bytes in, values out.
 * Numbers are little-endian.
 *
 *     0   magic "DMFCBT\r\n"
 *     8   u32 version, 1
 *     12  u32 bytes of the identity
 *     16  u64 bytes of the device
 *     24  u8 shift of the tracking blocks
 *     25  u8 active, u8 previous
 *     27  5 bytes, 0
 *     32  generation, 16 bytes
 *     48  identity (UTF-8), write map, read map: a byte a block each
 *         u32 CRC-32 of all before
 */
import crc32 from 'crc-32';
import { DmError } from '../../errors.js';
import type { MapState } from './change-map.js';
import { blocksOf, TRACKING_SHIFT } from './params.js';

export interface SavedTracker {
  /** Which device it is the map of: what the device's content hangs on. */
  readonly identity: string;
  readonly map: MapState;
}

const MAGIC = Buffer.from('DMFCBT\r\n');
const VERSION = 1;
const VERSION_AT = 8;
const IDENTITY_BYTES_AT = 12;
const SIZE_AT = 16;
const SHIFT_AT = 24;
const ACTIVE_AT = 25;
const PREVIOUS_AT = 26;
const UNUSED_AT = 27;
const GENERATION_AT = 32;
const IDENTITY_AT = 48;
const CRC_BYTES = 4;

export function encodeTracker({ identity, map }: SavedTracker): Uint8Array {
  const name = Buffer.from(identity);
  const head = Buffer.alloc(IDENTITY_AT);
  MAGIC.copy(head);
  head.writeUInt32LE(VERSION, VERSION_AT);
  head.writeUInt32LE(name.length, IDENTITY_BYTES_AT);
  head.writeBigUInt64LE(BigInt(map.size), SIZE_AT);
  head[SHIFT_AT] = map.shift;
  head[ACTIVE_AT] = map.active;
  head[PREVIOUS_AT] = map.previous;
  head.set(map.generation, GENERATION_AT);
  const body = Buffer.concat([head, name, map.writeMap, map.readMap]);
  const crc = Buffer.alloc(CRC_BYTES);
  crc.writeInt32LE(crc32.buf(body));
  return Buffer.concat([body, crc]);
}

/** Throws EINVAL saying what is wrong: the bytes may be anything. */
export function decodeTracker(bytes: Uint8Array): SavedTracker {
  const all = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (!all.subarray(0, MAGIC.length).equals(MAGIC)) throw broken('does not begin as one');
  if (all.length < IDENTITY_AT + CRC_BYTES) throw broken(`has ${all.length} bytes, which is no whole head`);
  const version = all.readUInt32LE(VERSION_AT);
  if (version !== VERSION) throw broken(`has version ${version}, known is ${VERSION}`);
  const body = all.subarray(0, -CRC_BYTES);
  if (crc32.buf(body) !== all.readInt32LE(body.length)) throw broken('has a wrong checksum');

  const size = Number(body.readBigUInt64LE(SIZE_AT));
  const [shift, active, previous] = body.subarray(SHIFT_AT, UNUSED_AT) as unknown as [number, number, number];
  if (size === 0 || !Number.isSafeInteger(size)) throw broken(`is of a device of ${size} bytes`);
  if (shift < TRACKING_SHIFT.least || shift > TRACKING_SHIFT.most) {
    throw broken(`has tracking blocks of 2^${shift} bytes`);
  }
  if (active === 0 || previous !== active - 1) {
    throw broken(`has the numbers ${previous} and ${active}, which do not follow each other`);
  }
  if (body.subarray(UNUSED_AT, GENERATION_AT).some((byte) => byte !== 0)) {
    throw broken('has something where nothing is known');
  }

  const blocks = blocksOf(size, shift);
  const mapsAt = IDENTITY_AT + body.readUInt32LE(IDENTITY_BYTES_AT);
  if (body.length !== mapsAt + 2 * blocks) {
    throw broken(`has ${all.length} bytes, but ${blocks} blocks need ${mapsAt + 2 * blocks + CRC_BYTES}`);
  }
  const writeMap = body.subarray(mapsAt, mapsAt + blocks);
  const readMap = body.subarray(mapsAt + blocks);
  if (writeMap.some((byte) => byte > active) || readMap.some((byte) => byte > previous)) {
    throw broken('has blocks with numbers that were never reached');
  }
  return {
    identity: textOf(body.subarray(IDENTITY_AT, mapsAt)),
    map: {
      size,
      shift,
      active,
      previous,
      generation: Uint8Array.from(body.subarray(GENERATION_AT, IDENTITY_AT)),
      writeMap: Uint8Array.from(writeMap),
      readMap: Uint8Array.from(readMap),
    },
  };
}

function textOf(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw broken('has an identity that is no UTF-8');
  }
}

function broken(what: string): DmError {
  return new DmError(
    'EINVAL',
    `the saved change map ${what}: remove it, and the next backup copies everything`,
  );
}
