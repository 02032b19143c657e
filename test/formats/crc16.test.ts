import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { crcAfterHeader, crcOfSector } from '../../src/formats/crc16.js';
import { bitwiseCrc, naiveCrc } from '../targets/csum/naive-volume.js';

const wordsOf = (bytes: Uint8Array) => new Int32Array(bytes.slice().buffer);
const sector = (fill: (i: number) => number) => Uint8Array.from({ length: 512 }, (_, i) => fill(i));
const anySector = fc.uint8Array({ minLength: 512, maxLength: 512 });

describe('CRC-16/KERMIT, section 3', () => {
  it.each([
    ['bit by bit', bitwiseCrc],
    ['byte by byte', naiveCrc],
  ])('those of the tests, %s, give the values of the document for short inputs', (_, crcOf) => {
    expect(crcOf(new Uint8Array(0))).toBe(0x0000);
    expect(crcOf(Uint8Array.of(1))).toBe(0x1189);
    expect(crcOf(Buffer.from('123456789'))).toBe(0x2189);
  });

  it.each([
    ['512 bytes 0x00', () => 0, 0x0000],
    ['512 bytes 0xff', () => 0xff, 0x85fe],
    ['512 bytes 00 01 02 … ff, twice', (i: number) => i, 0x4997],
    ['512 bytes 0x41', () => 0x41, 0xd376],
    ['0x80, then 511 zero bytes', (i: number) => (i === 0 ? 0x80 : 0), 0x0551],
    ['511 zero bytes, then 0x01', (i: number) => (i === 511 ? 1 : 0), 0x1189],
    ['503 zero bytes, then 123456789', (i: number) => (i < 503 ? 0 : i - 503 + 0x31), 0x2189],
  ])('of %s', (_, fill, crc) => {
    expect([bitwiseCrc(sector(fill)), naiveCrc(sector(fill))]).toEqual([crc, crc]);
    expect(crcOfSector(wordsOf(sector(fill)), 0)).toBe(crc);
  });

  it.each([
    ['504 bytes 0x00', () => 0, 0x0000],
    ['504 bytes 0xff', () => 0xff, 0x617f],
  ])('without the first 8 bytes: of %s', (_, fill, crc) => {
    expect(naiveCrc(sector(fill).subarray(8))).toBe(crc);
    expect(crcAfterHeader(wordsOf(sector(fill)), 0)).toBe(crc);
  });

  it('is right for each single bit, so (being linear) for every sector', () => {
    for (let bit = 0; bit < 4096; bit++) {
      const one = sector((i) => (i === bit >> 3 ? 1 << (bit & 7) : 0));
      const words = wordsOf(one);
      expect([bit, crcOfSector(words, 0)]).toEqual([bit, bitwiseCrc(one)]);
      expect([bit, crcAfterHeader(words, 0)]).toEqual([bit, bitwiseCrc(one.subarray(8))]);
    }
    fc.assert(
      fc.property(anySector, anySector, (a, b) => {
        const both = crcOfSector(wordsOf(a), 0) ^ crcOfSector(wordsOf(b), 0);
        expect(crcOfSector(wordsOf(a.map((byte, i) => byte ^ b[i]!)), 0)).toBe(both);
      }),
    );
  });

  it('is that of bit by bit, wherever the sector lies, and changes nothing', () => {
    fc.assert(
      fc.property(anySector, fc.nat(300), fc.uint8Array({ maxLength: 4 }), (bytes, at, junk) => {
        const buffer = new Uint8Array(4 * at + 512 + 4).fill(junk[0] ?? 0);
        buffer.set(bytes, 4 * at);
        const before = buffer.slice();
        const words = new Int32Array(buffer.buffer);
        expect(crcOfSector(words, at)).toBe(bitwiseCrc(bytes));
        expect(crcAfterHeader(words, at)).toBe(bitwiseCrc(bytes.subarray(8)));
        expect(naiveCrc(bytes)).toBe(bitwiseCrc(bytes));
        expect(Buffer.compare(buffer, before)).toBe(0);
      }),
      { numRuns: 500 },
    );
  });
});
