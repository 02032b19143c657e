/** `dmfuse create`, `remove`, `rename`, `suspend`…: what the shell does with mkdir, echo, mv and rmdir, and in plain words. */
import { mkdirSync, readFileSync, renameSync, rmdirSync, statSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DmError, type ErrnoName, errnoOf } from '../../src/errors.js';
import { NAME_RULE, SNAPSHOTS } from '../tree/folder.js';
import { explain, readControl, requireTarget, targetFolder, WRITE_CONTROL, writeControl } from './control.js';
import { requireMount } from './find-mount.js';
import { note, printJson } from './output.js';

const NO_NAME = `not a name for a target: ${NAME_RULE}`;
const STDIN = 0;

interface ActOptions {
  readonly json: boolean;
}

/** `table`: a line, a file that has one, `-` or left out for standard input. */
export async function create(
  mountArgument: string,
  name: string,
  table: string | undefined,
  options: ActOptions,
): Promise<void> {
  const folder = targetFolder(mountArgument, name);
  const line = tableFrom(table);
  try {
    mkdirSync(folder);
  } catch (error) {
    throw explain(error, `create ${name}`, {
      EEXIST: name === SNAPSHOTS ? NO_NAME : 'there is a target of that name',
      EINVAL: NO_NAME,
    });
  }
  try {
    // With a newline: an empty text would be no write at all.
    await writeFile(join(folder, 'table'), `${line}\n`, { flag: WRITE_CONTROL });
  } catch (error) {
    // The daemon knows why; errno alone does not.
    const reason = readFileSync(join(folder, 'status'), 'utf8')
      .trim()
      .replace(/^failed: /, '');
    rmdirSync(folder);
    throw new DmError((error as { code?: ErrnoName }).code ?? 'EIO', `create ${name}: ${reason}`);
  }
  done(options, { created: name });
}

/** With `deferred` an open target goes with its last close; with `force` it goes now, and its users get EIO. */
export async function remove(
  mountArgument: string,
  name: string,
  options: ActOptions & { readonly force: boolean; readonly deferred: boolean },
): Promise<void> {
  const folder = targetFolder(mountArgument, name);
  const removal = options.force ? 'force' : options.deferred ? 'deferred' : undefined;
  if (removal) await writeControl(requireTarget(requireMount(mountArgument), name), 'removal', removal);
  try {
    rmdirSync(folder);
  } catch (error) {
    const errno = errnoOf(error);
    if (options.deferred && errno === errnoOf({ code: 'EBUSY' })) {
      note(`${name} goes when its device is closed and nothing stands on it`);
      done(options, { deferred: name });
      return;
    }
    const isGone = options.deferred && errno === errnoOf({ code: 'ENOENT' });
    if (!isGone) {
      throw explain(error, `remove ${name}`, {
        ENOENT: 'there is no target of that name',
        EBUSY: options.force
          ? 'another target stands on it, a snapshot has it, or the kernel passes its I/O through (close it first)'
          : 'in use: its device is open (losetup -a, fuser), or another target stands on it',
        EIO: `what was written to it could not be made durable; the last line of ${folder}/events says why`,
      });
    }
  }
  done(options, { removed: name });
}

export function rename(mountArgument: string, name: string, newName: string, options: ActOptions): void {
  const mountPoint = requireMount(mountArgument);
  const [from, to] = [requireTarget(mountPoint, name), targetFolder(mountPoint, newName)];
  try {
    renameSync(from, to);
  } catch (error) {
    throw explain(error, `rename ${name} to ${newName}`, {
      EEXIST: 'there is a target of that name',
      EINVAL: NO_NAME,
      EBUSY: 'in a snapshot, or being changed',
    });
  }
  done(options, { renamed: name, to: newName });
}

export async function suspend(mountArgument: string, name: string, options: ActOptions): Promise<void> {
  await writeControl(requireTarget(requireMount(mountArgument), name), 'suspended', '1');
  done(options, { suspended: name });
}

export async function resume(mountArgument: string, name: string, options: ActOptions): Promise<void> {
  const folder = requireTarget(requireMount(mountArgument), name);
  await writeControl(folder, 'suspended', '0');
  // The kernel learns of a new size when somebody asks.
  statSync(join(folder, 'device'));
  done(options, { resumed: name, lengthSectors: Number(readControl(folder, 'size')) });
}

export async function message(
  mountArgument: string,
  name: string,
  sector: number,
  words: readonly string[],
  options: ActOptions,
): Promise<void> {
  const folder = requireTarget(requireMount(mountArgument), name);
  if (sector !== 0)
    throw new DmError('EINVAL', `message ${name}: sector ${sector}: a target is one piece, so say 0`);
  await writeControl(folder, 'message', words.join(' '));
  done(options, { sent: name });
}

/** Whoever wants JSON wants it of everything. */
function done({ json }: ActOptions, what: object): void {
  if (json) printJson(what);
}

/** The one table line of a text; `#` begins a comment line. */
function tableFrom(argument: string | undefined): string {
  // One word is no table, and nothing is no file.
  if (argument !== undefined && /^\s*$|\S\s+\S/.test(argument)) return argument;
  const source = argument === undefined || argument === '-' ? STDIN : argument;
  let text: string;
  try {
    text = readFileSync(source, 'utf8');
  } catch (error) {
    const what = source === STDIN ? 'standard input' : `${argument}: no table line, and no file with one`;
    throw explain(error, what, { ENOENT: 'no such file' });
  }
  const lines = text.split('\n').filter((line) => line.trim() !== '' && !line.trimStart().startsWith('#'));
  if (lines.length === 1) return lines[0]!;
  throw new DmError(
    'EINVAL',
    `${source === STDIN ? 'standard input' : argument}: ${lines.length} table lines, expected one: a target is one piece`,
  );
}
