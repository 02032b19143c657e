/** The fuse-native package: the same file through libfuse 2 and Node's event loop. */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isThere, waitUntil } from '../lab.js';
import { unmount } from '../loop-device.js';
import type { Subject } from '../subject.js';

const SERVER = fileURLToPath(new URL('./fuse-native-server.js', import.meta.url));

export const fuseNative: Subject = {
  name: 'fuse-native',
  description: 'the fuse-native package serving the image with asynchronous fs.read and fs.write',
  judged: false,

  async missing(lab) {
    // In a process of its own: a native module may take its process with it.
    const { code, stderr } = await lab.outcome(process.execPath, [SERVER, '--check']);
    if (code === 0) return undefined;
    const hint = stderr.includes('libfuse.so.2') ? ' (Debian package libfuse2)' : '';
    return `${stderr.trim().split('\n').at(-1) || 'it cannot be loaded'}${hint}`;
  },

  async start(lab, image) {
    const folder = lab.newFolder('fuse-native');
    const server = lab.start(process.execPath, [SERVER, folder, image.path]);
    lab.defer(() => unmount(lab, folder));
    const path = join(folder, 'device');
    await waitUntil('fuse-native', () => isThere(path), { server });
    return { path, cache: 'server' };
  },
};
