/** The blocks of dm-clone metadata, by the document's numbers and against the naive encoders in naive-clone.ts. */
import crc32c from 'crc-32/crc32c.js';
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  ARRAY_REGIONS,
  arraysOf,
  type CloneSuperblock,
  decodeSuperblock,
  encodeSuperblock,
  regionSizeProblem,
  regionsOf,
} from '../../src/formats/dm-clone.js';
import {
  ARRAY_BYTES,
  BITMAP_ENTRIES,
  BlockDamage,
  type BlockKind,
  bitmapsOf,
  countAt,
  countsOf,
  decodeArray,
  decodeIndex,
  decodeNode,
  encodeArray,
  encodeBitmap,
  encodeIndex,
  encodeNode,
  MAX_MANAGED_BLOCKS,
  managedBlocksOf,
  NODE_ENTRIES,
  nodeCapacity,
  sealBlock,
  setCount,
  verifyBlock,
} from '../../src/formats/persistent-data.js';
import * as naive from './naive-clone.js';

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const dirty = () => new Uint8Array(4096).fill(0xff);

/** Numbers that a decoder must take back: many small ones, some up to 2^53 - 1. */
const number = fc.oneof(fc.nat(5000), fc.maxSafeNat());
const blockNumber = fc.integer({ min: 1, max: MAX_MANAGED_BLOCKS - 1 });
const u32 = fc.integer({ min: 0, max: 0xffffffff });

/** Ascending keys with a value each. */
const entriesUpTo = (most: number, value: fc.Arbitrary<number>) =>
  fc
    .uniqueArray(number, { maxLength: most })
    .chain((keys) =>
      fc.tuple(
        fc.constant(keys.sort((a, b) => a - b)),
        fc.array(value, { minLength: keys.length, maxLength: keys.length }),
      ),
    );

/** What a block is refused with. */
function damageOf(decode: () => unknown): { block: number; problem: string; code: string } | undefined {
  try {
    decode();
    return undefined;
  } catch (error) {
    if (!(error instanceof BlockDamage)) throw error;
    expect(error.message).toBe(`metadata block ${error.block}: ${error.problem}`);
    return { block: error.block, problem: error.problem, code: error.code };
  }
}

const refused = (block: number, problem: string) => ({ block, problem, code: 'EINVAL' });

describe('clone-L2: checksums', () => {
  it('the check values of the document', () => {
    const digits = Buffer.from('123456789');
    expect(crc32c.buf(digits) >>> 0).toBe(0xe3069283);
    expect(~crc32c.buf(digits) >>> 0).toBe(0x1cf96d7c);
    expect(naive.crcRegister(digits)).toBe(0x1cf96d7c);
    expect(naive.crcRegister(new Uint8Array(4092))).toBe(0x58cda791);
  });

  it.each<[BlockKind, number, number]>([
    ['superblock', 257_649_492, 8],
    ['node', 121_107, 8],
    ['array', 595_846_735, 16],
    ['index', 160_478, 8],
    ['bitmap', 240_779, 8],
  ])('a %s: constant %i, number at byte %i', (kind, constant, numberAt) => {
    expect(naive.CONSTANTS[kind]).toBe(constant);
    const zeros = new Uint8Array(4096);
    sealBlock(kind, zeros, 0);
    expect(naive.get32(zeros, 0)).toBe((0x58cda791 ^ constant) >>> 0);
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 4096, maxLength: 4096 }), blockNumber, (bytes, block) => {
        const expected = naive.seal(kind, bytes.slice(), block);
        sealBlock(kind, bytes, block);
        expect(naive.get64(bytes, numberAt)).toBe(block);
        expect(hex(bytes)).toBe(hex(expected));
        verifyBlock(kind, bytes, block);
      }),
      { numRuns: 20 },
    );
  });

  it('every flipped bit of a sealed block is found, and the same bytes elsewhere', () => {
    const kinds = Object.keys(naive.CONSTANTS) as BlockKind[];
    const bytes = new Uint8Array(4096).map((_, i) => (i * 7) & 0xff);
    for (const [turn, kind] of kinds.entries()) {
      sealBlock(kind, bytes, 77);
      // The checksum is linear: kinds differ in its constant only, so they share the bits, and the ends are everybody's.
      for (let bit = 0; bit < 4096 * 8; bit++) {
        if (bit % kinds.length !== turn && bit >= 400 && bit < 4090 * 8) continue;
        bytes[bit >> 3]! ^= 1 << (bit & 7);
        const found = damageOf(() => verifyBlock(kind, bytes, 77));
        bytes[bit >> 3]! ^= 1 << (bit & 7);
        const numberAt = kind === 'array' ? 16 : 8;
        const isNumber = bit >> 3 >= numberAt && bit >> 3 < numberAt + 8;
        expect([bit, found?.block, found?.problem]).toEqual([
          bit,
          77,
          expect.stringContaining(
            isNumber ? `is no ${kind}: it has number` : `is no ${kind}, or damaged: checksum 0x`,
          ),
        ]);
      }
      verifyBlock(kind, bytes, 77);
      expect(damageOf(() => verifyBlock(kind, bytes, 78))).toEqual(
        refused(78, `is no ${kind}: it has number 77`),
      );
      for (const other of kinds) {
        if (other !== kind) expect(damageOf(() => verifyBlock(other, bytes, 77))).toBeDefined();
      }
    }
  });
});

