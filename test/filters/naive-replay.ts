/**
 * Reads a log of dm-log-writes by the kernel's comment on its format, with nothing of dmfuse's own code, and replays it as
 * replay-log does on a file. What xfstests' tool calls malformed throws.
 */
import { expect } from 'vitest';

const FLUSH = 1;
const DISCARD = 4;
const MARK = 8;

export interface Replayed {
  readonly flags: number;
  readonly sector: number;
  readonly sectors: number;
  /** '' for all but a mark. */
  readonly mark: string;
  /** Of a write. */
  readonly data: Uint8Array;
}

/** The entries that the super block of a log of 512-byte sectors counts. */
export function entriesOf(log: Uint8Array): Replayed[] {
  const bytes = Buffer.from(log.buffer, log.byteOffset, log.length);
  expect(bytes.subarray(0, 16).toString('hex')).toBe('7268737766736a000100000000000000');
  expect(bytes.readUInt32LE(24)).toBe(512);
  expect(bytes.subarray(28, 512).every((byte) => byte === 0)).toBe(true);
  const found: Replayed[] = [];
  let at = 512;
  for (let left = number(bytes, 16); left > 0; left--) {
    const [sector, sectors, flags, length] = [0, 8, 16, 24].map((field) => number(bytes, at + field)) as [
      number,
      number,
      number,
      number,
    ];
    const isMark = flags === MARK;
    expect([0, FLUSH, DISCARD, MARK]).toContain(flags);
    expect(flags === 0 || flags === DISCARD ? sectors > 0 : sectors === 0 && sector === 0).toBe(true);
    if (!isMark) expect(length).toBe(0);
    const text = bytes.subarray(at + 32, at + 32 + length);
    expect(bytes.subarray(at + 32 + length, at + 512).every((byte) => byte === 0)).toBe(true);
    expect(32 + length).toBeLessThan(512);
    at += 512;
    const data = flags === 0 ? bytes.subarray(at, at + sectors * 512) : new Uint8Array(0);
    if (flags === 0) expect(data.length).toBe(sectors * 512);
    at += data.length;
    found.push({ flags, sector, sectors, mark: text.toString('utf8'), data });
  }
  return found;
}

/** Does what the entry says to the content of a device. */
export function replay(entry: Replayed, content: Uint8Array): void {
  const from = entry.sector * 512;
  const to = from + entry.sectors * 512;
  expect(to).toBeLessThanOrEqual(content.length);
  if (entry.flags === DISCARD) content.fill(0, from, to);
  else content.set(entry.data, from);
}

/** `flush`, `mark NAME`, `discard SECTOR+SECTORS`, `write SECTOR+SECTORS`. */
export function nameOf({ flags, sector, sectors, mark }: Replayed): string {
  if (flags === FLUSH) return 'flush';
  if (flags === MARK) return `mark ${mark}`;
  return `${flags === DISCARD ? 'discard' : 'write'} ${sector}+${sectors}`;
}

function number(bytes: Buffer, at: number): number {
  return Number(bytes.readBigUInt64LE(at));
}
