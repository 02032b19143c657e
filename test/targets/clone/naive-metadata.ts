/**
 * Whole dm-clone metadata devices, built and read naively from the document: the builder takes any shape that a tree may have
 * and any places, the reader is strict and knows nothing of places or levels. Nothing of src/ is used but the device's type.
 */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import type { BlockDevice } from '../../../src/device/block-device.js';
import type { Prng } from '../../../src/device/prng.js';
import * as naive from '../../formats/naive-clone.js';

const { BLOCK, get32, get64 } = naive;
/** Regions of an array block, and blocks of a bitmap. */
export const PER_ARRAY = 32_576;
export const PER_BITMAP = 16_320;

/** A device of any size that holds only the blocks that were written. It notes writes, as block numbers, and flushes. */
export class SparseDevice implements BlockDevice {
  readonly blocks = new Map<number, Uint8Array>();
  readonly log: (number | 'flush')[] = [];
  /** Called before each operation; what it throws fails it. */
  before: (operation: number | 'flush') => void = () => {};

  constructor(readonly size: number) {}

  read(offset: number, into: Uint8Array): void {
    this.each(offset, into.length, (block, at, done, length) => {
      const bytes = this.blocks.get(block);
      if (bytes) into.set(bytes.subarray(at, at + length), done);
      else into.fill(0, done, done + length);
    });
  }

  write(offset: number, from: Uint8Array): void {
    this.each(offset, from.length, (block, at, done, length) => {
      this.before(block);
      this.log.push(block);
      const bytes = this.blocks.get(block) ?? new Uint8Array(BLOCK);
      bytes.set(from.subarray(done, done + length), at);
      this.blocks.set(block, bytes);
    });
  }

  flush(): void {
    this.before('flush');
    this.log.push('flush');
  }

  discard(): void {}

  writeZeroes(offset: number, length: number): void {
    this.write(offset, new Uint8Array(length));
  }

  /** The same content, on its own. */
  copy(): SparseDevice {
    const copy = new SparseDevice(this.size);
    for (const [block, bytes] of this.blocks) copy.blocks.set(block, bytes.slice());
    return copy;
  }

  private each(
    offset: number,
    length: number,
    visit: (block: number, at: number, done: number, length: number) => void,
  ): void {
    if (offset < 0 || offset + length > this.size) {
      throw new RangeError(`sparse device: ${length} bytes at ${offset} are outside its ${this.size} bytes`);
    }
    for (let done = 0; done < length; ) {
      const block = Math.floor((offset + done) / BLOCK);
      const at = (offset + done) % BLOCK;
      const part = Math.min(BLOCK - at, length - done);
      visit(block, at, done, part);
      done += part;
    }
  }
}

export interface Shape {
  readonly regionSectors: number;
  readonly targetSectors: number;
  readonly deviceBytes: number;
  /** Default: as many as the device has. */
  readonly managed?: number;
  /** Entries of each node, level by level from the leaves up. Default: full ones. */
  readonly nodes?: readonly (readonly number[])[];
  readonly hydrated?: Iterable<number>;
  /** Numbers of the live blocks, drawn in this order: index, overflow root, bitmaps, nodes, arrays. Default: from 1 on. */
  readonly places?: ((count: number, managed: number) => readonly number[]) | undefined;
  /** What unused slots of nodes hold. */
  readonly stale?: number;
  /** How much lower than necessary a hint is. */
  readonly slack?: number;
}

/** Where the blocks of an image are. */
export interface Places {
  readonly index: number;
  readonly overflow: number;
  readonly bitmaps: readonly number[];
  /** From the leaves up. */
  readonly nodes: readonly (readonly number[])[];
  readonly arrays: readonly number[];
}

export interface Built {
  readonly device: SparseDevice;
  readonly places: Places;
  readonly regions: number;
  readonly managed: number;
}

