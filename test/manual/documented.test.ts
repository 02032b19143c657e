/** The manuals leave nothing out: no command, option, control file, parameter, counter, metric or event. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { type CommandEntry, commandEntries } from '../../mount/cli/completion/model.js';
import { helperArguments } from '../../mount/cli/mount-helper.js';
import { program } from '../../mount/cli/program.js';
import { STAT_NAMES } from '../../mount/lanes/stats.js';
import { messageOf } from '../../src/errors.js';
import { params } from '../../src/filters/blksnap/params.js';
import { filterTypes } from '../../src/filters/index.js';
import { targetTypes } from '../../src/targets/index.js';
import { type Mount, mountTest } from '../mount/harness.js';
import { manualPages, plainText, readText } from './examples.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const MAIN_PAGE = 'dmfuse.8';
const SNAPSHOTS_PAGE = 'dmfuse-blksnap.8';

const pages = new Map(manualPages().map((path) => [path.split('/').at(-1)!, plainText(readText(path))]));
const types = [
  ...targetTypes().map((type) => ({ ...type, folder: 'src/targets' })),
  ...filterTypes().map((type) => ({ ...type, folder: 'src/filters' })),
];

/** The paragraphs of a section that begin with a term: `.TP`, what it is called, the text. */
function entries(page: string): string[] {
  return (pages.get(page) ?? '').split(/^\.(?:TP|SH .*|SS .*)\n/m).slice(1);
}

/** What pages say of a command, its options included when they are paragraphs of their own, as those of `mount`. */
function entryOf({ path }: CommandEntry): string | undefined {
  const all = [...pages.keys()].flatMap(entries);
  const at = all.findIndex((entry) => new RegExp(`^(\\.TQ\n|dmfuse .*\n)*dmfuse ${path}(\\s|$)`).test(entry));
  const isOption = (entry: string) => entry.startsWith('-');
  const own = all.slice(at + 1).findIndex((entry) => !isOption(entry));
  return at < 0 ? undefined : all.slice(at, at + 1 + own).join('\n');
}

describe('commands', () => {
  for (const command of commandEntries(program(''))) {
    if (command.path === '') continue;
    test(`dmfuse ${command.path}`, () => {
      const entry = entryOf(command);
      expect(entry, `no page has an entry \`dmfuse ${command.path}\``).toBeDefined();
      const flags = command.options
        .flatMap((option) => option.flags)
        .filter((flag) => !/^(-h|--help)$/.test(flag));
      expect(flags.filter((flag) => !new RegExp(`(^|[^\\w-])${flag}(?![\\w-])`).test(entry!))).toEqual([]);
    });
  }
});

describe('targets and filters', () => {
  for (const { name, usage, files, folder } of types) {
    const page = `dmfuse-${name}.8`;
    test(`${name} has a page in its folder, with its arguments and control files`, () => {
      expect(readdirSync(join(ROOT, folder, name))).toContain(page);
      const words = usage.split(/[\s[\]{}|…]+/).filter((word) => /\w/.test(word));
      expect(words.filter((word) => !pages.get(page)!.includes(word))).toEqual([]);
      expect(files.map((file) => file.name).filter((file) => !termsOf(page).has(file))).toEqual([]);
      expect(pages.get(MAIN_PAGE)).toContain(`dmfuse-${name}(8)`);
    });
  }

  test('parameters and counters', () => {
    expect(params.names.filter((name) => !termsOf(SNAPSHOTS_PAGE).has(name))).toEqual([]);
    expect(STAT_NAMES.filter((name) => !new RegExp(`\\b${name}\\b`).test(pages.get(MAIN_PAGE)!))).toEqual([]);
  });
});

/** What the paragraphs of a page begin with. */
function termsOf(page: string): Set<string> {
  return new Set(
    entries(page).flatMap((entry) => {
      const lines = entry.split('\n');
      const terms = lines.slice(0, 1);
      for (let i = 1; lines[i] === '.TQ'; i += 2) terms.push(lines[i + 1]!);
      return terms;
    }),
  );
}

