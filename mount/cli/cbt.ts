/** `dmfuse cbt`: what has changed on a target since which take of a snapshot. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { DmError } from '../../src/errors.js';
import { SECTOR_BYTES } from '../../src/units.js';
import { isThere, readControl, requireTarget, writeControl } from './control.js';
import { requireMount } from './find-mount.js';
import { note, printJson, say } from './output.js';

/** One write(2) of the mount takes so much; more would be two commands. */
const WRITE_BYTES_MAX = 1 << 20;

interface Info {
  /** Bytes. */
  readonly deviceCapacity: number;
  /** Bytes. */
  readonly blockSize: number;
  readonly blockCount: number;
  /** UUID. */
  readonly generation: string;
  readonly changesNumber: number;
}

interface MapOptions {
  readonly since?: number;
  readonly generation?: string;
  readonly raw: boolean;
  readonly json: boolean;
}

/** Blocks, by their places in the map. */
interface Run {
  readonly first: number;
  readonly end: number;
  readonly number: number;
}

export function info(mountArgument: string, name: string, { json }: { json: boolean }): void {
  const folder = requireTracked(mountArgument, name);
  if (!json) {
    say(readControl(folder, 'cbtinfo'));
    return;
  }
  const { deviceCapacity, blockSize, ...rest } = readInfo(folder);
  printJson({ deviceCapacityBytes: deviceCapacity, blockSizeBytes: blockSize, ...rest });
}

export function map(mountArgument: string, name: string, options: MapOptions): void {
  const { since, raw, json } = options;
  const folder = requireTracked(mountArgument, name);
  const { info: known, map: bytes } = readMap(folder);
  if (raw) {
    process.stdout.write(bytes);
    return;
  }
  const reason = since === undefined ? undefined : reasonForAll(known, since, options.generation);
  if (reason !== undefined) note(`cbt map ${name}: all of the device has to be copied: ${reason}`);
  const runs =
    reason === undefined
      ? runsOf(bytes, since).map((run) => sectorsOf(run, known, since === undefined))
      : [{ sector: 0, count: known.deviceCapacity / SECTOR_BYTES }];
  if (json) {
    printJson({
      generation: known.generation,
      changesNumber: known.changesNumber,
      blockSectors: known.blockSize / SECTOR_BYTES,
      deviceSectors: known.deviceCapacity / SECTOR_BYTES,
      ...(since !== undefined && { since, isWholeDevice: reason !== undefined }),
      runs,
    });
    return;
  }
  const lines = runs.map((run) => `${Object.values(run).join(' ')}\n`);
  process.stdout.write(lines.join(''));
}

export async function dirty(mountArgument: string, name: string, numbers: readonly number[]): Promise<void> {
  const folder = requireTracked(mountArgument, name);
  const lines = numbers.flatMap((sector, i) => (i % 2 === 0 ? [`${sector} ${numbers[i + 1]}`] : []));
  const text = lines.join('\n');
  if (text.length >= WRITE_BYTES_MAX) {
    throw new DmError(
      'E2BIG',
      `cbt dirty ${name}: ${lines.length} ranges are too many at a time: give fewer`,
    );
  }
  await writeControl(folder, 'cbtdirty', text);
}

function requireTracked(mountArgument: string, name: string): string {
  const mountPoint = requireMount(mountArgument);
  const folder = requireTarget(mountPoint, name);
  if (isThere(join(folder, 'cbtinfo'), mountPoint)) return folder;
  throw new DmError(
    'ENOENT',
    `${name}: its changes are not tracked; \`echo blksnap > ${folder}/filter\` starts that, and so does \`dmfuse snapshot create\``,
  );
}

function readInfo(folder: string): Info {
  const lines = readControl(folder, 'cbtinfo').split('\n');
  const values = Object.fromEntries(lines.map((line) => line.split(' '))) as Record<string, string>;
  return {
    deviceCapacity: Number(values.device_capacity),
    blockSize: Number(values.block_size),
    blockCount: Number(values.block_count),
    generation: values.generation_id!,
    changesNumber: Number(values.changes_number),
  };
}

/** The map, a byte a block, and what was so when it was read. */
export function readMap(folder: string): { info: Info; map: Buffer } {
  for (let before = readInfo(folder); ; ) {
    const bytes = readFileSync(join(folder, 'cbtmap'));
    const after = readInfo(folder);
    // Another snapshot may have been taken meanwhile.
    if (after.generation === before.generation && after.changesNumber === before.changesNumber) {
      return { info: after, map: bytes };
    }
    before = after;
  }
}

/** Why an earlier backup is none that this map goes on from; undefined where it is. */
function reasonForAll(known: Info, since: number, generation: string | undefined): string | undefined {
  if (generation !== undefined && generation.toLowerCase() !== known.generation) {
    return `its generation is ${known.generation}, not ${generation}`;
  }
  if (since > known.changesNumber) {
    return `its last take has number ${known.changesNumber}, so ${since} is of another generation`;
  }
  return undefined;
}

/** Blocks that have changed, by number; with `since` those with a greater one, whatever it is. */
function runsOf(bytes: Uint8Array, since: number | undefined): Run[] {
  const least = since ?? 0;
  const runs: Run[] = [];
  for (let first = 0; first < bytes.length; ) {
    const number = bytes[first]!;
    const isSame = (other: number) => (since === undefined ? other === number : other > least);
    let end = first + 1;
    if (number > least) {
      while (end < bytes.length && isSame(bytes[end]!)) end++;
      runs.push({ first, end, number });
    }
    first = end;
  }
  return runs;
}

/** In sectors: the last block may be short. */
function sectorsOf({ first, end, number }: Run, { blockSize, deviceCapacity }: Info, withNumber: boolean) {
  const sector = (first * blockSize) / SECTOR_BYTES;
  const count = Math.min(end * blockSize, deviceCapacity) / SECTOR_BYTES - sector;
  return withNumber ? { sector, count, number } : { sector, count };
}
