/** What is measured: each subject shows the image as a file of its own. */
import type { Image } from './image.js';
import type { Lab } from './lab.js';

export interface Subject {
  readonly name: string;
  readonly description: string;
  /** True: a verdict needs it. The others are left out by --quick, and measured in fewer rounds. */
  readonly judged: boolean;
  /** Why it cannot run on this machine, and what to install; undefined when it can. */
  missing(lab: Lab): Promise<string | undefined>;
  /** Brings it up on the image; it goes with the scope. */
  start(lab: Lab, image: Image): Promise<Served>;
}

/** A subject that is up. */
export interface Served {
  /** What fio opens, and what the loop device is attached to. */
  readonly path: string;
  /** Where its cached bytes are: in the page cache behind the path itself, or behind the server. */
  readonly cache: 'own' | 'server';
  /** True where data comes from other files than the image: what is cold is not measured. */
  readonly ownFiles?: boolean;
  /** True where writes would change what is measured: only reads are. */
  readonly readOnly?: boolean;
  /** Other than expected; for the notes. */
  readonly note?: string;
}

/** A `missing` for commands: the first that is not installed, with its Debian package. */
export function needs(packageOf: Readonly<Record<string, string>>): Subject['missing'] {
  return async (lab) => {
    for (const [command, name] of Object.entries(packageOf)) {
      const { code } = await lab.outcome('sh', ['-c', 'command -v "$0"', command]);
      if (code !== 0) return `${command} is not installed (Debian package ${name})`;
    }
    return undefined;
  };
}
