/** The root of the mount: a folder for each target, and that of the snapshots. */
import type { Slot } from '../slot.js';
import { type FilesContext, filesOf } from './files.js';
import type { Folder } from './folder.js';

export interface TargetsFolder extends Pick<Folder, 'folders' | 'make' | 'remove' | 'rename'> {
  /** The folder of a slot. */
  byId(id: number): Folder | undefined;
}

export function targetsFolder(context: FilesContext): TargetsFolder {
  const { registry, snapshots } = context;
  const slotFolder = (slot: Slot): Folder => ({
    id: slot.id,
    name: slot.name,
    events: slot.events,
    files: () => filesOf(slot, context),
    folders: () => [],
  });
  return {
    folders: () => [...registry.all().map(slotFolder), snapshots.folder],
    make: (name) => slotFolder(registry.add(name)),
    remove: async (name) => [(await registry.remove(name)).id],
    rename: (name, newName) => registry.rename(name, newName),
    byId(id) {
      const slot = registry.byId(id);
      return slot && slotFolder(slot);
    },
  };
}
