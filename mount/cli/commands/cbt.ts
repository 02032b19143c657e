/** `dmfuse cbt …`. */
import { type Command, Option } from 'commander';
import { parseNumber, parseSectors } from './options.js';

export function cbtCommands(dmfuse: Command): void {
  const cbt = dmfuse.command('cbt').description('which blocks of a target have changed since which snapshot');
  cbt
    .command('info')
    .description('print the block size, the generation and the number of the last take')
    .argument('<MNT>')
    .argument('<NAME>')
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, name, options) => (await import('../cbt.js')).info(mountPoint, name, options));
  cbt
    .command('map')
    .description(
      'list the blocks that had changed at the last take, a line a run: sector, count, number of the take that ended ' +
        'the change. With --since, sector and count of what an incremental backup has to copy',
    )
    .argument('<MNT>')
    .argument('<NAME>')
    .option('--since <N>', 'changes_number at the backup before: only what changed after it', parseNumber)
    .option(
      '--generation <UUID>',
      'generation_id at the backup before: where it is another one now, all of the device is listed',
    )
    .addOption(new Option('--raw', 'write the map itself, a byte a block').conflicts(['since', 'json']))
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, name, options, command: Command) => {
      if (options.generation !== undefined && options.since === undefined) {
        command.error('error: --generation is of use with --since only');
      }
      (await import('../cbt.js')).map(mountPoint, name, options);
    });
  cbt
    .command('dirty')
    .description('say that ranges have changed, so that the next backup copies them: all of them or none')
    .usage('[options] <MNT> <NAME> <SECTOR> <COUNT> [<SECTOR> <COUNT>]...')
    .argument('<MNT>')
    .argument('<NAME>')
    .argument('<SECTOR COUNT...>', 'in sectors', (value: string, previous: number[] | undefined) => [
      ...(previous ?? []),
      parseSectors(value),
    ])
    .action(async (mountPoint, name, numbers: number[], _options, command: Command) => {
      if (numbers.length % 2 === 1) command.error("error: missing required argument 'COUNT'");
      await (await import('../cbt.js')).dirty(mountPoint, name, numbers);
    });
}
