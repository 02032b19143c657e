/**
 * The file that all subjects serve. Workloads touch its region, the first 7/16; the rest is free space for bow's
 * backups: more than the region, as backups of it all need room for the log as well.
 */
import { randomFillSync } from 'node:crypto';
import { open, rm, statfs, writeFile } from 'node:fs/promises';
import { messageOf } from '../../src/errors.js';
import type { Lab } from './lab.js';

export const MIB = 1 << 20;
const BLOCK_BYTES = 4096;

/** File systems in memory, by statfs(2) type: what is written there has no colder place to go to. */
const MEMORY_FILE_SYSTEMS: ReadonlyMap<number, string> = new Map([
  [0x01021994, 'tmpfs'],
  [0x858458f6, 'ramfs'],
]);

/** The file system in memory that `folder` is on, if it is. */
export async function memoryFileSystem(folder: string): Promise<string | undefined> {
  return MEMORY_FILE_SYSTEMS.get((await statfs(folder)).type);
}

export class Image {
  private constructor(
    private readonly lab: Lab,
    readonly path: string,
    readonly sizeBytes: number,
  ) {}

  /** Written out in full, with nothing in it that compresses. */
  static async create(lab: Lab, sizeBytes: number): Promise<Image> {
    const image = new Image(lab, lab.newPath('image'), sizeBytes);
    const file = await open(image.path, 'wx', 0o600);
    try {
      const chunk = randomFillSync(Buffer.alloc(MIB));
      for (let at = 0; at < sizeBytes && !lab.isInterrupted; at += MIB) {
        chunk.writeDoubleLE(at);
        await file.write(chunk, 0, MIB, at);
      }
      await file.sync();
    } finally {
      await file.close();
    }
    return image;
  }

  /** Of an image of so many bytes; whole MiB, so that eight jobs can share it. */
  static regionBytes(sizeBytes: number): number {
    return Math.floor((sizeBytes * 7) / 16 / MIB) * MIB;
  }

  get regionBytes(): number {
    return Image.regionBytes(this.sizeBytes);
  }

  /** Takes a bow log away, which would be refused; what else is in the image does not matter. Then as `settle`. */
  async reset(): Promise<void> {
    const file = await open(this.path, 'r+');
    try {
      await file.write(Buffer.alloc(BLOCK_BYTES), 0, BLOCK_BYTES, 0);
      await file.sync();
    } finally {
      await file.close();
    }
  }

  /** Nothing of the image is dirty afterwards, so that write-back does not disturb what comes. */
  async settle(): Promise<void> {
    const file = await open(this.path, 'r+');
    await file.sync().finally(() => file.close());
  }

  /** Brings the first `bytes` into the page cache. */
  async warm(bytes: number): Promise<void> {
    const file = await open(this.path, 'r');
    try {
      const chunk = Buffer.allocUnsafe(MIB);
      for (let at = 0; at < bytes && !this.lab.isInterrupted; at += MIB) await file.read(chunk, 0, MIB, at);
    } finally {
      await file.close();
    }
  }

  /** Takes it out of the page cache; throws when it is not gone (where fincore(1) is there to tell). */
  async evict(): Promise<void> {
    await this.settle();
    await this.lab.run('dd', [`if=${this.path}`, 'iflag=nocache', 'count=0', 'status=none']);
    const resident = await this.residentBytes();
    if (resident !== undefined && resident > this.regionBytes / 100) {
      throw new Error(`${resident} bytes of the image stay in the page cache`);
    }
  }

  /** Bytes in the page cache; undefined where nothing can tell. */
  async residentBytes(): Promise<number | undefined> {
    try {
      return Number(await this.lab.run('fincore', ['--bytes', '--noheadings', '--output=RES', this.path]));
    } catch (error) {
      if (/ENOENT/.test(messageOf(error))) return undefined;
      throw error;
    }
  }
}

/** Writes over the first `bytes` of what is at `path`, in order: a piece every `stepBytes`, all of it by default. */
export async function overwrite(
  path: string,
  bytes: number,
  { pieceBytes = MIB, stepBytes = pieceBytes }: { pieceBytes?: number; stepBytes?: number } = {},
): Promise<void> {
  const file = await open(path, 'r+');
  try {
    const piece = Buffer.alloc(pieceBytes, 0x5a);
    for (let at = 0; at < bytes; at += stepBytes) {
      await file.write(piece, 0, Math.min(pieceBytes, bytes - at), at);
    }
  } finally {
    await file.close();
  }
}

/**
 * Makes so much of the free memory used once: a virtual machine may have to ask its host for pages that it has not used for a
 * while, and the first file to grow would pay for all.
 */
export async function touchMemory(lab: Lab, bytes: number): Promise<void> {
  const path = lab.newPath('memory');
  await writeFile(path, '');
  try {
    await overwrite(path, bytes);
  } finally {
    await rm(path);
  }
}
