/**
 * The table line, as dmsetup writes it: `[0 LENGTH] TYPE ARG…`.
 *
 * LENGTH is in sectors. Words are separated by blanks; a backslash takes the next character as it is, so that a path
 * may hold blanks (dm_split_args in the kernel's drivers/md/dm-table.c).
 */
import { DmError, naming } from './errors.js';
import { SECTOR_BYTES } from './units.js';

export interface TableLine {
  /** Sectors; undefined where the line leaves it to the target. */
  readonly length: number | undefined;
  readonly type: string;
  readonly args: readonly string[];
}

/** Takes a table line apart. Throws EINVAL with what is wrong. */
export function parseTableLine(line: string): TableLine {
  const words = splitWords(line);
  let length: number | undefined;
  if (/^\d/.test(words[0] ?? '')) {
    if (parseCount(words[0]!, 'the start sector') !== 0) {
      throw new DmError('EINVAL', `table starts at sector ${words[0]}: a target here starts at sector 0`);
    }
    length = parseCount(words[1] ?? '', 'LENGTH (sectors)');
    if (length === 0)
      throw new DmError('EINVAL', 'LENGTH is 0 sectors: leave `0 LENGTH` out for all of the device');
    words.splice(0, 2);
  }
  const [type, ...args] = words;
  if (type === undefined) throw new DmError('EINVAL', 'the table is empty: expected `[0 LENGTH] TYPE ARGS`');
  return { length, type, args };
}

/** One word of a table line, so that parseTableLine gives it back. */
export function quoteWord(word: string): string {
  return word.replace(/[\s\\]/g, '\\$&');
}

/** What a command line calls a `<dev>`: `@NAME`, another target, by its device file in the mount. */
export function commandWord(device: string): string {
  return quoteWord(device.startsWith('@') ? `MNT/${device.slice(1)}/device` : device);
}

/** A decimal count of a table line or a control file. Throws EINVAL naming `what`. */
export function parseCount(word: string, what: string): number {
  const value = Number(word);
  if (!/^\d+$/.test(word) || !Number.isSafeInteger(value)) {
    throw new DmError('EINVAL', `${what} must be a decimal number, found \`${word}\``);
  }
  return value;
}

/**
 * Lines of `SECTOR COUNT`, as byte ranges inside a device of `size` bytes. All are checked before the first is returned: EINVAL
 * naming the line that is outside the device, shorter than `least` sectors, or no such line; and for no line at all.
 */
export function parseSectorRanges(
  text: string,
  { size, least, what }: { readonly size: number; readonly least: 0 | 1; readonly what: string },
): { offset: number; length: number }[] {
  const available = Math.floor(size / SECTOR_BYTES);
  const ranges = text.split('\n').flatMap((line, i) => {
    if (line.trim() === '') return [];
    return naming(`${what}: line ${i + 1}`, () => {
      const words = line.trim().split(/\s+/);
      if (words.length !== 2) throw new DmError('EINVAL', `expected \`SECTOR COUNT\`, found \`${line}\``);
      const sector = parseCount(words[0]!, 'SECTOR');
      const count = parseCount(words[1]!, 'COUNT');
      if (count < least || sector > available || count > available - sector) {
        const orEmpty = least > 0 ? ' or empty' : '';
        throw new DmError('EINVAL', `\`${line}\` is outside the device's ${available} sectors${orEmpty}`);
      }
      return [{ offset: sector * SECTOR_BYTES, length: count * SECTOR_BYTES }];
    });
  });
  if (ranges.length === 0) throw new DmError('EINVAL', `${what}: expected \`SECTOR COUNT\``);
  return ranges;
}

/**
 * Takes an optional `<#args> arg…` group from the front of `args`: its arguments, and what follows it. Throws EINVAL
 * when the count is not a number or promises more than there is.
 */
export function takeGroup(args: readonly string[], what: string): { group: string[]; rest: string[] } {
  if (args.length === 0) return { group: [], rest: [] };
  const count = parseCount(args[0]!, `the number of ${what}`);
  if (count > args.length - 1) {
    throw new DmError('EINVAL', `the table promises ${count} ${what} and gives ${args.length - 1}`);
  }
  return { group: args.slice(1, 1 + count), rest: args.slice(1 + count) };
}

/** The words of a line; a backslash takes the next character as it is. */
export function splitWords(line: string): string[] {
  // A lone backslash at the end quotes nothing and stays.
  const words = line.match(/(?:\\[\s\S]|[^\s\\]|\\$)+/g) ?? [];
  return words.map((word) => word.replace(/\\([\s\S])/g, '$1'));
}
