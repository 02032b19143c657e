/** The bytes of dm-log-writes' log, by the kernel's source, and what a hostile one does to its reader. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DmError } from '../../src/errors.js';
import {
  dataSectors,
  decodeEntry,
  decodeSuper,
  encodeEntry,
  encodeSuper,
  LogFlag,
  MARK_BYTES_MAX,
} from '../../src/formats/log-writes.js';

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const zeros = (bytes: Uint8Array) => bytes.every((byte) => byte === 0);

/** A sector that begins with these numbers. */
function sectorOf(...numbers: bigint[]): Buffer {
  const bytes = Buffer.alloc(512);
  numbers.forEach((value, index) => {
    bytes.writeBigUInt64LE(value, 8 * index);
  });
  return bytes;
}
const MAGIC = 0x6a736677736872n;
const superOf = (...numbers: bigint[]) => sectorOf(MAGIC, ...numbers);

describe('the super block', () => {
  it('is these bytes', () => {
    const bytes = encodeSuper(0x0102);
    expect(bytes.length).toBe(512);
    expect(hex(bytes.subarray(0, 28))).toBe(
      '7268737766736a00' + '0100000000000000' + '0201000000000000' + '00020000',
    );
    expect(zeros(bytes.subarray(28))).toBe(true);
  });

  it('comes back', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), (entries) => {
        expect(decodeSuper(encodeSuper(entries))).toEqual({ entries, sectorSize: 512 });
      }),
    );
  });

  it('is read of the kernel in larger sectors', () => {
    for (const size of [512, 1024, 4096, 65_536]) {
      expect(decodeSuper(superOf(1n, 7n, BigInt(size)))).toEqual({ entries: 7, sectorSize: size });
    }
  });

  it.each([
    [sectorOf(MAGIC + 1n, 1n, 0n, 512n), 'found magic 0x6a736677736873, expected 0x6a736677736872'],
    [superOf(2n, 0n, 512n), 'found version 2, expected 1'],
    [superOf(1n + 2n ** 40n, 0n, 512n), 'found version 1099511627777'],
    [superOf(1n, 2n ** 53n, 512n), 'found 9007199254740992 entries, expected less than 2^53'],
    [superOf(1n, 0n, 0n), 'found a sector size of 0 bytes'],
    [superOf(1n, 0n, 256n), 'found a sector size of 256 bytes'],
    [superOf(1n, 0n, 513n), 'found a sector size of 513 bytes'],
    [superOf(1n, 0n, 131_072n), 'found a sector size of 131072 bytes, expected a power of two, 512..65536'],
    [Buffer.alloc(27), 'found 27 bytes of super block, expected 28'],
  ])('refuses what no kernel wrote', (bytes, message) => {
    expect(() => decodeSuper(bytes)).toThrow(message);
  });
});

