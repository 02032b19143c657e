/**
 * The daemon sits in the write-back path of file systems mounted from its own files. If it waits for memory while the
 * kernel frees memory by writing to that very device, both wait for ever.
 */
import { writeFileSync } from 'node:fs';
import { libcFunction } from '../../src/libc.js';

const PR_SET_IO_FLUSHER = 57;
/** Among the last to be killed, but for what is exempt. */
const OOM_SCORE_ADJ = '-900';

/** This thread's allocations never wait for write-back (Linux 5.6, CAP_SYS_RESOURCE). False where that is not to be had. */
export function markIoFlusher(): boolean {
  const prctl = libcFunction<[number, number, number, number, number]>(
    'int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)',
  );
  try {
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    return true;
  } catch {
    return false;
  }
}

/** Killing the daemon would not free memory but strand dirty pages. Left as it is where it may not be changed. */
export function lowerOomScore(): void {
  try {
    writeFileSync('/proc/self/oom_score_adj', OOM_SCORE_ADJ);
  } catch {
    // An ordinary user may not; nothing depends on it.
  }
}
