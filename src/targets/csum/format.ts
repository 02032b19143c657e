/**
 * Makes a volume of what two areas hold: takes the data that is there for good, and writes the tables that say so.
 *
 *   the superblock says      what a start finds
 *   (nothing)                no volume; nothing but perhaps the imd area's reserved sector and some tables were written
 *   formatting, n groups     the pairs of the first n groups are durable: a format goes on from there, all else refuses
 *   clean                    all pairs are durable
 *
 *   csum-F1  The superblock says `formatting` durably before anything else is written. So a volume that was formatted anew is
 *            refused from then on until the new format has ended, whatever is left of its old tables.
 *   csum-F2  Pairs are durable before the superblock counts them.
 *   csum-F3  The imd area has the id durably before the superblock counts any group. A format that goes on with another imd
 *            area is refused.
 *   csum-F4  Of the data area only reserved sector and pairs are written, of the imd area the same.
 *
 * A format that goes on does not look again at what it has done: data that was changed meanwhile shows as damage.
 *
 * What is found to be a volume, also one of the reference, is formatted with `force` only, which always starts anew.
 */
import { randomBytes } from 'node:crypto';
import { DmError } from '../../errors.js';
import { crcOfSector } from '../../formats/crc16.js';
import {
  type CrcOrder,
  GROUP_BYTES,
  groupsOf,
  ID_BYTES,
  PAIR_BYTES,
  type Placement,
  pairOffset,
  type Superblock,
  sectorsIn,
  Table,
  type Volume,
} from '../../formats/csum.js';
import type { ProgressOptions } from '../../progress.js';
import { SECTOR_BYTES } from '../../units.js';
import { type Areas, BATCH_GROUPS, GroupBatch } from './groups.js';
import {
  capacityOf,
  checkPlacement,
  checkRoom,
  formatArgs,
  type Places,
  readReserved,
  referenceVolume,
  strangers,
  volumeOf,
  writeSuperblock,
} from './volume.js';

export interface FormatOptions extends Omit<Places, 'length'> {
  /** Data sectors; default: all that there is room for, or what the interrupted format was told. */
  readonly sectors?: number | undefined;
  /** Default `be`, or what the interrupted format was told. */
  readonly order?: CrcOrder | undefined;
  /** Also what is a volume already, or the beginning of one; starts anew. */
  readonly force: boolean;
}

export interface Formatted {
  readonly volume: Volume;
  /** Groups that an interrupted format had done already. */
  readonly groupsBefore: number;
}

/** Groups between two records of how far it is: 62 MiB of data. */
const RECORD_GROUPS = 2048;

/**
 * Formats, or goes on with a format that was interrupted: by a power cut, a kill, an error of a device. Both devices must be
 * this process's alone. Throws EEXIST for what is a volume already, EINVAL for areas that are too small, are one and the same,
 * or contradict what an interrupted format was told, and what the devices throw.
 */
export async function formatVolume(
  areas: Areas,
  options: FormatOptions,
  { onProgress, recordGroups = RECORD_GROUPS }: ProgressOptions & { recordGroups?: number } = {},
): Promise<Formatted> {
  if (areas.imd === areas.data) {
    throw new DmError('EINVAL', `${options.dataPath}: data and imd are the same device`);
  }
  const begun = options.force ? undefined : interruptedFormat(areas, options);
  const superblock = begun ?? newSuperblock(areas, options);
  const volume = volumeOf(superblock, options);
  await new Formatter(areas, volume, superblock, recordGroups).run(onProgress);
  return { volume, groupsBefore: superblock.groupsFormatted };
}

/** Undefined where there is nothing yet. */
function interruptedFormat(areas: Areas, options: FormatOptions): Superblock | undefined {
  const { dataPath, imdPath, dataStart, imdStart } = options;
  const data = readReserved('data', areas.data, dataStart, dataPath);
  const imd = areas.imd && readReserved('imd', areas.imd, imdStart, imdPath ?? '');
  const { superblock } = data;
  const isImdKnown = imd !== undefined && Buffer.compare(data.id, imd.id) === 0;
  if (superblock?.state === 'formatting') {
    checkOptions(superblock, options);
    checkRoom(areas, options, superblock);
    if (imd && !isImdKnown && superblock.groupsFormatted > 0) throw strangers(options);
    if (imd?.superblock && !isImdKnown) throw exists(imdPath ?? '', 'holds the tables of a csum volume');
    return superblock;
  }
  if (superblock) throw exists(dataPath, `is a csum volume of ${superblock.sectors} sectors`);
  if (imd?.superblock) throw exists(imdPath ?? '', 'holds the tables of a csum volume');
  if (readReserved('imd', areas.data, dataStart, dataPath).superblock) {
    throw exists(dataPath, 'holds the tables of a csum volume');
  }
  const places = { dataPath, imdPath, dataStart, imdStart };
  if (referenceVolume(areas, places) || referenceVolume({ data: areas.data }, places)) {
    throw exists(dataPath, 'has the tables of a csum volume, without a sound superblock');
  }
  return undefined;
}