export function build(shape: Shape): Built {
  const { regionSectors, targetSectors, deviceBytes, hydrated = [], stale = 0, slack = 0 } = shape;
  const managed = shape.managed ?? Math.min(Math.floor(deviceBytes / BLOCK), 255 * PER_BITMAP);
  const regions = Math.ceil(targetSectors / regionSectors);
  const words = Math.ceil(regions / 64);
  const arrayCount = Math.ceil(words / 509);
  const nodeShape = shape.nodes ?? fullNodes(arrayCount);
  const bitmapCount = Math.ceil(managed / PER_BITMAP);
  const count = 2 + bitmapCount + nodeShape.flat().length + arrayCount;
  const numbers = [...(shape.places?.(count, managed) ?? Array.from({ length: count }, (_, i) => i + 1))];
  const live = [0, ...numbers];
  const take = (blocks: number) => numbers.splice(0, blocks);
  const [index, overflow] = take(2) as [number, number];
  const bitmaps = take(bitmapCount);
  const nodes = nodeShape.map((level) => take(level.length));
  const arrays = take(arrayCount);
  const device = new SparseDevice(deviceBytes);
  const put = (block: number, bytes: Uint8Array) => device.blocks.set(block, bytes);

  const values = Array.from({ length: words }, () => 0n);
  for (const region of hydrated) values[Math.floor(region / 64)]! |= 1n << BigInt(region % 64);
  arrays.forEach((block, i) => {
    put(block, naive.array(block, values.slice(509 * i, 509 * (i + 1))));
  });

  // The smallest key below each child, and where it is.
  let children = arrays.map((block, i): [number, number] => [i, block]);
  nodeShape.forEach((level, height) => {
    const above: [number, number][] = [];
    level.forEach((entries, i) => {
      const block = nodes[height]![i]!;
      const mine = children.splice(0, entries);
      put(block, naive.node(block, height === 0 ? 'leaf' : 'inner', mine, stale));
      above.push([mine[0]?.[0] ?? 0, block]);
    });
    children = above;
  });
  put(overflow, naive.node(overflow, 'counts leaf', [], stale));

  const isLive = new Set(live);
  const rows = bitmaps.map((block, i): [number, number, number] => {
    const counts = Array.from({ length: PER_BITMAP }, (_, j) => (isLive.has(i * PER_BITMAP + j) ? 1 : 0));
    put(block, naive.bitmap(block, counts));
    const firstFree = counts.indexOf(0);
    return [block, counts.filter((c) => c === 0).length, Math.max(0, firstFree - slack)];
  });
  put(index, naive.index(index, rows));
  const bitset = nodes.at(-1)![0]!;
  put(
    0,
    naive.superblock({
      managed,
      used: live.length,
      index,
      overflow,
      region: regionSectors,
      target: targetSectors,
      bitset,
    }),
  );
  return { device, places: { index, overflow, bitmaps, nodes, arrays }, regions, managed };
}

/** Full nodes, but for the last of each level. */
export function fullNodes(arrays: number): number[][] {
  const levels: number[][] = [];
  for (let below = arrays; levels.length === 0 || below > 1; below = levels.at(-1)!.length) {
    const level: number[] = [];
    for (let left = below; left > 0; left -= 252) level.push(Math.min(left, 252));
    levels.push(level);
  }
  return levels;
}

/** Different numbers from 1 to managed - 1, in any order. */
export function randomPlaces(rng: Prng): (count: number, managed: number) => number[] {
  return (count, managed) => {
    const numbers = new Set<number>();
    while (numbers.size < count) numbers.add(1 + rng.below(managed - 1));
    return [...numbers];
  };
}

/** What a sound device says. */
export interface NaiveState {
  readonly regionSectors: number;
  readonly targetSectors: number;
  readonly regions: number;
  readonly managed: number;
  /** [first region, number of regions], ascending. */
  readonly ranges: [number, number][];
  readonly live: ReadonlySet<number>;
  readonly depth: number;
  readonly places: Omit<Places, 'nodes'>;
}

