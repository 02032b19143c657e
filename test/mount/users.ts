/**
 * Scripts that run as root or as an ordinary user, with dmfuse at hand. Each has a mount namespace of its own, with a
 * /dev/fuse that anybody may open and the program where anybody can reach it: nothing outside changes.
 */
import { type Lab, MAIN } from './harness.js';

export const REPOSITORY = MAIN.replace(/\/dist\/.*/, '');

export type User = 'root' | 'nobody';

const PREFIX: Readonly<Record<User, string>> = {
  root: '',
  nobody: 'setpriv --reuid=65534 --regid=65534 --clear-groups',
};

export interface RunAsOptions {
  /** What `dmfuse mount` gets besides, for the function `mount_dmfuse`. */
  readonly mountOptions?: string;
  /** Root runs the script itself, and `dmfuse` in it is the user's. */
  readonly byRoot?: boolean;
  /** Anybody may use allow_other. */
  readonly userAllowOther?: boolean;
}

/**
 * Runs a piece of shell in which every command must do, as the user, in a folder of his that holds `mnt` and `disk.img` (4 MiB of
 * noise): its stdout.
 */
export async function runAs(
  lab: Lab,
  user: User,
  script: string,
  { mountOptions = '', byRoot = false, userAllowOther = false }: RunAsOptions = {},
): Promise<string> {
  const outside = `
    mkdir -m 755 his world world/dev world/repository
    mount -t tmpfs none world/dev
    mknod -m 666 world/dev/fuse c 10 229
    chmod 666 world/dev/fuse
    mount --bind world/dev/fuse /dev/fuse
    mount --bind ${REPOSITORY} world/repository
    touch world/node
    mount --bind ${process.execPath} world/node
    echo '${userAllowOther ? 'user_allow_other' : ''}' >world/fuse.conf
    mount --bind world/fuse.conf /etc/fuse.conf
    mkdir his/mnt
    head -c 4M /dev/urandom >his/disk.img
    ${user === 'root' ? '' : 'chown -R 65534:65534 his'}
    exec ${byRoot ? '' : PREFIX[user]} bash -euo pipefail "$1"`;
  const inside = `
    cd ${lab.path('his')}
    program=(${lab.path('world/node')} ${lab.path('world/repository/dist/main.js')})
    dmfuse() { ${byRoot ? PREFIX[user] : ''} "\${program[@]}" "$@"; }
    mount_dmfuse() { dmfuse mount mnt --lanes 2 ${mountOptions} "$@"; }
    # refused WORDS COMMAND…: it exits 1 and its error contains the words
    refused() {
      local words=$1 code=0
      shift
      "$@" 2>err || code=$?
      [[ $code == 1 ]] && grep -qF -- "$words" err || { echo "$* exits $code, without: $words"; cat err; exit 9; }
    }
    daemon() { sed -n 's/^pid //p' mnt/.dmfuse; }
    gone() { for i in $(seq 500); do [[ -d /proc/$1 ]] || return 0; sleep 0.02; done; return 1; }
    mounted() { grep -q " ${lab.path('his/mnt')} " /proc/self/mountinfo; }
    # The guard does not see into this namespace.
    trap 'mounted && { fusermount3 -u -z mnt || umount -l mnt; } 2>/dev/null' EXIT
    ${script}`;
  await lab.sh(`cat >outside; chmod 755 .`, { input: outside });
  await lab.sh('cat >inside; chmod 644 inside', { input: inside });
  return await lab.sh('unshare -m --propagation slave bash -euo pipefail outside inside');
}
