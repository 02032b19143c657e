/** A small real disk for each target type, as files of a folder and the table that makes the target: what fuzz tests stand on. */
import { closeSync, existsSync, mkdtempSync, openSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FileDevice, fileSize } from '../../src/device/file.js';
import { Prng } from '../../src/device/prng.js';
import { createLayer } from '../../src/targets/cow/create.js';
import { formatVolume } from '../../src/targets/csum/format.js';
import { targetTypes } from '../../src/targets/index.js';

const KIB = 1024;
/** Bytes of a disk. */
export const DISK_BYTES = 64 * KIB;

/** A folder where a flush costs nothing, if there is one: thousands of targets are made and taken away. */
export function scratchFolder(): string {
  return mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'dmfuse-fuzz-'));
}

export interface SmallDisk {
  /** Also the prefix of its files. */
  readonly name: string;
  readonly table: string;
  /** Its files, all that it may write to and read. */
  readonly files: readonly string[];
}

/** A disk of each type there is, with something on it. */
export async function smallDisks(folder: string): Promise<SmallDisk[]> {
  const file = (name: string, bytes: number, isEmpty = false): string => {
    const path = join(folder, name);
    writeFileSync(path, isEmpty ? '' : new Prng(bytes + name.length).bytes(bytes));
    truncateSync(path, bytes);
    return path;
  };
  const linear = file('linear', DISK_BYTES);
  const bow = file('bow', DISK_BYTES);
  const csum = file('csum', 2 * DISK_BYTES);
  await format(csum);
  const base = file('base', DISK_BYTES);
  const layer = join(folder, 'layer');
  await createLayer(layer, DISK_BYTES / 512);
  const source = file('source', DISK_BYTES);
  const copy = file('copy', DISK_BYTES, true);
  const metadata = file('metadata', 128 * KIB, true);
  const disks = [
    { name: 'linear', table: `linear ${linear} 0 1 no_passthrough`, files: [linear] },
    { name: 'bow', table: `bow ${bow} 1 block_size:512`, files: [bow] },
    { name: 'csum', table: `csum ${csum} 0`, files: [csum] },
    {
      name: 'cow',
      table: `cow ${base} 0 ${layer}.bitmap ${layer} 0`,
      files: [base, `${layer}.bitmap`, layer],
    },
    {
      name: 'clone',
      table: `clone ${metadata} ${copy} ${source} 8 1 no_hydration`,
      files: [metadata, copy, source],
    },
  ];
  const missing = targetTypes()
    .map((type) => type.name)
    .filter((known) => !disks.some(({ name }) => name === known));
  if (missing.length > 0) throw new Error(`no small disk for ${missing}`);
  return disks;
}

async function format(path: string): Promise<void> {
  const fd = openSync(path, 'r+');
  try {
    const data = new FileDevice({ fd, path, size: fileSize(fd) });
    await formatVolume(
      { data },
      { dataPath: path, dataStart: 0, imdStart: 0, sectors: DISK_BYTES / 512, force: false },
    );
  } finally {
    closeSync(fd);
  }
}
