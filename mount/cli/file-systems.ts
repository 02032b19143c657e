/** The file systems that stand on targets of a mount: through loop devices, and partitions, dm and md on those. */
import { closeSync, constants, openSync, readdirSync, readFileSync, type Stats, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { deviceNumber } from '../../src/device/open.js';
import { splitWords } from '../../src/table.js';
import { SNAPSHOTS } from '../tree/folder.js';
import { type MountInfo, readMountInfo } from './mount-info.js';

export interface FileSystem {
  /** One of its mount points, by which it can be reached; undefined when others are mounted over all of them. */
  readonly mountPoint: string | undefined;
  readonly type: string;
  readonly source: string;
  /** MAJ:MIN */
  readonly device: string;
  readonly isReadOnly: boolean;
}

const BLOCK = '/sys/class/block';

/** Those on targets of these names, and on targets that stand on them. Each file system once. */
export function fileSystemsOn(mountPoint: string, names: readonly string[]): FileSystem[] {
  const devices = blockDevicesOn(
    withThoseAbove(mountPoint, names).map((name) => join(mountPoint, name, 'device')),
  );
  if (devices.size === 0) return [];
  const mounts = readMountInfo().filter(
    // btrfs has a number of its own, but names its device. What a FUSE mount names is any user's word.
    ({ device, type, source }) =>
      devices.has(device) || (!isFuse(type) && devices.has(blockDeviceNumber(source) ?? '')),
  );
  return [...new Set(mounts.map(({ device }) => device))].map((number) => {
    const places = mounts.filter(({ device }) => device === number);
    const { type, source, device, isReadOnly } = places[0]!;
    return { mountPoint: places.find(isOnTop)?.mountPoint, type, source, device, isReadOnly };
  });
}

/** Whether a file, or where it will be, is on one of the file systems. */
export function fileSystemOf(path: string, among: readonly FileSystem[]): FileSystem | undefined {
  const found = statOf(path) ?? statOf(dirname(path));
  return found && among.find(({ device }) => device === deviceNumber(found.dev));
}

function withThoseAbove(mountPoint: string, names: readonly string[]): string[] {
  const tables = readdirSync(mountPoint)
    .filter((name) => name !== SNAPSHOTS)
    .map((name) => ({ name, words: splitWords(textOf(join(mountPoint, name, 'table'))) }));
  const found = new Set(names);
  // A set hands out what is added meanwhile, too.
  for (const below of found) {
    for (const { name, words } of tables) if (words.includes(`@${below}`)) found.add(name);
  }
  return [...found];
}

/** MAJ:MIN of all block devices that stand on the files. */
function blockDevicesOn(files: readonly string[]): Set<string> {
  const inodes = new Set(files.flatMap((file) => inodeOf(file) ?? []));
  const numbers = new Set<string>();
  const blocks = new Set(
    namesIn(BLOCK).filter((name) => name.startsWith('loop') && inodes.has(loopInode(name))),
  );
  for (const block of blocks) {
    numbers.add(textOf(join(BLOCK, block, 'dev')));
    for (const holder of namesIn(join(BLOCK, block, 'holders'))) blocks.add(holder);
    for (const name of namesIn(join(BLOCK, block))) {
      if (textOf(join(BLOCK, block, name, 'partition')) !== '') blocks.add(name);
    }
  }
  return numbers;
}

function loopInode(loop: string): string {
  const file = textOf(join(BLOCK, loop, 'loop/backing_file'));
  // Others may be on a file system that does not answer.
  return basename(file) === 'device' ? (inodeOf(file) ?? '') : '';
}

function inodeOf(path: string): string | undefined {
  const found = statOf(path);
  return found && `${found.dev}:${found.ino}`;
}

function isFuse(type: string): boolean {
  return /^fuse(\.|$)/.test(type);
}

function blockDeviceNumber(source: string): string | undefined {
  const found = source.startsWith('/dev/') ? statOf(source) : undefined;
  return found?.isBlockDevice() ? deviceNumber(found.rdev) : undefined;
}

/** Whether its mount point leads to this mount, and not to one over it. */
function isOnTop({ id, mountPoint }: MountInfo): boolean {
  try {
    const fd = openSync(mountPoint, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NONBLOCK);
    try {
      return textOf(`/proc/self/fdinfo/${fd}`)
        .split('\n')
        .some((line) => line === `mnt_id:\t${id}`);
    } finally {
      closeSync(fd);
    }
  } catch {
    return false;
  }
}

function statOf(path: string): Stats | undefined {
  try {
    return statSync(path);
  } catch {
    return undefined;
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return '';
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
