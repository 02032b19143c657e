/**
 * What the daemon gives up before it starts, so that whoever takes it over gets little: by root's own `mount` command, before any other
 * thread is there and before the process in the background is made, so that all of it inherits this.
 *
 *   new privileges     none, for ever: no set-uid program helps it. Not for an ordinary user, whose unmount is fusermount3's
 *   capabilities       those of KEPT alone
 *   core dumps         none, unless somebody asks for one (`prlimit --core`): they would hold what disks hold, and writing one
 *                      takes long while file systems wait
 *   umask              077: what it makes is its own
 *
 *   descriptors        those that a shell has left open do not come with the process in the background. Node sees to that up to
 *                      the first gap only
 *
 * Nothing of this is vital: what a container forbids is left as it is. Node itself raises the limit of open files.
 */
import { readdirSync } from 'node:fs';
import { libcFunction } from '../src/libc.js';

const PR_CAPBSET_DROP = 24;
const PR_SET_NO_NEW_PRIVS = 38;
const RLIMIT_CORE = 4;
const FIOCLEX = 0x5451;
/** _LINUX_CAPABILITY_VERSION_3 of <linux/capability.h>: two words of each set. */
const CAPABILITY_VERSION = 0x20080522;
const CAPABILITIES_MAX = 64;

/** By their numbers in <linux/capability.h>. */
const KEPT: Readonly<Record<string, number>> = {
  // Files and block devices of anybody, opened whenever a table names them.
  CAP_DAC_OVERRIDE: 1,
  CAP_DAC_READ_SEARCH: 2,
  // mlock2
  CAP_IPC_LOCK: 14,
  // mount, umount, passthrough
  CAP_SYS_ADMIN: 21,
  // PR_SET_IO_FLUSHER, oom_score_adj
  CAP_SYS_RESOURCE: 24,
};

/** This thread and all that it starts from now on, processes too. */
export function giveUpPrivileges(): void {
  process.umask(0o077);
  closeOnExec();
  const setrlimit = libcFunction<[number, BigUint64Array]>('int setrlimit(int resource, void *limit)');
  const getrlimit = libcFunction<[number, BigUint64Array]>('int getrlimit(int resource, void *limit)');
  const core = new BigUint64Array(2);
  attempt(() => {
    getrlimit(RLIMIT_CORE, core);
    core[0] = 0n;
    setrlimit(RLIMIT_CORE, core);
  });
  if (process.getuid!() !== 0) return;
  const prctl = libcFunction<[number, number, number, number, number]>(
    'int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)',
  );
  attempt(() => prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  keepCapabilities(prctl, Object.values(KEPT));
}

/** All descriptors but the first three. */
function closeOnExec(): void {
  const ioctl = libcFunction<[number, number, null]>(
    'int ioctl(int fd, unsigned long request, void *argument)',
  );
  for (const fd of readdirSync('/proc/self/fd').map(Number)) {
    // The folder's own is closed by now.
    if (fd > 2) attempt(() => ioctl(fd, FIOCLEX, null));
  }
}

/** The bounding set is for the processes that this one starts, the others are for itself. */
function keepCapabilities(
  prctl: (option: number, a: number, b: number, c: number, d: number) => number,
  kept: readonly number[],
): void {
  for (let capability = 0; capability < CAPABILITIES_MAX; capability++) {
    // EINVAL: above the last one that the kernel has.
    if (!kept.includes(capability)) attempt(() => prctl(PR_CAPBSET_DROP, capability, 0, 0, 0));
  }
  const header = Int32Array.of(CAPABILITY_VERSION, 0);
  // For each half: effective, permitted, inheritable.
  const sets = new Uint32Array(6);
  const capget = libcFunction<[Int32Array, Uint32Array]>('int capget(void *header, void *sets)');
  const capset = libcFunction<[Int32Array, Uint32Array]>('int capset(void *header, void *sets)');
  attempt(() => {
    capget(header, sets);
    for (const half of [0, 1]) {
      const mask = kept.reduce((bits, one) => (one >> 5 === half ? bits | (1 << (one & 31)) : bits), 0);
      for (const set of [0, 1]) sets[3 * half + set]! &= mask;
      sets[3 * half + 2] = 0;
    }
    capset(header, sets);
  });
}

function attempt(work: () => void): void {
  try {
    work();
  } catch {
    // Not allowed here.
  }
}