mountTest('every file that a mount shows is in a page', async (lab) => {
  await lab.sh('truncate -s 1M disk.img');
  const mount: Mount = await lab.mount({
    args: ['--create', `sys linear ${lab.path('disk.img')} 0 1 no_passthrough`],
  });
  const common = readdirSync(mount.path('sys'));
  expect(common.filter((file) => !termsOf(MAIN_PAGE).has(file))).toEqual([]);
  await lab.sh(`echo blksnap > ${mount.path('sys/filter')}; mkdir ${mount.path('snapshots/s')}`);
  const tracked = readdirSync(mount.path('sys')).filter((file) => !common.includes(file));
  expect(tracked).not.toEqual([]);
  expect(tracked.filter((file) => !termsOf(SNAPSHOTS_PAGE).has(file))).toEqual([]);
  const ofSnapshot = readdirSync(mount.path('snapshots/s')).map((file) => `S/${file}`);
  const known = [...termsOf(SNAPSHOTS_PAGE)];
  expect(ofSnapshot.filter((file) => !known.some((term) => term.startsWith(file)))).toEqual([]);
  await mount.umount();
});

describe('events', () => {
  // A line of `events` is always made from a template: `name key=${…}`.
  const names = new Set<string>();
  for (const folder of ['src', 'mount']) {
    for (const path of readdirSync(join(ROOT, folder), { recursive: true }) as string[]) {
      if (!path.endsWith('.ts') || path.startsWith('cli/')) continue;
      for (const [, name] of readFileSync(join(ROOT, folder, path), 'utf8').matchAll(
        /`([a-z_]+) [a-z_]+=\$\{/g,
      )) {
        names.add(name!);
      }
    }
  }

  test('are found', () => expect(names.size).toBeGreaterThan(20));
  for (const name of names) {
    test(name, () => {
      const terms = [...pages.keys()].flatMap((page) => [...termsOf(page)]);
      expect(terms.some((term) => term.startsWith(`${name} `))).toBe(true);
    });
  }
});

describe('metrics', () => {
  const source = readFileSync(join(ROOT, 'mount/cli/prometheus.ts'), 'utf8');
  const names = [...new Set([...source.matchAll(/'(dmfuse_[a-z_]+)'/g)].map(([, name]) => name!))];

  test('are in the page, and no others', () => {
    expect(names.length).toBeGreaterThan(20);
    const [, section = ''] = /^\.SH METRICS\n(.*?)^\.SH /ms.exec(pages.get(MAIN_PAGE)!) ?? [];
    const told = [...section.matchAll(/dmfuse_[a-z_]+/g)].map(([name]) => name);
    expect(told.sort()).toEqual(names.sort());
  });
});

describe('mount.dmfuse', () => {
  /** What it calls known, when it is given an option that is not. */
  function knownOptions(): string[] {
    try {
      helperArguments(['none', '/mnt', '-o', 'no_such_option']);
    } catch (error) {
      const [, list = ''] = /known are (.*), and the parameters of blksnap$/.exec(messageOf(error)) ?? [];
      return list.split(', ').map((option) => option.replace('…', ''));
    }
    return [];
  }

  test('every option of fstab is in its page', () => {
    const known = knownOptions();
    expect(known).toContain('lanes=');
    const terms = [...termsOf('mount.dmfuse.8')];
    expect(known.filter((option) => !terms.some((term) => term.startsWith(option)))).toEqual([]);
  });
});

test('every page is installed', () => {
  const { man } = JSON.parse(readText('package.json'));
  expect([...man].sort()).toEqual(manualPages().sort());
});

mountTest('pages are good man(7), and `man` shows them', async (lab) => {
  for (const path of manualPages()) {
    const file = join(ROOT, path);
    const { stdout, stderr } = await lab.run('groff', ['-man', '-Tutf8', '-ww', '-z', file]);
    expect({ path, stdout, stderr }).toEqual({ path, stdout: '', stderr: '' });
    expect(readText(path)).toMatch(/^\.SH NAME\n\S+ \\- /m);
  }
});

test('limitations stand right after the description', () => {
  for (const [page, text] of pages) {
    const headings = [...text.matchAll(/^\.SH (.*)/gm)].map(([, heading]) => heading);
    if (!page.endsWith('.8')) continue;
    expect({ page, headings: headings.slice(0, 5) }).toEqual({
      page,
      headings: ['NAME', 'SYNOPSIS', 'DESCRIPTION', 'LIMITATIONS', 'EXAMPLES'],
    });
  }
});
