/**
 * A disk for several threads that keeps a trace, so that the power can be cut at any instant of what they did together.
 * Every thread makes its own view of the same buffers; `traced` turns them into a SimulatedDisk, with its fault model.
 *
 * A change enters the trace when it completes, at one instant. A flush takes its time: what had completed when it began
 * is durable when it completes, and of what completes meanwhile any subset.
 */
import type { BlockDevice } from '../../src/device/block-device.js';
import { Prng } from '../../src/device/prng.js';
import { SimulatedDisk, type TraceEntry } from '../../src/device/simulated.js';

const SECTOR = 512;

// Words of `words`.
const LOCK = 0;
const ENTRIES = 1;
const BYTES_USED = 2;
const FLUSHES = 3;
const WORDS = 4;

// Columns of an entry.
const KIND = 0;
const OFFSET = 1;
const LENGTH = 2;
const AT = 3;
const BEGAN = 4;
const COLUMNS = 5;

const KINDS = ['write', 'writeZeroes', 'discard', 'flush'] as const;
type Kind = (typeof KINDS)[number];

export interface SharedDiskBuffers {
  readonly content: SharedArrayBuffer;
  readonly words: SharedArrayBuffer;
  readonly entries: SharedArrayBuffer;
  readonly bytes: SharedArrayBuffer;
}

/** `most`: operations that the trace has room for, and `traceBytes` their bytes. */
export function sharedDiskBuffers(
  content: Uint8Array,
  { most, traceBytes }: { most: number; traceBytes: number },
): SharedDiskBuffers {
  const shared = new SharedArrayBuffer(content.length);
  new Uint8Array(shared).set(content);
  return {
    content: shared,
    words: new SharedArrayBuffer(4 * WORDS),
    entries: new SharedArrayBuffer(8 * COLUMNS * most),
    bytes: new SharedArrayBuffer(traceBytes),
  };
}

export class SharedDisk implements BlockDevice {
  readonly size: number;
  private readonly content: Uint8Array;
  private readonly words: Int32Array;
  private readonly entries: Float64Array;
  private readonly bytes: Uint8Array;
  private readonly rng: Prng;

  /** `seed` decides how long this thread's operations dawdle. */
  constructor(buffers: SharedDiskBuffers, seed: number) {
    this.content = new Uint8Array(buffers.content);
    this.words = new Int32Array(buffers.words);
    this.entries = new Float64Array(buffers.entries);
    this.bytes = new Uint8Array(buffers.bytes);
    this.size = this.content.length;
    this.rng = new Prng(seed);
  }

  get flushes(): number {
    return Atomics.load(this.words, FLUSHES);
  }

  /** Entries of the trace so far. */
  get entryCount(): number {
    return Atomics.load(this.words, ENTRIES);
  }

  read(offset: number, into: Uint8Array): void {
    this.dawdle();
    this.locked(() => into.set(this.content.subarray(offset, offset + into.length)));
  }

  write(offset: number, from: Uint8Array): void {
    this.change('write', offset, from.length, (bytes) => bytes.set(from));
  }

  writeZeroes(offset: number, length: number): void {
    this.change('writeZeroes', offset, length, (bytes) => bytes.fill(0));
  }

  discard(offset: number, length: number): void {
    this.change('discard', offset, length, (bytes) => bytes.fill(0xdd));
  }

  /** Bytes [from, to), as a device of their own that takes no discard. */
  part(from: number, to: number): BlockDevice {
    return {
      size: to - from,
      read: (at, into) => this.read(from + at, into),
      write: (at, bytes) => this.write(from + at, bytes),
      flush: () => this.flush(),
      discard: () => {
        throw new Error('discard');
      },
      writeZeroes: (at, length) => this.writeZeroes(from + at, length),
    };
  }

  flush(): void {
    const began = this.locked(() => this.words[ENTRIES]!);
    this.dawdle();
    Atomics.wait(this.words, LOCK, 2, 1);
    this.locked(() => this.note('flush', 0, 0, began));
    Atomics.add(this.words, FLUSHES, 1);
  }

  private change(kind: Kind, offset: number, length: number, apply: (bytes: Uint8Array) => void): void {
    this.dawdle();
    this.locked(() => {
      apply(this.content.subarray(offset, offset + length));
      const first = Math.floor(offset / SECTOR) * SECTOR;
      this.note(kind, first, Math.ceil((offset + length) / SECTOR) * SECTOR - first, 0);
    });
    this.dawdle();
  }

  private note(kind: Kind, offset: number, length: number, began: number): void {
    const at = this.words[BYTES_USED]!;
    const row = this.words[ENTRIES]! * COLUMNS;
    if (row + COLUMNS > this.entries.length || at + length > this.bytes.length) {
      throw new Error('the trace is full');
    }
    this.entries[row + KIND] = KINDS.indexOf(kind);
    this.entries[row + OFFSET] = offset;
    this.entries[row + LENGTH] = length;
    this.entries[row + AT] = at;
    this.entries[row + BEGAN] = began;
    this.bytes.set(this.content.subarray(offset, offset + length), at);
    this.words[BYTES_USED] = at + length;
    this.words[ENTRIES]! += 1;
  }

  private locked<T>(body: () => T): T {
    while (Atomics.compareExchange(this.words, LOCK, 0, 1) !== 0) Atomics.wait(this.words, LOCK, 1, 1);
    try {
      return body();
    } finally {
      Atomics.store(this.words, LOCK, 0);
      Atomics.notify(this.words, LOCK, 1);
    }
  }

  /** Lets other threads in between. */
  private dawdle(): void {
    if (this.rng.chance(0.1)) Atomics.wait(this.words, LOCK, 2, 0.1);
  }
}

/** The trace on a simulated disk that held `origin` at first. */
export function traced(origin: Uint8Array, buffers: SharedDiskBuffers): SimulatedDisk {
  const disk = new SimulatedDisk(origin);
  const entries = new Float64Array(buffers.entries);
  const bytes = new Uint8Array(buffers.bytes);
  const count = new Int32Array(buffers.words)[ENTRIES]!;
  let durable = 0;
  for (let row = 0; row < count * COLUMNS; row += COLUMNS) {
    const [kind, offset, length, at, began] = entries.subarray(row, row + COLUMNS) as unknown as number[];
    const sectors = bytes.slice(at!, at! + length!);
    const instant = disk.power.operations++;
    disk.trace.push({ kind: KINDS[kind!]!, offset: offset!, sectors, durable, instant } satisfies TraceEntry);
    if (KINDS[kind!] === 'flush') durable = Math.max(durable, began!);
  }
  return disk;
}
