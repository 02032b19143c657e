/**
 * Test side of the roll back: a writer of logs, and vold's restore, both written from the specification alone
 * (formats/dm-bow-log.md, sections 1-3, 5 and 8) and sharing no code with `src`. Naive on purpose: a type for each
 * block, every run found by looking at each block, everything flushed at once, free blocks drawn at random.
 */
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';

export type BlockType = 'free' | 'unchanged' | 'changed' | 'backup' | 'sector0' | 'sector0-current';

/** What section 3 makes of each byte, bit by bit. */
const CRC_OF_BYTE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

/** Section 3. A table, for the power cuts take most of their time here. */
export function naiveChecksum(seed: number, bytes: Uint8Array): number {
  let crc = seed >>> 0;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC_OF_BYTE[(crc ^ byte) & 0xff]!;
  return crc >>> 0;
}

export class LogWriter {
  readonly types: BlockType[];
  sequence = 0;
  private count = 0;
  /** Block 0 as it is on the device. */
  private log: Buffer;

  constructor(
    readonly device: BlockDevice,
    readonly blockSize: number,
    readonly rng: Prng,
  ) {
    const blocks = Math.floor(device.size / blockSize);
    this.types = Array.from({ length: blocks }, (_, block) => (block === 0 ? 'sector0' : 'unchanged'));
    this.log = Buffer.alloc(blockSize);
  }

  /** State 0. */
  trim(block: number): void {
    if (block !== 0) this.types[block] = 'free';
  }

  /** State 0. */
  writeBefore(block: number, data: Uint8Array): void {
    if (block !== 0) this.types[block] = 'unchanged';
    this.device.write(block * this.blockSize, data);
  }

  /** State 0 → 1; false where fewer than 2 blocks are free. */
  checkpoint(): boolean {
    if (this.freeBlocks().length < 2) return false;
    this.device.flush();
    const [current] = this.takeFree(1, 'sector0-current');
    const [backup] = this.takeFree(1, 'backup');
    const original = this.readBlocks(0, 1);
    this.device.write(current! * this.blockSize, original);
    this.device.write(backup! * this.blockSize, original);
    this.device.flush();
    this.log = original;
    this.startLog(0, backup!, current!);
    return true;
  }

  /** State 1, whole blocks; false (ENOSPC) where no block is left for a backup. What was written before stays. */
  write(block: number, data: Uint8Array): boolean {
    for (let i = 0; i < data.length / this.blockSize; ) {
      const run = this.prepare(block + i, data.length / this.blockSize - i);
      if (run === 0) return false;
      const target = block + i === 0 ? this.types.indexOf('sector0-current') : block + i;
      this.device.write(
        target * this.blockSize,
        data.subarray(i * this.blockSize, (i + run) * this.blockSize),
      );
      i += run;
    }
    return true;
  }

  /** State 1: a changed block is free again; the device still has what was in it. */
  trimAfter(block: number): void {
    if (this.types[block] === 'changed') this.types[block] = 'free';
  }

  /** Makes a first part of these blocks ready for new data: how many. */
  private prepare(block: number, most: number): number {
    const type = this.types[block];
    if (type === 'sector0' || type === 'changed') return 1;
    if (type === 'free') {
      this.types[block] = 'changed';
      return 1;
    }
    let wanted = 1;
    while (type !== 'sector0-current' && wanted < most && this.types[block + wanted] === type) wanted++;
    const capacity = Math.floor((this.blockSize - 28) / 24);
    if (this.freeBlocks().length < (this.count === capacity ? 2 : 1)) return 0;
    if (this.count === capacity) this.overflow();
    const taken = this.takeFree(wanted, type === 'sector0-current' ? 'sector0-current' : 'backup');
    const bytes = this.readBlocks(block, taken.length);
    this.device.write(taken[0]! * this.blockSize, bytes);
    this.device.flush();
    const page = block;
    this.append(block, taken[0]!, bytes.length, type === 'sector0-current' ? 0 : naiveChecksum(page, bytes));
    for (let i = 0; i < taken.length; i++) this.types[block + i] = 'changed';
    return taken.length;
  }

