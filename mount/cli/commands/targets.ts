/** The commands on the targets of a mount, called as dmsetup calls them. */
import { type Command, Option } from 'commander';
import { parseCount } from './options.js';

export function targetsCommands(dmfuse: Command): void {
  const changing = async () => await import('../targets.js');
  const reading = async () => await import('../listing.js');

  dmfuse
    .command('create')
    .description('create a target')
    .argument('<MNT>')
    .argument('<NAME>', 'the directory that the target gets in MNT')
    .argument(
      '[TABLE]',
      "the table line, e.g. 'bow /img/disk.img 1 block_size:1024', or a file with it; standard input by default",
    )
    .addOption(json())
    .action(async (mnt, name, table, options) => (await changing()).create(mnt, name, table, options));

  dmfuse
    .command('remove')
    .description('remove a target; refused while its device is open')
    .argument('<MNT>')
    .argument('<NAME>')
    .addOption(
      new Option('--deferred', 'one in use goes when its device is closed and nothing stands on it').default(
        false,
      ),
    )
    .addOption(
      new Option('--force', 'an open one too: whoever has it open gets EIO')
        .default(false)
        .conflicts('deferred'),
    )
    .addOption(json())
    .action(async (mnt, name, options) => (await changing()).remove(mnt, name, options));

  dmfuse
    .command('rename')
    .description('give a target another name; its device stays open')
    .argument('<MNT>')
    .argument('<NAME>')
    .argument('<NEW_NAME>')
    .addOption(json())
    .action(async (mnt, name, newName, options) => (await changing()).rename(mnt, name, newName, options));

  dmfuse
    .command('suspend')
    .description('hold the I/O of a target, and of those that stand on it, and make durable what was written')
    .argument('<MNT>')
    .argument('<NAME>')
    .addOption(json())
    .action(async (mnt, name, options) => (await changing()).suspend(mnt, name, options));

  dmfuse
    .command('resume')
    .description(
      'serve what is held; a target whose backing has grown becomes longer (linear, cow), suspended before or not',
    )
    .argument('<MNT>')
    .argument('<NAME>')
    .addOption(json())
    .action(async (mnt, name, options) => (await changing()).resume(mnt, name, options));

  dmfuse
    .command('message')
    .description(
      "send a message to a target: one of dm-clone's, or the name of a control file and what to write to it",
    )
    .argument('<MNT>')
    .argument('<NAME>')
    .argument('<SECTOR>', '0: a target is one piece', parseCount)
    .argument('<MESSAGE...>')
    .addOption(json())
    .action(async (mnt, name, sector, words, options) =>
      (await changing()).message(mnt, name, sector, words, options),
    );

  dmfuse
    .command('ls')
    .description('list the targets')
    .argument('<MNT>')
    .addOption(new Option('--tree', 'what stands on what').default(false).conflicts('fields'))
    .addOption(fields())
    .addOption(noHeadings())
    .addOption(json())
    .action(async (mnt, options) => (await reading()).list(mnt, options));

  const perTarget = (verb: 'status' | 'table' | 'deps', description: string) =>
    dmfuse
      .command(verb)
      .description(description)
      .argument('<MNT>')
      .argument('[NAME]')
      .addOption(json())
      .action(async (mnt, name, options) => (await reading())[verb](mnt, name, options));
  perTarget('status', 'print the status line of one target or of all');
  perTarget('table', 'print the table line of one target or of all, as `create` accepts it');
  perTarget('deps', 'print what one target or all stand on');

  dmfuse
    .command('info')
    .description('print state, open count and event number of one target or of all')
    .argument('<MNT>')
    .argument('[NAME]')
    .addOption(fields())
    .addOption(noHeadings())
    .addOption(json())
    .action(async (mnt, name, options) => (await reading()).info(mnt, name, options));

  dmfuse
    .command('targets')
    .description('list the types of targets and filters, and their arguments')
    .addOption(json())
    .action(async (options) => (await import('../target-types.js')).printTypes(options));

  dmfuse
    .command('wait')
    .description(
      'wait for the next event of a target, or until its event number is above EVENT_NR, and print it',
    )
    .argument('<MNT>')
    .argument('<NAME>')
    .argument('[EVENT_NR]', 'an event number as `info` prints it', parseCount)
    .addOption(json())
    .action(async (mnt, name, eventNr, options) =>
      (await import('../wait.js')).wait(mnt, name, eventNr, options),
    );
}

function json(): Option {
  return new Option('--json', 'print JSON').default(false);
}

function fields(): Option {
  return new Option(
    '-o, --fields <FIELD,…>',
    'columns: name, type, state, sectors, open, events, filter, removal, deps, table',
  ).argParser((value: string) => value.split(','));
}

function noHeadings(): Option {
  return new Option('--noheadings', 'no line of headings').default(false);
}
