import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    // Forks, not threads: tests use Atomics.wait on the main thread and start daemons of their own.
    pool: 'forks',
    // Two at least: tests of real mounts wait about as long as they work.
    maxWorkers: Math.max(2, availableParallelism() - 1),
    include: ['test/**/*.test.ts'],
    testTimeout: 120_000,
    hookTimeout: 60_000,
  },
});
