/** Whole metadata devices: the kernel's own, those of a naive builder in odd shapes, and what is said about damaged ones. */
import { createHash } from 'node:crypto';
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { FileDevice } from '../../../src/device/file.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { DmError } from '../../../src/errors.js';
import { BlockDamage } from '../../../src/formats/persistent-data.js';
import { createImage } from '../../../src/targets/clone/format.js';
import { type CloneImage, countRegions, readImage } from '../../../src/targets/clone/image.js';
import { clone } from '../../../src/targets/clone/index.js';
import { createStore, MetadataStore } from '../../../src/targets/clone/store.js';
import * as naive from '../../formats/naive-clone.js';
import { expectSameBytes, makeRig } from '../harness.js';
import {
  type Built,
  build,
  FIXTURES,
  fixture,
  fullNodes,
  PER_ARRAY,
  PER_BITMAP,
  randomPlaces,
  rangesOf,
  readStrictly,
  type Shape,
  SparseDevice,
} from './naive-metadata.js';

const MIB = 1 << 20;

/** All that is wrong with a device, as `block: problem`. */
function flawsOf(device: BlockDevice): string[] {
  const flaws: string[] = [];
  readImage(device, ({ block, problem }) => flaws.push(`${block}: ${problem}`));
  return flaws;
}

/** Reads a device that must be sound. */
function soundImage(device: BlockDevice): CloneImage {
  expect(flawsOf(device)).toEqual([]);
  return readImage(device)!;
}

function hydratedOf({ hydrated, superblock }: CloneImage): [number, number][] {
  const { targetSectors, regionSectors } = superblock;
  return rangesOf(new Uint8Array(hydrated), Math.ceil(targetSectors / regionSectors));
}

/** Writes a new image to a device. */
function format(device: BlockDevice, regionSectors: number, targetSectors: number): CloneImage {
  const image = createImage({ regionSectors, targetSectors }, device.size);
  new MetadataStore(createStore(image), device).writeAll();
  return image;
}

/** A clone over metadata, with no room taken for what it copies. */
function cloneOver(metadata: BlockDevice, regionSectors: number, targetSectors: number) {
  const [source, destination] = [0, 1].map(() => new SparseDevice(targetSectors * 512));
  return makeRig(
    clone,
    `metadata destination source ${regionSectors} 1 no_hydration`,
    { metadata, destination: destination!, source: source! },
    { length: targetSectors },
  );
}

describe('images of the kernel', () => {
  it.each(FIXTURES)('%s says what its JSON says', (name) => {
    const { image: bytes, truth } = fixture(name);
    expect(createHash('sha256').update(bytes).digest('hex')).toBe(truth.metadata_sha256);
    const device = new MemoryDevice(bytes);
    const image = soundImage(device);
    expect(image.superblock).toMatchObject({
      targetSectors: truth.target_sectors,
      regionSectors: truth.region_sectors,
      usedBlocks: truth.live_metadata_blocks,
      managedBlocks: truth.space_map_blocks,
    });
    expect(hydratedOf(image)).toEqual(truth.hydrated_ranges);
    expect(countRegions(image.hydrated, truth.nr_regions)).toBe(truth.hydrated_count);
    expect(image.levels).toHaveLength(truth.bitset_btree_depth + 1);
    expect(readStrictly(device).ranges).toEqual(truth.hydrated_ranges);
    const store = new MetadataStore(createStore(image), device);
    expect([store.used, store.total]).toEqual([truth.live_metadata_blocks, truth.space_map_blocks]);
  });

  it.each(FIXTURES)(
    '%s: a clone that changes nothing leaves it as it is, and has its status',
    async (name) => {
      const { image, truth } = fixture(name);
      const device = new MemoryDevice(image.slice());
      const { target } = await cloneOver(device, truth.region_sectors, truth.target_sectors);
      target.read(0, new Uint8Array(5000));
      target.flush();
      target.close();
      expect(`0 ${truth.target_sectors} clone ${target.statusArgs()}`).toBe(truth.dmsetup_status);
      expectSameBytes(device.bytes, image, name);
    },
  );

  it('a new one is the same, byte for byte', async () => {
    const { image, truth } = fixture('fresh-64m-r8');
    const device = new MemoryDevice(truth.metadata_device_bytes);
    await cloneOver(device, truth.region_sectors, truth.target_sectors);
    // What is behind the live blocks nobody wrote.
    const live = 4096 * truth.live_metadata_blocks;
    expectSameBytes(device.bytes.subarray(0, live), image.subarray(0, live), 'live blocks');
    expect(device.bytes.subarray(live).every((byte) => byte === 0)).toBe(true);
  });

  it.each(FIXTURES)('%s: a clone goes on with it', async (name) => {
    const { image, truth } = fixture(name);
    const device = new MemoryDevice(image.slice());
    const { target } = await cloneOver(device, truth.region_sectors, truth.target_sectors);
    target.write(0, new Uint8Array(target.size));
    target.flush();
    soundImage(device);
    expect(readStrictly(device).ranges).toEqual([[0, truth.nr_regions]]);
  });
});

