/** The commands on the targets of a mount, called as dmsetup calls them. */
import type { Command } from 'commander';

export function targetsCommands(dmfuse: Command): void {
  dmfuse
    .command('create')
    .description('create a target')
    .argument('<MNT>')
    .argument('<NAME>', 'the directory that the target gets in MNT')
    .argument('<TABLE>', "the table line, e.g. 'bow /img/disk.img 1 block_size:1024'")
    .action(async (mountPoint, name, table) =>
      (await import('../targets.js')).create(mountPoint, name, table),
    );

  dmfuse
    .command('remove')
    .description('remove a target; refused while its device is open')
    .argument('<MNT>')
    .argument('<NAME>')
    .action(async (mountPoint, name) => (await import('../targets.js')).remove(mountPoint, name));

  dmfuse
    .command('ls')
    .description('list the targets')
    .argument('<MNT>')
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, options) => (await import('../targets.js')).list(mountPoint, options));

  dmfuse
    .command('status')
    .description('print the status line of one target or of all')
    .argument('<MNT>')
    .argument('[NAME]')
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, name, options) =>
      (await import('../targets.js')).status(mountPoint, name, options),
    );
}
