/** `dmfuse bow …`. */
import type { Command } from 'commander';
import { PROGRESS_JSON, QUIET } from './options.js';

export function bowCommands(dmfuse: Command): void {
  const bow = dmfuse
    .command('bow')
    .description('work on an image that a bow target wrote, while it is not attached');
  bow
    .command('restore')
    .description('roll back to the checkpoint; may be interrupted at any time and run again')
    .argument('<IMAGE>', 'a file or block device')
    .option(...QUIET)
    .option(...PROGRESS_JSON)
    .action(async (image, options) => (await import('../bow.js')).restoreImage(image, options));
  bow
    .command('check')
    .description(
      'verify the log and all backups, and say what a restore would do (0 sound, 2 damaged, 3 no log)',
    )
    .argument('<IMAGE>')
    .option(...QUIET)
    .option(...PROGRESS_JSON)
    .action(async (image, options) => (await import('../bow.js')).checkImage(image, options));
  bow
    .command('dump')
    .description('print the log')
    .argument('<IMAGE>')
    .option(...QUIET)
    .option(...PROGRESS_JSON)
    .action(async (image, options) => (await import('../bow.js')).dumpImage(image, options));
}
