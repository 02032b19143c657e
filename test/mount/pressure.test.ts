/** scripts/pressure, for a short time: what a small memory cgroup writes through a loop device is there, byte for byte. */
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';
import { mountTest } from './harness.js';

const PRESSURE = fileURLToPath(new URL('../../scripts/pressure', import.meta.url));

/** Of the script's cases the hardest: the daemon, too, has little memory, and a target that reads before it writes. */
mountTest('writers that thrash lose nothing', async (lab) => {
  const { code, stdout, stderr } = await lab.shell(
    `DMFUSE_PRESSURE_DIR=${lab.folder} ${PRESSURE} --built --seconds 4 --only daemon-csum`,
  );
  expect({ code, stdout, stderr }).toMatchObject({ code: 0, stdout: expect.stringMatching(/\nPASS\n$/) });
  // Or there was no pressure.
  expect(Number(/limit met (\d+) times/.exec(stdout)![1])).toBeGreaterThan(0);
});
