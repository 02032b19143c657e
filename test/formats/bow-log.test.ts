import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DmError } from '../../src/errors.js';
import {
  BOW_MAGIC,
  BOW_MAGIC_RESTORING,
  bowChecksum,
  decodeLog,
  ENTRY_BYTES,
  ENTRY_FIELDS,
  encodeEntry,
  encodeHeader,
  HEADER_BYTES,
  HEADER_FIELDS,
  HEADER_VERSION,
  type LogEntry,
  type LogHeader,
  logCapacity,
  sniffMagic,
} from '../../src/formats/bow-log.js';

const pattern = (length: number) => Uint8Array.from({ length }, (_, i) => i);
const hex = (value: number) => value.toString(16).padStart(8, '0');

const HEADER: LogHeader = {
  magic: BOW_MAGIC,
  headerVersion: HEADER_VERSION,
  headerSize: HEADER_BYTES,
  blockSize: 512,
  count: 2,
  sequence: 0,
  sector0: 3,
};
const ENTRIES: LogEntry[] = [
  { sourceSector: 0, destSector: 4, sizeBytes: 512, checksum: 0x11223344 },
  { sourceSector: 10, destSector: 1, sizeBytes: 512, checksum: 0x8f462b4e },
];

function encoded(header: LogHeader = HEADER, entries: readonly LogEntry[] = ENTRIES): Uint8Array {
  const block = new Uint8Array(header.blockSize);
  encodeHeader(block, header);
  for (const [index, entry] of entries.entries()) encodeEntry(block, index, entry);
  return block;
}

describe('layout', () => {
  it.each([
    ['header', HEADER_FIELDS, HEADER_BYTES],
    ['entry', ENTRY_FIELDS, ENTRY_BYTES],
  ])('the fields of a %s follow each other without a gap', (_, fields, total) => {
    let end = 0;
    for (const { offset, width } of fields) {
      expect(offset).toBe(end);
      end += width;
    }
    expect(end).toBe(total);
  });

  it('capacity is as in section 1 of the specification', () => {
    expect([512, 1024, 2048, 4096].map((size) => logCapacity(size))).toEqual([20, 41, 84, 169]);
    expect(logCapacity(512, 512)).toBe(0);
  });

  it('encodes the whole example of section 4 byte for byte', () => {
    const expected = Buffer.concat([
      Buffer.from(
        '424f5700 0001 1c00 00020000 02000000 00000000 0300000000000000'.replaceAll(' ', ''),
        'hex',
      ),
      Buffer.from('0000000000000000 0400000000000000 00020000 44332211'.replaceAll(' ', ''), 'hex'),
      Buffer.from('0a00000000000000 0100000000000000 00020000 4e2b468f'.replaceAll(' ', ''), 'hex'),
    ]);
    const block = encoded();
    expect(Buffer.from(block.subarray(0, expected.length)).toString('hex')).toBe(expected.toString('hex'));
    expect(block.subarray(expected.length).every((byte) => byte === 0)).toBe(true);
    expect(decodeLog(block)).toEqual({ header: HEADER, entries: ENTRIES });
  });

  it('sniffs the magic', () => {
    expect(sniffMagic(Uint8Array.of(0x42, 0x4f, 0x57, 0))).toBe('bow');
    expect(sniffMagic(Uint8Array.of(0x57, 0x4f, 0x42, 0, 1))).toBe('restoring');
    expect(sniffMagic(Uint8Array.of(0x42, 0x4f, 0x57, 1))).toBe('none');
    expect(sniffMagic(Uint8Array.of(0x42, 0x4f, 0x57))).toBe('none');
    expect(sniffMagic(encoded({ ...HEADER, magic: BOW_MAGIC_RESTORING }))).toBe('restoring');
  });
});