  private overflow(): void {
    const [saved] = this.takeFree(1, 'backup');
    this.device.write(saved! * this.blockSize, this.log);
    this.device.flush();
    this.startLog(this.sequence + 1, saved!, this.types.indexOf('sector0-current'));
  }

  /** A log with entry 0 alone, over what is in block 0: one write of the first sector. */
  private startLog(sequence: number, backup: number, current: number): void {
    const checksum = naiveChecksum(0, this.log);
    this.sequence = sequence;
    this.count = 1;
    this.log.write('BOW\0', 0, 'latin1');
    this.log.writeUInt16LE(0x0100, 4);
    this.log.writeUInt16LE(28, 6);
    this.log.writeUInt32LE(this.blockSize, 8);
    this.log.writeUInt32LE(1, 12);
    this.log.writeUInt32LE(sequence, 16);
    this.log.writeBigUInt64LE(BigInt(this.sectorOf(current)), 20);
    this.putEntry(0, 0, backup, this.blockSize, checksum);
    this.device.write(0, this.log.subarray(0, 512));
    this.device.flush();
  }

  private append(source: number, dest: number, bytes: number, checksum: number): void {
    this.putEntry(this.count, source, dest, bytes, checksum);
    const from = 28 + 24 * this.count++;
    const current = this.types.lastIndexOf('sector0-current');
    const moved = this.types[source] === 'sector0-current' ? dest : current;
    this.log.writeUInt32LE(this.count, 12);
    this.log.writeBigUInt64LE(BigInt(this.sectorOf(moved)), 20);
    const first = Math.max(1, Math.floor(from / 512));
    const end = Math.ceil((from + 24) / 512);
    if (end > first) {
      this.device.write(first * 512, this.log.subarray(first * 512, end * 512));
      this.device.flush();
    }
    this.device.write(0, this.log.subarray(0, 512));
    this.device.flush();
  }

  private putEntry(index: number, source: number, dest: number, bytes: number, checksum: number): void {
    const at = 28 + 24 * index;
    this.log.writeBigUInt64LE(BigInt(this.sectorOf(source)), at);
    this.log.writeBigUInt64LE(BigInt(this.sectorOf(dest)), at + 8);
    this.log.writeUInt32LE(bytes, at + 16);
    this.log.writeUInt32LE(checksum, at + 20);
  }

  private takeFree(wanted: number, type: BlockType): number[] {
    const first = this.rng.pick(this.freeBlocks());
    const taken: number[] = [];
    for (let block = first; taken.length < wanted && this.types[block] === 'free'; block++) taken.push(block);
    for (const block of taken) this.types[block] = type;
    return taken;
  }

  private freeBlocks(): number[] {
    return [...this.types.keys()].filter((block) => this.types[block] === 'free');
  }

  private readBlocks(block: number, count: number): Buffer {
    const bytes = Buffer.alloc(count * this.blockSize);
    this.device.read(block * this.blockSize, bytes);
    return bytes;
  }

  private sectorOf(block: number): number {
    return (block * this.blockSize) / 512;
  }
}

export interface Shape {
  readonly blockSize: number;
  readonly blocks: number;
  /** Writes and trims in state 1. */
  readonly steps: number;
}

/** A device with a log on it, and what a roll back must bring back. */
export interface Logged extends Shape {
  readonly seed: number;
  readonly image: Uint8Array;
  /** The content when the checkpoint began. */
  readonly before: Uint8Array;
  /** The blocks that were free then: nothing is promised about them. */
  readonly free: ReadonlySet<number>;
  readonly logs: number;
}

