/** /proc/self/mountinfo: what is mounted where, in a process's mount namespace. */
import { readFileSync } from 'node:fs';

export interface MountInfo {
  readonly id: number;
  /** The mount that it is mounted on: of those at one mount point, the one that it covers. */
  readonly parentId: number;
  /** MAJ:MIN of the file system. */
  readonly device: string;
  readonly mountPoint: string;
  readonly type: string;
  readonly source: string;
  /** Whether the file system is, wherever it is mounted. */
  readonly isReadOnly: boolean;
}

/** As a process sees it, this one by default. Throws where it has ended or is not ours to look at. */
export function readMountInfo(pid: string | number = 'self'): MountInfo[] {
  return readFileSync(`/proc/${pid}/mountinfo`, 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) => {
      // ID PARENT MAJ:MIN ROOT MOUNT-POINT OPTIONS … - TYPE SOURCE SUPER-OPTIONS: proc(5)
      const [mount = '', fileSystem = ''] = line.split(' - ');
      const [id, parentId, device = '', , mountPoint = ''] = mount.split(' ');
      const [type = '', source = '', options = ''] = fileSystem.split(' ');
      const isReadOnly = options.split(',').includes('ro');
      return {
        id: Number(id),
        parentId: Number(parentId),
        device,
        mountPoint: unescapeOctal(mountPoint),
        type,
        source: unescapeOctal(source),
        isReadOnly,
      };
    });
}

/** Blanks are octal escapes. */
function unescapeOctal(word: string): string {
  return word.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
}