const superblockFields = fc.record({
  managedBlocks: fc.integer({ min: 1, max: MAX_MANAGED_BLOCKS }),
  usedBlocks: number,
  indexBlock: number,
  overflowRoot: number,
  regionSectors: fc.integer({ min: 3, max: 21 }).map((log) => 2 ** log),
  targetSectors: fc.integer({ min: 1, max: 2 ** 34 }),
  bitsetRoot: number,
});

const toNaive = (fields: CloneSuperblock): naive.NaiveSuperblock => ({
  managed: fields.managedBlocks,
  used: fields.usedBlocks,
  index: fields.indexBlock,
  overflow: fields.overflowRoot,
  region: fields.regionSectors,
  target: fields.targetSectors,
  bitset: fields.bitsetRoot,
});

describe('the superblock', () => {
  const good: CloneSuperblock = {
    managedBlocks: 1024,
    usedBlocks: 6,
    indexBlock: 1,
    overflowRoot: 2,
    regionSectors: 8,
    targetSectors: 131_072,
    bitsetRoot: 4,
  };

  it('there and back', () => {
    fc.assert(
      fc.property(superblockFields, (fields) => {
        const bytes = encodeSuperblock(fields);
        expect(hex(bytes)).toBe(hex(naive.superblock(toNaive(fields))));
        expect(decodeSuperblock(bytes)).toEqual(fields);
      }),
    );
  });

  it('all zeros are none at all; a single other byte is one that is damaged', () => {
    const bytes = new Uint8Array(4096);
    expect(decodeSuperblock(bytes)).toBeUndefined();
    for (let at = 0; at < 4096; at++) {
      bytes[at] = 1;
      expect(damageOf(() => decodeSuperblock(bytes))?.block).toBe(0);
      bytes[at] = 0;
    }
  });

  it('every flipped bit is refused', () => {
    const bytes = encodeSuperblock(good);
    for (let bit = 0; bit < 4096 * 8; bit++) {
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      expect(damageOf(() => decodeSuperblock(bytes))?.block).toBe(0);
      bytes[bit >> 3]! ^= 1 << (bit & 7);
    }
    expect(decodeSuperblock(bytes)).toEqual(good);
  });

  it.each<[string, (bytes: Uint8Array) => void, string]>([
    [
      'magic',
      (b) => naive.put64(b, 32, 0x8af27f65),
      'is no dm-clone superblock: magic 0x8af27f65, expected 0x8af27f64',
    ],
    [
      'magic, high half',
      (b) => naive.put32(b, 36, 1),
      'is no dm-clone superblock: magic 0x18af27f64, expected 0x8af27f64',
    ],
    ['version 0', (b) => naive.put32(b, 40, 0), 'metadata version 0: only 1 is known'],
    ['version 2', (b) => naive.put32(b, 40, 2), 'metadata version 2: only 1 is known'],
    ['no managed block', (b) => naive.put64(b, 44, 0), 'manages 0 metadata blocks: 1 to 4161600'],
    ['too many', (b) => naive.put64(b, 44, 4_161_601), 'manages 4161601 metadata blocks: 1 to 4161600'],
    ...(
      [
        ['managedBlocks', 44],
        ['usedBlocks', 52],
        ['indexBlock', 60],
        ['overflowRoot', 68],
        ['regionSectors', 172],
        ['targetSectors', 180],
        ['bitsetRoot', 188],
      ] as const
    ).map(([name, at]): [string, (bytes: Uint8Array) => void, string] => [
      `${name} 2^53`,
      (b) => naive.put64(b, at, 2n ** 53n),
      `${name} is 9007199254740992: below 2^53`,
    ]),
    [
      'region size 4',
      (b) => naive.put64(b, 172, 4),
      '4 sectors is no region size: a power of two, 8 to 2097152',
    ],
    [
      'region size 12',
      (b) => naive.put64(b, 172, 12),
      '12 sectors is no region size: a power of two, 8 to 2097152',
    ],
    [
      'region size 2^22',
      (b) => naive.put64(b, 172, 2 ** 22),
      '4194304 sectors is no region size: a power of two, 8 to 2097152',
    ],
    ['no sector', (b) => naive.put64(b, 180, 0), 'a target of 0 sectors has 0 regions: 1 to 2147483648'],
    [
      'one region too many',
      (b) => naive.put64(b, 180, 2 ** 34 + 1),
      'a target of 17179869185 sectors has 2147483649 regions: 1 to 2147483648',
    ],
  ])('refuses %s', (_name, change, problem) => {
    const bytes = encodeSuperblock(good);
    change(bytes);
    naive.seal('superblock', bytes, 0);
    expect(damageOf(() => decodeSuperblock(bytes))).toEqual(refused(0, problem));
  });

  it('takes the limits', () => {
    const limits = {
      ...good,
      regionSectors: 2 ** 21,
      targetSectors: 2 ** 52,
      managedBlocks: MAX_MANAGED_BLOCKS,
    };
    expect(decodeSuperblock(encodeSuperblock(limits))).toEqual(limits);
    const least = { ...good, regionSectors: 8, targetSectors: 1, managedBlocks: 1 };
    expect(decodeSuperblock(encodeSuperblock(least))).toEqual(least);
  });
});