/** A random workload on a device of this shape: state 0, checkpoint, state 1. `onCheckpoint` is called before 0 → 1. */
export function runWorkload(
  seed: number,
  shape: Shape,
  device: BlockDevice,
  onCheckpoint: () => void = () => {},
): Omit<Logged, 'image'> {
  const { blockSize, blocks, steps } = shape;
  const rng = new Prng(seed);
  const writer = new LogWriter(device, blockSize, rng);
  const anyBlock = () => rng.below(blocks);
  const likely = rng.pick([0.2, 0.5, 0.8]);
  for (let block = 1; block < blocks; block++) if (rng.chance(likely)) writer.trim(block);
  writer.writeBefore(anyBlock(), rng.bytes(blockSize));
  for (let block = 1; block <= 3; block++) writer.trim(block);
  device.flush();
  const before = new Uint8Array(device.size);
  device.read(0, before);
  const free = new Set([...writer.types.keys()].filter((block) => writer.types[block] === 'free'));
  onCheckpoint();
  if (!writer.checkpoint()) throw new Error(`seed ${seed}: no checkpoint`);
  const trims = rng.pick([0, 0.3, 0.6]);
  for (let step = 0; step < steps; step++) {
    const block = rng.chance(0.1) ? 0 : anyBlock();
    if (rng.chance(trims)) for (let i = 0; i < 4; i++) writer.trimAfter(anyBlock());
    const count = Math.min(blocks - block, 1 + rng.below(rng.pick([1, 3, 8])));
    writer.write(block, rng.bytes(count * blockSize));
  }
  return { ...shape, seed, before, free, logs: writer.sequence + 1 };
}

/** A random device of this shape, with a tail shorter than a block where there is room for one. */
export function randomContent(seed: number, { blockSize, blocks }: Shape): Uint8Array {
  const rng = new Prng(seed ^ 0x5eed);
  const content = rng.bytes(blocks * blockSize + rng.below(blockSize / 512) * 512);
  // A block 0 that is no log.
  content[0] = 0;
  return content;
}

export function loggedImage(seed: number, shape: Shape): Logged {
  const device = new MemoryDevice(randomContent(seed, shape));
  return { ...runWorkload(seed, shape, device), image: device.bytes };
}

/** Blocks that a roll back should have brought back and did not. The tail after the last whole block counts too. */
export function blocksLost({ before, free, blockSize }: Omit<Logged, 'image'>, image: Uint8Array): number[] {
  const lost: number[] = [];
  for (let block = 0; block * blockSize < before.length; block++) {
    if (free.has(block)) continue;
    const range = [block * blockSize, (block + 1) * blockSize] as const;
    if (Buffer.compare(before.subarray(...range), image.subarray(...range)) !== 0) lost.push(block);
  }
  return lost;
}

/**
 * vold's restoreCheckpointPart (section 8), second pass only: applies `limit` entries (0: all), saves its progress in
 * block 0 before each, writes block 0 whole. Like vold it begins again with the entry that the last call did last.
 */
export function voldRestorePart(device: BlockDevice, limit = 0): 'done' | 'again' {
  const read = (sector: number, bytes: number) => {
    const buffer = Buffer.alloc(bytes);
    device.read(sector * 512, buffer);
    return buffer;
  };
  const first = read(0, 512);
  const blockSize = first.readUInt32LE(8);
  if (!isMagic(first)) return 'done';
  let applied = 0;
  for (let sequence = first.readUInt32LE(16); sequence >= 0; sequence--) {
    const log = read(0, blockSize);
    if (!isMagic(log) || log.readUInt32LE(16) !== sequence) throw new Error(`vold: no log ${sequence}`);
    for (let index = log.readUInt32LE(12) - 1; index >= 0; index--) {
      const at = log.readUInt16LE(6) + 24 * index;
      const source = Number(log.readBigUInt64LE(at));
      const size = log.readUInt32LE(at + 16);
      const bytes = read(Number(log.readBigUInt64LE(at + 8)), size);
      const checksum = log.readUInt32LE(at + 20);
      if (checksum !== 0 && checksum !== naiveChecksum(source / (blockSize / 512), bytes)) {
        throw new Error(`vold: checksum of log ${sequence}, entry ${index}`);
      }
      device.flush();
      log.write('WOB\0', 0, 'latin1');
      log.writeUInt32LE(index + 1, 12);
      device.write(0, log);
      device.flush();
      if (index === 0 && sequence !== 0 && isMagic(bytes)) bytes.write('WOB\0', 0, 'latin1');
      device.write(source * 512, bytes);
      if (index === 0) device.flush();
      if (++applied === limit) return 'again';
    }
  }
  return 'done';
}

function isMagic(block: Buffer): boolean {
  return ['BOW\0', 'WOB\0'].includes(block.toString('latin1', 0, 4));
}
