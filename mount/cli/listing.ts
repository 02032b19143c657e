/** `dmfuse ls`, `status`, `table`, `info`, `deps`: what the control files of all targets say, side by side. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { DmError } from '../../src/errors.js';
import { splitWords } from '../../src/table.js';
import { lacksLine, parseFacts } from '../transport.js';
import { SNAPSHOTS } from '../tree/folder.js';
import { explain, readControl, whyNoAnswer } from './control.js';
import { requireMount } from './find-mount.js';
import { print, printJson } from './output.js';

interface ListOptions {
  readonly json: boolean;
}

interface ColumnOptions extends ListOptions {
  readonly fields?: readonly string[];
  readonly noheadings: boolean;
}

/** What the file `info` of a target says. */
interface TargetInfo {
  readonly name: string;
  readonly state: string;
  readonly type: string;
  readonly lengthSectors: number;
  readonly openCount: number;
  readonly eventNr: number;
  readonly filter: string;
  readonly removal: string;
}

interface Dependency {
  readonly access: string;
  readonly device: string;
}

/** A target as all these verbs see it; its files are read when they are asked for. */
class Listed {
  constructor(
    private readonly mountPoint: string,
    readonly name: string,
  ) {}

  read(file: string): string {
    return readControl(join(this.mountPoint, this.name), file);
  }

  get info(): TargetInfo {
    const lines = Object.fromEntries(this.read('info').split('\n').map(keyAndValue));
    return {
      name: this.name,
      state: lines.state ?? '',
      type: lines.type ?? '',
      lengthSectors: Number(lines.length_sectors),
      openCount: Number(lines.open_count),
      eventNr: Number(lines.event_nr),
      filter: lines.filter ?? '',
      removal: lines.removal ?? '',
    };
  }

  get isLive(): boolean {
    return !['no_table', 'failed'].includes(this.info.state);
  }

  get deps(): Dependency[] {
    if (!this.isLive) return [];
    return lines(this.read('deps')).map((line) => {
      const [access = '', device = ''] = splitWords(line);
      return { access, device };
    });
  }
}

const COLUMNS: Readonly<Record<string, { heading: string; of: (target: Listed) => string | number }>> = {
  name: { heading: 'Name', of: ({ name }) => name },
  type: { heading: 'Type', of: ({ info: { type } }) => type },
  state: { heading: 'State', of: ({ info: { state } }) => state },
  sectors: { heading: 'Sectors', of: ({ info: { lengthSectors } }) => lengthSectors },
  open: { heading: 'Open', of: ({ info: { openCount } }) => openCount },
  events: { heading: 'Events', of: ({ info: { eventNr } }) => eventNr },
  filter: { heading: 'Filter', of: ({ info: { filter } }) => filter },
  removal: { heading: 'Removal', of: ({ info: { removal } }) => removal },
  deps: { heading: 'Deps', of: ({ deps }) => deps.map(({ device }) => device).join(',') },
  table: { heading: 'Table', of: (target) => target.read('table') },
};

export function list(mountArgument: string, options: ColumnOptions & { readonly tree: boolean }): void {
  const targets = targetsOf(mountArgument);
  if (options.fields) {
    printColumns(targets, options.fields, options);
  } else if (options.tree) {
    printTree(targets, options);
  } else if (options.json) {
    printJson({
      targets: targets.map(({ name, info: { type, lengthSectors } }) => ({
        name,
        ...(type === '-' ? {} : { type, lengthSectors }),
      })),
    });
  } else {
    const width = Math.max(0, ...targets.map(({ name }) => name.length));
    for (const { name, info } of targets) {
      print(`${name.padEnd(width)}  ${info.type}  ${info.lengthSectors} sectors\n`);
    }
  }
}

export function status(mountArgument: string, name: string | undefined, { json }: ListOptions): void {
  const targets = targetsOf(mountArgument, name);
  const transport =
    name === undefined ? parseFacts(readControl(requireMount(mountArgument), '.dmfuse')) : undefined;
  if (json) {
    const facts = transport && {
      name: transport.name,
      lacks: transport.lacks,
      requestBytesMax: transport.requestBytesMax,
    };
    printJson({ ...(facts && { transport: facts }), targets: targets.map(describeStatus) });
    return;
  }
  const lacks = transport && lacksLine(transport);
  if (lacks !== undefined) print(`${lacks}\n`);
  printLines(targets, name, (target) => target.read('status'));
}

/** Of all targets it is a mount file: `NAME: TABLE` lines, and `NAME: filter FILTER` where one has a filter. */
export function table(mountArgument: string, name: string | undefined, { json }: ListOptions): void {
  const targets = targetsOf(mountArgument, name)
    .filter(({ isLive }) => isLive)
    .map((target) => ({ name: target.name, table: target.read('table'), filter: target.read('filter') }));
  if (json) {
    printJson({ targets });
    return;
  }
  for (const { name: each, table: line, filter } of targets) {
    print(name === undefined ? `${each}: ${line}\n` : `${line}\n`);
    if (name === undefined && filter !== 'none') print(`${each}: filter ${filter}\n`);
  }
}

