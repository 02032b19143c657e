/** `dmfuse create`, `remove`, `ls`, `status`: what the shell does with mkdir, echo, rmdir and cat, and in plain words. */
import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DmError, type ErrnoName } from '../../src/errors.js';
import { SNAPSHOTS } from '../tree/folder.js';
import { daemonIsDead, explain, targetFolder } from './control.js';
import { requireMount } from './find-mount.js';
import { printJson } from './output.js';

const NO_NAME = `not a name for a target: no blanks, no leading dot or @, not \`${SNAPSHOTS}\``;

export function create(mountArgument: string, name: string, table: string): void {
  const folder = targetFolder(mountArgument, name);
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
    writeFileSync(join(folder, 'table'), `${table}\n`, { flag: 'r+' });
  } catch (error) {
    // The daemon knows why; errno alone does not.
    const reason = readFileSync(join(folder, 'status'), 'utf8')
      .trim()
      .replace(/^failed: /, '');
    rmdirSync(folder);
    throw new DmError((error as { code?: ErrnoName }).code ?? 'EIO', `create ${name}: ${reason}`);
  }
}

export function remove(mountArgument: string, name: string): void {
  const folder = targetFolder(mountArgument, name);
  try {
    rmdirSync(folder);
  } catch (error) {
    throw explain(error, `remove ${name}`, {
      ENOENT: 'there is no target of that name',
      EBUSY: 'in use: its device is open (losetup -a, fuser), or another target stands on it',
      EIO: `what was written to it could not be made durable; the last line of ${folder}/events says why`,
    });
  }
}

export function list(mountArgument: string, { json }: { json: boolean }): void {
  const targets = readTargets(requireMount(mountArgument));
  if (json) {
    printJson({ targets: targets.map(({ name, type, lengthSectors }) => ({ name, type, lengthSectors })) });
    return;
  }
  const width = Math.max(0, ...targets.map(({ name }) => name.length));
  for (const { name, type, lengthSectors } of targets) {
    process.stdout.write(`${name.padEnd(width)}  ${type ?? '-'}  ${lengthSectors ?? 0} sectors\n`);
  }
}

export function status(mountArgument: string, name: string | undefined, { json }: { json: boolean }): void {
  const mountPoint = requireMount(mountArgument);
  const targets = readTargets(mountPoint).filter((target) => name === undefined || target.name === name);
  if (name !== undefined && targets.length === 0) {
    throw new DmError('ENOENT', `status ${name}: there is no target of that name`);
  }
  if (json) printJson({ targets: targets.map(({ line: _line, ...target }) => target) });
  else
    for (const target of targets) process.stdout.write(`${name ? '' : `${target.name}: `}${target.line}\n`);
}

function readTargets(mountPoint: string) {
  return readNames(mountPoint).map((name) => {
    const line = readFileSync(join(mountPoint, name, 'status'), 'utf8').trim();
    const [, length, type, rest = ''] = /^0 (\d+) (\S+) ?(.*)$/s.exec(line) ?? [];
    if (type === undefined) return { name, line, error: line };
    return {
      name,
      line,
      type,
      lengthSectors: Number(length),
      status: rest,
      stats: readStats(join(mountPoint, name, 'stats')),
    };
  });
}

function readNames(mountPoint: string): string[] {
  try {
    return readdirSync(mountPoint).filter((name) => name !== SNAPSHOTS);
  } catch (error) {
    throw explain(error, mountPoint, daemonIsDead(mountPoint));
  }
}

function readStats(path: string): Record<string, number> {
  const lines = readFileSync(path, 'utf8').trim().split('\n');
  return Object.fromEntries(lines.map((line) => line.split(' ')).map(([key, value]) => [key, Number(value)]));
}
