/**
 * The opcode table: every request we know, what it is called, how long its struct is at least (bytes), and where it is
 * served. Length checks, tracing and ENOSYS for the rest come from here.
 *
 *   data   the lane that read it serves it itself when it is for a `device`; for a control file it goes to main
 *   main   handed to the main thread, which answers whenever it can: nothing of it may block a lane
 *   drop   there is nothing to do and no answer is taken: node ids are never used again, so forgetting one is free
 */
export interface Operation {
  readonly name: string;
  /** Bytes of the request's own struct at least; names and data come on top. */
  readonly structBytes: number;
  readonly served: 'data' | 'main' | 'drop';
}

export const Opcode = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  MKDIR: 9,
  RMDIR: 11,
  RENAME: 12,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  INTERRUPT: 36,
  DESTROY: 38,
  IOCTL: 39,
  POLL: 40,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  RENAME2: 45,
  LSEEK: 46,
} as const;

const operations = new Map<number, Operation>([
  [Opcode.LOOKUP, main('LOOKUP', 1)],
  [Opcode.FORGET, drop('FORGET', 8)],
  [Opcode.GETATTR, main('GETATTR', 16)],
  [Opcode.SETATTR, main('SETATTR', 88)],
  [Opcode.MKDIR, main('MKDIR', 9)],
  [Opcode.RMDIR, main('RMDIR', 1)],
  [Opcode.RENAME, main('RENAME', 11)],
  [Opcode.OPEN, main('OPEN', 8)],
  [Opcode.READ, data('READ', 40)],
  [Opcode.WRITE, data('WRITE', 40)],
  [Opcode.STATFS, main('STATFS', 0)],
  [Opcode.RELEASE, main('RELEASE', 24)],
  [Opcode.FSYNC, data('FSYNC', 16)],
  [Opcode.FLUSH, main('FLUSH', 24)],
  [Opcode.OPENDIR, main('OPENDIR', 8)],
  [Opcode.READDIR, main('READDIR', 40)],
  [Opcode.RELEASEDIR, main('RELEASEDIR', 24)],
  [Opcode.INTERRUPT, main('INTERRUPT', 8)],
  [Opcode.DESTROY, main('DESTROY', 0)],
  [Opcode.IOCTL, main('IOCTL', 32)],
  [Opcode.POLL, main('POLL', 24)],
  [Opcode.BATCH_FORGET, drop('BATCH_FORGET', 8)],
  [Opcode.FALLOCATE, data('FALLOCATE', 32)],
  [Opcode.RENAME2, main('RENAME2', 19)],
  [Opcode.LSEEK, data('LSEEK', 24)],
]);

/** The operation behind an opcode; undefined: ENOSYS. INIT is answered once, before any lane reads. */
export function operationOf(opcode: number): Operation | undefined {
  return operations.get(opcode);
}

function main(name: string, structBytes: number): Operation {
  return { name, structBytes, served: 'main' };
}

function drop(name: string, structBytes: number): Operation {
  return { name, structBytes, served: 'drop' };
}

function data(name: string, structBytes: number): Operation {
  return { name, structBytes, served: 'data' };
}