describe('bow-L5 checksum', () => {
  const two = new Uint8Array([...pattern(4096), ...new Uint8Array(4096).fill(0xaa)]);
  it.each([
    ['4096 bytes, i mod 256', pattern(4096), 0, '658d2093'],
    ['4096 bytes, i mod 256', pattern(4096), 5, '8f462b4e'],
    ['4096 bytes, i mod 256', pattern(4096), 0x12345, '3d60c828'],
    ['the same and 4096 × aa', two, 5, '94d07584'],
    ['4096 zeros', new Uint8Array(4096), 0, '00000000'],
    ['4096 zeros', new Uint8Array(4096), 1, '5ad8a92c'],
    ['4096 zeros', new Uint8Array(4096), 5, 'eacb0bdd'],
    ['512 bytes, i mod 256', pattern(512), 0, 'aecb400e'],
    ['512 bytes, i mod 256', pattern(512), 7, 'df9741d6'],
    ['"123456789"', Buffer.from('123456789'), 0xffffffff, '340bc6d9'],
  ])('of %s', (_, bytes, page, expected) => {
    expect(hex(bowChecksum(page, bytes))).toBe(expected);
  });

  it('is carried on from piece to piece, whatever the pieces', () => {
    const cases = fc.tuple(
      fc.uint8Array({ maxLength: 300 }),
      fc.uint8Array({ maxLength: 300 }),
      fc.nat(2 ** 31),
    );
    fc.assert(
      fc.property(cases, ([a, b, page]) => {
        expect(bowChecksum(0, b, bowChecksum(page, a))).toBe(bowChecksum(page, Buffer.concat([a, b])));
      }),
    );
  });

  it('starts with the low 32 bits of the page', () => {
    expect(bowChecksum(2 ** 40 + 5, pattern(4096))).toBe(0x8f462b4e);
  });
});

const u32 = fc.integer({ min: 0, max: 2 ** 32 - 1 });
const u64 = fc.oneof(fc.nat(1000), fc.maxSafeNat(), fc.constant(Number.MAX_SAFE_INTEGER));
const anyEntry = fc.record({ sourceSector: u64, destSector: u64, sizeBytes: u32, checksum: u32 });
const anyLog = fc
  .tuple(fc.constantFrom(512, 1024, 2048, 4096), fc.constantFrom(BOW_MAGIC, BOW_MAGIC_RESTORING), u32, u64)
  .chain(([blockSize, magic, sequence, sector0]) =>
    fc
      .tuple(
        fc.array(anyEntry, { minLength: 1, maxLength: logCapacity(blockSize), size: 'max' }),
        fc.uint8Array({ minLength: blockSize, maxLength: blockSize }),
        fc.nat(255),
      )
      .map(([entries, junk, minor]) => {
        const header = { ...HEADER, headerVersion: 0x100 + minor, blockSize, magic, sequence, sector0 };
        return { header: { ...header, count: entries.length }, entries, junk };
      }),
  );

