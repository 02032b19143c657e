/** All subjects, in the order of the table. */
import type { Subject } from '../subject.js';
import { cowFresh, dmfuseSubjects, linearLanes, snapshotFresh } from './dmfuse.js';
import { fuseNative } from './fuse-native.js';
import { nbdfuse, nbdfuseCow } from './nbdfuse.js';
import { qemuQcow2, qemuRaw } from './qemu.js';

/** The control: what a ratio of two equal things looks like on this machine. */
const file: Subject = {
  name: 'file',
  description: 'the image itself; as a loop device: a second kernel loop, which shows the noise',
  judged: false,
  missing: async () => undefined,
  start: async (_lab, image) => ({ path: image.path, cache: 'own' }),
};

export const SUBJECTS: readonly Subject[] = [
  file,
  ...dmfuseSubjects,
  fuseNative,
  qemuRaw,
  qemuQcow2,
  nbdfuse,
  nbdfuseCow,
];

/** Those that are measured fresh: all on the same image, with nothing written to them yet. */
export const OVERLAYS: readonly Subject[] = [cowFresh, qemuQcow2, nbdfuseCow];

/** A fresh snapshot, and what it is compared with. */
export const FRESH_SNAPSHOT: readonly Subject[] = [snapshotFresh, linearLanes];
