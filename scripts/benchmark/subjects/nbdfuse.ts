/** nbdkit serves the image on a Unix socket, nbdfuse shows it as a file. */
import { join } from 'node:path';
import type { Image } from '../image.js';
import { isThere, type Lab, waitUntil } from '../lab.js';
import { unmount } from '../loop-device.js';
import { needs, type Served, type Subject } from '../subject.js';

const CONNECTIONS = 4;
const COMMANDS = { nbdkit: 'nbdkit', nbdfuse: 'libnbd-bin' };

export const nbdfuse: Subject = {
  name: 'nbdfuse',
  description: `nbdfuse with ${CONNECTIONS} connections to nbdkit file`,
  judged: false,
  missing: needs(COMMANDS),
  start: (lab, image) => serve(lab, image, []),
};

export const nbdfuseCow: Subject = {
  name: 'nbdfuse-cow',
  description: 'the same with nbdkit --filter=cow, a fresh overlay',
  judged: false,
  missing: needs(COMMANDS),
  start: (lab, image) => serve(lab, image, ['--filter=cow']),
};

async function serve(lab: Lab, image: Image, filters: readonly string[]): Promise<Served> {
  const socket = lab.newPath('nbd');
  const nbdkit = ['--foreground', '--unix', socket, ...filters, 'file', image.path];
  // TMPDIR: where the filter puts its overlay.
  const disk = lab.start('nbdkit', nbdkit, { TMPDIR: lab.folder });
  await waitUntil('nbdkit', () => isThere(socket), { server: disk });

  const folder = lab.newFolder('nbdfuse');
  const uri = `nbd+unix:///?socket=${encodeURIComponent(socket)}`;
  const server = lab.start('nbdfuse', ['--connections', String(CONNECTIONS), folder, uri]);
  lab.defer(() => unmount(lab, folder));
  const path = join(folder, 'nbd');
  await waitUntil('nbdfuse', () => isThere(path), { server });
  return { path, cache: 'server' };
}
