/**
 * Anything written to and read from every control file there is, of targets, filters and snapshots, in any order, on real files. What is
 * refused is refused with an errno and a sentence; nothing hangs, and afterwards everything still answers and can be taken away.
 */
import {
  closeSync,
  constants,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { constants as osConstants } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { folderNode, ROOT } from '../../mount/tree/nodes.js';
import { params } from '../../src/filters/blksnap/params.js';
import { fuzz } from '../targets/harness.js';
import { mountTest } from './harness.js';
import { type InProcessMount, inProcessMount } from './in-process.js';
import { DISK_BYTES, type SmallDisk, scratchFolder, smallDisks } from './small-disks.js';

/** Steps of a run, and runs of a group. */
const STEPS = 40;
const RUNS = 250;
const O_RDWR = 2;
const NO_SIGNAL = new AbortController().signal;

const folder = scratchFolder();
const storage = ['storage1', 'storage2'].map((name) => join(folder, name));
const log = join(folder, 'log');
let disks: SmallDisk[] = [];
let contents = new Map<string, Buffer>();
const initialParams = new Map(params.names.map((name) => [name, params.get(name)]));

beforeAll(async () => {
  disks = await smallDisks(folder);
  contents = new Map(disks.flatMap(({ files }) => files.map((path) => [path, readFileSync(path)])));
});

afterAll(() => rmSync(folder, { recursive: true }));

const number = fc.oneof(
  fc.integer({ min: -1, max: 140 }).map(String),
  fc
    .constantFrom(
      2 ** 31,
      2 ** 32,
      2 ** 40,
      Number.MAX_SAFE_INTEGER,
      '99999999999999999999',
      '1.5',
      '0x1',
      '',
    )
    .map(String),
);
const range = fc.oneof(
  { weight: 4, arbitrary: fc.tuple(fc.nat({ max: 127 }), fc.nat({ max: 30 })) },
  fc.tuple(number, number),
);
const ranges = fc
  .array(range, { minLength: 1, maxLength: 4 })
  .map((all) => all.map((pair) => pair.join(' ')).join('\n'));
const DISKS = ['linear', 'bow', 'csum', 'cow', 'clone', 'spare'];
const SNAPSHOTS = ['s1', 's2'];
const disk = fc.constantFrom(...DISKS);
const snapshot = fc.constantFrom(...SNAPSHOTS);
const noise = fc.oneof(
  fc.string({ maxLength: 30 }),
  fc.string({ unit: 'binary', maxLength: 30 }),
  fc.constantFrom('', '\n', '\0', ' '),
);
// Little or far too much: what lies between, a file system would really give.
const room = fc.constantFrom('1', '8', '64', '512', '4096', '0', '-1', '9007199254740991', 'x');
/** What files take, nearly. */
const texts: Readonly<Record<string, fc.Arbitrary<string>>> = {
  state: fc.constantFrom('0', '1', '2', '3', '1 ', '01'),
  discard: ranges,
  cbtdirty: ranges,
  filter: fc.constantFrom(
    'blksnap',
    'none',
    `log-writes ${log}`,
    'blksnap x',
    'none x',
    'log-writes',
    'log-writes /dev/null',
    'x',
  ),
  scrub: fc.constantFrom('start', 'stop', 'start x'),
  hydration: fc.constantFrom('0', '1', '2'),
  hydration_threshold: number,
  hydration_batch_size: number,
  mark: fc.oneof(fc.constantFrom('a mark', 'x'.repeat(5000), '\0'), noise),
  take: fc.constantFrom('1', '0', '1\n'),
  devices: fc.tuple(fc.constantFrom('add', 'remove', ''), disk).map((words) => words.join(' ')),
  storage: fc
    .tuple(fc.constantFrom(...storage, '/nowhere', folder, '/dev/null'), number, room)
    .map((words) => words.join(' ')),
  snapshot,
  table: fc.oneof(
    disk.map((name) => `linear @${name} 0`),
    disk.map((name) => `bow @${name} 1 block_size:512`),
    fc.constantFrom('linear @spare 0', 'cow @linear 0', `linear ${storage[0]} 0`),
  ),
};

/** One thing that somebody does. It throws what is refused. */
interface Step {
  readonly what: string;
  run(mount: InProcessMount): unknown;
}

/** The node of a path from the mount point on. Throws ENOENT. */
function nodeOf({ tree }: InProcessMount, path: string): number {
  let node = ROOT;
  for (const name of path.split('/')) node = tree.lookup(node, name).node;
  return node;
}

/** Opens a file for a while. */
async function using(mount: InProcessMount, path: string, work: (handle: number) => unknown): Promise<void> {
  const { handle } = mount.tree.open(nodeOf(mount, path), O_RDWR);
  try {
    await work(handle);
  } finally {
    mount.tree.release(handle);
  }
}

function writing(path: string, text: string): Step {
  return {
    what: `echo ${JSON.stringify(text)} > ${path}`,
    run: (mount) => using(mount, path, (handle) => mount.tree.write(handle, Buffer.from(text))),
  };
}

const far = fc.oneof(fc.nat({ max: 300 }), fc.constantFrom(0, 2 ** 20, 2 ** 32 - 1, 2 ** 53, 2 ** 63));

function readingOf(path: string): fc.Arbitrary<Step> {
  return fc.tuple(far, far).map(([offset, length]) => ({
    what: `read ${length} of ${path} at ${offset}`,
    run: (mount) =>
      using(mount, path, async (handle) => {
        const options = { nonBlocking: true, signal: NO_SIGNAL };
        const bytes = await mount.tree.read(handle, offset, length, options);
        expect(bytes.length).toBeLessThanOrEqual(length);
      }),
  }));
}

/** Writes and reads of one control file, of its own kind for the most part. */
function stepsOf(path: string, name: string): fc.Arbitrary<Step> {
  const fitting = texts[name] ?? number;
  const text = fc.oneof(
    { weight: 6, arbitrary: fitting },
    noise,
    fc.constantFrom(...Object.values(texts)).chain((any) => any),
  );
  return fc.oneof({ weight: 2, arbitrary: text.map((line) => writing(path, line)) }, readingOf(path));
}

const COMMON_FILES = ['table', 'status', 'size', 'stats', 'events', 'discard'];
const FILTER_FILES = ['filter', 'filter', 'filter', 'cbtinfo', 'cbtmap', 'cbtdirty', 'snapshot', 'mark'];
const SNAPSHOT_FILES = ['id', 'devices', 'devices', 'storage', 'storage', 'take', 'take', 'state', 'events'];

const filesOf = (folders: readonly string[], names: readonly string[]) =>
  fc
    .tuple(fc.constantFrom(...folders), fc.constantFrom(...names))
    .chain(([where, name]) => stepsOf(`${where}/${name}`, name));
const onTargets = fc.oneof(
  filesOf(DISKS, COMMON_FILES),
  filesOf(['bow'], ['state', 'state', 'free', 'ranges']),
  filesOf(['csum', 'cow'], ['scrub', 'errors', 'layers']),
  filesOf(['clone'], ['hydration', 'hydration_threshold', 'hydration_batch_size', 'regions']),
);
const onFilters = filesOf(DISKS, FILTER_FILES);
const makingSnapshot = (name: string): Step => ({
  what: `mkdir snapshots/${name}`,
  run: ({ tree, snapshots }) => tree.makeDirectory(folderNode(snapshots.folder.id), name),
});

const onSnapshots = fc.oneof(
  {
    weight: 5,
    arbitrary: filesOf(
      SNAPSHOTS.map((name) => `snapshots/${name}`),
      SNAPSHOT_FILES,
    ),
  },
  filesOf(['snapshots/params'], params.names),
  snapshot.map(
    (name): Step => ({
      what: `mkdir snapshots/${name}`,
      run: ({ tree, snapshots }) => tree.makeDirectory(folderNode(snapshots.folder.id), name),
    }),
  ),
  snapshot.map(
    (name): Step => ({
      what: `rmdir snapshots/${name}`,
      run: ({ tree, snapshots }) => tree.removeDirectory(folderNode(snapshots.folder.id), name),
    }),
  ),
);
/** Data comes and goes meanwhile, and a target. */
const onDevices = fc.oneof(
  fc.tuple(disk, fc.nat({ max: DISK_BYTES - 1 }), fc.integer({ min: 1, max: 9000 }), fc.nat({ max: 3 })).map(
    ([name, offset, bytes, kind]): Step => ({
      what: `${['read', 'write', 'zero', 'flush'][kind]} ${bytes} of ${name} at ${offset}`,
      run({ registry }) {
        const output = registry.get(name)?.live?.output;
        const length = Math.min(bytes, (output?.size ?? 0) - offset);
        if (!output || length <= 0) return;
        if (kind === 0) output.read(offset, new Uint8Array(length));
        else if (kind === 1) output.write(offset, new Uint8Array(length).fill(offset));
        else if (kind === 2) output.writeZeroes(offset, length, { unmap: bytes % 2 === 0 });
        else output.flush();
      },
    }),
  ),
  fc.constant<Step>({ what: 'mkdir spare', run: ({ tree }) => tree.makeDirectory(ROOT, 'spare') }),
  fc.constant<Step>({ what: 'rmdir spare', run: ({ tree }) => tree.removeDirectory(ROOT, 'spare') }),
);

const track = (name: string) => writing(`${name}/filter`, 'blksnap');
/** From here a take works. */
const SNAPSHOT_BEGUN: readonly Step[] = [
  ...['linear', 'bow', 'clone'].map(track),
  makingSnapshot('s1'),
  writing('snapshots/s1/devices', 'add linear'),
  writing('snapshots/s1/storage', `${storage[0]} 0 64`),
];

async function freshMount(): Promise<InProcessMount> {
  for (const [path, content] of contents) writeFileSync(path, content);
  for (const path of [...storage, log]) {
    writeFileSync(path, '');
    if (path !== log) truncateSync(path, 1 << 20);
  }
  for (const [name, value] of initialParams) params.set(name, String(value));
  params.set('diff_storage_minimum', '64');
  params.set('chunk_minimum_shift', '12');
  const mount = inProcessMount();
  for (const { name, table } of disks) await mount.registry.load(mount.registry.add(name), table);
  return mount;
}

/** Everything answers, everything goes, and nothing of it stays behind. */
async function takeAway(mount: InProcessMount, filesBefore: number): Promise<void> {
  const { registry, tree, snapshots } = mount;
  for (const { id, name } of registry.all()) {
    expect(tree.attributes(folderNode(id)).node).toBe(folderNode(id));
    const node = nodeOf(mount, `${name}/status`);
    const { handle } = tree.open(node, O_RDWR);
    expect(`${await tree.read(handle, 0, 4096, { nonBlocking: true, signal: NO_SIGNAL })}`).toMatch(
      /^(0 |no table|failed: )/,
    );
    tree.release(handle);
  }
  for (const { name } of snapshots.folder.folders()) {
    if (name !== 'params') await tree.removeDirectory(folderNode(snapshots.folder.id), name);
  }
  // Those that stand on others first.
  for (const { name } of registry.all().reverse()) await tree.removeDirectory(ROOT, name);
  expect(readdirSync('/proc/self/fd').length).toBe(filesBefore);
}

function isRefusal(error: unknown): boolean {
  const { code, message } = error as { code?: string; message?: string };
  return code !== undefined && code in osConstants.errno && message !== undefined && message.length > 3;
}

describe('any order of commands', () => {
  test.each([
    { of: 'targets', weights: { t: 6, f: 1, s: 0, d: 2 }, prelude: [writing('bow/discard', '64 32')] },
    { of: 'filters', weights: { t: 1, f: 6, s: 2, d: 3 }, prelude: [track('bow'), track('cow')] },
    { of: 'snapshots', weights: { t: 0, f: 1, s: 8, d: 3 }, prelude: SNAPSHOT_BEGUN },
  ])(
    'of $of',
    async ({ weights: { t, f, s, d }, prelude }) => {
      const step = fc.oneof(
        { weight: t, arbitrary: onTargets },
        { weight: f, arbitrary: onFilters },
        { weight: s, arbitrary: onSnapshots },
        { weight: d, arbitrary: onDevices },
      );
      const done = new Map<string, number>();
      const property = fc.asyncProperty(
        fc.array(step, { minLength: STEPS, maxLength: STEPS }),
        async (steps) => {
          const filesBefore = readdirSync('/proc/self/fd').length;
          const mount = await freshMount();
          const history: string[] = [];
          for (const { what, run } of [...prelude, ...steps]) {
            history.push(what);
            try {
              await run(mount);
              const name = what.split('/').at(-1)!;
              if (what.startsWith('echo')) done.set(name, (done.get(name) ?? 0) + 1);
            } catch (error) {
              if (!isRefusal(error))
                throw new Error(`${history.join('\n')}\n: ${error instanceof Error ? error.stack : error}`);
            }
          }
          await takeAway(mount, filesBefore).catch((error) => {
            throw new Error(`${history.join('\n')}\n: ${error.stack}`);
          });
        },
      );
      await fuzz(property, { runs: RUNS, pure: false });
      // Not all of it was refused.
      expect([...done.values()].reduce((sum, count) => sum + count, 0)).toBeGreaterThan(RUNS / 2);
    },
    120_000,
  );
});

mountTest('the same through the kernel: an errno, and the daemon goes on', async (lab) => {
  const { point, path, read, create, daemonIsAlive } = await lab.mount();
  for (const { name, table } of await smallDisks(lab.folder)) await create(name, table);
  await lab.sh(`echo blksnap >${path('bow/filter')}; mkdir ${path('snapshots/s1')}`);
  const text = fc.oneof(
    noise,
    fc.constantFrom(...Object.values(texts)).chain((any) => any),
  );
  const file = fc.constantFrom(...(await lab.sh(`find ${point} -type f ! -name device`)).trim().split('\n'));
  const property = fc.property(file, text, fc.nat({ max: 300 }), (name, line, offset) => {
    let fd: number | undefined;
    try {
      fd = openSync(name, constants.O_RDWR | constants.O_NONBLOCK);
      readSync(fd, Buffer.alloc(4096), 0, 4096, offset);
      writeSync(fd, line, offset);
    } catch (error) {
      if (!isRefusal(error)) throw error;
    } finally {
      if (fd !== undefined) closeSync(fd);
    }
  });
  await fuzz(property, { runs: 1500, pure: false });
  expect(daemonIsAlive).toBe(true);
  for (const { name } of disks) expect(read(`${name}/status`)).toMatch(new RegExp(`^0 \\d+ ${name}`));
});
