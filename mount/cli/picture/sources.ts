/**
 * What a target says of its sectors in its control files, as grids. Each file is read once, a piece at a time, so that memory
 * does not go with the size of the device.
 *
 * Colours are those of Okabe and Ito, which people tell apart however they see colours; where classes have an order (layers, ages)
 * they go from light to dark.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { StringDecoder } from 'node:string_decoder';
import { type Extent, extentOf } from '../../../src/device/block-device.js';
import { FileDevice } from '../../../src/device/file.js';
import { DmError } from '../../../src/errors.js';
import { GROUP_SECTORS } from '../../../src/formats/csum.js';
import { runsOfOnes } from '../../../src/shared/bitmap.js';
import { CELLS_MAX, cellSectorsOf } from '../../../src/shared/cells.js';
import { splitWords } from '../../../src/table.js';
import { SECTOR_BYTES } from '../../../src/units.js';
import { readMap } from '../cbt.js';
import { explain, readControl } from '../control.js';
import { Grid, type SectorClass } from './grid.js';
import { LAYER_RAMP, PALETTE as P } from './palette.js';

/** Bytes of one read of a control file. */
const PIECE_BYTES = 1 << 18;

/** A live target. */
export interface Subject {
  /** Its directory. */
  readonly folder: string;
  readonly type: string;
  readonly sectors: number;
  /** Its table's arguments. */
  readonly args: readonly string[];
}

export interface Panel {
  readonly title: string;
  /** For the legend; '' where there is nothing to add. */
  readonly note: string;
  readonly grid: Grid;
}

/** Called often, and waited for: sectors looked at so far. */
export type Looked = (sectors: number) => Promise<void>;

type Source = (subject: Subject, cellsMax: number, looked: Looked) => Promise<Panel>;

const SOURCES: Readonly<Record<string, Source>> = { bow, csum, cow, clone, linear };

/** The panel of a target's own type. Throws EOPNOTSUPP for one that has no picture. */
export async function ownPanel(subject: Subject, cellsMax: number, looked: Looked): Promise<Panel> {
  const source = SOURCES[subject.type];
  if (source) return await source(subject, cellsMax, looked);
  throw new DmError(
    'EOPNOTSUPP',
    `map: a ${subject.type} target has no picture; it takes ${Object.keys(SOURCES).join(', ')}`,
  );
}

async function bow(subject: Subject, cellsMax: number, looked: Looked): Promise<Panel> {
  const classes: SectorClass[] = [
    { name: 'Unchanged', color: P.light },
    { name: 'Free', color: P.skyBlue },
    { name: 'Changed', color: P.vermillion, weight: 1 },
    { name: 'Backup', color: P.blue, hatch: 'rising', weight: 2 },
    { name: 'Sector0', color: P.black, weight: 3 },
    { name: 'Sector0_current', color: P.purple, hatch: 'falling', weight: 3 },
  ];
  const grid = new Grid(subject.sectors, classes, cellsMax);
  let [start, type] = [0, 0];
  for (const line of linesOf(subject.folder, 'ranges')) {
    const [name, sector] = line.split(': ') as [string, string];
    grid.add(start, Number(sector) - start, type);
    start = Number(sector);
    type = classes.findIndex((each) => each.name === name);
    if (type < 0 && name !== 'Top')
      throw new DmError('EIO', `${subject.folder}/ranges: unknown type \`${name}\``);
    await looked(start);
  }
  return { title: 'ranges', note: `state ${readControl(subject.folder, 'state')}`, grid };
}

async function csum(subject: Subject, cellsMax: number, looked: Looked): Promise<Panel> {
  const grid = new Grid(
    subject.sectors,
    [
      { name: 'no error known', color: P.light },
      { name: 'bad sectors', color: P.vermillion, weight: 2 },
      { name: 'groups with a damaged table', color: P.blue, hatch: 'rising', weight: 1 },
    ],
    cellsMax,
  );
  const bad: number[] = [];
  const groups: number[] = [];
  for (const line of linesOf(subject.folder, 'errors')) {
    const [kind, number] = line.split(' ');
    if (kind === 'sector') bad.push(Number(number));
    if (kind === 'group') groups.push(Number(number));
  }
  for (const sector of bad) grid.add(sector, 1, 1);
  // A sector of such a group may be bad itself, and is counted once.
  const isBad = new Set(bad);
  for (const group of groups) {
    for (let i = 0; i < GROUP_SECTORS; i++) {
      const sector = group * GROUP_SECTORS + i;
      if (!isBad.has(sector)) grid.add(sector, 1, 2);
    }
  }
  await looked(subject.sectors);
  return {
    title: 'errors',
    note: `scrub: ${readControl(subject.folder, 'scrub').replaceAll('\n', ' ')}`,
    grid,
  };
}

