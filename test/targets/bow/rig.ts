/** A bow target for tests: made, filled and looked at. */
import { expect } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import type { Prng } from '../../../src/device/prng.js';
import { bow } from '../../../src/targets/bow/index.js';
import { type BowDescriptor, BlockType as T } from '../../../src/targets/bow/state.js';
import type { BowTarget } from '../../../src/targets/bow/target.js';
import { makeRig, type Rig, type RigOptions } from '../harness.js';

export type BowRig = Rig<BowTarget, BowDescriptor>;

export async function makeBow(
  disk: BlockDevice,
  blockSize: number,
  options: RigOptions = {},
): Promise<BowRig> {
  return makeRig(bow, `disk 1 block_size:${blockSize}`, { disk }, options);
}

/** Tells which blocks are free, as the `discard` file does. */
export function trimBlocks({ target }: BowRig, blockSize: number, blocks: Iterable<number>): void {
  for (const block of blocks) target.discard(block * blockSize, blockSize);
}

/** Trims each block but 0 with a probability. */
export function trimAtRandom({ target }: BowRig, blockSize: number, likely: number, rng: Prng): void {
  for (let block = 1; block < Math.floor(target.size / blockSize); block++) {
    if (rng.chance(likely)) target.discard(block * blockSize, blockSize);
  }
}

/** Blocks from `first` up to `end`. */
export function blockRange(first: number, end: number): number[] {
  return Array.from({ length: end - first }, (_, index) => first + index);
}

/** The type of every block, a short last one included. */
export function typesOf({ target }: BowRig): number[] {
  const types: number[] = [];
  target.state.ranges.forEach((start, end, type) => {
    for (let block = start; block < end; block++) types.push(type);
  });
  return types;
}

/** The blocks of a type. */
export function blocksOf(rig: BowRig, type: number): number[] {
  return [...typesOf(rig).entries()].filter(([, found]) => found === type).map(([block]) => block);
}

/** bow-I2: nobody is inside the lock between two requests; and the range map is sound. */
export function expectAtRest({ descriptor, target }: BowRig): void {
  expect(new Int32Array(descriptor.shared, 0, 2), 'the lock is held').toEqual(new Int32Array(2));
  target.state.ranges.check();
  const trimmed = target.state.ranges.blocksOf(T.FREE);
  expect(target.state.freeBytes).toBe(trimmed * target.state.blockSize);
}

export interface DiskEntry {
  readonly source: number;
  readonly dest: number;
  readonly size: number;
  readonly checksum: number;
}

/** A log block as the specification's sections 1 and 2 lay it out, read without the code under test. */
export function readLogBlock(block: Uint8Array) {
  const bytes = Buffer.from(block.buffer, block.byteOffset, block.byteLength);
  const count = bytes.readUInt32LE(12);
  const entries: DiskEntry[] = [];
  for (let at = 28; entries.length < count && at + 24 <= bytes.length; at += 24) {
    entries.push({
      source: Number(bytes.readBigUInt64LE(at)),
      dest: Number(bytes.readBigUInt64LE(at + 8)),
      size: bytes.readUInt32LE(at + 16),
      checksum: bytes.readUInt32LE(at + 20),
    });
  }
  return {
    magic: bytes.toString('latin1', 0, 4),
    version: bytes.readUInt16LE(4),
    headerSize: bytes.readUInt16LE(6),
    blockSize: bytes.readUInt32LE(8),
    count,
    sequence: bytes.readUInt32LE(16),
    sector0: Number(bytes.readBigUInt64LE(20)),
    entries,
  };
}

/** What is wrong with the log block of a device by sections 1 and 2; undefined: nothing. */
export function logBlockProblem(block: Uint8Array, blockSize: number, blocks: number): string | undefined {
  const log = readLogBlock(block);
  const perBlock = blockSize / 512;
  if (log.magic !== 'BOW\0') return `magic ${JSON.stringify(log.magic)}`;
  if (log.version !== 0x0100 || log.headerSize !== 28)
    return `version ${log.version}, header ${log.headerSize}`;
  if (log.blockSize !== blockSize) return `block_size ${log.blockSize}`;
  if (log.count < 1 || log.count > Math.floor((blockSize - 28) / 24)) return `count ${log.count}`;
  if (log.sector0 % perBlock !== 0 || log.sector0 < perBlock) return `sector0 ${log.sector0}`;
  if (log.sector0 / perBlock >= blocks) return `sector0 ${log.sector0} is outside`;
  for (const [index, { source, dest, size, checksum }] of log.entries.entries()) {
    const what = `entry ${index}: ${size} bytes ${source} -> ${dest}, checksum ${checksum}`;
    const count = size / blockSize;
    if (!Number.isInteger(count) || count < 1 || source % perBlock !== 0 || dest % perBlock !== 0)
      return what;
    const [from, to] = [source / perBlock, dest / perBlock];
    if ((index === 0) !== (source === 0) || (index === 0 && size !== blockSize)) return what;
    if (to < 1 || to + count > blocks || from + count > blocks) return what;
    if (from < to + count && to < from + count) return what;
  }
  return undefined;
}
