/**
 * Verifies a volume that is not attached, and writes nothing: all data against the tables, and the tables themselves.
 *
 *   a sector is          when
 *   good                 its CRC is that in the newer brother
 *   good                 its CRC is that in the older brother, and its last update may have been interrupted (the volume was
 *                        not closed in good order), or a brother of its group had to be corrected
 *   bad                  neither, or it cannot be read
 *   unverifiable         both brothers of its group are lost, or stand in no order
 *
 * A table of which one bit is flipped counts as damaged, though it tells what it should.
 */
import { crcOfSector } from '../../formats/crc16.js';
import { dataOffset, GROUP_SECTORS, groupsOf, sectorsIn } from '../../formats/csum.js';
import type { ProgressOptions } from '../../progress.js';
import { SECTOR_BYTES } from '../../units.js';
import { type Areas, BATCH_GROUPS, GroupBatch } from './groups.js';
import { type Brothers, Pair } from './pair.js';
import type { FoundVolume } from './volume.js';

export interface BadSector {
  /** Number in the volume. */
  readonly sector: number;
  /** Where it is on the data device. */
  readonly deviceSector: number;
  /** CRC that the newer brother has for it. */
  readonly newerCrc: number;
  /** The older brother's; left out where that one is lost. */
  readonly olderCrc?: number;
  /** CRC of what is there; left out where it cannot be read. */
  readonly dataCrc?: number;
}

export interface DamagedTables {
  readonly group: number;
  readonly brothers: 'M1' | 'M2' | 'both';
  /** `corrected`: one bit was flipped, which is known and taken into account. `lost`: more than that. */
  readonly state: 'corrected' | 'lost';
}

/** The first LIST_LIMIT of what was found, and how many there are. */
export interface Listed<T> {
  readonly count: number;
  readonly first: readonly T[];
}

export interface CheckReport {
  /** Good and bad ones. */
  readonly sectorsChecked: number;
  readonly sectorsUnverifiable: number;
  readonly badSectors: Listed<BadSector>;
  readonly damagedTables: Listed<DamagedTables>;
  /** Groups whose brothers are sound, but in no order: never formatted, or their counters are damaged. */
  readonly unorderedGroups: Listed<number>;
}

export const LIST_LIMIT = 1000;

export function isSound({ badSectors, damagedTables, unorderedGroups }: CheckReport): boolean {
  return badSectors.count + damagedTables.count + unorderedGroups.count === 0;
}

/** Throws what the devices throw where a whole mebibyte cannot be read; single sectors that cannot are findings. */
export async function checkVolume(
  found: FoundVolume,
  areas: Areas,
  { onProgress }: ProgressOptions = {},
): Promise<CheckReport> {
  const { volume } = found;
  const checker = new Checker(found, areas);
  const groups = groupsOf(volume);
  for (let first = 0; first < groups; first += BATCH_GROUPS) {
    const count = Math.min(BATCH_GROUPS, groups - first);
    checker.checkGroups(first, count);
    const sectors = Math.min(volume.sectors, (first + count) * GROUP_SECTORS);
    await onProgress?.({ bytes: sectors * SECTOR_BYTES, bytesTotal: volume.sectors * SECTOR_BYTES });
  }
  return checker.report;
}

class List<T> implements Listed<T> {
  count = 0;
  readonly first: T[] = [];

  add(entry: T): void {
    if (++this.count <= LIST_LIMIT) this.first.push(entry);
  }
}

const NAMES = { 1: 'M1', 2: 'M2', 3: 'both' } as const;

class Checker {
  readonly report = {
    sectorsChecked: 0,
    sectorsUnverifiable: 0,
    badSectors: new List<BadSector>(),
    damagedTables: new List<DamagedTables>(),
    unorderedGroups: new List<number>(),
  };
  private readonly batch: GroupBatch;
  private readonly pair: Pair;

  constructor(
    private readonly found: FoundVolume,
    areas: Areas,
  ) {
    this.batch = new GroupBatch(found.volume, areas);
    this.pair = new Pair(found.volume, areas.imd ?? areas.data);
  }

  checkGroups(first: number, count: number): void {
    const { batch, pair } = this;
    let unreadable: ReadonlySet<number> = new Set();
    let hasData = true;
    try {
      hasData = batch.readData(first, count);
      batch.readTables(first, count);
    } catch {
      unreadable = batch.readEachSector(first, count);
    }
    for (let i = 0; i < count; i++) {
      const lost = (unreadable.has(64 * i) ? 1 : 0) | (unreadable.has(64 * i + 1) ? 2 : 0);
      pair.take(batch.pair(i), lost as Brothers);
      const crcs = (k: number) => {
        if (unreadable.has(64 * i + 2 + k)) return undefined;
        return hasData ? crcOfSector(batch.words, batch.dataWord(i) + (k * SECTOR_BYTES) / 4) : 0;
      };
      this.checkGroup(first + i, crcs);
    }
  }

  /** `pair` is the group's. `crcOf` gives the CRC of its k-th data sector, undefined where that cannot be read. */
  private checkGroup(group: number, crcOf: (k: number) => number | undefined): void {
    const { pair, report, found } = this;
    const { volume } = found;
    const { newer, older, corrected, lost } = pair;
    if (corrected) report.damagedTables.add({ group, brothers: NAMES[corrected], state: 'corrected' });
    if (lost) report.damagedTables.add({ group, brothers: NAMES[lost], state: 'lost' });
    const sectors = sectorsIn(volume, group);
    if (!newer) {
      if (pair.isUnordered) report.unorderedGroups.add(group);
      report.sectorsUnverifiable += sectors;
      return;
    }
    report.sectorsChecked += sectors;
    const mayBeOlder = !found.isClean || corrected !== 0;
    for (let k = 0; k < sectors; k++) {
      const crc = crcOf(k);
      const newerCrc = newer.crc(k);
      if (crc === newerCrc) continue;
      const olderCrc = older?.crc(k);
      if (mayBeOlder && crc !== undefined && crc === olderCrc) continue;
      report.badSectors.add({
        sector: group * GROUP_SECTORS + k,
        deviceSector: dataOffset(volume, group) / SECTOR_BYTES + k,
        newerCrc,
        ...(olderCrc === undefined ? {} : { olderCrc }),
        ...(crc === undefined ? {} : { dataCrc: crc }),
      });
    }
  }
}