export function deps(mountArgument: string, name: string | undefined, { json }: ListOptions): void {
  const targets = targetsOf(mountArgument, name);
  if (json) printJson({ targets: targets.map((target) => ({ name: target.name, deps: target.deps })) });
  else {
    printLines(targets, name, (target) => {
      const devices = target.deps.map(({ access, device }) => `${device} (${access})`);
      return `${devices.length} dependencies${devices.length > 0 ? ' : ' : ''}${devices.join(', ')}`;
    });
  }
}

export function info(mountArgument: string, name: string | undefined, options: ColumnOptions): void {
  const targets = targetsOf(mountArgument, name);
  if (options.fields) {
    printColumns(targets, options.fields, options);
    return;
  }
  if (options.json) {
    printJson({ targets: targets.map((target) => target.info) });
    return;
  }
  const pages = targets.map(({ info: found }) =>
    Object.entries({
      Name: found.name,
      State: found.state.toUpperCase(),
      Type: found.type,
      Sectors: found.lengthSectors,
      'Open count': found.openCount,
      'Event number': found.eventNr,
      Filter: found.filter,
      Removal: found.removal,
    })
      .map(([key, value]) => `${`${key}:`.padEnd(18)}${value}\n`)
      .join(''),
  );
  print(pages.join('\n'));
}

function printLines(
  targets: readonly Listed[],
  name: string | undefined,
  of: (target: Listed) => string,
): void {
  for (const target of targets) print(`${name === undefined ? `${target.name}: ` : ''}${of(target)}\n`);
}

function printColumns(
  targets: readonly Listed[],
  fields: readonly string[],
  { json, noheadings }: ColumnOptions,
): void {
  const columns = fields.map((field) => {
    if (Object.hasOwn(COLUMNS, field)) return { field, ...COLUMNS[field]! };
    throw new DmError('EINVAL', `-o ${field}: expected some of ${Object.keys(COLUMNS).join(', ')}`);
  });
  if (json) {
    printJson({
      targets: targets.map((target) =>
        Object.fromEntries(columns.map(({ field, of }) => [field, of(target)])),
      ),
    });
    return;
  }
  const rows = targets.map((target) => columns.map(({ of }) => String(of(target))));
  if (!noheadings) rows.unshift(columns.map(({ heading }) => heading));
  const widths = columns.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  for (const row of rows) {
    print(
      `${row
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join('  ')
        .trimEnd()}\n`,
    );
  }
}

interface Branch {
  readonly name: string;
  readonly type?: string;
  readonly on: readonly Branch[];
}

/** What nothing stands on comes first, and below each what it stands on, down to files. */
function printTree(targets: readonly Listed[], { json }: ListOptions): void {
  const byName = new Map(targets.map((target) => [`@${target.name}`, target]));
  const depsOf = new Map(targets.map((target) => [target, target.deps.map(({ device }) => device)]));
  const used = new Set([...depsOf.values()].flat());
  const branch = (target: Listed): Branch => ({
    name: target.name,
    type: target.info.type,
    on: depsOf.get(target)!.map((device) => {
      const below = byName.get(device);
      return below ? branch(below) : { name: device, on: [] };
    }),
  });
  const roots = targets.filter(({ name }) => !used.has(`@${name}`)).map(branch);
  if (json) printJson({ tree: roots });
  else for (const root of roots) printBranch(root, '', '');
}

function printBranch({ name, type, on }: Branch, first: string, rest: string): void {
  print(`${first}${name}${type ? ` (${type})` : ''}\n`);
  for (const [index, below] of on.entries()) {
    const isLast = index === on.length - 1;
    printBranch(below, `${rest} ${isLast ? '└' : '├'}─`, `${rest} ${isLast ? ' ' : '│'} `);
  }
}

function describeStatus(target: Listed) {
  const { name } = target;
  const line = target.read('status');
  const [, length, type, rest = ''] = /^0 (\d+) (\S+) ?(.*)$/s.exec(line) ?? [];
  if (type === undefined) return { name, error: line };
  const stats = Object.fromEntries(
    lines(target.read('stats'))
      .map(keyAndValue)
      .map(([key, value]) => [key, Number(value)]),
  );
  return { name, type, lengthSectors: Number(length), status: rest, stats };
}

function targetsOf(mountArgument: string, name?: string): Listed[] {
  const mountPoint = requireMount(mountArgument);
  const names = readNames(mountPoint).filter((known) => name === undefined || known === name);
  if (name !== undefined && names.length === 0) {
    throw new DmError('ENOENT', `${name}: there is no target of that name in ${mountPoint}`);
  }
  return names.map((known) => new Listed(mountPoint, known));
}

function readNames(mountPoint: string): string[] {
  try {
    return readdirSync(mountPoint).filter((name) => name !== SNAPSHOTS);
  } catch (error) {
    throw explain(error, mountPoint, whyNoAnswer(mountPoint));
  }
}

function lines(text: string): string[] {
  return text.split('\n').filter(Boolean);
}

function keyAndValue(line: string): [string, string] {
  const [, key = '', value = ''] = /^(\S+) ?(.*)$/.exec(line) ?? [];
  return [key, value];
}