async function cow(subject: Subject, cellsMax: number, looked: Looked): Promise<Panel> {
  const members = readControl(subject.folder, 'layers')
    .split('\n')
    .map((line) => splitWords(line)[3]!);
  const grid = new Grid(subject.sectors, layerClasses(members), cellsMax);
  const recordBytes = 4 * members.length;
  const cellSectors = cellSectorsOf(subject.sectors, CELLS_MAX);
  let cell = 0;
  for (const records of recordsOf(subject.folder, 'owners', recordBytes)) {
    for (let at = 0; at < records.length; at += recordBytes, cell++) {
      // Where in its cell a sector is makes no difference.
      for (let member = 1; member < members.length; member++) {
        const count = records.readUInt32LE(at + 4 * member);
        grid.add(cell * cellSectors, count, 1 + colorOf(member, members.length - 1));
      }
    }
    await looked(Math.min(cell * cellSectors, subject.sectors));
  }
  return { title: 'layers', note: '', grid };
}

/** Which colour a layer has, of 1 to `layers`: neighbours share one where they are too many. */
function colorOf(layer: number, layers: number): number {
  return Math.floor(((layer - 1) * Math.min(layers, LAYER_RAMP.length)) / layers);
}

function layerClasses(members: readonly string[]): SectorClass[] {
  const layers = members.length - 1;
  const colors = Math.min(layers, LAYER_RAMP.length);
  const classes: SectorClass[] = [{ name: `base ${members[0]}`, color: P.light }];
  for (let index = 0; index < colors; index++) {
    const of = members.flatMap((_, layer) => (layer > 0 && colorOf(layer, layers) === index ? [layer] : []));
    const [first, last] = [of[0]!, of.at(-1)!];
    const name = first === last ? `layer ${first} ${members[first]}` : `layers ${first} to ${last}`;
    // So that the top, which is what changes, is the darkest.
    const place = colors === 1 ? LAYER_RAMP.length - 1 : (index * (LAYER_RAMP.length - 1)) / (colors - 1);
    classes.push({ name, color: LAYER_RAMP[Math.round(place)]!, weight: index + 1 });
  }
  return classes;
}

async function clone(subject: Subject, cellsMax: number, looked: Looked): Promise<Panel> {
  const grid = new Grid(
    subject.sectors,
    [
      { name: 'on the source', color: P.light, weight: 1 },
      { name: 'hydrated', color: P.blue, weight: 1 },
    ],
    cellsMax,
  );
  const regionSectors = Number(subject.args[3]);
  let region = 0;
  for (const bytes of recordsOf(subject.folder, 'regions', 1)) {
    const words = new Int32Array(Math.ceil(bytes.length / 4));
    new Uint8Array(words.buffer).set(bytes);
    for (const { start, count } of runsOfOnes(words, bytes.length * 8)) {
      grid.add((region + start) * regionSectors, count * regionSectors, 1);
    }
    region += bytes.length * 8;
    await looked(Math.min(region * regionSectors, subject.sectors));
  }
  return { title: 'regions', note: `a region is ${regionSectors} sectors`, grid };
}

async function linear(subject: Subject, cellsMax: number, looked: Looked): Promise<Panel> {
  const classes: SectorClass[] = [
    { name: 'hole', color: P.light },
    { name: 'data', color: P.blue, weight: 1 },
  ];
  const grid = new Grid(subject.sectors, classes, cellsMax);
  refuseHeld(subject.folder);
  const path = join(subject.folder, 'device');
  const fd = openFile(path);
  try {
    const size = subject.sectors * SECTOR_BYTES;
    const device = new FileDevice({ fd, path, size });
    let extent: Extent;
    for (let at = 0; at < size; at = extent.end) {
      extent = extentOf(device, at);
      // A sector that is a hole in part is data.
      const first = Math.floor(at / SECTOR_BYTES);
      if (extent.data) grid.add(first, Math.ceil(extent.end / SECTOR_BYTES) - first, 1);
      await looked(Math.floor(extent.end / SECTOR_BYTES));
    }
  } finally {
    closeSync(fd);
  }
  return { title: 'data and holes', note: '', grid };
}

