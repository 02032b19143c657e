/** What large devices cost the daemon in memory: a much divided one of bow, and one in a snapshot. */
import { open, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { quoteWord } from '../../src/table.js';
import type { Lab } from './lab.js';
import { unmount } from './loop-device.js';
import type { MemoryResult, SnapshotMemory } from './results.js';
import { DmfuseMount, scratchDisk } from './subjects/dmfuse.js';

const DEVICE_BYTES = 2 ** 40;
const TRIMS = 50_000;
const BLOCK_SECTORS = 8;
/** Of one write to `discard`. */
const LINES_AT_ONCE = 1000;
/** The second is as long as a file on ext4 may be. */
const SNAPSHOT_DEVICE_BYTES = [16 * 2 ** 40, 16 * 2 ** 40 - 4096];
const SMALL_BYTES = 1 << 20;
const PROBE_BYTES = 4096;

/** A sparse file of 1 TiB; every trim of a single block, far from the others, makes two ranges. */
export async function measureMemory(lab: Lab): Promise<MemoryResult> {
  return await lab.scope(async () => {
    const path = lab.newPath('sparse');
    lab.defer(async () => void (await lab.run('rm', ['-f', path])));
    await writeFile(path, '');
    await truncate(path, DEVICE_BYTES);
    const mount = await DmfuseMount.start(lab);
    const { daemonPid: pid } = mount;
    const residentBytesBefore = await residentBytes(pid);
    await mount.create('device', `bow ${quoteWord(path)}`);
    await trimSingleBlocks(mount.path('device', 'discard'));
    const ranges = (await readFile(mount.path('device', 'ranges'), 'utf8')).trim().split('\n').length - 1;
    return {
      deviceBytes: DEVICE_BYTES,
      ranges,
      residentBytesBefore,
      residentBytes: await residentBytes(pid),
    };
  });
}

/** The tracker and an empty snapshot of a sparse device of 16 TiB, or nearly: in a daemon that has had a small one before. */
export async function measureSnapshotMemory(lab: Lab): Promise<SnapshotMemory> {
  return await lab.scope(async () => {
    const { path, bytes } = await largeSparseDisk(lab);
    const mount = await DmfuseMount.start(lab);
    await mount.create('small', lanesTable(await scratchDisk(lab, 'small', SMALL_BYTES)));
    await mount.create('large', lanesTable(path));
    await trackTakeAndRead(lab, mount, 'small');
    await mount.removeSnapshot();
    const before = await residentBytes(mount.daemonPid);
    await trackTakeAndRead(lab, mount, 'large');
    return { deviceBytes: bytes, residentBytes: (await residentBytes(mount.daemonPid)) - before };
  });
}

function lanesTable(path: string): string {
  return `linear ${quoteWord(path)} 0 1 no_passthrough`;
}

async function trackTakeAndRead(lab: Lab, mount: DmfuseMount, name: string): Promise<void> {
  await mount.control(name, 'filter', 'blksnap');
  await mount.takeSnapshot(lab, name, SMALL_BYTES);
  const image = await open(mount.snapshotImage(name), 'r');
  await image.read(Buffer.alloc(PROBE_BYTES), 0, PROBE_BYTES, 0).finally(() => image.close());
}

/** In the lab's folder, or in memory where its file system has no files of that length. */
async function largeSparseDisk(lab: Lab): Promise<{ path: string; bytes: number }> {
  for (const bytes of SNAPSHOT_DEVICE_BYTES) {
    try {
      return { path: await scratchDisk(lab, 'sparse', bytes), bytes };
    } catch (error) {
      if (!['EFBIG', 'EINVAL'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    }
  }
  const folder = lab.newFolder('tmpfs');
  lab.defer(() => unmount(lab, folder));
  await lab.run('mount', ['-t', 'tmpfs', 'tmpfs', folder]);
  const [bytes] = SNAPSHOT_DEVICE_BYTES as [number];
  const path = join(folder, 'sparse');
  await writeFile(path, '');
  await truncate(path, bytes);
  return { path, bytes };
}

async function trimSingleBlocks(discardPath: string): Promise<void> {
  const step = Math.floor(DEVICE_BYTES / 512 / TRIMS / BLOCK_SECTORS) * BLOCK_SECTORS;
  const lines = Array.from({ length: TRIMS }, (_, i) => `${i * step + BLOCK_SECTORS} ${BLOCK_SECTORS}\n`);
  const discard = await open(discardPath, 'r+');
  try {
    for (let i = 0; i < TRIMS; i += LINES_AT_ONCE) {
      await discard.write(lines.slice(i, i + LINES_AT_ONCE).join(''));
    }
  } finally {
    await discard.close();
  }
}

/** VmRSS of a process. */
export async function residentBytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1]) * 1024;
}
