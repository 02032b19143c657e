import { existsSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { isAlive } from '../../mount/cli/umount.js';
import { Lab, until } from './harness.js';

/** Long enough that the daemon serves before it is stopped. */
const LIMIT_SECONDS = 12;

test('a lab that hangs is aborted, tells what its threads do, and leaves nothing', async () => {
  const lab = await Lab.open(LIMIT_SECONDS);
  const { pid, path, create } = await lab.mount();
  await lab.sh('truncate -s 1M disk.img');
  await create('x', `linear ${lab.path('disk.img')} 0 1 no_passthrough`);
  const loop = await lab.loop(path('x/device'));
  process.kill(pid, 'SIGSTOP');
  const stuck = lab.start('dd', [`if=${loop}`, 'of=/dev/null', 'iflag=direct']);
  await expect(lab.overLimit).rejects.toThrow(
    new RegExp(`over its limit of ${LIMIT_SECONDS} seconds[^]*thread \\d+ .*stopped[^]*fuse\\.dmfuse`),
  );
  expect(await stuck.ended).toMatchObject({ code: 1, stderr: expect.stringContaining('Input/output error') });
  expect(await lab.close()).toContain(`the daemon ${pid} did not end`);
  expect([
    isAlive(pid),
    existsSync(lab.folder),
    readFileSync('/proc/self/mountinfo', 'utf8').includes(lab.folder),
  ]).toEqual([false, false, false]);
  await until(
    () => !existsSync(`/sys/block/${loop.split('/').at(-1)}/loop/backing_file`),
    'the loop device to go',
  );
});
