/** What a large and much divided bow device costs the daemon in memory. */
import { open, readFile, truncate, writeFile } from 'node:fs/promises';
import { quoteWord } from '../../src/table.js';
import type { Lab } from './lab.js';
import type { MemoryResult } from './results.js';
import { DmfuseMount } from './subjects/dmfuse.js';

const DEVICE_BYTES = 2 ** 40;
const TRIMS = 50_000;
const BLOCK_SECTORS = 8;
/** Of one write to `discard`. */
const LINES_AT_ONCE = 1000;

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
