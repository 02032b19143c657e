/**
 * Two error channels in one object: a sentence for people, which names the input and the remedy, and an errno
 * for the caller of read(2), write(2) or mkdir(2).
 */
import { constants } from 'node:os';

export type ErrnoName = keyof typeof constants.errno;

/** An error whose message can be shown to a user as it is and whose `code` becomes the errno of the request. */
export class DmError extends Error {
  readonly code: ErrnoName;

  constructor(code: ErrnoName, message: string) {
    super(message);
    this.name = 'DmError';
    this.code = code;
  }
}

/** The positive errno for anything thrown: a DmError's or a Node system error's own, EIO for the rest. */
export function errnoOf(error: unknown): number {
  const code = (error as { code?: unknown } | null)?.code;
  if (typeof code === 'string' && code in constants.errno) return constants.errno[code as ErrnoName];
  return constants.errno.EIO;
}

/** The sentence for people in anything thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Runs `work`; a DmError that it throws says where: `where: message`. */
export function naming<T>(where: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    throw new DmError(error.code, `${where}: ${error.message}`);
  }
}
