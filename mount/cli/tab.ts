/**
 * What a mount is to hold when it begins: the lines of mount files (/etc/dmfuse/NAME.tab) and of `--create`.
 *
 *     # A comment, alone on its line; blank lines are skipped.
 *     disk linear /img/disk.img 0
 *     sys bow @disk 1 block_size:1024
 *     disk filter blksnap
 *
 * `NAME TABLE` makes a target, `NAME filter TYPE ARGS` attaches a filter to it as soon as it is made. A colon after NAME is
 * dropped, so that what `dmfuse table MNT` prints is such a file. Lines may stand in any order: a target is made after all
 * that its table names as `@NAME`. Everything that can be known without opening a device is checked before anything is mounted.
 */
import { readFileSync } from 'node:fs';
import { DmError, type ErrnoName, messageOf, naming } from '../../src/errors.js';
import { filterType } from '../../src/filters/index.js';
import { parseTableLine, splitWords } from '../../src/table.js';
import { targetType } from '../../src/targets/index.js';
import type { TargetToCreate } from '../daemon.js';

const FILTER = 'filter';
const NOT_MADE = 'no line makes a target of that name';

/** A line that is no comment. */
export interface TabLine {
  /** For messages; undefined for one of the command line, which whoever typed it knows. */
  readonly where: string | undefined;
  readonly name: string;
  /** What follows NAME. */
  readonly text: string;
}

/** Reads a mount file. Throws ENOENT, and EINVAL naming the line. */
export function readTab(file: string): TabLine[] {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new DmError('ENOENT', `the mount file ${file} cannot be read: ${messageOf(error)}`);
  }
  return parseTab(text, file);
}

/** The lines of a mount file; `file` is what messages call it. Throws EINVAL naming the line. */
export function parseTab(text: string, file: string): TabLine[] {
  return text.split('\n').flatMap((line, index) => {
    if (/^\s*(#|$)/.test(line)) return [];
    const where = `${file}: line ${index + 1}`;
    const words = splitName(line);
    if (!words) throw new DmError('EINVAL', `${where}: expected \`NAME TABLE\`, found \`${line.trim()}\``);
    if (/(^|[^\\])(\\\\)*\\$/.test(line)) {
      throw new DmError('EINVAL', `${where}: ends in a backslash: a path with a newline has no place here`);
    }
    return [{ where, name: words.name.replace(/(?<=.):$/, ''), text: words.text }];
  });
}

/** `--create 'NAME TABLE'`. Throws EINVAL. */
export function parseCreate(argument: string): TabLine {
  const words = splitName(argument);
  if (words) return { where: undefined, ...words };
  throw new DmError('EINVAL', `--create '${argument}': expected 'NAME TABLE', e.g. 'sys bow /img/disk.img'`);
}

/**
 * The targets of all lines, what others stand on first, and else in the order of the lines. Throws EINVAL for a type that
 * there is not and for a circle, ENOENT for a name that no line makes, EEXIST for a target or filter that is given twice.
 */
export function targetsOf(lines: readonly TabLine[]): TargetToCreate[] {
  const filters = new Map<string, TabLine>();
  const tables = new Map<string, TabLine>();
  for (const line of lines) {
    const [word = '', type = ''] = splitWords(line.text);
    const isFilter = word === FILTER;
    const others = isFilter ? filters : tables;
    const other = others.get(line.name);
    if (other)
      refuse(line, 'EEXIST', `${isFilter ? 'the filter of ' : ''}${line.name}: exists${placeOf(other)}`);
    at(line, () => (isFilter ? filterType(type) : targetType(parseTableLine(line.text).type)));
    others.set(line.name, line);
  }
  for (const line of filters.values()) {
    if (!tables.has(line.name)) refuse(line, 'ENOENT', `${line.name}: ${NOT_MADE}`);
  }
  return inOrder(tables).map(({ where, name, text: table }) => {
    const filter = filters.get(name);
    const attach = filter && { where: filter.where, line: filter.text.trim().replace(/^\S+\s+/, '') };
    return { where, name, table, filter: attach };
  });
}

/** Depth first, so that a line moves only for what it stands on. */
function inOrder(tables: ReadonlyMap<string, TabLine>): TabLine[] {
  const ordered = new Set<TabLine>();
  const visit = (line: TabLine, above: readonly string[]) => {
    if (ordered.has(line)) return;
    const names = [...above, line.name];
    if (above.includes(line.name)) {
      const circle = names.slice(names.indexOf(line.name)).join(' → ');
      refuse(line, 'EINVAL', `a circle, in which each stands on the next: ${circle}`);
    }
    for (const word of splitWords(line.text).filter((candidate) => candidate.startsWith('@'))) {
      const below = tables.get(word.slice(1));
      if (!below) refuse(line, 'ENOENT', `${word}: ${NOT_MADE}`);
      visit(below, names);
    }
    ordered.add(line);
  };
  for (const line of tables.values()) visit(line, []);
  return [...ordered];
}

function splitName(line: string): { name: string; text: string } | undefined {
  const [, name, text] = /^\s*(\S+)\s+(\S.*)$/s.exec(line) ?? [];
  return name === undefined || text === undefined ? undefined : { name, text };
}

function at<T>({ where }: TabLine, work: () => T): T {
  return where === undefined ? work() : naming(where, work);
}

function refuse(line: TabLine, code: ErrnoName, message: string): never {
  return at(line, () => {
    throw new DmError(code, message);
  });
}

function placeOf({ where }: TabLine): string {
  return where === undefined ? '' : ` (${where})`;
}
