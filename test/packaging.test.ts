/**
 * What `npm pack` makes can be installed where nothing can be compiled, and works there: README's first example through it.
 *
 * npm finds the packages it depends on in its cache, and asks the registry for those that are not there.
 */
import { existsSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';
import { manualPages, markdownExamples, runExamples } from './manual/examples.js';
import { type Lab, mountTest } from './mount/harness.js';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const FIRST_EXAMPLE = 'README.md: Try an update, take it back';

/** All that an installation may use: no compiler, no make, no Python. */
const TOOLS = ['node', 'npm', 'sh', 'bash', 'env', 'uname', 'tar', 'gzip'];

/** The dist that is there, packed: the path of the package. */
async function pack(lab: Lab): Promise<string> {
  const folder = lab.makeFolder('package');
  await lab.sh(`cd '${ROOT}' && npm pack --silent --ignore-scripts --pack-destination '${folder}'`);
  const [name] = readdirSync(folder);
  return join(folder, name!);
}

async function install(lab: Lab, packed: string): Promise<string> {
  const tools = lab.makeFolder('bin');
  for (const tool of TOOLS) {
    const { stdout } = await lab.shell(`command -v ${tool}`);
    if (stdout !== '') symlinkSync(stdout.trim(), join(tools, tool));
  }
  const prefix = lab.makeFolder('prefix');
  await lab.sh(
    `PATH='${tools}' NODE_EXTRA_CA_CERTS="$NPM_EXTRA_CA_CERTS" npm install --global --prefix '${prefix}' --omit=dev --prefer-offline --no-audit --no-fund '${packed}'`,
  );
  return prefix;
}

mountTest(
  'the package installs with no compiler, and README`s first example works with it',
  async (lab) => {
    const prefix = await install(lab, await pack(lab));
    const installed = join(prefix, 'lib/node_modules/dmfuse');

    const pages = manualPages().map((path) => path.split('/').at(-1)!);
    expect(readdirSync(join(prefix, 'share/man/man8')).sort()).toEqual(
      pages.filter((page) => page.endsWith('.8')).sort(),
    );
    for (const file of ['LICENSE', 'README.md']) expect(existsSync(join(installed, file)), file).toBe(true);
    expect(existsSync(join(installed, 'node_modules/typescript'))).toBe(false);
    const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
    expect(await lab.ok(join(prefix, 'bin/dmfuse'), '--version')).toBe(`${version}\n`);

    const section = markdownExamples('README.md').find(({ title }) => title === FIRST_EXAMPLE);
    expect(section, FIRST_EXAMPLE).toBeDefined();
    const example = { blocks: [0, 2], prepare: 'rmdir /mnt/dm', check: 'e2fsck -fn /img/disk.img' };
    await runExamples(lab, section!, example, join(installed, 'dist/main.js'));
  },
  { limitSeconds: 300 },
);
