/** Finding dmfuse mounts from outside, by /proc/self/mountinfo: also one whose daemon is dead can be named. */
import { readFileSync, realpathSync } from 'node:fs';
import { resolve } from 'node:path';
import { DmError } from '../../src/errors.js';

/** The mount point that `path` is, absolute; undefined when no dmfuse is mounted there. */
export function findMount(path: string): string | undefined {
  const wanted = [resolve(path), realPath(path)];
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    // ID PARENT MAJ:MIN ROOT MOUNT-POINT OPTIONS … - TYPE SOURCE …; blanks inside are octal escapes: proc(5)
    const [fields, typeAndSource] = line.split(' - ');
    const mountPoint = fields
      ?.split(' ')[4]
      ?.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
    if (typeAndSource?.startsWith('fuse.dmfuse ') && mountPoint && wanted.includes(mountPoint))
      return mountPoint;
  }
  return undefined;
}

/** As findMount; throws EINVAL where there is none. */
export function requireMount(path: string): string {
  const found = findMount(path);
  if (found) return found;
  throw new DmError('EINVAL', `${path}: no dmfuse is mounted there; \`dmfuse mount ${path}\` does that`);
}

function realPath(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined;
  }
}
