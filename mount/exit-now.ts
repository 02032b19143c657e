/** The end of a process that has threads which may never come back. */
import { libcFunction } from '../src/libc.js';

/** Ends the process whatever its threads do. process.exit would wait for them, and they for a mount that does not answer. */
export function exitNow(code: number): never {
  libcFunction<[number]>('void _exit(int status)')(code);
  throw new Error('_exit returned');
}