describe('the index', () => {
  const entry = fc.record({ block: number, free: u32, noneFreeBefore: u32 });

  it('there and back, over whatever the buffer held', () => {
    fc.assert(
      fc.property(fc.array(entry, { maxLength: 255 }), blockNumber, (entries, block) => {
        const bytes = dirty();
        encodeIndex(bytes, block, entries);
        const rows = entries.map((e): [number, number, number] => [e.block, e.free, e.noneFreeBefore]);
        expect(hex(bytes)).toBe(hex(naive.index(block, rows)));
        expect(decodeIndex(bytes, block, entries.length)).toEqual(entries);
      }),
    );
  });

  it('refuses a bitmap from 2^53 on, naming the entry', () => {
    const bytes = naive.index(9, [
      [3, 1, 1],
      [4, 1, 1],
    ]);
    naive.put64(bytes, 32, 2n ** 53n);
    naive.seal('index', bytes, 9);
    expect(damageOf(() => decodeIndex(bytes, 9, 2))).toEqual(
      refused(9, 'the bitmap of entry 1 is 9007199254740992: below 2^53'),
    );
    expect(decodeIndex(bytes, 9, 1)).toHaveLength(1);
  });
});

describe('clone-L3: counts', () => {
  it('four blocks in use once are aa, six are aa 0a', () => {
    const counts = new Uint8Array(2);
    for (let j = 0; j < 6; j++) setCount(counts, j, 1);
    expect(hex(counts)).toBe('aa0a');
    expect([0x00, 0x02, 0x01, 0x03].map((raw) => countAt(Uint8Array.of(raw), 0))).toEqual([0, 1, 2, 3]);
  });

  it('any counts, as the naive ones', () => {
    const counts = fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: BITMAP_ENTRIES, size: 'max' });
    fc.assert(
      fc.property(counts, blockNumber, (wanted, block) => {
        const expected = naive.bitmap(block, wanted);
        verifyBlock('bitmap', expected, block);
        const found = countsOf(expected);
        expect(wanted.filter((count, j) => countAt(found, j) !== count)).toEqual([]);
        const bytes = dirty();
        encodeBitmap(bytes, block, found);
        expect(hex(bytes)).toBe(hex(expected));
      }),
      { numRuns: 30 },
    );
  });

  it('setting one leaves its neighbours', () => {
    const change = fc.tuple(fc.nat(39), fc.constantFrom<0 | 1>(0, 1));
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 40, maxLength: 40 }),
        fc.array(change, { maxLength: 60 }),
        (model, changes) => {
          const counts = countsOf(naive.bitmap(1, model));
          for (const [j, count] of changes) {
            setCount(counts, j, count);
            model[j] = count;
          }
          expect(model.map((_, j) => countAt(counts, j))).toEqual(model);
        },
      ),
    );
  });
});

