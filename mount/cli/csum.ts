/** `dmfuse csum format` and `check`: a csum volume that is not attached. */
import { DmError } from '../../src/errors.js';
import { groupsOf, sectorsIn } from '../../src/formats/csum.js';
import {
  type BadSector,
  type CheckReport,
  checkVolume,
  type DamagedTables,
  isSound,
  type Listed,
} from '../../src/targets/csum/check.js';
import { formatVolume } from '../../src/targets/csum/format.js';
import { type FoundVolume, formatArgs, lookForVolume, type Places } from '../../src/targets/csum/volume.js';
import { SECTOR_BYTES } from '../../src/units.js';
import { withImages } from './images.js';
import { EXIT_DAMAGED, EXIT_NOTHING_THERE, printJson, say } from './output.js';
import { type ProgressFlags, withProgress } from './progress.js';
import { Interrupted } from './signals.js';

export interface CsumOptions {
  /** Sectors. */
  readonly offset: number;
  /** Sectors. */
  readonly imdOffset?: number;
}

export interface CsumFormatOptions extends CsumOptions, ProgressFlags {
  /** Sectors. */
  readonly size?: number;
  readonly order?: 'be' | 'le';
  readonly force: boolean;
}

export interface CsumCheckOptions extends CsumOptions, ProgressFlags {}

export async function formatImage(
  dataPath: string,
  imdPath: string | undefined,
  options: CsumFormatOptions,
): Promise<void> {
  const places = placesOf(dataPath, imdPath, options);
  const { size: sectors, order, force, quiet, json } = options;
  await withImages([dataPath, imdPath], 'write', async (data, imd) => {
    try {
      const { volume, groupsBefore } = await withProgress(
        'format',
        { quiet, json, interruptible: true },
        (onProgress) => formatVolume({ data, imd }, { ...places, sectors, order, force }, { onProgress }),
      );
      if (json) {
        const { sectors: volumeSectors, order: crcOrder, placement } = volume;
        printJson({ volumeSectors, groups: groupsOf(volume), groupsBefore, placement, crcOrder });
        return;
      }
      const how = groupsBefore > 0 ? 'formatted, going on with what was interrupted' : 'formatted';
      say(`${how}: ${volume.sectors} sectors in ${count(groupsOf(volume), 'group')}, order ${volume.order}`);
    } catch (error) {
      if (!(error instanceof Interrupted)) throw error;
      process.stderr.write(
        `dmfuse: interrupted, nothing is lost: \`dmfuse csum format ${formatArgs(places)}\` goes on\n`,
      );
      process.exitCode = error.exitCode;
    }
  });
}

export async function checkImage(
  dataPath: string,
  imdPath: string | undefined,
  options: CsumCheckOptions,
): Promise<void> {
  const places = placesOf(dataPath, imdPath, options);
  await withImages([dataPath, imdPath], 'read', async (data, imd) => {
    const areas = { data, imd };
    const found = lookForVolume(areas, places);
    if (!found) {
      process.exitCode = EXIT_NOTHING_THERE;
      if (options.json) printJson({ state: 'no-volume' });
      else say(`no csum volume: \`dmfuse csum format ${formatArgs(places)}\` prepares one`);
      return;
    }
    const report = await withProgress('check', { ...options, interruptible: false }, (onProgress) =>
      checkVolume(found, areas, { onProgress }),
    );
    if (!isSound(report)) process.exitCode = EXIT_DAMAGED;
    if (options.json) printJson(asJson(found, report));
    else say(asText(found, report));
  });
}

function placesOf(dataPath: string, imdPath: string | undefined, options: CsumOptions): Places {
  if (imdPath === undefined && options.imdOffset !== undefined) {
    throw new DmError('EINVAL', '--imd-offset is of the imd device, and none is given');
  }
  const { offset, imdOffset = 0 } = options;
  return { dataPath, imdPath, dataStart: offset * SECTOR_BYTES, imdStart: imdOffset * SECTOR_BYTES };
}

function asJson({ volume, superblock, isClean }: FoundVolume, report: CheckReport): object {
  const { badSectors, damagedTables, unorderedGroups } = report;
  return {
    state: isSound(report) ? 'sound' : 'damaged',
    placement: volume.placement,
    crcOrder: volume.order,
    hasSuperblock: superblock !== undefined,
    wasClean: isClean,
    volumeSectors: volume.sectors,
    sectorsChecked: report.sectorsChecked,
    sectorsUnverifiable: report.sectorsUnverifiable,
    badSectorsTotal: badSectors.count,
    badSectors: badSectors.first,
    damagedTablesTotal: damagedTables.count,
    damagedTables: damagedTables.first,
    unorderedGroupsTotal: unorderedGroups.count,
    unorderedGroups: unorderedGroups.first,
  };
}

function asText(found: FoundVolume, report: CheckReport): string {
  const { volume, isClean } = found;
  const { badSectors, damagedTables, unorderedGroups, sectorsUnverifiable } = report;
  const use = isClean ? '' : '; not closed in good order, so the older tables count too';
  if (isSound(report)) {
    return `sound: ${count(volume.sectors, 'sector')} in ${count(groupsOf(volume), 'group')}${use}`;
  }
  const totals = [
    count(badSectors.count, 'bad sector'),
    count(damagedTables.count, 'damaged table', 'groups with damaged tables'),
    count(unorderedGroups.count, 'group without an order', 'groups without an order'),
    `${count(sectorsUnverifiable, 'sector')} that cannot be verified`,
  ];
  return [
    `damaged: ${totals.join(', ')}${use}`,
    ...list(badSectors, (bad) => badLine(bad, found)),
    ...list(damagedTables, tablesLine),
    ...list(unorderedGroups, (group) => groupLine(group, found)),
  ].join('\n');
}

function list<T>({ count: total, first }: Listed<T>, line: (entry: T) => string): string[] {
  const more = total - first.length;
  return [...first.map(line), ...(more > 0 ? [`… and ${more} more of these`] : [])];
}

function badLine(
  { sector, deviceSector, newerCrc, olderCrc, dataCrc }: BadSector,
  { isClean }: FoundVolume,
): string {
  // With one brother lost, the one that is left may be the older one, and not know the last write.
  const tables =
    olderCrc === undefined
      ? `the table that is left says ${hex(newerCrc)}`
      : `the tables say ${hex(newerCrc)} (before: ${hex(olderCrc)})`;
  const data = dataCrc === undefined ? 'it cannot be read' : `it has CRC ${hex(dataCrc)}`;
  // A whole sector that is as it was before: a write that the disk has reported and lost.
  const lost = isClean && dataCrc !== undefined && dataCrc === olderCrc ? ': its last write was lost' : '';
  return `sector ${sector} (of the device: ${deviceSector}): ${data}, ${tables}${lost}`;
}

function tablesLine({ group, brothers, state }: DamagedTables): string {
  const which = brothers === 'both' ? 'both brothers' : brothers;
  return state === 'corrected'
    ? `tables of group ${group}: ${which} with one flipped bit, which the next write there puts right`
    : `tables of group ${group}: ${which} lost`;
}

function groupLine(group: number, { volume }: FoundVolume): string {
  const sectors = sectorsIn(volume, group);
  return `group ${group}: its brothers are in no order: never formatted, or damaged; ${count(sectors, 'sector')} not verified`;
}

function hex(crc: number): string {
  return `0x${crc.toString(16).padStart(4, '0')}`;
}

function count(n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`;
}
