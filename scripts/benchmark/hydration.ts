/** Clones: how fast regions come over in the background, what that costs who reads, and what very many regions cost. */
import { setTimeout as sleep } from 'node:timers/promises';
import { SECTOR_BYTES } from '../../src/units.js';
import { runFio, type Section } from './fio.js';
import { type Image, touchMemory } from './image.js';
import type { Lab } from './lab.js';
import type { Findings } from './measure.js';
import { residentBytes } from './memory.js';
import type { CloneOpening, HydrationSample } from './results.js';
import { cloneTable, DmfuseMount, scratchDisk, scratchFile } from './subjects/dmfuse.js';
import { random } from './workloads.js';

export interface HydrationPlan {
  readonly rounds: number;
  /** Of each measurement of reads. */
  readonly seconds: number;
  readonly progress: (line: string) => void;
}

const READS = random('randread', 1);
const POLL_MS = 10;
/** Sectors. */
const REGION_SECTORS = 128;
const LARGE_BYTES = 64 * 2 ** 30;
const LARGE_METADATA_BYTES = 64 << 20;
const SMALL_REGION_SECTORS = 8;

export async function measureHydration(
  lab: Lab,
  image: Image,
  { rounds, seconds, progress }: HydrationPlan,
  findings: Findings,
): Promise<HydrationSample[]> {
  const samples: HydrationSample[] = [];
  for (let round = 1; round <= rounds; round++) {
    progress(`hydration: round ${round} of ${rounds}`);
    const sample = await findings.attempt('hydration', round, () =>
      lab.scope(() => measureOne(lab, image, round, seconds, findings)),
    );
    if (sample) samples.push(sample);
  }
  return samples;
}

/** A clone of the image, copied by nobody else meanwhile, and one that is read by a job. */
async function measureOne(
  lab: Lab,
  image: Image,
  round: number,
  seconds: number,
  findings: Findings,
): Promise<HydrationSample> {
  const { sizeBytes } = image;
  await image.settle();
  await image.warm(sizeBytes);
  const mount = await DmfuseMount.start(lab);
  const options = '1 no_hydration';
  await mount.create('alone', await cloneTable(lab, image, REGION_SECTORS, options));
  // One after the other at once: each finds the memory that the one before it has given back.
  await touchMemory(lab, sizeBytes);
  const copyBytesPerSecond = await copyRate(lab, image);
  const bytesPerSecond = await rateOf(sizeBytes, async () => {
    await mount.control('alone', 'hydration', '1');
    while (!(await mount.isHydrated('alone'))) await sleep(POLL_MS);
  });
  await mount.remove('alone');

  // Small regions take longest.
  await mount.create('read', await cloneTable(lab, image, SMALL_REGION_SECTORS, options));
  const section = (name: string): Section => ({
    name,
    path: mount.path('read', 'device'),
    direct: true,
    workload: READS,
    regionBytes: image.regionBytes,
    seconds,
    rampSeconds: 0,
    once: false,
  });
  const readsOf = async (name: string) => {
    const result = (await runFio(lab, [section(name)])).get(name)!;
    if (!result.ok) throw new Error(result.reason);
    return result.iops;
  };
  await readsOf('warm-up');
  const readsAlone = await readsOf('alone');
  await mount.control('read', 'hydration', '1');
  const readsMeanwhile = await readsOf('meanwhile');
  if (await mount.isHydrated('read')) {
    findings.notes.add('hydration: over before the reads beside it were: those figures are too good');
  }
  return { round, copyBytesPerSecond, bytesPerSecond, readsAlone, readsMeanwhile };
}

/** A sparse clone of 64 GiB in 16 million regions, all hydrated: opened by a daemon that has another clone already. */
export async function measureCloneOpening(lab: Lab): Promise<CloneOpening> {
  return await lab.scope(async () => {
    const source = { path: await scratchDisk(lab, 'source', LARGE_BYTES), sizeBytes: LARGE_BYTES };
    const options = '1 no_hydration';
    const large = await cloneTable(lab, source, SMALL_REGION_SECTORS, options, LARGE_METADATA_BYTES);
    const small = await cloneTable(lab, { ...source, sizeBytes: 1 << 20 }, SMALL_REGION_SECTORS, options);
    await lab.scope(async () => {
      const mount = await DmfuseMount.start(lab);
      await mount.create('device', large);
      await mount.control('device', 'discard', `0 ${LARGE_BYTES / SECTOR_BYTES}`);
      await mount.flush('device');
    });
    const mount = await DmfuseMount.start(lab);
    await mount.create('small', small);
    const before = await residentBytes(mount.daemonPid);
    const began = performance.now();
    await mount.create('device', large);
    const seconds = (performance.now() - began) / 1000;
    return {
      regions: LARGE_BYTES / SECTOR_BYTES / SMALL_REGION_SECTORS,
      seconds,
      residentBytes: (await residentBytes(mount.daemonPid)) - before,
    };
  });
}

/** Of cp; the copy does not stay. */
async function copyRate(lab: Lab, image: Image): Promise<number> {
  return await lab.scope(async () => {
    const path = scratchFile(lab, 'copy');
    return await rateOf(image.sizeBytes, async () => {
      await lab.run('cp', ['--reflink=never', image.path, path]);
    });
  });
}

async function rateOf(bytes: number, work: () => Promise<void>): Promise<number> {
  const began = performance.now();
  await work();
  return bytes / ((performance.now() - began) / 1000);
}