describe('array blocks', () => {
  const words = fc.array(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), {
    minLength: 1,
    maxLength: 509,
    size: 'max',
  });

  it('there and back', () => {
    fc.assert(
      fc.property(words, blockNumber, (values, block) => {
        const raw = new Uint8Array(BigUint64Array.from(values).buffer);
        const bytes = dirty();
        encodeArray(bytes, block, raw);
        expect(hex(bytes)).toBe(hex(naive.array(block, values)));
        expect(hex(decodeArray(bytes, block, values.length))).toBe(hex(raw));
      }),
      { numRuns: 50 },
    );
  });

  it.each([
    ['capacity', 4, 508, 'its capacity is 508, expected 509'],
    ['fewer words', 8, 2, 'its number of words is 2, expected 3'],
    ['more words', 8, 4, 'its number of words is 4, expected 3'],
    ['bytes of a word', 12, 4, 'its bytes of a word is 4, expected 8'],
  ])('refuses %s', (_name, at, value, problem) => {
    const bytes = naive.array(5, [1n, 2n, 3n]);
    naive.put32(bytes, at, value);
    naive.seal('array', bytes, 5);
    expect(damageOf(() => decodeArray(bytes, 5, 3))).toEqual(refused(5, problem));
  });
});

describe('clone-L5: nodes', () => {
  it('the capacities of the document', () => {
    expect(nodeCapacity('bitset', true)).toBe(252);
    expect(nodeCapacity('bitset', false)).toBe(252);
    expect(nodeCapacity('overflow', false)).toBe(252);
    expect(nodeCapacity('overflow', true)).toBe(336);
    expect(NODE_ENTRIES).toBe(252);
  });

  it('values start at 2048, and at 2720 in a leaf of counts', () => {
    const bytes = dirty();
    encodeNode(bytes, 3, 'bitset', { isLeaf: true, keys: [0], values: [0x1122334455] });
    expect(hex(bytes.subarray(2048, 2056))).toBe('5544332211000000');
    encodeNode(bytes, 3, 'overflow', { isLeaf: true, keys: [0], values: [0x11223344] });
    expect(hex(bytes.subarray(2720, 2724))).toBe('44332211');
    expect(hex(bytes.subarray(2048, 2056))).toBe('0000000000000000');
  });

  const shapes = [
    { tree: 'bitset', isLeaf: true, kind: 'leaf', most: 252, value: number },
    { tree: 'bitset', isLeaf: false, kind: 'inner', most: 252, value: number },
    { tree: 'overflow', isLeaf: false, kind: 'inner', most: 252, value: number },
    { tree: 'overflow', isLeaf: true, kind: 'counts leaf', most: 336, value: u32 },
  ] as const;

  it.each(shapes)(
    '$tree, $kind: there and back, with anything in unused slots',
    ({ tree, isLeaf, kind, most, value }) => {
      fc.assert(
        fc.property(entriesUpTo(most, value), blockNumber, fc.nat(255), ([keys, values], block, stale) => {
          fc.pre(isLeaf || keys.length > 0);
          const rows = keys.map((key, i): [number, number] => [key, values[i]!]);
          const bytes = dirty();
          encodeNode(bytes, block, tree, { isLeaf, keys, values });
          expect(hex(bytes)).toBe(hex(naive.node(block, kind, rows)));
          const found = decodeNode(naive.node(block, kind, rows, stale), block, tree);
          expect(found).toEqual({ isLeaf, keys, values });
        }),
        { numRuns: 40 },
      );
      const full = Array.from({ length: most }, (_, i): [number, number] => [i, i + 7]);
      const node = decodeNode(naive.node(8, kind, full), 8, tree);
      expect(node.keys).toHaveLength(most);
      const bytes = dirty();
      encodeNode(bytes, 8, tree, node);
      expect(hex(bytes)).toBe(hex(naive.node(8, kind, full)));
      const more = { isLeaf, keys: [...node.keys, most], values: [...node.values, 1] };
      expect(() => encodeNode(bytes, 8, tree, more)).toThrow('clone-L5');
      expect(() => encodeNode(bytes, 8, tree, { ...node, values: [] })).toThrow('clone-L5');
    },
  );

  it.each<[string, 'bitset' | 'overflow', 'inner' | 'leaf' | 'counts leaf', (b: Uint8Array) => void, string]>(
    [
      ['flags 0', 'bitset', 'leaf', (b) => naive.put32(b, 4, 0), 'a node with flags 0: 1 or 2'],
      ['flags 3', 'bitset', 'leaf', (b) => naive.put32(b, 4, 3), 'a node with flags 3: 1 or 2'],
      ['capacity', 'bitset', 'leaf', (b) => naive.put32(b, 20, 336), 'its capacity is 336, expected 252'],
      [
        'capacity',
        'overflow',
        'counts leaf',
        (b) => naive.put32(b, 20, 252),
        'its capacity is 252, expected 336',
      ],
      ['value size', 'bitset', 'leaf', (b) => naive.put32(b, 24, 4), 'its bytes of a value is 4, expected 8'],
      [
        'value size',
        'overflow',
        'inner',
        (b) => naive.put32(b, 24, 4),
        'its bytes of a value is 4, expected 8',
      ],
      ['253 entries', 'bitset', 'leaf', (b) => naive.put32(b, 16, 253), 'a node of 253 entries: 252 at most'],
      [
        '253 children',
        'overflow',
        'inner',
        (b) => naive.put32(b, 16, 253),
        'a node of 253 entries: 252 at most',
      ],
      [
        '337 counts',
        'overflow',
        'counts leaf',
        (b) => naive.put32(b, 16, 337),
        'a node of 337 entries: 336 at most',
      ],
      ['no child', 'bitset', 'inner', (b) => naive.put32(b, 16, 0), 'an inner node without a child'],
      [
        'key 2^53',
        'bitset',
        'leaf',
        (b) => naive.put64(b, 48, 2n ** 53n),
        'key 2 is 9007199254740992: below 2^53',
      ],
      [
        'value 2^53',
        'bitset',
        'inner',
        (b) => naive.put64(b, 2056, 2n ** 53n),
        'value 1 is 9007199254740992: below 2^53',
      ],
      [
        'equal keys',
        'bitset',
        'leaf',
        (b) => naive.put64(b, 40, 4),
        'key 1 is no greater than the one before',
      ],
      [
        'falling keys',
        'overflow',
        'counts leaf',
        (b) => naive.put64(b, 48, 1),
        'key 2 is no greater than the one before',
      ],
    ],
  )('refuses %s in a node of the %s tree (%s)', (_name, tree, kind, change, problem) => {
    const bytes = naive.node(6, kind, [
      [4, 10],
      [5, 11],
      [6, 12],
    ]);
    decodeNode(bytes, 6, tree);
    change(bytes);
    naive.seal('node', bytes, 6);
    expect(damageOf(() => decodeNode(bytes, 6, tree))).toEqual(refused(6, problem));
  });

  it('a leaf of one tree is none of the other', () => {
    expect(damageOf(() => decodeNode(naive.node(6, 'leaf', []), 6, 'overflow'))?.problem).toContain(
      'capacity',
    );
    expect(damageOf(() => decodeNode(naive.node(6, 'counts leaf', []), 6, 'bitset'))?.problem).toContain(
      'capacity',
    );
  });
});

