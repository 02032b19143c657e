/**
 * System calls that Node does not offer, through koffi. Synchronous calls into libc only, no callbacks; each thread
 * loads its own.
 */
import { constants } from 'node:os';
import koffi from 'koffi';

const libc = koffi.load('libc.so.6');

const errnoNames = new Map<number, string>(
  Object.entries(constants.errno).map(([name, number]) => [number, name]),
);

/** A failed system call, shaped like Node's own: `code` is the errno's name. */
export class SystemCallError extends Error {
  readonly code: string;
  readonly syscall: string;

  constructor(syscall: string, errno: number) {
    const code = errnoNames.get(errno) ?? `errno ${errno}`;
    super(`${syscall}: ${code}`);
    this.name = 'SystemCallError';
    this.code = code;
    this.syscall = syscall;
  }
}

/**
 * A libc function that returns −1 and sets errno when it fails, by its C prototype. The function made here throws
 * SystemCallError instead, and starts again after EINTR.
 */
export function libcFunction<Args extends unknown[]>(prototype: string): (...args: Args) => number {
  const name = /(\w+)\s*\(/.exec(prototype)?.[1] ?? prototype;
  const native = libc.func(prototype);
  return (...args) => {
    for (;;) {
      const result = Number(native(...args));
      if (result !== -1) return result;
      const errno = koffi.errno();
      if (errno !== constants.errno.EINTR) throw new SystemCallError(name, errno);
    }
  };
}
