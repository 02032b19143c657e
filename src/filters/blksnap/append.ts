/** What may be appended to a difference storage: lines `PATH SECTOR COUNT`, checked against the files and one another. */
import { DmError, naming } from '../../errors.js';
import { parseCount, splitWords } from '../../table.js';
import { SECTOR_BYTES } from '../../units.js';
import type { StorageFile } from './host.js';
import type { StorageRange } from './storage.js';

export const APPEND_USAGE = 'PATH SECTOR COUNT';

/** A line, as it was given. */
export interface StorageLine {
  readonly number: number;
  readonly path: string;
  readonly sector: number;
  readonly count: number;
}

/** The lines of a text. Throws EINVAL naming the one that is wrong. A backslash quotes blanks in a path, and newlines. */
export function parseStorageLines(text: string): StorageLine[] {
  const lines = text.match(/(?:\\[\s\S]|[^\n\\]|\\$)+/g);
  if (!lines) throw new DmError('EINVAL', `nothing to append: expected lines \`${APPEND_USAGE}\``);
  return lines.map((line, i) => naming(`line ${i + 1}`, () => parseLine(line, i + 1)));
}

function parseLine(line: string, number: number): StorageLine {
  const [path, first, length, ...rest] = splitWords(line);
  if (path === undefined || first === undefined || length === undefined || rest.length > 0) {
    throw new DmError('EINVAL', `expected \`${APPEND_USAGE}\`, found \`${line}\``);
  }
  const sector = parseCount(first, 'SECTOR');
  const count = parseCount(length, 'COUNT');
  if (count === 0) throw new DmError('EINVAL', 'COUNT is 0: nothing can be stored there');
  if (!Number.isSafeInteger((sector + count) * SECTOR_BYTES)) {
    throw new DmError('EINVAL', `sector ${sector + count} is further than any file goes`);
  }
  return { number, path, sector, count };
}

/** The range that a line means. Throws EINVAL for one outside a block device; a regular file becomes longer. */
export function rangeOf({ number, path, sector, count }: StorageLine, file: StorageFile): StorageRange {
  const sectors = Math.floor(file.size / SECTOR_BYTES);
  if (file.isBlockDevice && sector + count > sectors) {
    throw new DmError(
      'EINVAL',
      `line ${number}: ${path} has ${sectors} sectors, not ${sector + count}: append a part of it`,
    );
  }
  const { fd, size: fileSize, key } = file;
  return { fd, fileSize, key, offset: sector * SECTOR_BYTES, sectors: count };
}

/** Throws EINVAL where two ranges have a sector in common. */
export function requireDisjoint(
  ranges: readonly StorageRange[],
  pathOf: (range: StorageRange) => string,
): void {
  const sorted = ranges.toSorted((a, b) => (a.key === b.key ? a.offset - b.offset : a.key < b.key ? -1 : 1));
  for (const [i, range] of sorted.entries()) {
    const before = sorted[i - 1];
    if (!before || before.key !== range.key) continue;
    if (before.offset + before.sectors * SECTOR_BYTES <= range.offset) continue;
    throw new DmError(
      'EINVAL',
      `${pathOf(range)}: sector ${range.offset / SECTOR_BYTES} would be in the storage twice: append other sectors`,
    );
  }
}