describe('a new image', () => {
  it.each([
    // Region size, regions, bytes of the device: array blocks 1, 252, 253, and several bitmaps.
    [8, 1, 40_960],
    [8, 16_384, 4 * MIB],
    [8, PER_ARRAY, 40_960 + 4095],
    [16, PER_ARRAY + 1, 4 * MIB],
    [8, 252 * PER_ARRAY, 4 * MIB],
    [8, 252 * PER_ARRAY + 1, 4 * MIB],
    [2 ** 21, 600 * PER_ARRAY - 5, 200 * MIB],
  ])('regions of %i sectors, %i of them, %i bytes', (regionSectors, regions, bytes) => {
    const device = new SparseDevice(bytes);
    const image = format(device, regionSectors, regionSectors * regions - 3);
    const arrays = Math.ceil(regions / PER_ARRAY);
    const nodes = fullNodes(arrays);
    expect(image.levels).toEqual([arrays, ...nodes.map((level) => level.length)]);
    const state = readStrictly(device);
    expect(state).toMatchObject({
      regions,
      ranges: [],
      depth: nodes.length,
      managed: Math.floor(bytes / 4096),
    });
    // No gaps, in the order of section 7.
    const bitmaps = Math.ceil(state.managed / PER_BITMAP);
    expect([...state.live].sort((a, b) => a - b)).toEqual(
      Array.from({ length: state.live.size }, (_, i) => i),
    );
    expect(state.places).toMatchObject({
      index: 1,
      overflow: 2,
      bitmaps: Array.from({ length: bitmaps }, (_, i) => 3 + i),
    });
    // The superblock comes when all else is durable.
    expect(device.log.slice(-3)).toEqual(['flush', 0, 'flush']);
    expect(device.log.slice(0, -3).sort()).toEqual([...state.live].filter((block) => block > 0).sort());
    const found = soundImage(device);
    expect(found.superblock).toEqual(image.superblock);
    expect(found.levels).toEqual(image.levels);
    for (const list of ['firstChildren', 'places', 'counts', 'hydrated'] as const) {
      expectSameBytes(new Uint8Array(found[list]), new Uint8Array(image[list]), list);
    }
  });

  it('2^31 regions: a tree of three levels, in a file', () => {
    const folder = mkdtempSync(join(tmpdir(), 'dmfuse-clone-'));
    const path = join(folder, 'metadata');
    const fd = openSync(path, 'w+');
    try {
      const size = 512 * MIB;
      ftruncateSync(fd, size);
      const device = new FileDevice({ fd, size, path });
      // Nothing is to survive a power cut here, and a disk may be slow.
      device.flush = () => {};
      const image = format(device, 8, 2 ** 34);
      expect(image.levels).toEqual([65_923, 262, 2, 1]);
      const hydrated = new Int32Array(image.hydrated);
      const regions = [0, 32_575, 32_576, 252 * PER_ARRAY - 1, 252 * PER_ARRAY, 2 ** 31 - 1];
      for (const region of regions) hydrated[Math.floor(region / 32)]! |= 1 << (region % 32);
      const arrays = [...new Set(regions.map((region) => Math.floor(region / PER_ARRAY)))];
      new MetadataStore(createStore(image), device).commit(arrays, () => {});
      const found = soundImage(device);
      expect(found.levels).toEqual(image.levels);
      expect(countRegions(found.hydrated, 2 ** 31)).toBe(regions.length);
      for (const region of regions) {
        expect((new Int32Array(found.hydrated)[Math.floor(region / 32)]! >>> (region % 32)) & 1).toBe(1);
      }
    } finally {
      closeSync(fd);
      rmSync(folder, { recursive: true });
    }
  });

  it('a target of more regions than the format can hold is refused, and nothing is written', async () => {
    const device = new SparseDevice(1024 * MIB);
    const error = await cloneOver(device, 8, 2 ** 34 + 1).catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(DmError);
    expect((error as Error).message).toContain('2147483649 regions');
    expect(device.log).toEqual([]);
  });

  it('a device that is too small is refused, naming the bytes that it takes', () => {
    const sizes = { regionSectors: 8, targetSectors: 8 * 64 };
    for (const blocks of [1, 5, 6, 9]) {
      expect(() => createImage(sizes, 4096 * blocks + 4095)).toThrow(
        `has ${4096 * blocks + 4095} bytes: metadata of 64 regions needs 40960 at least`,
      );
    }
    expect(createImage(sizes, 40_960).superblock.managedBlocks).toBe(10);
  });
});