describe('an entry', () => {
  it('is these bytes', () => {
    const write = encodeEntry({ sector: 0x0a0b, sectors: 3 });
    expect(write.length).toBe(512);
    expect(hex(write.subarray(0, 32))).toBe(`0b0a0000000000000300000000000000${'00'.repeat(16)}`);
    expect(zeros(write.subarray(32))).toBe(true);
    const mark = encodeEntry({ flags: LogFlag.MARK, mark: Buffer.from('mkfs') });
    expect(hex(mark.subarray(0, 36))).toBe(`${'00'.repeat(16)}080000000000000004000000000000006d6b6673`);
    expect(zeros(mark.subarray(36))).toBe(true);
  });

  it('has these flags, and its data behind it unless it is a discard', () => {
    expect(LogFlag).toEqual({ FLUSH: 1, FUA: 2, DISCARD: 4, MARK: 8, METADATA: 16 });
    expect(dataSectors({ sectors: 5, flags: LogFlag.FUA | LogFlag.METADATA })).toBe(5);
    expect(dataSectors({ sectors: 5, flags: LogFlag.DISCARD })).toBe(0);
  });

  it('comes back', () => {
    const entry = fc.record({
      sector: fc.nat({ max: 2 ** 31 - 1 }),
      sectors: fc.integer({ min: 1, max: 2 ** 31 - 1 }),
      flags: fc.constantFrom(0, 1, 2, 3, 4, 16, 18),
      mark: fc.constant(new Uint8Array(0)),
    });
    const mark = fc.record({
      sector: fc.constant(0),
      sectors: fc.constant(0),
      flags: fc.constant(LogFlag.MARK),
      mark: fc.uint8Array({ maxLength: MARK_BYTES_MAX }),
    });
    fc.assert(
      fc.property(fc.oneof(entry, mark), (value) => {
        expect(decodeEntry(encodeEntry(value))).toEqual(value);
      }),
    );
  });

  it('leaves a zero byte behind the longest mark', () => {
    expect(MARK_BYTES_MAX).toBe(479);
    const longest = encodeEntry({ flags: LogFlag.MARK, mark: new Uint8Array(479).fill(1) });
    expect(longest.subarray(510)).toEqual(new Uint8Array([1, 0]));
    expect(() => encodeEntry({ flags: LogFlag.MARK, mark: new Uint8Array(480) })).toThrow('logw-L4');
  });

  it.each([
    [sectorOf(2n ** 53n, 1n, 0n, 0n), 'found 9007199254740992 sector, expected less than 2^53'],
    [sectorOf(0n, 2n ** 64n - 1n, 0n, 0n), 'found 18446744073709551615 sectors'],
    [sectorOf(0n, 0n, 1n, 2n ** 63n), 'found 9223372036854775808 bytes of data'],
    [
      sectorOf(2n ** 36n, 2n ** 36n, 0n, 0n),
      'found sectors 68719476736..137438953472, expected less than 2^37',
    ],
    [sectorOf(0n, 1n, 32n, 0n), 'found flags 0x20, expected 0x1f at most'],
    [sectorOf(0n, 1n, 2n ** 32n, 0n), 'found flags 0x100000000'],
    [sectorOf(9n, 0n, 0n, 0n), 'found neither flags nor sectors'],
    [sectorOf(0n, 0n, 8n, 481n), 'found a mark of 481 bytes, expected 480 at most'],
    [Buffer.alloc(511), 'found 511 bytes of an entry'],
  ])('refuses what no kernel wrote', (bytes, message) => {
    expect(() => decodeEntry(bytes)).toThrow(message);
  });
});

it('any bytes are a value within its bounds or EINVAL', () => {
  const numbers = fc.oneof(fc.bigInt({ min: 0n, max: 40n }), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }));
  const sector = fc.array(numbers, { minLength: 0, maxLength: 8 }).map((values) => sectorOf(...values));
  fc.assert(
    fc.property(sector, fc.boolean(), (bytes, withMagic) => {
      if (withMagic) bytes.set(superOf(1n).subarray(0, 16));
      for (const decode of [decodeSuper, decodeEntry]) {
        try {
          const found = Object.values(decode(bytes)).filter((value) => typeof value === 'number');
          expect(found.every((value) => Number.isSafeInteger(value) && value >= 0)).toBe(true);
        } catch (error) {
          expect(error).toBeInstanceOf(DmError);
          expect((error as DmError).code).toBe('EINVAL');
        }
      }
    }),
    { numRuns: 2000 },
  );
});

it('does not read past its bytes', () => {
  const inside = Buffer.concat([Buffer.alloc(3, 0xff), superOf(1n, 7n, 512n), Buffer.alloc(3, 0xff)]);
  expect(decodeSuper(inside.subarray(3, 515))).toEqual({ entries: 7, sectorSize: 512 });
  const entry = Buffer.concat([Buffer.alloc(3, 0xff), encodeEntry({ sector: 1, sectors: 2 })]);
  expect(decodeEntry(entry.subarray(3))).toMatchObject({ sector: 1, sectors: 2, flags: 0 });
});
