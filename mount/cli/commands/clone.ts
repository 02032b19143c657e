/** `dmfuse clone …`. */
import type { Command } from 'commander';
import { PROGRESS_JSON, QUIET } from './options.js';

export function cloneCommands(dmfuse: Command): void {
  const clone = dmfuse.command('clone').description('look at the metadata of a clone, or wait for one');
  clone
    .command('dump')
    .description('print the superblock and the hydrated regions, a line a run, start and count')
    .argument('<META>', 'the metadata: a file or block device, not attached')
    .option('--json', 'print JSON', false)
    .action(async (meta, options) => (await import('../clone.js')).dumpMetadata(meta, options));
  clone
    .command('check')
    .description('verify every block and reference count (0 sound, 2 damaged, 3 never formatted)')
    .argument('<META>')
    .option('--json', 'print JSON', false)
    .action(async (meta, options) => (await import('../clone.js')).checkMetadata(meta, options));
  clone
    .command('wait')
    .description('wait until all regions of a live clone are hydrated')
    .argument('<MNT>')
    .argument('<NAME>')
    .option(...QUIET)
    .option(...PROGRESS_JSON)
    .action(async (mountPoint, name, options) =>
      (await import('../clone.js')).waitHydrated(mountPoint, name, options),
    );
}