const BASE: Shape = { regionSectors: 8, targetSectors: 8 * (7 * PER_ARRAY + 100), deviceBytes: 64 * 4096 };

describe('shapes that nobody here makes', () => {
  it.each<[string, Shape]>([
    [
      'leaves of 248, 126 and 142 under one root',
      {
        ...BASE,
        deviceBytes: 4 * MIB,
        targetSectors: 8 * (515 * PER_ARRAY + 1),
        nodes: [[248, 126, 142], [3]],
      },
    ],
    [
      'leaves of one entry, three levels of pairs',
      { ...BASE, nodes: [[1, 1, 1, 1, 1, 1, 1, 1], [2, 2, 2, 2], [2, 2], [2]] },
    ],
    ['inner nodes with a single child', { ...BASE, nodes: [[8], [1], [1], [1]] }],
    ['stale bytes in unused slots', { ...BASE, nodes: [[3, 5], [2]], stale: 0xee }],
    ['hints that are lower than necessary', { ...BASE, slack: 5 }],
    [
      'the other way round: array blocks first, the index last',
      { ...BASE, places: (count) => Array.from({ length: count }, (_, i) => count - i) },
    ],
    [
      'up to the last block',
      { ...BASE, places: (count, managed) => Array.from({ length: count }, (_, i) => managed - count + i) },
    ],
    ['several bitmaps', { ...BASE, deviceBytes: 200 * MIB, places: randomPlaces(new Prng(3)) }],
    ['fewer managed blocks than the device has', { ...BASE, deviceBytes: 200 * MIB, managed: 30 }],
    ['a managed number at the end of a bitmap', { ...BASE, deviceBytes: 200 * MIB, managed: 2 * PER_BITMAP }],
    ['an empty last leaf', { ...BASE, nodes: [[8], [1]] }],
    ['one region', { ...BASE, targetSectors: 1 }],
  ])('%s', (_name, shape) => {
    const regions = Math.ceil(shape.targetSectors / 8);
    const hydrated = [0, 5, 6, 63, 64, PER_ARRAY - 1, PER_ARRAY, 3 * PER_ARRAY + 7, regions - 1].filter(
      (r) => r < regions,
    );
    const { device, places, managed } = build({ ...shape, hydrated });
    const before = device.copy();
    const naiveState = readStrictly(device);
    const image = soundImage(device);
    expect(hydratedOf(image)).toEqual(naiveState.ranges);
    expect(image.superblock.managedBlocks).toBe(managed);
    const store = createStore(image);
    const writer = new MetadataStore(store, device);
    expect(writer.used).toBe(naiveState.live.size);
    // Written again and read again: the same, elsewhere.
    const words = new Int32Array(image.hydrated);
    const last = regions - 1;
    words[Math.floor(last / 32)]! |= 1 << (last % 32);
    writer.commit([places.arrays.length - 1], () => {});
    const after = readStrictly(device);
    soundImage(device);
    expect(after.depth).toBe(naiveState.depth);
    expect(after.managed).toBe(managed);
    expect(after.ranges).toEqual(rangesOf(new Uint8Array(image.hydrated), regions));
    for (const block of naiveState.live) {
      if (block > 0) expectSameBytes(device.blocks.get(block)!, before.blocks.get(block)!, `block ${block}`);
    }
  });

  it('random bits in random shapes', () => {
    fc.assert(
      fc.property(fc.integer(), (seed) => {
        const rng = new Prng(seed);
        const shape = randomShape(rng);
        const { device, regions } = build(shape);
        const image = soundImage(device);
        expect(hydratedOf(image)).toEqual(readStrictly(device).ranges);
        expect(countRegions(image.hydrated, regions)).toBe(new Set(shape.hydrated).size);
      }),
      { numRuns: 60 },
    );
  });
});

