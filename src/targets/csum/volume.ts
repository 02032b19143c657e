/**
 * How a volume is known: by its superblock, else, for a volume of the reference, by its tables. And its superblock's way back
 * to the medium. Sections in brackets are those of the dm-csum format document.
 *
 * Without a sound superblock it is a volume when most of the first PROBED groups and the last one have brothers in order,
 * both with a right CRC. It then has as many sectors as there is room for, or `length` where the reference volume was
 * smaller than its devices; groups that were never formatted can be neither read nor written.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import {
  type Area,
  type CrcOrder,
  decodeSuperblock,
  encodeSuperblock,
  groupsOf,
  ID_AT,
  ID_BYTES,
  interleavedCapacity,
  newerOf,
  orderVote,
  PAIR_BYTES,
  type Placement,
  pairOffset,
  type Superblock,
  separateCapacity,
  Table,
  type Volume,
} from '../../formats/csum.js';
import { commandWord } from '../../table.js';
import { SECTOR_BYTES } from '../../units.js';
import { type Areas, eachPair } from './groups.js';

/** Where the areas begin, bytes; D and I of the document. `imdStart` counts only with a separate imd area. */
export interface Starts {
  readonly dataStart: number;
  readonly imdStart: number;
}

export interface Places extends Starts {
  /** For messages; `@NAME` is another target. */
  readonly dataPath: string;
  readonly imdPath?: string | undefined;
  /** Data sectors, for a volume without a superblock; default: all that there is room for. */
  readonly length?: number | undefined;
}

export interface FoundVolume {
  readonly volume: Volume;
  /** Undefined for a volume of the reference, and for one whose superblock is damaged. */
  readonly superblock: Superblock | undefined;
  /** Nothing was in flight when it was last in use. */
  readonly isClean: boolean;
}

/** Groups whose brothers tell a volume of the reference, besides the last one. */
const PROBED = 16;

/** The volume that is there. Throws EINVAL where there is none, or none that can be used like this, and says why. */
export function findVolume(areas: Areas, places: Places): FoundVolume {
  const found = lookForVolume(areas, places);
  if (found) return found;
  throw new DmError(
    'EINVAL',
    `${places.dataPath}: not a csum volume; \`dmfuse csum format ${formatArgs(places)}\` prepares it`,
  );
}

/** As findVolume; undefined where nothing says that there is, or was to be, a volume. */
export function lookForVolume(areas: Areas, places: Places): FoundVolume | undefined {
  const { dataPath, dataStart, imdStart } = places;
  const data = readReserved('data', areas.data, dataStart, dataPath);
  const imd = areas.imd && readReserved('imd', areas.imd, imdStart, places.imdPath ?? '');
  const { superblock } = data;
  // A damaged one has a copy in the imd area, which tells all but the state.
  const told = superblock ?? imd?.superblock;
  if (told) {
    checkPlacement(told, places);
    if (superblock?.state === 'formatting') throw interrupted(places);
    if (imd && Buffer.compare(data.id, imd.id) !== 0) throw strangers(places);
    checkRoom(areas, places, told);
    return { volume: volumeOf(told, places), superblock, isClean: superblock?.state === 'clean' };
  }
  if (readReserved('imd', areas.data, dataStart, dataPath).superblock) {
    throw new DmError(
      'EINVAL',
      `${dataPath}: holds the tables of a csum volume; its data device comes first`,
    );
  }
  const volume = findReferenceVolume(areas, places);
  return volume && { volume, superblock: undefined, isClean: false };
}

export interface ReservedSector {
  /** Undefined where there is none, or a damaged one. */
  readonly superblock: Superblock | undefined;
  /** The 16 bytes where a superblock has its id, also of a damaged one. */
  readonly id: Uint8Array;
}

/** The reserved sector at the start of an area. Throws EINVAL for an area without one, or of a later version. */
export function readReserved(area: Area, device: BlockDevice, start: number, path: string): ReservedSector {
  if (areaSectors(device, start) < 1) {
    throw new DmError(
      'EINVAL',
      `${path}: has ${Math.floor(device.size / SECTOR_BYTES)} sectors, none at offset ${start / SECTOR_BYTES}`,
    );
  }
  const bytes = new Uint8Array(SECTOR_BYTES);
  device.read(start, bytes);
  try {
    return { superblock: decodeSuperblock(area, bytes), id: bytes.subarray(ID_AT, ID_AT + ID_BYTES) };
  } catch (error) {
    if (error instanceof DmError) throw new DmError(error.code, `${path}: ${error.message}`);
    throw error;
  }
}

/**
 * Writes the superblock into the areas that are given. It is durable when the caller has flushed their devices. Only the
 * data area's state counts, so a change of state needs no writing to the imd area.
 */
export function writeSuperblock(
  { data, imd }: Partial<Areas>,
  { dataStart, imdStart }: Starts,
  superblock: Superblock,
): void {
  data?.write(dataStart, encodeSuperblock('data', superblock));
  imd?.write(imdStart, encodeSuperblock('imd', superblock));
}

/** Whole sectors of a device from byte `start` on. */
export function areaSectors(device: BlockDevice, start: number): number {
  return Math.max(0, Math.floor((device.size - start) / SECTOR_BYTES));
}

/** Data sectors that there is room for. */
export function capacityOf(
  { data, imd }: Areas,
  { dataStart, imdStart }: Starts,
  placement: Placement,
): number {
  const dataArea = areaSectors(data, dataStart);
  if (placement === 'interleaved' || !imd) return interleavedCapacity(dataArea);
  return separateCapacity(dataArea, areaSectors(imd, imdStart), placement);
}

