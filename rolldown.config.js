/**
 * dist: everything in a few CommonJS files, for what a command or a thread costs to start is mostly the loading of modules (a lane:
 * 160 ms of processor as 60 ES modules, 70 like this). Native packages stay outside.
 */
import { writeFileSync } from 'node:fs';

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
  external: ['koffi', 'fuse-native'],
  output: {
    dir: 'dist',
    format: 'cjs',
    sourcemap: true,
    entryFileNames: '[name].js',
    chunkFileNames: 'chunks-[name]-[hash].js',
    cleanDir: true,
  },
  plugins: [
    {
      name: 'commonjs-folder',
      writeBundle: () => writeFileSync('dist/package.json', '{ "type": "commonjs" }\n'),
    },
  ],
};