/** Any tree over up to 40 array blocks. */
function randomShape(rng: Prng): Shape {
  const arrays = 1 + rng.below(rng.pick([1, 5, 40]));
  const regions = (arrays - 1) * PER_ARRAY + 1 + rng.below(PER_ARRAY);
  const nodes: number[][] = [];
  for (let below = arrays; nodes.length === 0 || below > 1; below = nodes.at(-1)!.length) {
    const level: number[] = [];
    // So that a tree is not higher than one may be.
    const least = nodes.length > 2 ? below : 1;
    for (let left = below; left > 0; left -= level.at(-1)!)
      level.push(Math.min(left, least + rng.below(below)));
    nodes.push(level);
  }
  const deviceBytes = rng.pick([100, 1000, 16_321, 40_000]) * 4096 + rng.below(4096);
  const hydrated = new Set<number>();
  for (let runs = rng.below(200); runs > 0; runs--) {
    const first = rng.below(regions);
    const end = Math.min(regions, first + 1 + rng.below(rng.pick([1, 3, 300])));
    for (let region = first; region < end; region++) hydrated.add(region);
  }
  return {
    regionSectors: 8,
    targetSectors: 8 * regions - rng.below(8),
    deviceBytes,
    nodes,
    hydrated,
    places: rng.chance(0.8) ? randomPlaces(rng) : undefined,
    stale: rng.below(256),
    slack: rng.below(20),
  };
}

/** Changes a block of a built image, and seals it again. */
function edit(
  { device }: Built,
  kind: naive.NaiveKind,
  block: number,
  change: (bytes: Uint8Array) => void,
): void {
  const bytes = device.blocks.get(block)!;
  change(bytes);
  naive.seal(kind, bytes, block);
}

/** Gives a block a reference count, as the bitmap says it. */
function setRaw(built: Built, block: number, raw: number): void {
  const bitmap = Math.floor(block / PER_BITMAP);
  const j = block % PER_BITMAP;
  edit(built, 'bitmap', built.places.bitmaps[bitmap]!, (bytes) => {
    const at = 16 + Math.floor(j / 4);
    bytes[at] = (bytes[at]! & ~(3 << (2 * (j % 4)))) | (raw << (2 * (j % 4)));
  });
}

