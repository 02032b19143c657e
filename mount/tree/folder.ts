/** What the tree is made of: folders with files, whoever they belong to. */
import type { ByteSource } from '../../src/targets/target.js';
import type { EventLog } from './events.js';

/** The folder of the root that is no target's. */
export const SNAPSHOTS = 'snapshots';

export const NAME_BYTES_MAX = 128;
/** For messages. */
export const NAME_RULE = `no blanks or slashes, no leading dot or @, ${NAME_BYTES_MAX} bytes at most, not ${SNAPSHOTS}`;

export interface TreeFile {
  readonly name: string;
  /** Permission bits for the owner alone. */
  readonly permissions: number;
  /** False: nobody sees it now. Its place among the files stays. */
  readonly isShown: boolean;
  /** One of these two, or a text that is read and written. */
  readonly device?: OutputFile;
  readonly events?: EventLog;
  readonly text?: TextFile;
}

export interface TextFile {
  read?(): string;
  /** Instead of `read`: the content of a binary file. */
  bytes?(): ByteSource;
  write?(text: string): void | Promise<void>;
}

/** What is behind a `device`. */
export interface OutputFile {
  /** Bytes. */
  readonly size: number;
  /** Bytes. */
  readonly trimGranularity: number;
  /** open(2): the backing id where the kernel may do the I/O itself. Throws EBUSY, ENODEV. */
  open(writable: boolean): number | undefined;
  /** close(2) of one whose writes were passed through. Throws ENOSPC. */
  flush(): void;
  /** The last close(2) of an open. */
  release(writesPassedThrough: boolean): void;
}

export interface Folder {
  /** Never used again, so a node id always means the same thing or nothing. */
  readonly id: number;
  readonly name: string;
  /** All files, in an order that stays. */
  files(): readonly TreeFile[];
  folders(): readonly Folder[];
  /** False: it can be entered, but `ls` does not show it now. Left out: true. */
  isListed?(): boolean;
  /** Where it is told why a file refused what was written to it. */
  readonly events?: EventLog;
  /** mkdir in it; left out: EPERM. */
  make?(name: string): Folder;
  /** rmdir in it: the ids of all folders that are gone with it. */
  remove?(name: string): Promise<readonly number[]>;
  /** rename in it; left out: EPERM. */
  rename?(name: string, newName: string): void;
}

/** A file of text, with the permissions that its functions ask for. */
export function textFile(name: string, text: TextFile, isShown = true): TreeFile {
  const permissions = (text.read || text.bytes ? 0o400 : 0) | (text.write ? 0o200 : 0);
  return { name, permissions, isShown, text };
}

export function eventsFile(events: EventLog): TreeFile {
  return { name: 'events', permissions: 0o400, isShown: true, events };
}
