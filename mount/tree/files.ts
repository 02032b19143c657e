/**
 * The files of a target's directory, as one table: the common ones here, then what the target's type declares. This is
 * the one place where a declaration becomes a file with a mode.
 */
import { DmError } from '../../src/errors.js';
import { parseCount } from '../../src/table.js';
import type { ControlFile } from '../../src/targets/target.js';
import { SECTOR_BYTES } from '../../src/units.js';
import { STAT_NAMES, sumStats } from '../lanes/stats.js';
import { type LiveTarget, type Registry, type Slot, statusLine, tableLine } from '../registry.js';

export interface TreeFile {
  readonly name: string;
  /** Permission bits for the owner alone. */
  readonly permissions: number;
  readonly kind: 'device' | 'events' | 'text';
  /** There before the slot has a target. */
  readonly always?: boolean;
  read?(slot: Slot): string;
  /** Instead of `read`: the content of a binary file. */
  bytes?(slot: Slot): Uint8Array;
  write?(slot: Slot, text: string): void | Promise<void>;
}

/** All files of a slot, those that wait for a target included. The first is the device. */
export function filesOf(slot: Slot, registry: Registry): TreeFile[] {
  const common: TreeFile[] = [
    { name: 'device', kind: 'device', permissions: 0o600 },
    textFile({
      name: 'table',
      always: true,
      read: (s) => (s.live ? `${tableLine(s.live)}\n` : ''),
      write: (s, text) => registry.load(s, text),
    }),
    textFile({ name: 'status', always: true, read: (s) => `${statusLine(s)}\n` }),
    textFile({ name: 'size', read: (s) => `${live(s).target.size / SECTOR_BYTES}\n` }),
    textFile({ name: 'stats', read: (s) => statsText(live(s)) }),
    { name: 'events', kind: 'events', permissions: 0o400, always: true },
    textFile({
      name: 'discard',
      write: (s, text) => {
        if (registry.claimOn(s)) throw new DmError('EBUSY', `${s.name}: another target stands on it`);
        discard(live(s), text);
      },
    }),
    textFile({ name: 'filter', read: () => 'none\n', write: (_s, text) => setFilter(text) }),
  ];
  return [...common, ...(slot.live?.type.files ?? []).map(targetFile)];
}

/** What a user sees when he opens the daemon's own file: who serves this mount. */
export function daemonText(version: string): string {
  return `pid ${process.pid}\nversion ${version}\n`;
}

function textFile(file: Omit<TreeFile, 'kind' | 'permissions'>): TreeFile {
  return {
    ...file,
    kind: 'text',
    permissions: (file.read || file.bytes ? 0o400 : 0) | (file.write ? 0o200 : 0),
  };
}

function targetFile({ name, read, bytes, write }: ControlFile): TreeFile {
  return textFile({
    name,
    ...(read ? { read: (slot: Slot) => read(live(slot).target) } : {}),
    ...(bytes ? { bytes: (slot: Slot) => bytes(live(slot).target) } : {}),
    ...(write ? { write: (slot: Slot, text: string) => write(live(slot).target, text) } : {}),
  });
}

function live(slot: Slot): LiveTarget {
  if (slot.live) return slot.live;
  throw new DmError('ENODEV', `${slot.name}: no table is loaded`);
}

function statsText({ stats }: LiveTarget): string {
  const sums = sumStats(stats);
  return STAT_NAMES.map((name) => `${name} ${sums[name]}\n`).join('');
}

/** Lines of `SECTOR COUNT`. All are checked before the first is done. */
function discard({ target }: LiveTarget, text: string): void {
  const lines = text.split('\n').filter((line) => line.trim() !== '');
  const trims = lines.map((line) => {
    const words = line.trim().split(/\s+/);
    if (words.length !== 2)
      throw new DmError('EINVAL', `discard: expected \`SECTOR COUNT\`, found \`${line}\``);
    const offset = parseCount(words[0]!, 'discard: SECTOR') * SECTOR_BYTES;
    const length = parseCount(words[1]!, 'discard: COUNT') * SECTOR_BYTES;
    if (length === 0 || offset + length > target.size) {
      throw new DmError(
        'EINVAL',
        `discard: \`${line}\` is outside the device's ${target.size / SECTOR_BYTES} sectors or empty`,
      );
    }
    return { offset, length };
  });
  if (trims.length === 0) throw new DmError('EINVAL', 'discard: expected `SECTOR COUNT`');
  for (const { offset, length } of trims) target.discard(offset, length);
}

function setFilter(text: string): void {
  if (text.trim() === 'none') return;
  throw new DmError('EINVAL', `there is no filter \`${text.trim()}\`: this version has none`);
}