/** Throws EINVAL where an area is too small for a volume, and says what it has and what it needs. */
export function checkRoom(
  areas: Areas,
  places: Places,
  { placement, sectors }: Pick<Volume, 'placement' | 'sectors'>,
) {
  const { data, imd } = areas;
  const tables = 2 * groupsOf({ sectors });
  const check = (device: BlockDevice, start: number, path: string, needed: number) => {
    const found = areaSectors(device, start);
    if (found >= needed) return;
    const from = start > 0 ? ` from sector ${start / SECTOR_BYTES} on` : '';
    throw new DmError(
      'EINVAL',
      `${path}: has ${found} sectors${from}, a volume of ${sectors} sectors needs ${needed} there`,
    );
  };
  if (placement === 'interleaved' || !imd) {
    check(data, places.dataStart, places.dataPath, 1 + sectors + tables);
    return;
  }
  check(data, places.dataStart, places.dataPath, 1 + sectors);
  check(imd, places.imdStart, places.imdPath ?? '', tables + (placement === 'separate-r' ? 3 : 1));
}

/** What comes after `dmfuse csum format` for these devices. */
export function formatArgs({ dataPath, imdPath, dataStart, imdStart }: Places): string {
  const words = [commandWord(dataPath)];
  if (imdPath !== undefined) words.push(commandWord(imdPath));
  if (dataStart > 0) words.push(`--offset ${dataStart / SECTOR_BYTES}`);
  if (imdPath !== undefined && imdStart > 0) words.push(`--imd-offset ${imdStart / SECTOR_BYTES}`);
  return words.join(' ');
}

export function volumeOf({ order, placement, sectors }: Superblock, { dataStart, imdStart }: Starts): Volume {
  return { placement, order, dataStart, imdStart, sectors };
}

function interrupted(places: Places): DmError {
  return new DmError(
    'EINVAL',
    `${places.dataPath}: its format was interrupted; run \`dmfuse csum format ${formatArgs(places)}\` again to go on`,
  );
}

/** Throws EINVAL where the volume has an imd device and none is given, or the other way round. */
export function checkPlacement({ placement }: Superblock, { dataPath, imdPath }: Places): void {
  if (placement === 'interleaved' && imdPath !== undefined) {
    throw new DmError(
      'EINVAL',
      `${dataPath}: formatted with its tables among its data, without an imd device; leave out ${imdPath}`,
    );
  }
  if (placement !== 'interleaved' && imdPath === undefined) {
    throw new DmError(
      'EINVAL',
      `${dataPath}: formatted with its tables on an imd device, which must be given too`,
    );
  }
}

/** The data and imd area do not carry the same id. */
export function strangers({ dataPath, imdPath }: Places): DmError {
  return new DmError(
    'EINVAL',
    `${dataPath} and ${imdPath}: these two do not belong together: they are not data and tables of one csum volume`,
  );
}

function findReferenceVolume(areas: Areas, places: Places): Volume | undefined {
  const volume = referenceVolume(areas, places);
  if (!volume) return undefined;
  const { length = volume.sectors } = places;
  const wanted = { ...volume, sectors: length };
  checkRoom(areas, places, wanted);
  return { ...wanted, order: findOrder(wanted, areas.imd ?? areas.data) };
}

/** The volume that the tables speak for, with all sectors that there is room for; its byte order is not known yet. */
export function referenceVolume(areas: Areas, places: Places): Volume | undefined {
  const { dataStart, imdStart, length = Number.POSITIVE_INFINITY } = places;
  const placement = areas.imd ? separatePlacement(areas.imd, imdStart) : 'interleaved';
  const sectors = capacityOf(areas, places, placement);
  const volume: Volume = { placement, order: 'le', dataStart, imdStart, sectors };
  const probed = { ...volume, sectors: Math.min(sectors, length) };
  return probed.sectors > 0 && looksFormatted(probed, areas.imd ?? areas.data) ? volume : undefined;
}

/** Where M1 of group 0 is when nothing says so [4.2]. */
function separatePlacement(imd: BlockDevice, imdStart: number): Placement {
  if (areaSectors(imd, imdStart) < 3) return 'separate-r';
  const bytes = new Uint8Array(PAIR_BYTES);
  imd.read(imdStart + SECTOR_BYTES, bytes);
  return isPair(bytes) ? 'separate-c' : 'separate-r';
}

function looksFormatted(volume: Volume, imd: BlockDevice): boolean {
  const last = groupsOf(volume) - 1;
  const probes = [...Array(Math.min(PROBED, last)).keys(), last];
  const bytes = new Uint8Array(PAIR_BYTES);
  const pairs = probes.filter((group) => {
    imd.read(pairOffset(volume, group), bytes);
    return isPair(bytes);
  });
  return pairs.length > probes.length / 2;
}

/** Brothers in order, both with a right CRC in one of the byte orders [4.2, 5]. */
function isPair(bytes: Uint8Array): boolean {
  const [m1, m2] = brothers(bytes);
  if (newerOf(m1[0]!, m2[0]!) === undefined) return false;
  const areSound = (order: CrcOrder) => new Table(order, m1).isSound && new Table(order, m2).isSound;
  return areSound('be') || areSound('le');
}

/** The vote of the first group that has one; `le`, which the reference writes, where none does [2]. */
function findOrder(volume: Volume, imd: BlockDevice): CrcOrder {
  for (const bytes of eachPair(volume, imd)) {
    const [m1, m2] = brothers(bytes);
    const vote = orderVote(m1, m2);
    if (vote !== undefined) return vote;
  }
  return 'le';
}

function brothers(bytes: Uint8Array): [Uint8Array, Uint8Array] {
  return [bytes.subarray(0, SECTOR_BYTES), bytes.subarray(SECTOR_BYTES)];
}
