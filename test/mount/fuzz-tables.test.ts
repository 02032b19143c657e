/**
 * Tables that nobody should write, for every target type over real files. Each makes a target or is refused with a sentence and an errno;
 * what is refused has written nothing and holds nothing.
 */
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { statusLine, tableLine } from '../../mount/slot.js';
import { DmError, errnoOf } from '../../src/errors.js';
import { libcFunction } from '../../src/libc.js';
import { parseTableLine, quoteWord, splitWords } from '../../src/table.js';
import { fuzz } from '../targets/harness.js';
import { type InProcessMount, inProcessMount } from './in-process.js';
import { type SmallDisk, scratchFolder, smallDisks } from './small-disks.js';

const RUNS = 10_000;
const LONG_AGO_MS = 1_000_000_000_000;
const LOCK_EX_NB = 2 | 4;

const flock = libcFunction<[number, number]>('int flock(int fd, int operation)');
const folder = scratchFolder();
let disks: SmallDisk[] = [];
let files: string[] = [];
let contents: Buffer[] = [];
let mount: InProcessMount;

beforeAll(async () => {
  disks = await smallDisks(folder);
  files = disks.flatMap((disk) => [...disk.files]);
  contents = files.map((path) => readFileSync(path));
  mount = inProcessMount();
  mount.registry.add('empty');
  symlinkSync(join(folder, 'circle'), join(folder, 'circle'));
  execFileSync('mkfifo', [join(folder, 'fifo')]);
  writeFileSync(join(folder, 'nothing'), '');
  restore();
});

afterAll(() => rmSync(folder, { recursive: true }));

const counts = fc.oneof(
  fc.constantFrom('0', '1', '2', '7', '8', '64', '127', '128', '129', '-1', '1.5', '1e3', '0x10', 'NaN', '٣'),
  fc.constantFrom(2 ** 31, 2 ** 32, 2 ** 44, Number.MAX_SAFE_INTEGER).map(String),
  fc.bigInt({ min: 0n, max: 2n ** 70n }).map(String),
);
const options = fc.constantFrom(
  ...['no_passthrough', 'no_hydration', 'no_discard_passdown', 'hydration_threshold', 'hydration_batch_size'],
  ...[
    'block_size:512',
    'block_size:0',
    'block_size:3',
    'block_size:4096',
    'block_size:99999999999',
    'block_size:',
  ],
);
const paths = fc.oneof(
  fc.nat().map((i) => quoteWord(files[i % files.length]!)),
  fc
    .constantFrom('circle', 'fifo', 'nothing', 'missing', 'linear/below', 'nul\0l', '')
    .map((name) => `${folder}/${name}`),
  fc.constantFrom(
    '/',
    '//',
    '/dev/null',
    '/proc/self/mem',
    '@',
    '@x',
    '@empty',
    '@snapshots',
    '@../x',
    'relative',
  ),
  fc.integer({ min: 200, max: 5000 }).map((length) => `/${'p'.repeat(length)}`),
);
const word = fc.oneof(counts, options, paths, fc.string({ maxLength: 12 }));

/** What happens to the words of a table. */
type Mutation = (words: string[]) => void;
const at = fc.nat({ max: 40 });
const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.tuple(at, word).map(
    ([i, other]): Mutation =>
      (words) =>
        words.splice(i % (words.length + 1), 1, other),
  ),
  fc.tuple(at, word).map(
    ([i, other]): Mutation =>
      (words) =>
        words.splice(i % (words.length + 1), 0, other),
  ),
  at.map(
    (i): Mutation =>
      (words) =>
        words.splice(i % (words.length + 1), 1),
  ),
  fc.tuple(at, at).map(
    ([from, to]): Mutation =>
      (words) => {
        words[to % words.length] = words[from % words.length] ?? '';
      },
  ),
  counts.map(
    (length): Mutation =>
      (words) =>
        words.unshift('0', length),
  ),
  fc.tuple(at, fc.integer({ min: 1, max: 300 })).map(
    ([i, times]): Mutation =>
      (words) => {
        words.splice(
          i % (words.length + 1),
          0,
          ...Array.from({ length: times }, () => words[i % words.length] ?? 'x'),
        );
      },
  ),
);
const nearlyValid = fc.tuple(fc.nat(), fc.array(mutation, { maxLength: 4 })).map(([which, mutations]) => {
  const words = disks[which % disks.length]!.table.split(' ');
  for (const mutate of mutations) if (words.length > 0) mutate(words);
  return words.join(' ');
});
const noise = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 60 }),
  fc.array(word, { maxLength: 12 }).map((words) => words.join(' ')),
  fc
    .tuple(
      fc.constantFrom('linear', 'bow', 'csum', 'cow', 'clone', 'Linear', 'zero'),
      fc.array(word, { maxLength: 9 }),
    )
    .map(([type, words]) => [type, ...words].join(' ')),
);
const lines = fc.oneof({ weight: 3, arbitrary: nearlyValid }, noise);

/** All of them are somebody's to open, and hold what they did. */
function expectUntouched(): void {
  for (const path of files) {
    expect(statSync(path).mtimeMs, `${path} was written to`).toBe(LONG_AGO_MS);
    const fd = openSync(path, 'r+');
    flock(fd, LOCK_EX_NB);
    closeSync(fd);
  }
}

function restore(): void {
  for (const [i, content] of contents.entries()) {
    writeFileSync(files[i]!, content);
    // Any later write shows, however coarse the clock of the file system.
    utimesSync(files[i]!, LONG_AGO_MS / 1000, LONG_AGO_MS / 1000);
  }
}

function openFiles(): number {
  return readdirSync('/proc/self/fd').length;
}

test('a line that makes no target is refused with a sentence, and nothing has happened', async () => {
  const { registry } = mount;
  const before = openFiles();
  let accepted = 0;
  const property = fc.asyncProperty(lines, async (line) => {
    const slot = registry.add('x');
    try {
      await registry.load(slot, line);
      accepted++;
      // It can be read, and says how it is made again.
      expect(statusLine(slot)).toMatch(/^0 \d+ \w+/);
      expect(parseTableLine(tableLine(slot.live!)).args).toEqual(splitWords(slot.live!.target.tableArgs()));
      await registry.remove('x');
      restore();
    } catch (error) {
      if (slot.live || !(error instanceof DmError)) throw error;
      expect(Object.keys(constants.errno)).toContain(error.code);
      expect(error.message.length).toBeGreaterThan(5);
      expect(statusLine(slot)).toBe(`failed: ${error.message}`);
      expect(errnoOf(error)).toBeGreaterThan(0);
      expectUntouched();
      expect(openFiles()).toBe(before);
      await registry.remove('x');
    }
    expect(openFiles()).toBe(before);
  });
  await fuzz(property, { runs: RUNS, pure: false });
  // Or nothing has come as far as the devices.
  expect(accepted).toBeGreaterThan(RUNS / 50);
  for (const { table, name } of disks) await registry.load(registry.add(name), table);
  expect(await registry.close()).toEqual([]);
}, 180_000);

test('a path that no file can have is EINVAL, not a failure of ours', async () => {
  const { registry } = inProcessMount();
  const slot = registry.add('x');
  for (const device of ['/a\0b', `${folder}\0`]) {
    await expect(registry.load(slot, `linear ${device} 0`)).rejects.toMatchObject({ code: 'EINVAL' });
  }
});
