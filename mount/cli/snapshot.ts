/** `dmfuse snapshot`: what the shell does with MNT/snapshots, and the care around it. */
import {
  closeSync,
  constants,
  lstatSync,
  openSync,
  readdirSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { rmdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { DmError } from '../../src/errors.js';
import { quoteWord } from '../../src/table.js';
import { SNAPSHOTS } from '../tree/folder.js';
import { explain, readControl, whyNoAnswer, writeControl } from './control.js';
import { parseEvent, readEvents } from './event-line.js';
import { fileSystemOf, fileSystemsOn } from './file-systems.js';
import { requireMount } from './find-mount.js';
import { whileFrozen } from './freeze.js';
import { jsonLine, print, printJson, say } from './output.js';
import { type HeldSignals, withSignalsHeld } from './signals.js';
import {
  appendStorage,
  createSnapshot,
  imagePath,
  readState,
  readStorage,
  requireSnapshot,
  snapshotFolder,
} from './snapshot-files.js';

const EVENTS_BYTES = 65_536;
/** Milliseconds until a full pipe is tried again. */
const PIPE_REST_MS = 10;

export async function create(
  mountArgument: string,
  name: string,
  { device }: { device: readonly string[] },
): Promise<void> {
  const { id } = await createSnapshot(requireMount(mountArgument), name, device);
  say(id);
}

export async function append(
  mountArgument: string,
  name: string,
  path: string,
  sector: number,
  count: number,
): Promise<void> {
  const mountPoint = requireMount(mountArgument);
  const folder = requireSnapshot(mountPoint, name);
  const file = resolve(path);
  const { devices } = readState(folder);
  refuseStorageOnOrigin(
    mountPoint,
    file,
    devices.map((device) => device.name),
  );
  const isNew = makeFile(file);
  try {
    await appendStorage(folder, file, sector, count);
  } catch (error) {
    if (isNew) unlinkSync(file);
    throw error;
  }
}

/** A copy that is stored there would be a write to the device that is being copied: both would wait for ever. */
export function refuseStorageOnOrigin(mountPoint: string, path: string, devices: readonly string[]): void {
  const found = fileSystemOf(path, fileSystemsOn(mountPoint, devices));
  if (!found) return;
  throw new DmError(
    'EINVAL',
    `${path}: is on the ${found.type} of a device of the snapshot itself, whose copies cannot go there: choose a file elsewhere`,
  );
}

/**
 * Makes an empty file that only its owner may read. False where there is something already. Throws EPERM where that is somebody else's:
 * in a folder of everybody (/var/tmp) he would read there what is overwritten, and decide what the images say.
 */
export function makeFile(path: string): boolean {
  try {
    closeSync(openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600));
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'EEXIST') {
      throw explain(error, path, { ENOENT: 'there is no such folder', ENOTDIR: 'there is no such folder' });
    }
    refuseForeign(path);
    return false;
  }
}

/** Links to devices (/dev/mapper/…) are root's. */
function refuseForeign(path: string): void {
  const me = process.getuid!();
  const link = lstatSync(path);
  const file = statSync(path);
  const isForeign =
    (link.isSymbolicLink() && ![0, me].includes(link.uid)) || (file.isFile() && file.uid !== me);
  if (!isForeign) return;
  throw new DmError(
    'EPERM',
    `${path}: belongs to another user, who could read and change what is stored there: name a new file`,
  );
}

export async function take(
  mountArgument: string,
  name: string,
  { freeze }: { freeze: boolean },
): Promise<void> {
  const mountPoint = requireMount(mountArgument);
  const folder = requireSnapshot(mountPoint, name);
  await withSignalsHeld((signals) => takeSnapshot(mountPoint, folder, { freeze, signals }));
}

/** Takes it, while the file systems on its devices are still. */
export async function takeSnapshot(
  mountPoint: string,
  folder: string,
  { freeze, signals }: { freeze: boolean; signals: HeldSignals },
): Promise<void> {
  const names = readState(folder).devices.map(({ name }) => name);
  const fileSystems = freeze ? fileSystemsOn(mountPoint, names) : [];
  await whileFrozen(fileSystems, signals, () => writeControl(folder, 'take', '1'));
}

