/** The storage of a snapshot that `snapshot run` makes: consecutive ranges of one file, appended as they are asked for. */
import { readFileSync, type Stats, statSync, truncateSync, unlinkSync } from 'node:fs';
import { resolve } from 'node:path';
import { deviceNumber } from '../../src/device/open.js';
import { DmError } from '../../src/errors.js';
import { SECTOR_BYTES } from '../../src/units.js';
import { makeFile } from './snapshot.js';
import { appendStorage, readState } from './snapshot-files.js';

/** What is wanted to be free is a whole number of these. */
const PAGE_SECTORS = 8;

export class GrowingStorage {
  /** Sectors that have been appended. */
  private used = 0;

  private constructor(
    readonly path: string,
    /** Sectors at a time. */
    private readonly step: number,
    /** Sectors that there can be at most. */
    private readonly most: number,
    /** Of a regular file, which is left as it was found: not there, or empty. */
    private readonly found: { readonly isNew: boolean; readonly inode: string } | undefined,
  ) {}

  /** `step` in bytes. Makes the file where there is none. Throws EEXIST for one that holds something. */
  static open(path: string, step: number): GrowingStorage {
    const file = resolve(path);
    const sectors = step / SECTOR_BYTES;
    const isNew = makeFile(file);
    const stat = statSync(file);
    if (stat.isBlockDevice()) return new GrowingStorage(file, sectors, sectorsOf(stat), undefined);
    if (!stat.isFile()) {
      throw new DmError('EINVAL', `${path}: neither a regular file nor a block device`);
    }
    if (stat.size > 0) {
      throw new DmError(
        'EEXIST',
        `${path}: is not empty, and what is in it would be overwritten: name a new file, or empty it (truncate -s 0)`,
      );
    }
    return new GrowingStorage(file, sectors, Number.POSITIVE_INFINITY, { isNew, inode: inodeOf(stat) });
  }

  /**
   * Appends step by step until a snapshot that asks for `portion` sectors at a time will ask again: it does that once less than
   * half of them are free. Throws where it cannot.
   */
  async appendTo(folder: string, portion: number): Promise<void> {
    const half = Math.floor(portion / 2);
    const { capacitySectors, filledSectors } = readState(folder);
    let free = capacitySectors - filledSectors;
    while (free <= half - (half % PAGE_SECTORS)) {
      const count = Math.min(this.step, this.most - this.used);
      if (count <= 0) throw new DmError('ENOSPC', `${this.path}: all of it is in use`);
      await appendStorage(folder, this.path, this.used, count);
      this.used += count;
      free += count;
    }
  }

  /** The snapshot has gone: the file is as it was found. */
  close(): void {
    if (!this.found) return;
    try {
      if (inodeOf(statSync(this.path)) !== this.found.inode) return; // somebody has put another one there
      if (this.found.isNew) unlinkSync(this.path);
      else truncateSync(this.path, 0);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
}

function sectorsOf({ rdev }: Stats): number {
  return Number(readFileSync(`/sys/dev/block/${deviceNumber(rdev)}/size`, 'utf8'));
}

function inodeOf({ dev, ino }: Stats): string {
  return `${dev}:${ino}`;
}
