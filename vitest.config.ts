import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

// Node reads these certificates whenever it starts, which is more than half of what a short command takes. Only npm needs them.
process.env.NPM_EXTRA_CA_CERTS = process.env.NODE_EXTRA_CA_CERTS ?? '';
delete process.env.NODE_EXTRA_CA_CERTS;

/** Real mounts first: they take longest, also those of small files, and none should be left over for one worker at the end. */
class MountsFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const isMount = ({ moduleId }: TestSpecification) => moduleId.includes('/test/mount/');
    const sorted = await super.sort(files);
    return [...sorted.filter(isMount), ...sorted.filter((file) => !isMount(file))];
  }
}

export default defineConfig({
  test: {
    // Forks, not threads: tests use Atomics.wait on the main thread and start daemons of their own.
    pool: 'forks',
    // Two at least: tests of real mounts wait about as long as they work.
    maxWorkers: Math.max(2, availableParallelism() - 1),
    sequence: { sequencer: MountsFirst },
    include: ['test/**/*.test.ts'],
    testTimeout: 120_000,
    hookTimeout: 60_000,
  },
});