describe('damage', () => {
  // Index 1, overflow 2, bitmaps 3 and 4, leaves 5 6 7, root 8, arrays 9 to 16; 17 in use.
  const sound = () =>
    build({
      ...BASE,
      deviceBytes: 20_000 * 4096,
      nodes: [[3, 3, 2], [3]],
      hydrated: [0, 1, 40_000, 7 * PER_ARRAY + 99],
    });
  const used = (found: number, stated = 17) => `0: says that ${stated} blocks are in use, there are ${found}`;
  const freeIn = (bitmap: number, found: number, stated: number) =>
    `1: bitmap ${bitmap} has ${found} free entries, the index says ${stated}`;
  const nodeValue = (i: number, value: number) => (bytes: Uint8Array) =>
    naive.put64(bytes, 2048 + 8 * i, value);
  const nodeKey = (i: number, key: number) => (bytes: Uint8Array) => naive.put64(bytes, 32 + 8 * i, key);
  const spoil = (block: number) => (built: Built) => void (built.device.blocks.get(block)![3000]! ^= 1);
  const broken = (block: number, kind: string) =>
    expect.stringMatching(new RegExp(`^${block}: is no ${kind}, or damaged: checksum 0x`));
  const swap = (a: number, b: number) => (built: Built) => {
    const { blocks } = built.device;
    const [first, second] = [blocks.get(a)!, blocks.get(b)!];
    blocks.set(a, second).set(b, first);
  };

  it('there is none', () => {
    expect(flawsOf(sound().device)).toEqual([]);
    expect(readStrictly(sound().device).live.size).toBe(17);
  });

  /** What makes an image unusable: all that is reported, of which the first is thrown. */
  it.each<[string, (built: Built) => void, unknown[]]>([
    ['checksum of the superblock', spoil(0), [broken(0, 'superblock')]],
    ['checksum of the index', spoil(1), [broken(1, 'index')]],
    ['checksum of the overflow root', spoil(2), [broken(2, 'node')]],
    ['checksum of a bitmap', spoil(4), [broken(4, 'bitmap')]],
    ['checksum of a leaf', spoil(6), [broken(6, 'node')]],
    ['checksum of the root', spoil(8), [broken(8, 'node'), '8: its tree has 0 array blocks, expected 8']],
    ['checksum of an array block', spoil(12), [broken(12, 'array')]],
    [
      'everything at once',
      (b) => {
        for (const block of [2, 3, 6, 12, 16]) spoil(block)(b);
      },
      [broken(3, 'bitmap'), broken(2, 'node'), broken(6, 'node'), broken(16, 'array')],
    ],
    [
      'two array blocks in each other’s place',
      swap(10, 11),
      ['10: is no array: it has number 11', '11: is no array: it has number 10'],
    ],
    [
      'two bitmaps in each other’s place',
      swap(3, 4),
      ['3: is no bitmap: it has number 4', '4: is no bitmap: it has number 3'],
    ],
    [
      'an array block that two keys name',
      (b) => edit(b, 'node', 5, nodeValue(1, 9)),
      ['9: in use twice: also as array block 1'],
    ],
    [
      'the index as an array block',
      (b) => edit(b, 'node', 7, nodeValue(1, 1)),
      ['1: in use twice: also as array block 7'],
    ],
    [
      'a bitmap that is the index',
      (b) => edit(b, 'index', 1, (x) => naive.put64(x, 32, 1)),
      ['1: in use twice: also as bitmap 1'],
    ],
    [
      'the overflow root as the root of the bitset',
      (b) => edit(b, 'superblock', 0, (x) => naive.put64(x, 188, 2)),
      ['2: in use twice: also as a node of the bitset tree', '2: its tree has 0 array blocks, expected 8'],
    ],
    [
      'a root that is its own child',
      (b) => edit(b, 'node', 8, nodeValue(1, 8)),
      ['8: in use twice: also as a node of the bitset tree'],
    ],
    [
      'a leaf that two keys name',
      (b) => edit(b, 'node', 8, nodeValue(2, 5)),
      ['5: in use twice: also as a node of the bitset tree', '8: its tree has 6 array blocks, expected 8'],
    ],
    [
      'a child beyond the device',
      (b) => edit(b, 'node', 8, nodeValue(1, 20_000)),
      ['8: a node of the bitset tree is block 20000: 1 to 19999'],
    ],
    [
      'an array block that is block 0',
      (b) => edit(b, 'node', 5, nodeValue(0, 0)),
      ['5: array block 0 is block 0: 1 to 19999'],
    ],
    [
      'an array block beyond the device',
      (b) => edit(b, 'node', 5, nodeValue(0, 2 ** 40)),
      ['5: array block 0 is block 1099511627776: 1 to 19999'],
    ],
    [
      'a bitmap beyond the device',
      (b) => edit(b, 'index', 1, (x) => naive.put64(x, 16, 20_000)),
      ['1: bitmap 0 is block 20000: 1 to 19999'],
    ],
    [
      'an index that is block 0',
      (b) => edit(b, 'superblock', 0, (x) => naive.put64(x, 60, 0)),
      ['0: the index is block 0: 1 to 19999'],
    ],
    [
      'an overflow root beyond the device',
      (b) => edit(b, 'superblock', 0, (x) => naive.put64(x, 68, 20_000)),
      ['0: a node of the overflow tree is block 20000: 1 to 19999'],
    ],
    [
      'a bitset root beyond the device',
      (b) => edit(b, 'superblock', 0, (x) => naive.put64(x, 188, 20_000)),
      [
        '0: a node of the bitset tree is block 20000: 1 to 19999',
        '20000: its tree has 0 array blocks, expected 8',
      ],
    ],
    [
      'more managed blocks than the device has',
      (b) => edit(b, 'superblock', 0, (x) => naive.put64(x, 44, 20_001)),
      ['0: manages 20001 blocks, the device has 20000'],
    ],
    [
      'as many array blocks as blocks',
      (b) => edit(b, 'superblock', 0, (x) => naive.put64(x, 180, 8 * 20_000 * PER_ARRAY)),
      ['0: 651520000 regions need 20000 array blocks, it manages 20000 blocks'],
    ],
    [
      'more regions than there is room for',
      (b) => edit(b, 'superblock', 0, (x) => naive.put64(x, 180, 2 ** 34)),
      ['0: 2147483648 regions need 65923 array blocks, it manages 20000 blocks'],
    ],
    ['a wrong key in a leaf', (b) => edit(b, 'node', 6, nodeKey(2, 9)), ['6: key 2 is 9, expected 5']],
    [
      'a wrong key in the root',
      (b) => edit(b, 'node', 8, nodeKey(1, 2)),
      ['8: key 1 is 2, expected 3', '8: its tree has 3 array blocks, expected 8'],
    ],
    [
      'too few array blocks',
      (b) => edit(b, 'node', 7, (x) => naive.put32(x, 16, 1)),
      ['8: its tree has 7 array blocks, expected 8'],
    ],
    [
      'too many array blocks',
      (b) => {
        edit(b, 'node', 7, (x) => {
          naive.put32(x, 16, 3);
          nodeKey(2, 8)(x);
          nodeValue(2, 17)(x);
        });
      },
      ['7: key 8: there are 8 array blocks'],
    ],
    [
      'an array block with too many words',
      (b) => edit(b, 'array', 16, (x) => naive.put32(x, 8, 3)),
      ['16: its number of words is 3, expected 2'],
    ],
    [
      'an array block with too few words',
      (b) => edit(b, 'array', 9, (x) => naive.put32(x, 8, 508)),
      ['9: its number of words is 508, expected 509'],
    ],
    [
      'an array block as a leaf',
      (b) => edit(b, 'node', 8, nodeValue(1, 12)),
      [expect.stringMatching(/^12: is no node/)],
    ],
    [
      'a leaf of counts in the bitset',
      (b) => b.device.blocks.set(6, naive.node(6, 'counts leaf', [])),
      ['6: its capacity is 336, expected 252'],
    ],
    [
      'leaves at different depths',
      (b) => {
        b.device.blocks.set(6, naive.node(6, 'inner', [[3, 17]]));
        b.device.blocks.set(
          17,
          naive.node(17, 'leaf', [
            [3, 12],
            [4, 13],
            [5, 14],
          ]),
        );
        setRaw(b, 17, 2);
      },
      ['6: not as deep as the nodes before it'],
    ],
    [
      'count 0 for a block in use',
      (b) => setRaw(b, 12, 0),
      [
        '12: in use once, its reference count is 0',
        used(16),
        freeIn(0, 16_304, 16_303),
        '1: bitmap 0 has a free entry before 17: 12',
      ],
    ],
    ['count 2 for a block in use', (b) => setRaw(b, 12, 1), ['12: in use once, its reference count is 2']],
    [
      'count 3 for a block in use',
      (b) => setRaw(b, 12, 3),
      ['12: in use once, its reference count is more than 2'],
    ],
    [
      'count 0 for the superblock',
      (b) => setRaw(b, 0, 0),
      [
        '0: in use once, its reference count is 0',
        used(16),
        freeIn(0, 16_304, 16_303),
        '1: bitmap 0 has a free entry before 17: 0',
      ],
    ],
  ])('%s', (_name, damage, flaws) => {
    const built = sound();
    damage(built);
    const found = flawsOf(built.device);
    expect(found).toEqual(expect.arrayContaining(flaws as string[]));
    let thrown: unknown;
    try {
      readImage(built.device);
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(BlockDamage);
    const { block, problem } = thrown as BlockDamage;
    expect(`${block}: ${problem}`).toBe(found[0]);
    expect(() => readStrictly(built.device)).toThrow();
    // Nothing is said of a block but by name: no flaw is a consequence of what could not be read.
    expect(found.filter((flaw) => /not in use|says that/.test(flaw))).toEqual(
      (flaws as string[]).filter((flaw) => typeof flaw === 'string' && /not in use|says that/.test(flaw)),
    );
  });

  /** What does no harm: reported, and not thrown. */
  it.each<[string, (built: Built) => void, string[]]>([
    [
      'a leaked block',
      (b) => setRaw(b, 30, 2),
      ['30: not in use, its reference count is 1', used(18), freeIn(0, 16_302, 16_303)],
    ],
    [
      'a leaked block with count 2',
      (b) => setRaw(b, 16_321, 1),
      ['16321: not in use, its reference count is 2', used(18), freeIn(1, 16_319, 16_320)],
    ],
    [
      'a leaked block with count 3',
      (b) => setRaw(b, 30, 3),
      ['30: not in use, its reference count is more than 2', used(18), freeIn(0, 16_302, 16_303)],
    ],
    ['a wrong free number', (b) => edit(b, 'index', 1, (x) => naive.put32(x, 40, 1)), [freeIn(1, 16_320, 1)]],
    [
      'a hint that is too high',
      (b) => edit(b, 'index', 1, (x) => naive.put32(x, 28, 18)),
      ['1: bitmap 0 has a free entry before 18: 17'],
    ],
    ['a wrong used number', (b) => edit(b, 'superblock', 0, (x) => naive.put64(x, 52, 16)), [used(17, 16)]],
    [
      'a bit behind the last region',
      (b) => edit(b, 'array', 16, (x) => void (x[24 + 12]! |= 0x10)),
      [`16: has bits behind the last region, ${7 * PER_ARRAY + 99}`],
    ],
    [
      'the last bit behind the last region',
      (b) => edit(b, 'array', 16, (x) => void (x[24 + 15]! |= 0x80)),
      [`16: has bits behind the last region, ${7 * PER_ARRAY + 99}`],
    ],
    [
      'the first entry behind the last block',
      (b) => setRaw(b, 20_000, 2),
      ['20000: counted, but only 20000 blocks are managed'],
    ],
    [
      'the last entry behind the last block',
      (b) => setRaw(b, 32_639, 2),
      ['32639: counted, but only 20000 blocks are managed'],
    ],
  ])('%s', async (_name, damage, flaws) => {
    const built = sound();
    damage(built);
    expect(flawsOf(built.device)).toEqual(flaws);
    expect(() => readStrictly(built.device)).toThrow();
    // It is usable: the bits are right, and no live block is taken.
    const before = built.device.copy();
    const live = readStrictly(sound().device).live;
    const image = readImage(built.device)!;
    expect(hydratedOf(image)).toEqual(readStrictly(sound().device).ranges);
    const { target } = await cloneOver(built.device, 8, BASE.targetSectors);
    built.device.log.length = 0;
    target.write(8 * 512 * 100, new Uint8Array(8 * 512));
    target.flush();
    expect(hydratedOf(readImage(built.device)!)).toEqual([
      [0, 2],
      [100, 1],
      [40_000, 1],
      [7 * PER_ARRAY + 99, 1],
    ]);
    for (const block of live) {
      if (block > 0)
        expectSameBytes(built.device.blocks.get(block)!, before.blocks.get(block)!, `block ${block}`);
    }
    // Free numbers, hints and the used number are right again; what nobody looks at stays in blocks that did not move.
    const stays = /: not in use|: has bits behind|: counted, but/;
    expect(flawsOf(built.device)).toEqual(flaws.filter((flaw) => stays.test(flaw)));
  });

  it.each([1, 10, 31, 32, 33, 63])(
    'bits behind the last of %i regions of a word, wherever they are',
    (regions) => {
      for (let bit = regions; bit < 64; bit++) {
        const built = build({ ...BASE, targetSectors: 8 * regions, hydrated: [0] });
        const [array] = built.places.arrays as [number];
        edit(built, 'array', array, (x) => void (x[24 + (bit >> 3)]! |= 1 << (bit & 7)));
        expect(flawsOf(built.device)).toEqual([`${array}: has bits behind the last region, ${regions - 1}`]);
        const { hydrated } = readImage(built.device)!;
        expect(rangesOf(new Uint8Array(hydrated), 64)).toEqual([[0, 1]]);
      }
    },
  );

  it('a cycle among inner nodes, and a tree that is too high, end', () => {
    const inner = (block: number, child: number) => naive.node(block, 'inner', [[0, child]]);
    const built = build({ ...BASE, nodes: [[8], [1], [1], [1]] });
    const [leaf, a, b, root] = built.places.nodes.flat() as [number, number, number, number];
    built.device.blocks.set(a, inner(a, root));
    expect(flawsOf(built.device)).toContain(`${root}: in use twice: also as a node of the bitset tree`);
    expect([leaf, b]).toHaveLength(2);
    const high = build({ ...BASE, nodes: [[8], ...Array.from({ length: 8 }, () => [1])] });
    const [lowest] = high.places.nodes[0]!;
    expect(flawsOf(high.device)[0]).toBe(`${lowest}: a tree more than 8 nodes high`);
    expect(flawsOf(build({ ...BASE, nodes: [[8], ...Array.from({ length: 7 }, () => [1])] }).device)).toEqual(
      [],
    );
  });

  it('an overflow tree of several nodes: all of them are in use, and stay', () => {
    const built = build({
      ...BASE,
      places: (count) => [1, 2, ...Array.from({ length: count - 2 }, (_, i) => 5 + i)],
    });
    built.device.blocks.set(
      2,
      naive.node(2, 'inner', [
        [0, 3],
        [700, 4],
      ]),
    );
    built.device.blocks.set(3, naive.node(3, 'counts leaf', [[20_000, 5]]));
    built.device.blocks.set(4, naive.node(4, 'counts leaf', []));
    for (const block of [3, 4]) setRaw(built, block, 2);
    edit(built, 'superblock', 0, (x) => naive.put64(x, 52, naive.get64(x, 52) + 2));
    edit(built, 'index', 1, (x) => {
      naive.put32(x, 24, naive.get32(x, 24) - 2);
      naive.put32(x, 28, 0);
    });
    expect(flawsOf(built.device)).toEqual([]);
    const before = built.device.copy();
    const image = readImage(built.device)!;
    const store = new MetadataStore(createStore(image), built.device);
    for (let i = 0; i < 100; i++) store.commit([i % 8], () => {});
    for (const block of [2, 3, 4])
      expectSameBytes(built.device.blocks.get(block)!, before.blocks.get(block)!, `${block}`);
    expect(flawsOf(built.device)).toEqual([]);
    spoil(4)(built);
    expect(flawsOf(built.device)).toEqual([broken(4, 'node')]);
  });

  it('a device that is empty or too small has none', () => {
    expect(readImage(new SparseDevice(4096))).toBeUndefined();
    expect(flawsOf(new SparseDevice(4096))).toEqual([]);
    for (const size of [0, 1, 4095]) {
      expect(() => readImage(new MemoryDevice(size))).toThrow(
        `has ${size} bytes: metadata needs 4096 at least`,
      );
    }
  });

  it('an error of the device is no damage', () => {
    const { device } = sound();
    device.read = () => {
      throw new DmError('EIO', 'broken');
    };
    expect(() => flawsOf(device)).toThrow('broken');
  });
});