describe('encode and decode', () => {
  it('bow-L1, bow-L2: what was encoded over any bytes comes back, and nothing after it is changed or read', () => {
    fc.assert(
      fc.property(anyLog, ({ header, entries, junk }) => {
        const block = junk.slice();
        encodeHeader(block, header);
        for (const [index, entry] of entries.entries()) encodeEntry(block, index, entry);
        expect(decodeLog(block)).toEqual({ header, entries });
        const end = HEADER_BYTES + entries.length * ENTRY_BYTES;
        expect(Buffer.compare(block.subarray(end), junk.subarray(end))).toBe(0);
      }),
    );
  });

  it('bow-L3: a value that does not fit is an error and no byte is written', () => {
    const values = { tooBig: 2 ** 33, negative: -1, fraction: 1.5, nan: Number.NaN };
    for (const value of Object.values(values)) {
      for (const { name } of HEADER_FIELDS) {
        if (name === 'sector0' && value === values.tooBig) continue;
        const block = new Uint8Array(512);
        expect(() => encodeHeader(block, { ...HEADER, [name]: value })).toThrow(`bow-L3: ${name} ${value}`);
        expect(block.every((byte) => byte === 0)).toBe(true);
      }
      for (const { name, width } of ENTRY_FIELDS) {
        if (width === 8 && value === values.tooBig) continue;
        const block = new Uint8Array(512);
        expect(() => encodeEntry(block, 0, { ...ENTRIES[0]!, [name]: value })).toThrow(RangeError);
        expect(block.every((byte) => byte === 0)).toBe(true);
      }
    }
    const block = new Uint8Array(512);
    expect(() => encodeHeader(block, { ...HEADER, sector0: 2 ** 53 })).toThrow('bow-L3: sector0');
    expect(() => encodeEntry(block, 20, ENTRIES[0]!)).toThrow('bow-L3: entry 20');
    expect(() => encodeEntry(block, -1, ENTRIES[0]!)).toThrow('bow-L3: entry -1');
  });

  it.each([
    [{ magic: 0x12345678 }, /magic is 0x12345678, expected 0x00574f42 \(BOW\)/],
    [{ headerVersion: 0x0200 }, /header_version is 0x0200, expected 0x0100/],
    [{ headerSize: 27 }, /header_size is 27 bytes, expected 28\.\.512/],
    [{ headerSize: 513 }, /header_size is 513 bytes, expected 28\.\.512/],
    [{ headerSize: 512 }, /count is 2 entries, expected 1\.\.0/],
    [{ headerSize: 465 }, /count is 2 entries, expected 1\.\.1/],
    [{ blockSize: 256 }, /block_size is 256 bytes, expected a power of two 512\.\.4096/],
    [{ blockSize: 513 }, /block_size is 513 bytes/],
    [{ blockSize: 8192 }, /block_size is 8192 bytes/],
    [{ blockSize: 1024 }, /block_size is 1024 bytes, expected 512 at most/],
    [{ blockSize: 0 }, /block_size is 0 bytes/],
    [{ count: 0 }, /count is 0 entries, expected 1\.\.20/],
    [{ count: 21 }, /count is 21 entries, expected 1\.\.20/],
  ])('bow-L2: refuses a header with %o', (change, message) => {
    const block = encoded();
    encodeHeader(block, { ...HEADER, ...change });
    expect(() => decodeLog(block)).toThrow(message);
  });

  it('bow-L2: refuses a u64 of 2^53 and more, and names it', () => {
    const block = Buffer.from(encoded());
    block.writeBigUInt64LE(2n ** 53n, 20);
    expect(() => decodeLog(block)).toThrow('sector0 is 9007199254740992');
    block.set(encoded());
    block.writeBigUInt64LE(2n ** 53n + 1n, HEADER_BYTES + ENTRY_BYTES + 8);
    expect(() => decodeLog(block)).toThrow('entry 1: destSector is 9007199254740992');
    expect(() => decodeLog(block.subarray(0, 27))).toThrow('27 bytes');
  });

  it('bow-L4: entries start at header_size', () => {
    const plain = encoded();
    const block = new Uint8Array(512);
    encodeHeader(block, { ...HEADER, headerSize: 40 });
    block.set(plain.subarray(HEADER_BYTES, HEADER_BYTES + 2 * ENTRY_BYTES), 40);
    expect(decodeLog(block).entries).toEqual(ENTRIES);
  });

  it('any byte changed to any value: a log or a DmError, never anything else', () => {
    const count = logCapacity(512);
    const block = encoded({ ...HEADER, count }, Array(count).fill(ENTRIES[1]!));
    let refused = 0;
    for (let at = 0; at < block.length; at++) {
      for (let value = 0; value < 256; value++) {
        const mutated = block.slice();
        mutated[at] = value;
        try {
          const { header, entries } = decodeLog(mutated);
          expect(entries.length).toBe(header.count);
        } catch (error) {
          expect(error).toBeInstanceOf(DmError);
          refused++;
        }
      }
    }
    expect(refused).toBeGreaterThan(1000);
  });

  it('random bytes after the magic: a log or a DmError', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 0, maxLength: 600 }), (bytes) => {
        bytes.set(encoded().subarray(0, Math.min(8, bytes.length)));
        try {
          decodeLog(bytes);
        } catch (error) {
          expect(error).toBeInstanceOf(DmError);
        }
      }),
      { numRuns: 1000 },
    );
  });
});