/** Throws EBUSY where whoever looks at the device would wait until somebody resumes what it stands on, and nothing could end him. */
function refuseHeld(folder: string): void {
  const name = basename(folder);
  if (readControl(folder, 'suspended') === '1')
    throw new DmError('EBUSY', `${name}: suspended; resume it first`);
  for (const line of linesOf(folder, 'deps')) {
    const [, below = ''] = splitWords(line);
    if (below.startsWith('@')) refuseHeld(join(dirname(folder), below.slice(1)));
  }
}

/** Ages in takes: 0 is what had changed at the last one. From newest to oldest. */
const AGES: readonly { readonly first: number; readonly last: number }[] = [
  { first: 0, last: 0 },
  { first: 1, last: 1 },
  { first: 2, last: 3 },
  { first: 4, last: 7 },
  { first: 8, last: 255 },
];
const AGE_COLORS: readonly Pick<SectorClass, 'color' | 'hatch'>[] = [
  { color: P.brown },
  { color: P.vermillion },
  { color: P.orange },
  { color: P.skyBlue },
  { color: P.yellow, hatch: 'rising' },
];

/** The panel of a tracked target: which blocks had changed when, as of the last take. */
export function changesPanel(folder: string, sectors: number, cellsMax: number): Panel {
  const { info, map } = readMap(folder);
  const takes = info.changesNumber;
  const classes: SectorClass[] = [{ name: 'never changed', color: P.light }];
  for (const [i, { first, last }] of AGES.entries()) {
    if (first >= takes) break;
    const [newest, oldest] = [takes - first, Math.max(1, takes - last)];
    const when = newest === oldest ? `take ${newest}` : `takes ${oldest} to ${newest}`;
    const name = `changed before ${when}${i === 0 ? ', the last' : ''}`;
    classes.push({ name, ...AGE_COLORS[i]!, weight: AGES.length - i });
  }
  const grid = new Grid(sectors, classes, cellsMax);
  const blockSectors = info.blockSize / SECTOR_BYTES;
  for (let first = 0; first < map.length; ) {
    const number = map[first]!;
    let end = first + 1;
    while (end < map.length && map[end] === number) end++;
    const age = AGES.findIndex((range) => takes - number >= range.first && takes - number <= range.last);
    if (number > 0) grid.add(first * blockSectors, (end - first) * blockSectors, 1 + age);
    first = end;
  }
  const note =
    takes === 0 ? 'no snapshot was taken yet' : `as of take ${takes}, blocks of ${blockSectors} sectors`;
  return { title: 'changed blocks (blksnap)', note, grid };
}

function openFile(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (error) {
    throw explain(error, path, { EBUSY: 'another target stands on it; draw that one' });
  }
}

function* piecesOf(folder: string, file: string): Generator<Buffer> {
  const fd = openFile(join(folder, file));
  try {
    const piece = Buffer.alloc(PIECE_BYTES);
    for (let at = 0, length: number; (length = readSync(fd, piece, 0, PIECE_BYTES, at)) > 0; at += length) {
      yield piece.subarray(0, length);
    }
  } finally {
    closeSync(fd);
  }
}

/** The lines of a control file, without empty ones. */
function* linesOf(folder: string, file: string): Generator<string> {
  const decoder = new StringDecoder();
  let rest = '';
  for (const piece of piecesOf(folder, file)) {
    const lines = (rest + decoder.write(piece)).split('\n');
    rest = lines.pop()!;
    yield* lines.filter(Boolean);
  }
  if (rest) yield rest;
}

/** Whole records of a binary control file, some at a time. */
function* recordsOf(folder: string, file: string, recordBytes: number): Generator<Buffer> {
  let rest: Buffer = Buffer.alloc(0);
  for (const piece of piecesOf(folder, file)) {
    const all = Buffer.concat([rest, piece]);
    const whole = all.length - (all.length % recordBytes);
    yield all.subarray(0, whole);
    rest = all.subarray(whole);
  }
}