/** Throws where anything is not as the document says. */
export function readStrictly(device: BlockDevice): NaiveState {
  const live = new Set<number>([0]);
  const get = (kind: naive.NaiveKind, block: number) => {
    const bytes = new Uint8Array(BLOCK);
    device.read(block * BLOCK, bytes);
    same(get64(bytes, kind === 'array' ? 16 : 8), block, `number of ${kind} ${block}`);
    same(get32(bytes, 0), naive.checksumOf(kind, bytes), `checksum of ${kind} ${block}`);
    return bytes;
  };
  const sb = get('superblock', 0);
  same(get64(sb, 32), 0x8af27f64, 'magic');
  same(get32(sb, 40), 1, 'version');
  const [managed, used, index, overflow] = [44, 52, 60, 68].map((at) => get64(sb, at)) as number[];
  const [regionSectors, targetSectors, bitset] = [172, 180, 188].map((at) => get64(sb, at)) as number[];
  for (const [from, to] of [
    [4, 8],
    [16, 32],
    [76, 172],
    [196, BLOCK],
  ])
    zero(sb, from!, to!, 'superblock');
  if (managed! * BLOCK > device.size) throw new Error('naive reader: more blocks than the device has');
  const visit = (kind: naive.NaiveKind, block: number) => {
    if (live.has(block) || block >= managed!) throw new Error(`${kind} ${block}: twice, or too high`);
    live.add(block);
    return get(kind, block);
  };

  const regions = Math.ceil(targetSectors! / regionSectors!);
  const words = Math.ceil(regions / 64);
  const arrays: number[] = [];
  const ranges: [number, number][] = [];
  const readArray = (key: number, block: number) => {
    same(key, arrays.length, 'key');
    const bytes = visit('array', block);
    arrays.push(block);
    const count = Math.min(509, words - 509 * key);
    same([4, 8, 12].map((at) => get32(bytes, at)).join(), [509, count, 8].join(), `header of array ${block}`);
    zero(bytes, 24 + 8 * count, BLOCK, `array ${block}`);
    for (let i = 0; i < count * 64; i++) {
      if (i % 8 === 0 && bytes[24 + i / 8] === 0) {
        i += 7;
        continue;
      }
      if (((bytes[24 + Math.floor(i / 8)]! >> (i % 8)) & 1) === 0) continue;
      const region = key * PER_ARRAY + i;
      if (region >= regions) throw new Error(`region ${region} of ${regions} is hydrated`);
      const last = ranges.at(-1);
      if (last && last[0] + last[1] === region) last[1]++;
      else ranges.push([region, 1]);
    }
  };
  const walk = (block: number): number => {
    const bytes = visit('node', block);
    const flags = get32(bytes, 4);
    same([20, 24, 28].map((at) => get32(bytes, at)).join(), '252,8,0', `header of node ${block}`);
    const depths = new Set<number>();
    for (let i = 0; i < get32(bytes, 16); i++) {
      const [key, value] = [get64(bytes, 32 + 8 * i), get64(bytes, 2048 + 8 * i)];
      same(key, arrays.length, `key ${i} of node ${block}`);
      if (flags === 2) readArray(key, value);
      else if (flags === 1) depths.add(walk(value));
      else throw new Error(`flags ${flags}`);
    }
    if (depths.size > 1) throw new Error(`node ${block}: leaves at different depths`);
    return 1 + ([...depths][0] ?? 0);
  };
  const depth = walk(bitset!);
  same(arrays.length, Math.ceil(words / 509), 'array blocks');
  const root = visit('node', overflow!);
  same([4, 16, 20, 24, 28].map((at) => get32(root, at)).join(), '2,0,336,4,0', 'overflow root');

  const indexBytes = visit('index', index!);
  const bitmapCount = Math.ceil(managed! / PER_BITMAP);
  zero(indexBytes, 16 + 16 * bitmapCount, BLOCK, 'index');
  const bitmaps = Array.from({ length: bitmapCount }, (_, i) => get64(indexBytes, 16 + 16 * i));
  const contents = bitmaps.map((block) => visit('bitmap', block));
  contents.forEach((bytes, i) => {
    zero(bytes, 4, 8, 'bitmap');
    let free = 0;
    let first = PER_BITMAP;
    for (let j = 0; j < PER_BITMAP; j++) {
      const count = naive.countIn(bytes, j);
      same(count, live.has(i * PER_BITMAP + j) ? 1 : 0, `count of block ${i * PER_BITMAP + j}`);
      if (count > 0) continue;
      free++;
      first = Math.min(first, j);
    }
    same(get32(indexBytes, 16 + 16 * i + 8), free, `free number of bitmap ${i}`);
    const hint = get32(indexBytes, 16 + 16 * i + 12);
    if (hint > first) throw new Error(`bitmap ${i}: hint ${hint}, the first free one is ${first}`);
  });
  same(used!, live.size, 'used');
  return {
    regionSectors: regionSectors!,
    targetSectors: targetSectors!,
    regions,
    managed: managed!,
    ranges,
    live,
    depth,
    places: { index: index!, overflow: overflow!, bitmaps, arrays },
  };
}

function same(found: number | string, expected: number | string, what: string): void {
  if (found !== expected) throw new Error(`naive reader: ${what} is ${found}, expected ${expected}`);
}

function zero(bytes: Uint8Array, from: number, to: number, what: string): void {
  if (bytes.subarray(from, to).some((byte) => byte !== 0)) {
    throw new Error(`naive reader: ${what} is not zero between ${from} and ${to}`);
  }
}

/** [first, number] of regions that are set in words of bits. */
export function rangesOf(bits: Uint8Array, regions: number): [number, number][] {
  const ranges: [number, number][] = [];
  for (let region = 0; region < regions; region++) {
    if (region % 8 === 0 && bits[region / 8] === 0) {
      region += 7;
      continue;
    }
    if (((bits[Math.floor(region / 8)]! >> (region % 8)) & 1) === 0) continue;
    const last = ranges.at(-1);
    if (last && last[0] + last[1] === region) last[1]++;
    else ranges.push([region, 1]);
  }
  return ranges;
}

/** An image that a kernel wrote, and what it says. */
export const FIXTURES = ['fresh-64m-r8', 'scattered-64m-r8', 'odd-r128'] as const;

export interface Fixture {
  readonly image: Uint8Array;
  readonly truth: {
    readonly target_sectors: number;
    readonly region_sectors: number;
    readonly nr_regions: number;
    readonly metadata_device_bytes: number;
    readonly hydrated_count: number;
    readonly hydrated_ranges: [number, number][];
    readonly live_metadata_blocks: number;
    readonly space_map_blocks: number;
    readonly bitset_btree_depth: number;
    readonly dmsetup_status: string;
    readonly metadata_sha256: string;
  };
}

export function fixture(name: (typeof FIXTURES)[number]): Fixture {
  const file = (ending: string) =>
    readFileSync(new URL(`../../fixtures/dm-clone/${name}.${ending}`, import.meta.url));
  return {
    image: new Uint8Array(gunzipSync(file('meta.gz'))),
    truth: JSON.parse(file('json').toString()) as Fixture['truth'],
  };
}
