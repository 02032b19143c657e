/** Loop devices and mounts, each taken away at the end of the scope. */
import { existsSync, readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Lab, waitUntil } from './lab.js';

const BUSY_TRIES = 30;
const BUSY_PAUSE_MS = 100;

export interface LoopDevice {
  readonly path: string;
  /** As it is, which may not be what was asked for. */
  readonly directIo: boolean;
}

/** A loop device over `path`. */
export async function attachLoop(lab: Lab, path: string, directIo: boolean): Promise<LoopDevice> {
  const option = `--direct-io=${directIo ? 'on' : 'off'}`;
  const device = (await lab.run('losetup', ['--find', '--show', option, path])).trim();
  const sysfs = `/sys/block/${basename(device)}/loop`;
  lab.defer(async () => {
    await lab.run('losetup', ['--detach', device]);
    // It may be let go of a moment later.
    await waitUntil(`losetup --detach ${device}`, () => !existsSync(`${sysfs}/backing_file`));
  });
  return { path: device, directIo: readFileSync(`${sysfs}/dio`, 'utf8').trim() === '1' };
}

/** Unmounts what is at `path`, if anything is; by force when it stays in use. */
export async function unmount(lab: Lab, path: string): Promise<void> {
  let complaint = '';
  for (let i = 0; i < BUSY_TRIES; i++) {
    const { code, stderr } = await lab.outcome('umount', [path]);
    if (code === 0 || /not mounted|no mount point/.test(stderr)) return;
    complaint = stderr.trim();
    if (!/busy/.test(complaint)) break;
    await sleep(BUSY_PAUSE_MS);
  }
  await lab.outcome('umount', ['--lazy', path]);
  throw new Error(`${complaint}: detached`);
}
