/**
 * The numbers of nodes. Ids of folders are never used again, so a node always means the same thing or nothing.
 *
 *   node 1           the mount's root         node 2               .dmfuse, which tells who serves the mount
 *   node id × 256    the folder with that id  node id × 256 + 1    its first file, and so on
 */
export const ROOT = 1;
export const DAEMON_NODE = 2;
const NODES_PER_FOLDER = 256;

export function folderNode(id: number): number {
  return id * NODES_PER_FOLDER;
}

/** The node id of file number `place` of folder `id`. */
export function fileNode(id: number, place: number): number {
  return folderNode(id) + 1 + place;
}

/** The node id of a target's `device` file. */
export function deviceNode(id: number): number {
  return fileNode(id, 0);
}

export function isDirectory(node: number): boolean {
  return node === ROOT || (node !== DAEMON_NODE && node % NODES_PER_FOLDER === 0);
}

/** The folder that a node is, or is a file of. */
export function folderIdOf(node: number): number {
  return Math.floor(node / NODES_PER_FOLDER);
}

/** Which of its folder's files a node is. */
export function placeOf(node: number): number {
  return (node % NODES_PER_FOLDER) - 1;
}
