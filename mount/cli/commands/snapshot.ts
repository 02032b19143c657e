/** `dmfuse snapshot …`. */
import { type Command, Option } from 'commander';
import { collect, NO_FREEZE_HELP, parseBytes, parseSectors, parseSize } from './options.js';

export function snapshotCommands(dmfuse: Command): void {
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
      (await import('../snapshot.js')).create(mountPoint, name, options),
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
      (await import('../snapshot.js')).append(mountPoint, name, path, sector, count),
    );
  snapshot
    .command('take')
    .summary('take its targets at one moment')
    .description('take all of its targets at one moment; file systems on them are frozen for that moment')
    .argument('<MNT>')
    .argument('<S>')
    .option('--no-freeze', NO_FREEZE_HELP)
    .action(async (mountPoint, name, options) =>
      (await import('../snapshot.js')).take(mountPoint, name, options),
    );
  snapshot
    .command('list')
    .summary('list them')
    .description('list the snapshots: name, state, UUID, targets')
    .argument('<MNT>')
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, options) => (await import('../snapshot.js')).list(mountPoint, options));
  snapshot
    .command('show')
    .summary('print state, storage, images')
    .description('print its state, its storage in sectors, and where the images are')
    .argument('<MNT>')
    .argument('<S>')
    .option('--json', 'print JSON', false)
    .action(async (mountPoint, name, options) =>
      (await import('../snapshot.js')).show(mountPoint, name, options),
    );
  snapshot
    .command('watch')
    .summary('print its events as they come')
    .description('print its events as they come, until it is destroyed')
    .argument('<MNT>')
    .argument('<S>')
    .option('--json', 'print a JSON object a line', false)
    .action(async (mountPoint, name, options) =>
      (await import('../snapshot.js')).watch(mountPoint, name, options),
    );
  snapshot
    .command('destroy')
    .summary('destroy it')
    .description('destroy it, whoever reads its images; the targets stay tracked')
    .argument('<MNT>')
    .argument('<S>')
    .action(async (mountPoint, name) => (await import('../snapshot.js')).destroy(mountPoint, name));
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
      (await import('../snapshot-run.js')).run(mountPoint, name, command, options),
    );
}
