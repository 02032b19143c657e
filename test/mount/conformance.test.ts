/** The battery of conformance.ts for every way to mount. */
import { conformance } from './conformance.js';

const FUSE_NATIVE = {
  mountOptions: '--transport fuse-native',
  transport: 'fuse-native',
  lacks: ['trim', 'seek_hole', 'poll', 'passthrough', 'large_requests'],
  requestBytesMax: 128 << 10,
} as const;

conformance('root, mount(2)', {
  user: 'root',
  transport: 'kernel',
  lacks: [],
  requestBytesMax: 1 << 20,
  withTargets: true,
});
conformance('an ordinary user, fusermount3', {
  user: 'nobody',
  transport: 'fusermount3',
  lacks: ['passthrough'],
  requestBytesMax: 1 << 20,
  withTargets: true,
});
conformance('root, fuse-native', { user: 'root', withTargets: true, ...FUSE_NATIVE });
// Whose mount it is makes no difference to targets.
conformance('an ordinary user, fuse-native', { user: 'nobody', withTargets: false, ...FUSE_NATIVE });