export function list(mountArgument: string, { json }: { json: boolean }): void {
  const mountPoint = requireMount(mountArgument);
  const snapshots = snapshotNames(mountPoint).flatMap((name) => {
    const folder = snapshotFolder(mountPoint, name);
    try {
      const { state, devices } = readState(folder);
      return [{ name, state, id: readControl(folder, 'id'), devices: devices.map((device) => device.name) }];
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []; // destroyed meanwhile
      throw error;
    }
  });
  if (json) {
    printJson({ snapshots });
    return;
  }
  const width = Math.max(0, ...snapshots.map(({ name }) => name.length));
  for (const { name, state, id, devices } of snapshots) {
    print(`${[name.padEnd(width), state.padEnd(9), id, devices.join(' ')].join('  ').trimEnd()}\n`);
  }
}

export function show(mountArgument: string, name: string, { json }: { json: boolean }): void {
  const folder = requireSnapshot(requireMount(mountArgument), name);
  const { devices, ...state } = readState(folder);
  const id = readControl(folder, 'id');
  const storage = readStorage(folder);
  const withImages = devices.map(({ name: device, errorCode }) => ({
    name: device,
    errorCode,
    ...(state.state !== 'created' && { image: imagePath(folder, device) }),
  }));
  if (json) {
    printJson({ name, id, ...state, storage, devices: withImages });
    return;
  }
  say(
    [
      `id ${id}`,
      `state ${state.state}`,
      `capacity ${state.capacitySectors}`,
      `filled ${state.filledSectors}`,
      `requested ${state.requestedSectors}`,
      ...storage.map(({ path, sector, count }) => `storage ${quoteWord(path)} ${sector} ${count}`),
      ...withImages.map(({ name: device, errorCode, image }) => {
        if (errorCode !== 0) return `device ${device} error ${errorCode}`;
        return image === undefined ? `device ${device}` : `device ${device} image ${quoteWord(image)}`;
      }),
    ].join('\n'),
  );
}

/**
 * Waits in read(2) itself, on this thread: a signal ends the process at once, which it could not while another thread waited.
 */
export function watch(mountArgument: string, name: string, { json }: { json: boolean }): void {
  const fd = openSync(join(requireSnapshot(requireMount(mountArgument), name), 'events'), 'r');
  const buffer = Buffer.alloc(EVENTS_BYTES);
  let rest = '';
  for (let length: number; (length = readEvents(fd, buffer)) > 0; ) {
    const lines = (rest + buffer.toString('latin1', 0, length)).split('\n');
    rest = lines.pop()!;
    for (const line of lines) {
      const text = Buffer.from(line, 'latin1').toString('utf8');
      if (!printLine(json ? eventJson(text) : text)) return;
    }
  }
}

function eventJson(line: string): string {
  const { name, fields } = parseEvent(line);
  return jsonLine({ event: name, ...fields });
}

/** Without process.stdout, which would wait for a turn of the event loop. False when nobody reads any more. */
function printLine(text: string): boolean {
  let bytes = Buffer.from(`${text}\n`);
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(writeSync(1, bytes));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EPIPE') return false;
      if (code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, PIPE_REST_MS);
    }
  }
  return true;
}

export async function destroy(mountArgument: string, name: string): Promise<void> {
  await destroySnapshot(requireSnapshot(requireMount(mountArgument), name));
}

export async function destroySnapshot(folder: string): Promise<void> {
  try {
    await rmdir(folder);
  } catch (error) {
    throw explain(error, `snapshot destroy ${folder}`, { ENOENT: 'somebody else has just done it' });
  }
}

function snapshotNames(mountPoint: string): string[] {
  try {
    return readdirSync(join(mountPoint, SNAPSHOTS)).filter((name) => name !== 'params');
  } catch (error) {
    throw explain(error, mountPoint, whyNoAnswer(mountPoint));
  }
}
