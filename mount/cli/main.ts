#!/usr/bin/env node
/** The command line: what the commands are called and take. What they do is imported when one is run. */
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { messageOf } from '../../src/errors.js';
import { isPowerOfTwo } from '../../src/units.js';
import { VERSION } from '../version.js';
import { EXIT_FAILED } from './output.js';

const EXIT_USAGE = 64;

const LANES_DEFAULT = 8;
const LANES_MAX = 64;

const STACK_HELP =
  'a base and its layers, bottom to top, each with LAYER.bitmap beside it; or a table line in one word, ' +
  'which layers may follow';

const NO_FREEZE_HELP = 'freeze no file systems: images are as a power cut leaves a disk';

function program(): Command {
  const dmfuse = new Command('dmfuse')
    .description(
      'Block devices that the kernel lacks, as files of a FUSE mount: checkpoint, roll back and more.',
    )
    .version(VERSION)
    .showHelpAfterError('(dmfuse --help tells more)')
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'dmfuse: ')) })
    .configureHelp({ optionDescription: describeOption });

  dmfuse
    .command('mount')
    .description('mount at MNT; returns when the mount answers')
    .argument('<MNT>', 'an empty directory')
    .option(
      '--create <NAME TABLE>',
      "create a target at once, e.g. 'sys bow /img/disk.img'; can be repeated",
      collect,
      [],
    )
    .option('-f, --foreground', 'stay in the foreground', false)
    .option('--allow-other', 'let other users into the mount (files stay yours until you chmod them)', false)
    .option('--lanes <N>', `threads that serve I/O, 1 to ${LANES_MAX}`, parseLanes, LANES_DEFAULT)
    .option(
      '--state-dir <DIR>',
      'where the change maps of blksnap outlive a clean unmount; without it a mount begins new ones',
    )
    .option(
      '-o, --param <NAME=VALUE[,…]>',
      'parameters of blksnap, as in MNT/snapshots/params; can be repeated',
      collectList,
      [],
    )
    .option('--debug', 'print a line for each request; needs --foreground', false)
    .action(async (mountPoint, options) => (await import('./mount.js')).mount(mountPoint, options));

  dmfuse
    .command('create')
    .description('create a target')
    .argument('<MNT>')
    .argument('<NAME>', 'the directory that the target gets in MNT')
    .argument('<TABLE>', "the table line, e.g. 'bow /img/disk.img 1 block_size:1024'")
    .action(async (mountPoint, name, table) =>
      (await import('./targets.js')).create(mountPoint, name, table),
    );

  dmfuse
    .command('remove')
    .description('remove a target; refused while its device is open')
    .argument('<MNT>')
    .argument('<NAME>')
    .action(async (mountPoint, name) => (await import('./targets.js')).remove(mountPoint, name));

  dmfuse
    .command('ls')
    .description('list the targets')
    .argument('<MNT>')
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, options) => (await import('./targets.js')).list(mountPoint, options));

  dmfuse
    .command('status')
    .description('print the status line of one target or of all')
    .argument('<MNT>')
    .argument('[NAME]')
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, name, options) =>
      (await import('./targets.js')).status(mountPoint, name, options),
    );

  dmfuse
    .command('umount')
    .description('unmount and wait until all is on disk; refused while a device is open')
    .argument('<MNT>')
    .action(async (mountPoint) => (await import('./umount.js')).umount(mountPoint));

  const bow = dmfuse
    .command('bow')
    .description('work on an image that a bow target wrote, while it is not attached');
  bow
    .command('restore')
    .description('roll back to the checkpoint; may be interrupted at any time and run again')
    .argument('<IMAGE>', 'a file or block device')
    .action(async (image) => (await import('./bow.js')).restoreImage(image));
  bow
    .command('check')
    .description(
      'verify the log and all backups, and say what a restore would do (0 sound, 2 damaged, 3 no log)',
    )
    .argument('<IMAGE>')
    .option('--json', 'print JSON', false)
    .action(async (image, options) => (await import('./bow.js')).checkImage(image, options));
  bow
    .command('dump')
    .description('print the log')
    .argument('<IMAGE>')
    .option('--json', 'print JSON', false)
    .action(async (image, options) => (await import('./bow.js')).dumpImage(image, options));

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
    .action(async (dev, imd, options) => (await import('./csum.js')).formatImage(dev, imd, options));
  csum
    .command('check')
    .description('verify all data and tables (0 sound, 2 damaged, 3 no volume)')
    .argument('<DEV>')
    .argument('[IMD]')
    .option('--offset <SECTORS>', 'where the volume begins on DEV', parseSectors, 0)
    .option('--imd-offset <SECTORS>', 'where the tables begin on IMD', parseSectors)
    .option('--json', 'print JSON', false)
    .action(async (dev, imd, options) => (await import('./csum.js')).checkImage(dev, imd, options));

  const cow = dmfuse
    .command('cow')
    .description('work on the layers of a cow stack, while it is not attached');
  cow
    .command('create')
    .description(
      'make an empty layer, the files LAYER and LAYER.bitmap, and print its part of a table. With --import-seed make ' +
        'only LAYER.bitmap, for data that the dm-cow of 2006 wrote to LAYER',
    )
    .argument(
      '<BASE>',
      'what it goes on: a file or block device, another layer, or the table line of a stack',
    )
    .argument('<LAYER>')
    .option('--size <SECTORS>', 'of the stack; all of BASE by default', parseSize)
    .option('--import-seed <OLD_BITMAP>', 'infer the bits from a bitmap that it wrote, which stays as it is')
    .option('--block-size <BYTES>', 'that of the device of OLD_BITMAP, 512 to 32768', parseBlockSize, 4096)
    .option('--json', 'print JSON', false)
    .action(async (base, layer, options) => (await import('./cow.js')).createCowLayer(base, layer, options));
  cow
    .command('commit')
    .description(
      'merge the top layer into the member below it; may be interrupted at any time and run again. Other stacks on ' +
        'that member change with it',
    )
    .argument('<STACK...>', STACK_HELP)
    .option('--json', 'print JSON', false)
    .action(async (stack, options) => (await import('./cow.js')).commitStack(stack, options));
  cow
    .command('flatten')
    .description('make one sparse image of what the stack shows')
    .usage('[options] <STACK...> <OUT>')
    .argument('<STACK...>', `${STACK_HELP}; and OUT, a new file`)
    .option('--force', 'OUT may be a block device, whose content goes', false)
    .option('--json', 'print JSON', false)
    .action(async (words: string[], options, command: Command) => {
      const [stack, out] = [words.slice(0, -1), words.at(-1)!];
      if (stack.length === 0) command.error("error: missing required argument 'OUT'");
      await (await import('./cow.js')).flattenStack(stack, out, options);
    });

  cow
    .command('map')
    .description(
      'list the sectors that a layer holds, the top one of a stack: what has changed since it was made. A line a run, ' +
        'start and count',
    )
    .usage('[options] <LAYER> | <STACK...>')
    .argument('<STACK...>', `one layer; or ${STACK_HELP}`)
    .option('--json', 'print JSON', false)
    .action(async (stack, options) => (await import('./cow.js')).mapLayer(stack, options));

  const clone = dmfuse.command('clone').description('look at the metadata of a clone, or wait for one');
  clone
    .command('dump')
    .description('print the superblock and the hydrated regions, a line a run, start and count')
    .argument('<META>', 'the metadata: a file or block device, not attached')
    .option('--json', 'print JSON', false)
    .action(async (meta, options) => (await import('./clone.js')).dumpMetadata(meta, options));
  clone
    .command('check')
    .description('verify every block and reference count (0 sound, 2 damaged, 3 never formatted)')
    .argument('<META>')
    .option('--json', 'print JSON', false)
    .action(async (meta, options) => (await import('./clone.js')).checkMetadata(meta, options));
  clone
    .command('wait')
    .description('wait until all regions of a live clone are hydrated')
    .argument('<MNT>')
    .argument('<NAME>')
    .action(async (mountPoint, name) => (await import('./clone.js')).waitHydrated(mountPoint, name));

  const snapshot = dmfuse
    .command('snapshot')
    .description('coherent snapshots of targets in use, and what grows and watches them');
  snapshot
    .command('create')
    .summary('make one, and print its UUID')
    .description('make a snapshot, to be taken later, and print its UUID; tracks the targets from now on')
    .argument('<MNT>')
    .argument('<S>', 'the directory that the snapshot gets in MNT/snapshots')
    .option('--device <NAME>', 'a target that is to be in it; can be repeated', collect, [])
    .action(async (mountPoint, name, options) =>
      (await import('./snapshot.js')).create(mountPoint, name, options),
    );
  snapshot
    .command('append')
    .summary('give it storage')
    .description('give it sectors of a file or block device, where what the targets overwrite is kept')
    .argument('<MNT>')
    .argument('<S>')
    .argument('<PATH>', 'a file, made where there is none, or a block device; what it holds there goes')
    .argument('<SECTOR>', 'the first one', parseSectors)
    .argument('<COUNT>', 'sectors', parseSize)
    .action(async (mountPoint, name, path, sector, count) =>
      (await import('./snapshot.js')).append(mountPoint, name, path, sector, count),
    );
  snapshot
    .command('take')
    .summary('take its targets at one moment')
    .description('take all of its targets at one moment; file systems on them are frozen for that moment')
    .argument('<MNT>')
    .argument('<S>')
    .option('--no-freeze', NO_FREEZE_HELP)
    .action(async (mountPoint, name, options) =>
      (await import('./snapshot.js')).take(mountPoint, name, options),
    );
  snapshot
    .command('list')
    .summary('list them')
    .description('list the snapshots: name, state, UUID, targets')
    .argument('<MNT>')
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, options) => (await import('./snapshot.js')).list(mountPoint, options));
  snapshot
    .command('show')
    .summary('print state, storage, images')
    .description('print its state, its storage in sectors, and where the images are')
    .argument('<MNT>')
    .argument('<S>')
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, name, options) =>
      (await import('./snapshot.js')).show(mountPoint, name, options),
    );
  snapshot
    .command('watch')
    .summary('print its events as they come')
    .description('print its events as they come, until it is destroyed')
    .argument('<MNT>')
    .argument('<S>')
    .option('--json', 'print a JSON object a line', false)
    .action(async (mountPoint, name, options) =>
      (await import('./snapshot.js')).watch(mountPoint, name, options),
    );
  snapshot
    .command('destroy')
    .summary('destroy it')
    .description('destroy it, whoever reads its images; the targets stay tracked')
    .argument('<MNT>')
    .argument('<S>')
    .action(async (mountPoint, name) => (await import('./snapshot.js')).destroy(mountPoint, name));
  snapshot
    .command('run')
    .summary('one for as long as COMMAND runs')
    .description(
      'make and take a snapshot, run COMMAND, destroy it. COMMAND finds the images in DMFUSE_IMAGES, one a line in the ' +
        'order of --device, the first in DMFUSE_IMAGE, and MNT/snapshots/S in DMFUSE_SNAPSHOT. The exit code is ' +
        "COMMAND's, or 1 when it was 0 and an image was lost meanwhile",
    )
    .usage('[options] <MNT> <S> --device <NAME>... --storage <PATH> -- <COMMAND> [ARG...]')
    .argument('<MNT>')
    .argument('<S>')
    .argument('<COMMAND...>')
    .requiredOption('--device <NAME>', 'a target that is to be in it; can be repeated', collect)
    .requiredOption(
      '--storage <PATH>',
      'where what is overwritten is kept: a file that is made for it, an empty one, or a block device',
    )
    .addOption(
      new Option('--grow <SIZE>', 'how much of PATH is taken at a time: bytes, or K M G T of 1024')
        .argParser(parseBytes)
        .default(2 ** 30, '1G'),
    )
    .option('--no-freeze', NO_FREEZE_HELP)
    .action(async (mountPoint, name, command, options) =>
      (await import('./snapshot-run.js')).run(mountPoint, name, command, options),
    );

  const cbt = dmfuse.command('cbt').description('which blocks of a target have changed since which snapshot');
  cbt
    .command('info')
    .description('print the block size, the generation and the number of the last take')
    .argument('<MNT>')
    .argument('<NAME>')
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, name, options) => (await import('./cbt.js')).info(mountPoint, name, options));
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
      (await import('./cbt.js')).map(mountPoint, name, options);
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
      await (await import('./cbt.js')).dirty(mountPoint, name, numbers);
    });

  const groups = [bow, csum, cow, clone, snapshot, cbt];
  for (const command of [dmfuse, ...dmfuse.commands, ...groups.flatMap(({ commands }) => commands)])
    command.exitOverride();
  return dmfuse;
}

