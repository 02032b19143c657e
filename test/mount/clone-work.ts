/** What tests of clones over real mounts share: their files, their tables, and how far they are. */
import { readFileSync, writeFileSync } from 'node:fs';
import { expect } from 'vitest';
import { type Lab, type Mount, until } from './harness.js';

export interface TableOptions {
  /** Before the names of the metadata and the destination. */
  readonly prefix?: string;
  readonly source?: string;
  /** Sectors. */
  readonly region?: number;
  /** Features and core arguments. */
  readonly options?: string;
}

/** The table of the clone that `makeTargetFiles` made the files of. */
export function cloneTable(
  lab: Lab,
  { prefix = '', source = lab.path('source.img'), region = 8, options = '' }: TableOptions = {},
): string {
  return `clone ${lab.path(`${prefix}meta`)} ${lab.path(`${prefix}dest.img`)} ${source} ${region} ${options}`.trimEnd();
}

/** Metadata and destination of a clone that is to be: holes. */
export async function makeTargetFiles(lab: Lab, mebibytes: number, prefix = ''): Promise<void> {
  await lab.sh(`truncate -s 1M ${prefix}meta; truncate -s ${mebibytes}M ${prefix}dest.img`);
}

/** How far a clone is, as its status line says. */
export function hydrationOf(mount: Mount, name = 'x') {
  const status = mount.read(`${name}/status`);
  const found = / clone 8 \d+\/\d+ \d+ (\d+)\/(\d+) (\d+) /.exec(status);
  if (!found) throw new Error(`no status of a clone: ${status}`);
  const [regions, total, inFlight] = found.slice(1).map(Number) as [number, number, number];
  return { regions, total, inFlight };
}

export function setHydration(mount: Mount, isOn: boolean, name = 'x'): void {
  writeFileSync(mount.path(name, 'hydration'), isOn ? '1\n' : '0\n');
}

/** Lets a clone whose hydration is off hydrate more regions; as a rule not all of them. */
export async function hydrateAPart(mount: Mount, name = 'x'): Promise<void> {
  const before = hydrationOf(mount, name).regions;
  await until(() => {
    setHydration(mount, true, name);
    setHydration(mount, false, name);
    return hydrationOf(mount, name).regions > before;
  }, 'a region to be hydrated');
}

/** Regions that `regions` of a clone says are hydrated. */
export function hydratedRegions(mount: Mount, name = 'x'): Set<number> {
  const bytes = readFileSync(mount.path(name, 'regions'));
  const regions = new Set<number>();
  for (let region = 0; region < 8 * bytes.length; region++) {
    if ((bytes[region >> 3]! >> (region & 7)) & 1) regions.add(region);
  }
  return regions;
}

/** How many regions the metadata says are hydrated, while nobody has it. */
export async function hydratedOnDevice(lab: Lab, prefix = ''): Promise<number> {
  const { hydrated } = JSON.parse(await lab.dmfuseOk('clone', 'dump', '--json', `${prefix}meta`));
  return (hydrated as [number, number][]).reduce((sum, [, count]) => sum + count, 0);
}

export async function expectMetadataSound(lab: Lab, prefix = ''): Promise<void> {
  expect(await lab.dmfuse('clone', 'check', `${prefix}meta`)).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/^sound: \d+ of \d+ metadata blocks in use, all verified\n$/),
    stderr: '',
  });
}

/** The `hydrated` event: all is on the destination, and durable. It comes once. */
export async function expectHydratedOnce(mount: Mount, name = 'x'): Promise<void> {
  const { total } = hydrationOf(mount, name);
  const found = async () => (await mount.events(name)).filter((event) => event.startsWith('hydrated '));
  await until(async () => (await found()).length > 0, 'the event `hydrated`');
  const events = await found();
  expect(events).toHaveLength(1);
  expect(events[0]).toMatch(new RegExp(`^hydrated regions=${total}( |$)`));
}
