/**
 * Volumes as the dm-csum format document describes them, written byte by byte with code of its own: what the tests compare
 * with. Slow, and nothing of src/formats/csum.ts or crc16.ts is used.
 */
import { Prng } from '../../../src/device/prng.js';

export type NaivePlacement = 'interleaved' | 'separate-r' | 'separate-c';

export interface NaiveShape {
  readonly placement: NaivePlacement;
  readonly order: 'be' | 'le';
  /** Data sectors. */
  readonly sectors: number;
  /** Start offsets, sectors. */
  readonly dataStart?: number;
  readonly imdStart?: number;
  /** Sectors after the last one that the volume needs; default 0. */
  readonly spare?: number;
}

/** Section 3, a bit at a time. */
export function bitwiseCrc(bytes: Uint8Array): number {
  let crc = 0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x8408 : crc >>> 1;
  }
  return crc;
}

const OF_BYTES = Uint16Array.from({ length: 256 }, (_, byte) => bitwiseCrc(Uint8Array.of(byte)));

/** Section 3, a byte at a time. */
export function naiveCrc(bytes: Uint8Array): number {
  let crc = 0;
  for (const byte of bytes) crc = (crc >>> 8) ^ OF_BYTES[(crc ^ byte) & 255]!;
  return crc;
}

/** Of such a sector the CRC is 0, section 3. */
function isZero(bytes: Uint8Array): boolean {
  return Buffer.compare(bytes, ZEROS) === 0;
}

const ZEROS = new Uint8Array(512);

/** Section 4: sectors of the device. */
export function naiveDataSector({ placement, dataStart = 0 }: NaiveShape, rel: number): number {
  const group = Math.trunc(rel / 62);
  const k = rel % 62;
  return dataStart + (placement === 'interleaved' ? 64 * group + 3 + k : 1 + rel);
}

/** Section 4: the sector of M1; M2 is the next one. */
export function naiveTableSector(
  { placement, dataStart = 0, imdStart = 0 }: NaiveShape,
  group: number,
): number {
  if (placement === 'interleaved') return dataStart + 64 * group + 1;
  return imdStart + 2 * group + (placement === 'separate-r' ? 3 : 1);
}

/** A volume in memory; `imd` is `data` where interleaved. */
export class NaiveVolume {
  readonly data: Uint8Array;
  readonly imd: Uint8Array;

  constructor(readonly shape: NaiveShape) {
    const { placement, sectors, dataStart = 0, imdStart = 0, spare = 0 } = shape;
    const tables = 2 * this.groups;
    const inData = placement === 'interleaved' ? 1 + sectors + tables : 1 + sectors;
    this.data = new Uint8Array(512 * (dataStart + inData + spare));
    this.imd =
      placement === 'interleaved'
        ? this.data
        : new Uint8Array(512 * (imdStart + tables + (placement === 'separate-r' ? 3 : 1) + spare));
  }

  get groups(): number {
    return Math.ceil(this.shape.sectors / 62);
  }

  sector(rel: number): Uint8Array {
    const at = 512 * naiveDataSector(this.shape, rel);
    return this.data.subarray(at, at + 512);
  }

  /** M1 for index 0, M2 for 1. */
  table(group: number, index: 0 | 1): Uint8Array {
    const at = 512 * (naiveTableSector(this.shape, group) + index);
    return this.imd.subarray(at, at + 512);
  }

  /** Stores a CRC at byte `at` of a table, in the order of the volume. */
  store(table: Uint8Array, at: number, crc: number): void {
    const [first, second] = this.shape.order === 'be' ? [crc >> 8, crc & 255] : [crc & 255, crc >> 8];
    table[at] = first;
    table[at + 1] = second;
  }

  seal(table: Uint8Array): void {
    this.store(table, 2, naiveCrc(table.subarray(8)));
  }

  /** Section 5: both tables of every group, for the data that is there. */
  format(): this {
    for (let group = 0; group < this.groups; group++) {
      const [m1, m2] = [this.table(group, 0).fill(0), this.table(group, 1).fill(0)];
      for (let k = 0; k < 62 && group * 62 + k < this.shape.sectors; k++) {
        const sector = this.sector(group * 62 + k);
        if (!isZero(sector)) this.store(m1, 8 + 8 * k, naiveCrc(sector));
      }
      if (!isZero(m1)) this.seal(m1);
      m2.set(m1);
      m2[0] = 1;
    }
    return this;
  }

  /** Section 7 without its crashes: the older brother becomes the newer one, with a new CRC for the sector. */
  write(rel: number, content: Uint8Array): void {
    const group = Math.trunc(rel / 62);
    const [m1, m2] = [this.table(group, 0), this.table(group, 1)];
    const [newer, older] = (m1[0]! - m2[0]! + 256) % 256 === 1 ? [m1, m2] : [m2, m1];
    older.set(newer);
    older[0] = (newer[0]! + 1) % 256;
    this.store(older, 8 + 8 * (rel % 62), naiveCrc(content));
    this.seal(older);
    this.sector(rel).set(content);
  }

  /** Random content, formatted, then written to so often that all kinds of counters come up. */
  static random(shape: NaiveShape, seed: number, writes = 0): NaiveVolume {
    const rng = new Prng(seed);
    const volume = new NaiveVolume(shape);
    for (let rel = 0; rel < shape.sectors; rel++) volume.sector(rel).set(rng.bytes(512));
    volume.format();
    for (let i = 0; i < writes; i++) volume.write(rng.below(shape.sectors), rng.bytes(512));
    return volume;
  }
}
