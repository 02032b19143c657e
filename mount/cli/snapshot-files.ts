/** The folder of a snapshot, as the command line reads and writes it. */
import { mkdirSync } from 'node:fs';
import { rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { DmError, messageOf } from '../../src/errors.js';
import { blksnap } from '../../src/filters/blksnap/tracker.js';
import { quoteWord, splitWords } from '../../src/table.js';
import { SNAPSHOTS } from '../tree/folder.js';
import { explain, isThere, readControl, requireTarget, whyNoAnswer, writeControl } from './control.js';
import { note } from './output.js';

/** No snapshot, but what all of them go by. */
export const PARAMS = 'params';
const NO_NAME = 'not a name for a snapshot: no blanks, no slash, no leading dot or @';

export interface SnapshotState {
  /** created, taken or corrupted. */
  readonly state: string;
  readonly capacitySectors: number;
  readonly filledSectors: number;
  readonly requestedSectors: number;
  readonly devices: readonly { readonly name: string; readonly errorCode: number }[];
}

/** A snapshot that has just been made. */
export interface CreatedSnapshot {
  readonly folder: string;
  /** UUID. */
  readonly id: string;
  /** Takes it back: there is no snapshot, and what was not tracked before is not. */
  undo(): Promise<void>;
}

/** Where the snapshot of that name is, or would be. Throws EINVAL for what cannot be a name. */
export function snapshotFolder(mountPoint: string, name: string): string {
  if (!/^[^\s/@.][^\s/]*$/.test(name)) throw new DmError('EINVAL', `\`${name}\`: ${NO_NAME}`);
  return join(mountPoint, SNAPSHOTS, name);
}

/** Throws ENOENT. */
export function requireSnapshot(mountPoint: string, name: string): string {
  const folder = snapshotFolder(mountPoint, name);
  if (name !== PARAMS && isThere(folder, mountPoint)) return folder;
  throw new DmError(
    'ENOENT',
    `${name}: there is no snapshot of that name; \`dmfuse snapshot list ${mountPoint}\` tells which there are`,
  );
}

/** Makes a snapshot of targets, tracking those that are not tracked yet: all of that or nothing. */
export async function createSnapshot(
  mountPoint: string,
  name: string,
  devices: readonly string[],
): Promise<CreatedSnapshot> {
  const folder = snapshotFolder(mountPoint, name);
  const targets = devices.map((device) => ({ device, target: requireTarget(mountPoint, device) }));
  try {
    mkdirSync(folder);
  } catch (error) {
    throw explain(error, `snapshot ${name}`, {
      EEXIST: name === PARAMS ? NO_NAME : 'there is one of that name',
      EINVAL: NO_NAME,
      ENAMETOOLONG: NO_NAME,
      ...whyNoAnswer(mountPoint),
    });
  }
  const attached: string[] = [];
  const undo = async () => {
    await rmdir(folder).catch((error) => {
      if (error.code !== 'ENOENT') throw error; // somebody else has destroyed it
    });
    for (const target of attached) await writeControl(target, 'filter', 'none');
  };
  try {
    for (const { device, target } of targets) {
      if (readControl(target, 'filter') === 'none') {
        await writeControl(target, 'filter', blksnap.name);
        attached.push(target);
      }
      await writeControl(folder, 'devices', `add ${device}`);
    }
    return { folder, id: readControl(folder, 'id'), undo };
  } catch (error) {
    await undo().catch((failure) => note(messageOf(failure)));
    throw error;
  }
}

/** Appends to the difference storage. */
export async function appendStorage(
  folder: string,
  path: string,
  sector: number,
  count: number,
): Promise<void> {
  try {
    await writeControl(folder, 'storage', `${quoteWord(path)} ${sector} ${count}`);
  } catch (error) {
    // What allocating it throws does not say where.
    if (!(error instanceof DmError) || error.message.includes(path)) throw error;
    throw new DmError(error.code, `${path}: ${error.message}`);
  }
}

export function readState(folder: string): SnapshotState {
  return parseState(readControl(folder, 'state'));
}

/** The text of a file `state`. */
export function parseState(text: string): SnapshotState {
  const [state = '', ...lines] = text.split('\n');
  const words = lines.map((line) => line.split(' '));
  const sectors = (key: string) => Number(words.find(([first]) => first === key)?.[1] ?? 0);
  return {
    state,
    capacitySectors: sectors('capacity'),
    filledSectors: sectors('filled'),
    requestedSectors: sectors('requested'),
    devices: words
      .filter(([key]) => key === 'device')
      .map(([, name = '', , code]) => ({ name, errorCode: Number(code ?? 0) })),
  };
}

/** The ranges of the difference storage. */
export function readStorage(folder: string): { path: string; sector: number; count: number }[] {
  // A newline in a path is quoted.
  const lines = readControl(folder, 'storage').match(/(?:\\[\s\S]|[^\n\\])+/g) ?? [];
  return lines.map((line) => {
    const [path = '', sector, count] = splitWords(line);
    return { path, sector: Number(sector), count: Number(count) };
  });
}

/** Where the image of a device is, or will be. */
export function imagePath(folder: string, device: string): string {
  return join(folder, 'images', device);
}
