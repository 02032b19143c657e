/**
 * Groups in long runs: whole batches are read at once, and what lies in a hole of a sparse file is not read at all. For the
 * detection of a volume, format and check, which go through all of it.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { Extents } from '../../device/extents.js';
import {
  dataOffset,
  GROUP_BYTES,
  groupsOf,
  PAIR_BYTES,
  pairOffset,
  sectorsIn,
  type Volume,
} from '../../formats/csum.js';
import { SECTOR_BYTES } from '../../units.js';

/** The two devices of a volume; `imd` is left out where the tables are interleaved with the data. */
export interface Areas {
  readonly data: BlockDevice;
  readonly imd?: BlockDevice | undefined;
}

/** Groups read at once: 1 MiB of an interleaved volume. */
export const BATCH_GROUPS = 32;
/** Bytes; pairs of a separate imd area read at once. */
const TABLES_STEP_BYTES = 1 << 20;

/** The holes of a device. */
export class Holes {
  private readonly extents: Extents;

  constructor(device: BlockDevice) {
    this.extents = new Extents(device);
  }

  /** The end of the hole that byte `offset` lies in; `offset` itself where there is data. */
  endAt(offset: number): number {
    const { data, end } = this.extents.at(offset);
    return data ? offset : end;
  }

  /** Whether a range is a hole as a whole: it reads as zeros. */
  covers(offset: number, length: number): boolean {
    return this.endAt(offset) >= offset + length;
  }
}

/** Up to BATCH_GROUPS groups that follow each other, data and, where asked for, tables. */
export class GroupBatch {
  /** The data, in words. */
  readonly words: Int32Array;
  private readonly bytes: Uint8Array;
  private readonly tables: Uint8Array;
  private readonly dataHoles: Holes;
  private readonly imdHoles: Holes;
  /** Bytes from one group's data to the next one's in `bytes`. */
  private readonly stride: number;
  /** Bytes before the data of a group in `bytes`: its pair. */
  private readonly lead: number;

  constructor(
    private readonly volume: Volume,
    private readonly areas: Areas,
  ) {
    this.lead = volume.placement === 'interleaved' ? PAIR_BYTES : 0;
    this.stride = this.lead + GROUP_BYTES;
    this.bytes = new Uint8Array(BATCH_GROUPS * this.stride);
    this.words = new Int32Array(this.bytes.buffer);
    this.tables = new Uint8Array(BATCH_GROUPS * PAIR_BYTES);
    this.dataHoles = new Holes(areas.data);
    this.imdHoles = new Holes(areas.imd ?? areas.data);
  }

  /** Reads the data of groups, and what lies between. False: all of it is a hole, and nothing was read. */
  readData(first: number, count: number): boolean {
    const { volume, lead, stride, areas } = this;
    const start = dataOffset(volume, first) - lead;
    const last = first + count - 1;
    const length = (count - 1) * stride + lead + sectorsIn(volume, last) * SECTOR_BYTES;
    if (this.dataHoles.covers(start, length)) {
      if (lead > 0) this.bytes.fill(0);
      return false;
    }
    areas.data.read(start, this.bytes.subarray(0, length));
    return true;
  }

  /** Reads the tables of groups; after `readData` of the same groups, which has read interleaved ones already. */
  readTables(first: number, count: number): void {
    const { imd } = this.areas;
    if (imd === undefined) return;
    const start = pairOffset(this.volume, first);
    const tables = this.tables.subarray(0, count * PAIR_BYTES);
    if (this.imdHoles.covers(start, tables.length)) tables.fill(0);
    else imd.read(start, tables);
  }

  /**
   * Reads data and tables sector by sector, after an error. Returns what could not be read: 64 × index of the group, plus 0
   * for M1, 1 for M2, 2 + k for a data sector. Throws where nothing could be read at all.
   */
  readEachSector(first: number, count: number): Set<number> {
    const { volume, areas } = this;
    const unreadable = new Set<number>();
    let read = 0;
    let failure: unknown;
    const attempt = (key: number, device: BlockDevice, offset: number, into: Uint8Array) => {
      try {
        device.read(offset, into);
        read++;
      } catch (error) {
        unreadable.add(key);
        failure = error;
      }
    };
    for (let index = 0; index < count; index++) {
      const group = first + index;
      const pair = this.pair(index);
      const pairAt = pairOffset(volume, group);
      for (const brother of [0, 1]) {
        const at = brother * SECTOR_BYTES;
        const into = pair.subarray(at, at + SECTOR_BYTES);
        attempt(64 * index + brother, areas.imd ?? areas.data, pairAt + at, into);
      }
      for (let k = 0; k < sectorsIn(volume, group); k++) {
        const at = 4 * this.dataWord(index) + k * SECTOR_BYTES;
        const into = this.bytes.subarray(at, at + SECTOR_BYTES);
        attempt(64 * index + 2 + k, areas.data, dataOffset(volume, group) + k * SECTOR_BYTES, into);
      }
    }
    if (read === 0) throw failure;
    return unreadable;
  }

  /** The word of `words` at which the data of the index-th group begins. */
  dataWord(index: number): number {
    return (index * this.stride + this.lead) / 4;
  }

  /** The brothers of the index-th group: PAIR_BYTES. */
  pair(index: number): Uint8Array {
    const interleaved = this.lead > 0;
    const at = index * (interleaved ? this.stride : PAIR_BYTES);
    return (interleaved ? this.bytes : this.tables).subarray(at, at + PAIR_BYTES);
  }
}

/** The brothers of each group, in turn; what lies in a hole is left out. The bytes are good until the next step. */
export function* eachPair(volume: Volume, imd: BlockDevice): Generator<Uint8Array> {
  const groups = groupsOf(volume);
  const holes = new Holes(imd);
  const stride = pairOffset(volume, 1) - pairOffset(volume, 0);
  const step = Math.floor(TABLES_STEP_BYTES / stride);
  const bytes = new Uint8Array(step * stride);
  for (let group = 0; group < groups; ) {
    const start = pairOffset(volume, group);
    const hole = holes.endAt(start) - start;
    if (hole >= PAIR_BYTES) {
      group += Math.floor((hole - PAIR_BYTES) / stride) + 1;
      continue;
    }
    const count = Math.min(step, groups - group);
    const length = (count - 1) * stride + PAIR_BYTES;
    imd.read(start, bytes.subarray(0, length));
    for (let at = 0; at < length; at += stride) yield bytes.subarray(at, at + PAIR_BYTES);
    group += count;
  }
}
