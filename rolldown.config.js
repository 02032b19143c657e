/**
 * dist: everything in a few CommonJS files, for what a command or a thread costs to start is mostly the loading of modules (a lane:
 * 160 ms of processor as 60 ES modules, 90 like this). Of the packages in it the licences come along.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';

const BUNDLED = /\/(node_modules\/(?:@[^/]+\/)?[^/]+)\//;

/** What a package says of its licence. */
function licenceOf(folder) {
  const { name, version, license } = JSON.parse(readFileSync(`${folder}/package.json`, 'utf8'));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  return `${name} ${version} (${license})\n\n${file ? readFileSync(`${folder}/${file}`, 'utf8') : ''}`;
}

const beside = {
  name: 'what-lies-beside',
  writeBundle(_options, bundle) {
    const modules = Object.values(bundle).flatMap(({ moduleIds = [] }) => moduleIds);
    const packages = new Set(modules.map((id) => BUNDLED.exec(id)?.[1]).filter(Boolean));
    writeFileSync(
      'dist/LICENCES',
      [...packages]
        .sort()
        .map(licenceOf)
        .join(`\n${'-'.repeat(80)}\n\n`),
    );
    writeFileSync('dist/package.json', '{ "type": "commonjs" }\n');
  },
};

/** commander loads child_process, a tenth of what a command costs to start, for subcommands that are programs; there are none. */
const noPrograms = {
  name: 'no-programs',
  resolveId(id, importer) {
    return id === 'node:child_process' && /\/commander\//.test(importer) ? '\0no-programs' : null;
  },
  load: (id) => (id === '\0no-programs' ? 'export default {};' : null),
};

export default {
  input: {
    main: 'mount/cli/main.ts',
    'mount-dmfuse': 'mount/cli/mount-dmfuse.ts',
    lane: 'mount/lanes/lane.ts',
    attendant: 'mount/lanes/attendant.ts',
    bench: 'scripts/benchmark/main.ts',
    'fuse-native-server': 'scripts/benchmark/fuse-native-server.ts',
  },
  platform: 'node',
  // Native ones; and those whose licence (Apache-2.0) does not go into one file with GPL-2.0-only.
  external: ['koffi', 'fuse-native', /^crc-32/, 'prom-client'],
  output: {
    dir: 'dist',
    format: 'cjs',
    sourcemap: true,
    entryFileNames: '[name].js',
    chunkFileNames: 'part-[name]-[hash].js',
    cleanDir: true,
  },
  plugins: [noPrograms, beside],
};