describe('sizes', () => {
  it.each([
    [8, undefined],
    [2 ** 21, undefined],
    [4, '4 sectors is no region size'],
    [2 ** 22, '4194304 sectors is no region size'],
    [24, '24 sectors is no region size'],
    [0, '0 sectors is no region size'],
    [8.5, '8.5 sectors is no region size'],
  ])('a region of %d sectors', (sectors, problem) => {
    const found = regionSizeProblem(sectors);
    if (problem === undefined) expect(found).toBeUndefined();
    else expect(found).toContain(problem);
  });

  it('regions, array blocks, bitmaps, managed blocks', () => {
    expect([ARRAY_BYTES, ARRAY_REGIONS, MAX_MANAGED_BLOCKS]).toEqual([4072, 32_576, 4_161_600]);
    expect(regionsOf({ targetSectors: 131_072, regionSectors: 8 })).toBe(16_384);
    expect(regionsOf({ targetSectors: 100_003, regionSectors: 128 })).toBe(782);
    expect([1, 32_576, 32_577, 2 ** 31].map(arraysOf)).toEqual([1, 1, 2, 65_923]);
    expect([1, 16_320, 16_321, MAX_MANAGED_BLOCKS].map(bitmapsOf)).toEqual([1, 1, 2, 255]);
    expect([4095, 4096, 1_050_112, 2 ** 40].map(managedBlocksOf)).toEqual([0, 1, 256, MAX_MANAGED_BLOCKS]);
  });
});
