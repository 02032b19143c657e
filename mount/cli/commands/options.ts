/** What several commands take: values that are lists, sectors, bytes. */
import { InvalidArgumentError } from 'commander';
import { isPowerOfTwo } from '../../../src/units.js';

export const NO_FREEZE_HELP = 'freeze no file systems: images are as a power cut leaves a disk';

/** The options of everything that takes long, for `.option(...QUIET).option(...PROGRESS_JSON)`. */
export const QUIET = ['-q, --quiet', 'show no progress', false] as const;
export const PROGRESS_JSON = [
  '--json',
  'print JSON; progress goes to stderr, a line a second',
  false,
] as const;

export function collect(value: string, previous: string[] = []): string[] {
  return [...previous, value];
}

export function collectList(value: string, previous: string[]): string[] {
  return [...previous, ...value.split(',')];
}

/** Sectors that are still a byte offset that a number can hold. */
const SECTORS_MAX = 2 ** 43;

export function parseSectors(value: string): number {
  const sectors = Number(value);
  if (/^\d+$/.test(value) && sectors <= SECTORS_MAX) return sectors;
  throw new InvalidArgumentError('expected a number of sectors (512 bytes)');
}

export function parseSize(value: string): number {
  const sectors = parseSectors(value);
  if (sectors > 0) return sectors;
  throw new InvalidArgumentError('expected at least one sector');
}

/** Bytes, whole sectors of them. */
export function parseBytes(value: string): number {
  const [, digits, unit = ''] = /^(\d+)([KMGT]?)$/.exec(value) ?? [];
  const bytes = Number(digits) * 1024 ** ' KMGT'.indexOf(unit || ' ');
  if (digits !== undefined && bytes > 0 && bytes % 512 === 0 && bytes <= 512 * SECTORS_MAX) return bytes;
  throw new InvalidArgumentError('expected bytes, or K, M, G, T of 1024, and whole sectors (512 bytes)');
}

/** A whole number. */
export function parseCount(value: string): number {
  const count = Number(value);
  if (/^\d+$/.test(value) && Number.isSafeInteger(count)) return count;
  throw new InvalidArgumentError('expected a whole number');
}

/** A byte of a change map. */
export function parseNumber(value: string): number {
  const number = Number(value);
  if (/^\d+$/.test(value) && number <= 255) return number;
  throw new InvalidArgumentError('expected a number from 0 to 255');
}

export function parseBlockSize(value: string): number {
  const bytes = Number(value);
  if (/^\d+$/.test(value) && isPowerOfTwo(bytes) && bytes >= 512 && bytes <= 32_768) return bytes;
  throw new InvalidArgumentError('expected 512, 1024, 2048, 4096, 8192, 16384 or 32768');
}
