/** qemu-storage-daemon with its FUSE export: the raw image, and a fresh qcow2 overlay on it. */
import { writeFileSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { Image } from '../image.js';
import { type Lab, waitUntil } from '../lab.js';
import { unmount } from '../loop-device.js';
import { needs, type Served, type Subject } from '../subject.js';

const DAEMON = { 'qemu-storage-daemon': 'qemu-system-common' };

export const qemuRaw: Subject = {
  name: 'qemu-raw',
  description: 'qemu-storage-daemon --export type=fuse, the image raw',
  judged: true,
  missing: needs(DAEMON),
  start: async (lab, image) => serve(lab, image, 'raw', image.path),
};

export const qemuQcow2: Subject = {
  name: 'qemu-qcow2',
  description: 'the same, a fresh qcow2 overlay on the image',
  judged: false,
  missing: needs({ ...DAEMON, 'qemu-img': 'qemu-utils' }),
  async start(lab, image) {
    const overlay = lab.newPath('overlay');
    lab.defer(async () => void (await lab.run('rm', ['-f', overlay])));
    await lab.run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', image.path, overlay]);
    return serve(lab, image, 'qcow2', overlay);
  },
};

async function serve(lab: Lab, image: Image, driver: string, file: string): Promise<Served> {
  // The export is mounted over a regular file.
  const path = lab.newPath('qemu');
  writeFileSync(path, '');
  const server = lab.start('qemu-storage-daemon', [
    '--blockdev',
    `driver=file,node-name=file,filename=${file.replaceAll(',', ',,')}`,
    '--blockdev',
    `driver=${driver},node-name=disk,file=file`,
    '--export',
    `type=fuse,id=export,node-name=disk,mountpoint=${path.replaceAll(',', ',,')},writable=on`,
  ]);
  lab.defer(() => unmount(lab, path));
  await waitUntil('qemu-storage-daemon', async () => (await stat(path)).size === image.sizeBytes, { server });
  return { path, cache: 'server' };
}
