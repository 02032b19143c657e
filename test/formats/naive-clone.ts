/**
 * The blocks of dm-clone metadata once more, from the document alone, and naively: each offset is written out here and a
 * checksum is worked out bit by bit. Nothing of src/ is used.
 */

export type NaiveKind = 'superblock' | 'node' | 'array' | 'index' | 'bitmap';

export const BLOCK = 4096;

/** Section 2: what the register is XORed with. */
export const CONSTANTS: Readonly<Record<NaiveKind, number>> = {
  superblock: 0x0f5b6b54,
  node: 0x0001d913,
  array: 0x2383e64f,
  index: 0x000272de,
  bitmap: 0x0003ac8b,
};

const TABLE = Int32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});

/** The reflected Castagnoli CRC from 0xffffffff on, without the final inversion. */
export function crcRegister(bytes: Uint8Array): number {
  let crc = -1;
  for (let i = 0; i < bytes.length; i++) crc = (crc >>> 8) ^ TABLE[(crc ^ bytes[i]!) & 0xff]!;
  return crc >>> 0;
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

export const get32 = (bytes: Uint8Array, at: number): number => viewOf(bytes).getUint32(at, true);
export const put32 = (bytes: Uint8Array, at: number, value: number): void =>
  viewOf(bytes).setUint32(at, value, true);
export const get64 = (bytes: Uint8Array, at: number): number => Number(viewOf(bytes).getBigUint64(at, true));
export const put64 = (bytes: Uint8Array, at: number, value: number | bigint): void =>
  viewOf(bytes).setBigUint64(at, BigInt(value), true);

export const checksumOf = (kind: NaiveKind, bytes: Uint8Array): number =>
  (crcRegister(bytes.subarray(4, 4096)) ^ CONSTANTS[kind]) >>> 0;

/** Number and checksum. */
export function seal(kind: NaiveKind, bytes: Uint8Array, block: number): Uint8Array {
  put64(bytes, kind === 'array' ? 16 : 8, block);
  put32(bytes, 0, checksumOf(kind, bytes));
  return bytes;
}

export interface NaiveSuperblock {
  managed: number;
  used: number;
  index: number;
  overflow: number;
  region: number;
  target: number;
  bitset: number;
}

export function superblock(fields: NaiveSuperblock): Uint8Array {
  const bytes = new Uint8Array(BLOCK);
  bytes.set([0x64, 0x7f, 0xf2, 0x8a, 0, 0, 0, 0], 32);
  bytes[40] = 1;
  put64(bytes, 44, fields.managed);
  put64(bytes, 52, fields.used);
  put64(bytes, 60, fields.index);
  put64(bytes, 68, fields.overflow);
  put64(bytes, 172, fields.region);
  put64(bytes, 180, fields.target);
  put64(bytes, 188, fields.bitset);
  return seal('superblock', bytes, 0);
}

/** `entries`: bitmap block, free, hint. */
export function index(block: number, entries: readonly (readonly [number, number, number])[]): Uint8Array {
  const bytes = new Uint8Array(BLOCK);
  for (const [i, [bitmap, free, hint]] of entries.entries()) {
    put64(bytes, 16 + 16 * i, bitmap);
    put32(bytes, 16 + 16 * i + 8, free);
    put32(bytes, 16 + 16 * i + 12, hint);
  }
  return seal('index', bytes, block);
}

/** Counts 0 to 3 of the blocks of one bitmap, from its first on. */
export function bitmap(block: number, counts: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(BLOCK);
  for (const [j, count] of counts.entries()) {
    const raw = [0, 2, 1, 3][count]!;
    bytes[16 + Math.floor(j / 4)]! |= raw << (2 * (j % 4));
  }
  return seal('bitmap', bytes, block);
}

const COUNTS = [0, 2, 1, 3];
export const countIn = (bytes: Uint8Array, j: number): number =>
  COUNTS[(bytes[16 + Math.floor(j / 4)]! >> (2 * (j % 4))) & 3]!;

export function array(block: number, words: readonly bigint[]): Uint8Array {
  const bytes = new Uint8Array(BLOCK);
  put32(bytes, 4, 509);
  put32(bytes, 8, words.length);
  put32(bytes, 12, 8);
  for (const [i, word] of words.entries()) put64(bytes, 24 + 8 * i, word);
  return seal('array', bytes, block);
}

/** `stale` is what the unused slots hold. */
export function node(
  block: number,
  kind: 'inner' | 'leaf' | 'counts leaf',
  entries: readonly (readonly [number, number])[],
  stale = 0,
): Uint8Array {
  const bytes = new Uint8Array(BLOCK).fill(stale, 32);
  const isCounts = kind === 'counts leaf';
  const [capacity, width, valuesAt] = isCounts ? [336, 4, 2720] : [252, 8, 2048];
  bytes.fill(0, valuesAt + width * capacity);
  put32(bytes, 4, kind === 'inner' ? 1 : 2);
  put32(bytes, 16, entries.length);
  put32(bytes, 20, capacity);
  put32(bytes, 24, width);
  for (const [i, [key, value]] of entries.entries()) {
    put64(bytes, 32 + 8 * i, key);
    if (isCounts) put32(bytes, valuesAt + 4 * i, value);
    else put64(bytes, valuesAt + 8 * i, value);
  }
  return seal('node', bytes, block);
}
