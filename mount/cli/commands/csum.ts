/** `dmfuse csum …`. */
import { type Command, Option } from 'commander';
import { PROGRESS_JSON, parseSectors, parseSize, QUIET } from './options.js';

export function csumCommands(dmfuse: Command): void {
  const csum = dmfuse
    .command('csum')
    .description('make a csum volume, or verify one while it is not attached');
  csum
    .command('format')
    .description(
      'write the tables for what DEV holds now, which is taken as good for ever; may be interrupted at any time and ' +
        'run again. Without IMD the tables take 2 of each 64 sectors of DEV',
    )
    .argument('<DEV>', 'a file or block device, for the data')
    .argument('[IMD]', 'another one, for the tables')
    .option('--offset <SECTORS>', 'where the volume begins on DEV', parseSectors, 0)
    .option('--imd-offset <SECTORS>', 'where the tables begin on IMD', parseSectors)
    .option('--size <SECTORS>', 'data sectors; all that there is room for by default', parseSize)
    .addOption(
      new Option(
        '--order <ORDER>',
        'byte order of the CRCs; be by default, le as the 2009 driver on a PC',
      ).choices(['be', 'le']),
    )
    .option('--force', 'start anew on what is a volume already', false)
    .option(...QUIET)
    .option(...PROGRESS_JSON)
    .action(async (dev, imd, options) => (await import('../csum.js')).formatImage(dev, imd, options));
  csum
    .command('check')
    .description('verify all data and tables (0 sound, 2 damaged, 3 no volume)')
    .argument('<DEV>')
    .argument('[IMD]')
    .option('--offset <SECTORS>', 'where the volume begins on DEV', parseSectors, 0)
    .option('--imd-offset <SECTORS>', 'where the tables begin on IMD', parseSectors)
    .option(...QUIET)
    .option(...PROGRESS_JSON)
    .action(async (dev, imd, options) => (await import('../csum.js')).checkImage(dev, imd, options));
}
