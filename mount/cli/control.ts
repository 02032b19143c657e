/** The control files of a mount, from outside: what the daemon refuses is told in the daemon's own words. */
import { closeSync, constants, openSync, readFileSync, readSync, statSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DmError, type ErrnoName } from '../../src/errors.js';
import { NAME_RULE, SNAPSHOTS } from '../tree/folder.js';
import { parseEvent } from './event-line.js';
import { requireMount } from './find-mount.js';
import { readMountInfo } from './mount-info.js';

const EVENTS_BYTES = 65_536;

/** Where a target is, or would be. */
export function targetFolder(mountArgument: string, name: string): string {
  if (name === '' || name.includes('/'))
    throw new DmError('EINVAL', `\`${name}\` cannot name a target: ${NAME_RULE}`);
  return join(requireMount(mountArgument), name);
}

/** Where a target is. Throws ENOENT. */
export function requireTarget(mountPoint: string, name: string): string {
  const folder = targetFolder(mountPoint, name);
  if (name === SNAPSHOTS || name.startsWith('.') || !isThere(folder, mountPoint)) {
    throw new DmError('ENOENT', `${name}: there is no target of that name in ${mountPoint}`);
  }
  return folder;
}

/** Whether there is something at `path` in a mount. Throws ENOTCONN where nobody serves the mount. */
export function isThere(path: string, mountPoint: string): boolean {
  try {
    statSync(path);
    return true;
  } catch (error) {
    if (['ENOENT', 'ENAMETOOLONG'].includes((error as NodeJS.ErrnoException).code ?? '')) return false;
    throw explain(error, path, whyNoAnswer(mountPoint));
  }
}

/** For `explain`: why nobody answers, or nobody answers us. */
export function whyNoAnswer(mountPoint: string): Partial<Record<ErrnoName, string>> {
  const remedy = `\`dmfuse umount ${mountPoint}\` clears it away, \`dmfuse mount --replace ${mountPoint} …\` mounts anew`;
  return {
    ENOTCONN: `its daemon is dead; ${remedy}`,
    EACCES: "permission denied: it is another user's, who lets others in with --allow-other and chmod",
  };
}

/** An error of a system call, with a sentence where there is one for its errno. */
export function explain(error: unknown, what: string, reasons: Partial<Record<ErrnoName, string>>): DmError {
  const { code = 'EIO', message } = error as { code?: ErrnoName; message?: string };
  return new DmError(code, `${what}: ${reasons[code] ?? message}`);
}

/** For writing a control file. A link is none of ours: somebody else's mount, called a dmfuse, could have one to any file. */
export const WRITE_CONTROL = constants.O_WRONLY | constants.O_NOFOLLOW;

/** One write(2) to a control file of `folder`. Throws what the daemon says of it. Runs on another thread until it is answered. */
export async function writeControl(folder: string, file: string, text: string): Promise<void> {
  try {
    await writeFile(join(folder, file), `${text}\n`, { flag: WRITE_CONTROL });
  } catch (error) {
    const { code = 'EIO', message } = explain(error, join(folder, file), nobodyServes(folder));
    throw new DmError(code, refusalOf(folder, file) ?? message);
  }
}

/** A control file, without the last newline. */
export function readControl(folder: string, file: string): string {
  try {
    return readFileSync(join(folder, file), 'utf8').replace(/\n$/, '');
  } catch (error) {
    throw explain(error, join(folder, file), nobodyServes(folder));
  }
}

/** The same on another thread: a daemon that does not answer holds up nobody but who waits for this. */
export async function readControlLater(folder: string, file: string): Promise<string> {
  try {
    return (await readFile(join(folder, file), 'utf8')).replace(/\n$/, '');
  } catch (error) {
    throw explain(error, join(folder, file), nobodyServes(folder));
  }
}

/** For `explain`: what the kernel still knows of a mount is found there a while after its daemon has died. */
function nobodyServes(folder: string): Partial<Record<ErrnoName, string>> {
  const mount = readMountInfo().find(
    ({ type, mountPoint }) => type === 'fuse.dmfuse' && `${folder}/`.startsWith(`${mountPoint}/`),
  );
  return mount ? whyNoAnswer(mount.mountPoint) : {};
}

/** What the daemon said when it last refused a write to `file`. */
function refusalOf(folder: string, file: string): string | undefined {
  const refusals = pastEvents(folder)
    .map(parseEvent)
    .filter((event) => event.name === 'refused' && event.fields.file === file);
  const reason = refusals.at(-1)?.fields.reason;
  return reason === undefined ? undefined : String(reason);
}

/** The events that a folder keeps, without a wait for the next one; none where they cannot be read. */
function pastEvents(folder: string): string[] {
  let fd: number;
  try {
    fd = openSync(join(folder, 'events'), constants.O_RDONLY | constants.O_NONBLOCK);
  } catch {
    return []; // the folder is gone
  }
  let text = '';
  try {
    const buffer = Buffer.alloc(EVENTS_BYTES);
    for (let length: number; (length = readSync(fd, buffer)) > 0; )
      text += buffer.toString('utf8', 0, length);
  } catch {
    // EAGAIN: that was the last one.
  } finally {
    closeSync(fd);
  }
  return text.split('\n').filter(Boolean);
}
