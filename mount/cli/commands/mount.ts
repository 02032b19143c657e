/** `dmfuse mount` and `umount`. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { TRANSPORT_CHOICES } from '../../transport.js';
import { collect, collectList } from './options.js';

const LANES_DEFAULT = 8;
const LANES_MAX = 64;

export function mountCommands(dmfuse: Command): void {
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
    .option(
      '--tab <FILE>',
      'create the targets of a mount file, a line `NAME TABLE` each, in any order; can be repeated',
      collect,
      [],
    )
    .option('-f, --foreground', 'stay in the foreground', false)
    .option('--allow-other', 'let other users into the mount (files stay yours until you chmod them)', false)
    .addOption(
      new Option(
        '--transport <NAME>',
        'fuse-native: by libfuse 2, of an npm package; slower, and without TRIM',
      )
        .choices(TRANSPORT_CHOICES)
        .default('kernel'),
    )
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
    .option('--pidfile <FILE>', 'where the process id of the daemon stands while it serves')
    .option('--replace', 'first detach a dmfuse mount at MNT whose daemon is dead', false)
    .option('--source <NAME>', 'what mount(8) shows as the source; else the mount file, or dmfuse')
    .option('--debug', 'print a line for each request; needs --foreground', false)
    .action(async (mountPoint, options, command: Command) => {
      if (options.debug && !options.foreground) {
        command.error('error: --debug needs --foreground: the background has no stderr');
      }
      await (await import('../mount.js')).mount(mountPoint, options);
    });

  dmfuse
    .command('umount')
    .description('unmount and wait until all is on disk; refused while a device is open')
    .argument('<MNT>')
    .action(async (mountPoint) => (await import('../umount.js')).umount(mountPoint));
}

function parseLanes(value: string): number {
  const lanes = Number(value);
  if (Number.isInteger(lanes) && lanes >= 1 && lanes <= LANES_MAX) return lanes;
  throw new InvalidArgumentError(`expected a number from 1 to ${LANES_MAX}`);
}
