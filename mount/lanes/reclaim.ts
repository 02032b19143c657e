/**
 * The daemon sits in the write-back path of file systems mounted from its own files. If it waits for memory while the
 * kernel frees memory by writing to that very device, both wait for ever.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { libcFunction } from '../../src/libc.js';

const PR_SET_IO_FLUSHER = 57;
const PR_GET_IO_FLUSHER = 58;
const FIONCLEX = 0x5450;
// <sys/mman.h>
const MLOCK_ONFAULT = 1;
/** Among the last to be killed, but for what is exempt. */
const OOM_SCORE_ADJ = '-900';

/** This thread's allocations never wait for write-back (Linux 5.6, CAP_SYS_RESOURCE). False where that is not to be had. */
export function markIoFlusher(): boolean {
  return ioFlusher(PR_SET_IO_FLUSHER, 1) !== undefined;
}

/**
 * The same for every thread of this process: V8's own, which collect the garbage of lanes while those wait, are there before any
 * line of ours and cannot be marked from outside. But the mark is kept across execve(2), so this process begins anew, with the same
 * arguments, unless it has begun so already. Returns where the mark is not to be had.
 */
export function beginAsIoFlusher(): void {
  if (ioFlusher(PR_GET_IO_FLUSHER, 0) !== 0 || !markIoFlusher()) return;
  const execve = libcFunction<[string, (string | null)[], (string | null)[]]>(
    'int execve(const char *path, const char **arguments, const char **environment)',
  );
  const ioctl = libcFunction<[number, number, null]>(
    'int ioctl(int fd, unsigned long request, void *argument)',
  );
  const environment = Object.entries(process.env).map(([name, value]) => `${name}=${value}`);
  try {
    // Node has marked these to be closed as well.
    for (const fd of [0, 1, 2]) ioctl(fd, FIONCLEX, null);
    execve(
      process.execPath,
      [process.execPath, ...process.execArgv, ...process.argv.slice(1), null],
      [...environment, null],
    );
  } catch {
    // Goes on as it is.
  }
}

/** Undefined where it is not to be had. */
function ioFlusher(option: number, value: number): number | undefined {
  const prctl = libcFunction<[number, number, number, number, number]>(
    'int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)',
  );
  try {
    return prctl(option, value, 0, 0, 0);
  } catch {
    return undefined;
  }
}

/**
 * Keeps what is in memory of the program itself there: under pressure the kernel would take these pages first, and read them again
 * for the next request, from a disk that may wait for this very daemon. What was never needed is not brought in, so this costs nothing
 * now. The heap is not locked: only swap takes it, and V8 gives parts of it back with calls that fail for locked memory. False where it
 * is not to be had: Linux 4.4, CAP_IPC_LOCK or a limit that allows it.
 */
export function lockProgram(): boolean {
  const mlock2 = libcFunction<[number, number, number]>(
    'int mlock2(uintptr_t address, size_t length, unsigned int flags)',
  );
  try {
    for (const line of readFileSync('/proc/self/maps', 'utf8').split('\n')) {
      const [, from, to] = /^([0-9a-f]+)-([0-9a-f]+) r.{3} \S+ \S+ \d+ +\//.exec(line) ?? [];
      if (from === undefined || to === undefined) continue;
      const start = Number.parseInt(from, 16);
      mlock2(start, Number.parseInt(to, 16) - start, MLOCK_ONFAULT);
    }
    return true;
  } catch {
    return false;
  }
}

/** Killing the daemon would not free memory but strand dirty pages. False where it may not be changed: CAP_SYS_RESOURCE. */
export function lowerOomScore(): boolean {
  try {
    writeFileSync('/proc/self/oom_score_adj', OOM_SCORE_ADJ);
    return true;
  } catch {
    return false;
  }
}
