/**
 * The main thread's side of a mount without a kernel: registry, snapshots, tree. What is told to lanes goes to `announce`; nobody does
 * work in the background, so a test alone decides what happens when.
 */
import type { ToLane } from '../../mount/lanes/protocol.js';
import { Registry } from '../../mount/registry.js';
import { MountedSnapshots } from '../../mount/snapshots.js';
import { deviceNode } from '../../mount/tree/nodes.js';
import { Passthrough } from '../../mount/tree/passthrough.js';
import { targetsFolder } from '../../mount/tree/targets-folder.js';
import { Tree } from '../../mount/tree/tree.js';

export interface InProcessMount {
  readonly registry: Registry;
  readonly snapshots: MountedSnapshots;
  readonly tree: Tree;
}

export function inProcessMount(announce: (message: ToLane) => void = () => {}): InProcessMount {
  const registry: Registry = new Registry({
    mountPoint: '/nowhere',
    mountDevice: async () => -1,
    statRows: 1,
    deviceNode,
    announce,
    attend: () => {},
    dismiss: async () => {},
    attendFilter: () => {},
    settle: async () => {},
    isInSnapshot: (id) => snapshots.holds(id),
    isPassedThrough: () => false,
    raise: (id, line) => (registry.byId(id)?.events ?? snapshots.eventsOf(id))?.raise(line),
    attributesChanged: async () => {},
    nameGone: () => {},
    savedFilters: undefined,
  });
  const snapshots: MountedSnapshots = new MountedSnapshots({ registry, statRows: 1, announce });
  const root = targetsFolder({
    ...{ registry, snapshots, passthrough: new Passthrough(undefined) },
    inFlight: () => 0,
  });
  const folderById = (id: number) => root.byId(id) ?? snapshots.folderById(id);
  const tree = new Tree({ root, folderById, uid: 0, gid: 0, allowOther: false, daemonText: '' });
  return { registry, snapshots, tree };
}
