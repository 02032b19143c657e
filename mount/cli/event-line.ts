/** A line of `events`: `name key=value… monotonic_ns=N`, where a value with blanks is a JSON string. */
import { readSync } from 'node:fs';

export interface EventLine {
  readonly name: string;
  readonly fields: Readonly<Record<string, string | number>>;
}

/** Fields whose digits are a name. */
const NAMES = ['device', 'file'];

export function parseEvent(line: string): EventLine {
  const fields = [...line.matchAll(/ ([^\s=]+)=("(?:[^"\\]|\\.)*"|\S*)/g)].map(
    ([, key, value]) => [key!, parseValue(key!, value!)] as const,
  );
  return { name: /^\S*/.exec(line)![0], fields: Object.fromEntries(fields) };
}

function parseValue(key: string, value: string): string | number {
  if (value.startsWith('"')) return JSON.parse(value);
  return /^-?\d+$/.test(value) && !NAMES.includes(key) ? Number(value) : value;
}

/**
 * What it means that a read of `events` failed: true where it is to be read again, for with fuse-native no wait lasts; false at the end of
 * the stream, for there libfuse says so of what is removed. Throws the error where it is one.
 */
export function mayReadAgain(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'EINTR') return true;
  if (code === 'ENOENT') return false;
  throw error;
}

/** readSync of `events`: waits for the next one; 0 at the end of the stream. */
export function readEvents(fd: number, buffer: Buffer): number {
  for (;;) {
    try {
      return readSync(fd, buffer);
    } catch (error) {
      if (!mayReadAgain(error)) return 0;
    }
  }
}