/** A default is worth a word where it is a value, not where it is an option left out. */
function describeOption({ description, defaultValue, defaultValueDescription }: Option): string {
  if (typeof defaultValue !== 'number') return description;
  return `${description} (default: ${defaultValueDescription ?? defaultValue})`;
}

function collect(value: string, previous: string[] = []): string[] {
  return [...previous, value];
}

function collectList(value: string, previous: string[]): string[] {
  return [...previous, ...value.split(',')];
}

function parseLanes(value: string): number {
  const lanes = Number(value);
  if (Number.isInteger(lanes) && lanes >= 1 && lanes <= LANES_MAX) return lanes;
  throw new InvalidArgumentError(`expected a number from 1 to ${LANES_MAX}`);
}

/** Sectors that are still a byte offset that a number can hold. */
const SECTORS_MAX = 2 ** 43;

function parseSectors(value: string): number {
  const sectors = Number(value);
  if (/^\d+$/.test(value) && sectors <= SECTORS_MAX) return sectors;
  throw new InvalidArgumentError('expected a number of sectors (512 bytes)');
}

function parseSize(value: string): number {
  const sectors = parseSectors(value);
  if (sectors > 0) return sectors;
  throw new InvalidArgumentError('expected at least one sector');
}

/** Bytes, whole sectors of them. */
function parseBytes(value: string): number {
  const [, digits, unit = ''] = /^(\d+)([KMGT]?)$/.exec(value) ?? [];
  const bytes = Number(digits) * 1024 ** ' KMGT'.indexOf(unit || ' ');
  if (digits !== undefined && bytes > 0 && bytes % 512 === 0 && bytes <= 512 * SECTORS_MAX) return bytes;
  throw new InvalidArgumentError('expected bytes, or K, M, G, T of 1024, and whole sectors (512 bytes)');
}

/** A byte of a change map. */
function parseNumber(value: string): number {
  const number = Number(value);
  if (/^\d+$/.test(value) && number <= 255) return number;
  throw new InvalidArgumentError('expected a number from 0 to 255');
}

function parseBlockSize(value: string): number {
  const bytes = Number(value);
  if (/^\d+$/.test(value) && isPowerOfTwo(bytes) && bytes >= 512 && bytes <= 32_768) return bytes;
  throw new InvalidArgumentError('expected 512, 1024, 2048, 4096, 8192, 16384 or 32768');
}

/** Actions resolve to an exit code, or to nothing for 0. */
async function run(): Promise<number> {
  try {
    await program().parseAsync();
    return typeof process.exitCode === 'number' ? process.exitCode : 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
    process.stderr.write(`dmfuse: ${messageOf(error)}\n`);
    return EXIT_FAILED;
  }
}

process.exitCode = await run();
