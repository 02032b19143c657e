/**
 * mount.dmfuse, as mount(8) calls its helpers ("External helpers" there) for lines of /etc/fstab:
 *
 *     /etc/dmfuse/vm.tab  /mnt/dm  dmfuse  lanes=4,allow_other,nofail  0 0
 *
 * is `dmfuse mount /mnt/dm --tab /etc/dmfuse/vm.tab --lanes 4 --allow-other`. SOURCE is a mount file, by its path, or any word,
 * `none` as a rule: then the mount begins empty.
 */
import { DmError } from '../../src/errors.js';
import { params } from '../../src/filters/blksnap/params.js';

/** What an option of fstab is for `dmfuse mount`; those with a value are written `name=value`. */
const FLAGS = new Map([
  ['allow_other', '--allow-other'],
  ['replace', '--replace'],
]);
const VALUES = new Map([
  ['lanes', '--lanes'],
  ['state_dir', '--state-dir'],
  ['pidfile', '--pidfile'],
  ['transport', '--transport'],
]);

/** For mount(8) and systemd, or without a meaning for files that are devices. */
const IGNORED = new Set(
  [
    ['defaults', 'rw', 'auto', 'noauto', 'nofail', '_netdev', 'silent', 'loud'],
    ['user', 'nouser', 'users', 'owner', 'group', 'suid', 'nosuid', 'dev', 'nodev', 'exec', 'noexec'],
    [
      'async',
      'atime',
      'noatime',
      'diratime',
      'nodiratime',
      'relatime',
      'norelatime',
      'iversion',
      'noiversion',
    ],
    ['strictatime', 'nostrictatime', 'lazytime', 'nolazytime', 'mand', 'nomand', 'default_permissions'],
  ].flat(),
);
const IGNORED_PREFIX = /^(x-|X-|comment=|uhelper=|helper=)/;

const REFUSED = new Map([
  ['ro', 'a mount of control files is written to; for a device that is not, use `losetup --read-only`'],
  ['remount', 'a mount stays as it was begun: umount it first, targets can be made and removed at any time'],
]);

/** What mount(8) asks for: the arguments for `dmfuse`; none where there is nothing to do. Throws EINVAL. */
export function helperArguments(args: readonly string[]): string[] {
  const { words, options, isFake } = takeApart(args);
  const [source, mountPoint, ...rest] = words;
  if (source === undefined || mountPoint === undefined || rest.length > 0) {
    throw new DmError('EINVAL', 'expected SOURCE MNT [-sfnv] [-o OPTIONS], as mount(8) calls its helpers');
  }
  const translated = options.flatMap(translate);
  if (isFake) return [];
  const from = source.includes('/') ? ['--tab', source] : [];
  return ['mount', ...from, '--source', source, ...translated, '--', mountPoint];
}

/** mount(8) writes SOURCE MNT first, people write options anywhere. */
function takeApart(args: readonly string[]) {
  const words: string[] = [];
  const options: string[] = [];
  let isFake = false;
  const pending = [...args];
  for (let word = pending.shift(); word !== undefined; word = pending.shift()) {
    if (word === '-o') options.push(...(pending.shift() ?? '').split(',').filter(Boolean));
    else if (word === '-t') pending.shift();
    else if (/^-[sfnv]+$/.test(word)) isFake ||= word.includes('f');
    else if (word.startsWith('-'))
      throw new DmError('EINVAL', `${word}: not known; known are -s, -f, -n, -v, -t, -o`);
    else words.push(word);
  }
  return { words, options, isFake };
}

function translate(option: string): string[] {
  const [, name = '', value] = /^([^=]*)(?:=(.*))?$/s.exec(option) ?? [];
  if (IGNORED.has(option) || IGNORED_PREFIX.test(option)) return [];
  const reason = REFUSED.get(option);
  if (reason) throw new DmError('EINVAL', `-o ${option}: ${reason}`);
  const flag = FLAGS.get(option);
  if (flag) return [flag];
  const withValue = VALUES.get(name);
  if (withValue && value) return [withValue, value];
  if (withValue) throw new DmError('EINVAL', `-o ${option}: expected ${name}=VALUE`);
  // As `dmfuse mount -o` takes them.
  if (params.names.some((parameter) => parameter === name)) return ['-o', option];
  const known = [...FLAGS.keys(), ...[...VALUES.keys()].map((key) => `${key}=…`)].join(', ');
  throw new DmError('EINVAL', `-o ${option}: not known; known are ${known}, and the parameters of blksnap`);
}
