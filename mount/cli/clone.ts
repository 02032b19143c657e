/** `dmfuse clone dump`, `check`: the metadata of a clone that is not attached. `dmfuse clone wait`: until one is hydrated. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DmError, naming } from '../../src/errors.js';
import { regionsOf } from '../../src/formats/dm-clone.js';
import { type BlockDamage, METADATA_BLOCK_BYTES } from '../../src/formats/persistent-data.js';
import { hydratedRuns, readImage } from '../../src/targets/clone/image.js';
import { SECTOR_BYTES } from '../../src/units.js';
import { requireMount } from './find-mount.js';
import { withImage } from './images.js';
import { EXIT_DAMAGED, EXIT_NOTHING_THERE, note, printJson, say } from './output.js';
import { type ProgressFlags, withProgress } from './progress.js';
import { Interrupted } from './signals.js';

/** Damaged blocks that are named; the others are counted. */
const DAMAGE_SHOWN = 100;
const POLL_MS = 100;
const NO_METADATA = 'no metadata: block 0 is zero, a clone would format it';

export async function dumpMetadata(path: string, { json }: { json: boolean }): Promise<void> {
  await withImage(path, 'read', (device) => {
    let damage: BlockDamage | undefined;
    const image = naming(path, () =>
      readImage(device, (found) => {
        damage ??= found;
      }),
    );
    if (damage) {
      process.exitCode = EXIT_DAMAGED;
      note(`${path}: metadata block ${damage.block}: ${damage.problem}; \`dmfuse clone check\` lists all`);
      return;
    }
    if (!image) {
      process.exitCode = EXIT_NOTHING_THERE;
      if (json) printJson({ state: 'no-metadata' });
      else say(NO_METADATA);
      return;
    }
    const { superblock } = image;
    const { regionSectors: regionSize, targetSectors: targetSize } = superblock;
    const hydrated = [...hydratedRuns(image)].map(({ start, count }) => [start, count]);
    if (json) {
      printJson({ regionSize, targetSize, nrRegions: regionsOf(superblock), hydrated });
      return;
    }
    const count = hydrated.reduce((sum, run) => sum + run[1]!, 0);
    say(
      [
        `region size ${regionSize} sectors, target size ${targetSize} sectors, ${regionsOf(superblock)} regions`,
        `metadata blocks: ${superblock.usedBlocks} of ${superblock.managedBlocks} in use, index ${superblock.indexBlock}, ` +
          `overflow root ${superblock.overflowRoot}, bitset root ${superblock.bitsetRoot}`,
        `hydrated: ${count} regions`,
        ...hydrated.map(([first, regions]) => `  ${first} ${regions}`),
      ].join('\n'),
    );
  });
}

export async function checkMetadata(path: string, { json }: { json: boolean }): Promise<void> {
  await withImage(path, 'read', (device) => {
    const first: Pick<BlockDamage, 'block' | 'problem'>[] = [];
    let total = 0;
    const image = naming(path, () =>
      readImage(device, ({ block, problem }) => {
        total++;
        if (first.length < DAMAGE_SHOWN) first.push({ block, problem });
      }),
    );
    const state = total > 0 ? 'damaged' : image ? 'sound' : 'no-metadata';
    if (state === 'damaged') process.exitCode = EXIT_DAMAGED;
    if (state === 'no-metadata') process.exitCode = EXIT_NOTHING_THERE;
    if (json) {
      const { regionSectors, targetSectors, usedBlocks, managedBlocks } = image?.superblock ?? {};
      printJson({
        state,
        regionSectors,
        targetSectors,
        usedBlocks,
        totalBlocks: managedBlocks,
        blockBytes: METADATA_BLOCK_BYTES,
        damagedTotal: total,
        damaged: first,
      });
    } else if (state === 'no-metadata') {
      say(NO_METADATA);
    } else if (state === 'sound') {
      const { usedBlocks, managedBlocks } = image!.superblock;
      say(`sound: ${usedBlocks} of ${managedBlocks} metadata blocks in use, all verified`);
    } else {
      const lines = first.map(({ block, problem }) => `block ${block}: ${problem}`);
      if (total > first.length) lines.push(`… and ${total - first.length} more`);
      say(`damaged:\n${lines.join('\n')}`);
    }
  });
}

export async function waitHydrated(mountArgument: string, name: string, flags: ProgressFlags): Promise<void> {
  const folder = join(requireMount(mountArgument), name);
  try {
    const regions = await withProgress('hydration', { ...flags, interruptible: true }, async (update) => {
      for (;;) {
        const { regions, regionsTotal, inFlight, regionSectors, obstacle } = readHydration(folder, name);
        const regionBytes = regionSectors * SECTOR_BYTES;
        await update({ bytes: regions * regionBytes, bytesTotal: regionsTotal * regionBytes });
        if (regions === regionsTotal && inFlight === 0) return { regionsTotal, regionSectors };
        if (obstacle !== undefined) throw new DmError('EINVAL', `wait ${name}: ${obstacle}`);
        await sleep(POLL_MS);
      }
    });
    if (flags.json) printJson({ name, ...regions });
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error;
    process.exitCode = error.exitCode;
  }
}

/** What the status line of a clone says. `obstacle`: why it will not be hydrated, and what to do. */
function readHydration(folder: string, name: string) {
  const line = readStatus(folder, name);
  const [, , type, ...fields] = line.split(' ');
  if (type !== 'clone') throw new DmError('EINVAL', `wait ${name}: not a clone: ${line}`);
  const settings = line.match(/hydration_threshold (\d+) hydration_batch_size (\d+) (\S+)/);
  if (!settings) throw new DmError('EIO', `wait ${name}: its metadata has failed: ${line}`);
  const [regionSectors, hydrated] = [Number(fields[2]), fields[3]!];
  const [regions, regionsTotal] = hydrated.split('/').map(Number) as [number, number];
  const inFlight = Number(fields[4]);
  const isWhole = regions === regionsTotal;
  const isOff = !isWhole && fields.includes('no_hydration');
  const isHeld = !isWhole && (settings[1] === '0' || settings[2] === '0');
  let obstacle: string | undefined;
  if (settings[3] !== 'rw') obstacle = `its metadata is read-only: ${line}`;
  else if (isOff) obstacle = `hydration is off; \`echo 1 > ${folder}/hydration\` starts it`;
  else if (isHeld) obstacle = `its hydration_threshold or hydration_batch_size is 0; 1 or more lets it go on`;
  return { regions, regionsTotal, inFlight, regionSectors, obstacle };
}

function readStatus(folder: string, name: string): string {
  try {
    return readFileSync(join(folder, 'status'), 'utf8').trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    throw new DmError('ENOENT', `wait ${name}: there is no target of that name`);
  }
}