/** Throws EINVAL where the options are not those that the interrupted format had. */
function checkOptions(superblock: Superblock, options: FormatOptions): void {
  checkPlacement(superblock, options);
  const { sectors = superblock.sectors, order = superblock.order, dataPath } = options;
  if (sectors === superblock.sectors && order === superblock.order) return;
  throw new DmError(
    'EINVAL',
    `${dataPath}: an interrupted format of ${superblock.sectors} sectors, order ${superblock.order}: go on with ` +
      `\`dmfuse csum format ${formatArgs(options)}\`, or start anew with --force`,
  );
}

function exists(path: string, what: string): DmError {
  return new DmError(
    'EEXIST',
    `${path}: ${what} already. A new format takes what is there now as good, for ever: damage that it has will never be ` +
      'found. --force does that',
  );
}

function newSuperblock(areas: Areas, options: FormatOptions): Superblock {
  const placement: Placement = areas.imd ? 'separate-r' : 'interleaved';
  const sectors = options.sectors ?? Math.max(1, capacityOf(areas, options, placement));
  checkRoom(areas, options, { placement, sectors });
  return {
    order: options.order ?? 'be',
    placement,
    state: 'formatting',
    sectors,
    groupsFormatted: 0,
    id: randomBytes(ID_BYTES),
  };
}

class Formatter {
  private readonly groups: number;
  private readonly batch: GroupBatch;
  /** Pairs that are still to be written. */
  private readonly tables: Uint8Array;

  constructor(
    private readonly areas: Areas,
    private readonly volume: Volume,
    private readonly superblock: Superblock,
    private readonly recordGroups: number,
  ) {
    this.groups = groupsOf(volume);
    this.batch = new GroupBatch(volume, areas);
    this.tables = new Uint8Array(Math.min(recordGroups, this.groups) * PAIR_BYTES);
  }

  async run(onProgress: ProgressOptions['onProgress']): Promise<void> {
    const { areas, volume, superblock, groups, recordGroups } = this;
    const bytesTotal = volume.sectors * SECTOR_BYTES;
    this.record(superblock);
    writeSuperblock({ imd: areas.imd }, volume, superblock);
    for (let first = superblock.groupsFormatted; first < groups; first += recordGroups) {
      const end = Math.min(first + recordGroups, groups);
      this.tables.fill(0);
      for (let at = first; at < end; at += BATCH_GROUPS) {
        const count = Math.min(BATCH_GROUPS, end - at);
        this.describe(at, count, at - first);
        await onProgress?.({ bytes: Math.min((at + count) * GROUP_BYTES, bytesTotal), bytesTotal });
      }
      this.writePairs(first, end - first);
      (areas.imd ?? areas.data).flush();
      if (end < groups) this.record({ ...superblock, groupsFormatted: end });
    }
    this.record({ ...superblock, state: 'clean', groupsFormatted: groups });
  }

  private record(superblock: Superblock): void {
    const { data } = this.areas;
    writeSuperblock({ data }, this.volume, superblock);
    data.flush();
  }

  /** Makes the pairs of groups; `index` is that of the first one in `tables`, where all is zero [5]. */
  private describe(first: number, count: number, index: number): void {
    const { batch, volume } = this;
    const hasData = batch.readData(first, count);
    for (let i = 0; i < count; i++) {
      const at = (index + i) * PAIR_BYTES;
      const m1 = this.tables.subarray(at, at + SECTOR_BYTES);
      const m2 = this.tables.subarray(at + SECTOR_BYTES, at + PAIR_BYTES);
      if (hasData) {
        const table = new Table(volume.order, m1);
        const sectors = sectorsIn(volume, first + i);
        for (let k = 0, word = batch.dataWord(i); k < sectors; k++, word += SECTOR_BYTES / 4) {
          table.setCrc(k, crcOfSector(batch.words, word));
        }
        table.seal();
        m2.set(m1);
      }
      m2[0] = 1;
    }
  }

  private writePairs(first: number, count: number): void {
    const { areas, volume, tables } = this;
    if (areas.imd) {
      areas.imd.write(pairOffset(volume, first), tables.subarray(0, count * PAIR_BYTES));
      return;
    }
    for (let i = 0; i < count; i++) {
      areas.data.write(pairOffset(volume, first + i), tables.subarray(i * PAIR_BYTES, (i + 1) * PAIR_BYTES));
    }
  }
}
