/**
 * The change map: which blocks of a device have changed since which take [4]. A byte a tracking block, in two maps: the write
 * map, which goes on, and the read map, which is what the user reads.
 *
 * map-I1  `active` and `previous` change only while nobody marks: within the gate that every change of the device passes, held
 *         alone; by the main thread, which alone marks what is given as dirty; and while the device has no image. So a byte is
 *         never greater than the number that is written over it, and max(old, number) is a plain store.
 */
import { randomUUID } from 'node:crypto';
import { blocksOf } from './params.js';

/** Plain data; everything that changes is in `shared`. */
export interface MapDescriptor {
  /** The words below, the write map, the read map. */
  readonly shared: SharedArrayBuffer;
  /** Bytes of the device. */
  readonly size: number;
  /** Tracking blocks are 2^shift bytes. */
  readonly shift: number;
}

export interface MapInfo {
  /** Bytes. */
  readonly capacity: number;
  /** Bytes. */
  readonly blockSize: number;
  readonly blockCount: number;
  /** UUID: numbers of changes mean something only within one generation. */
  readonly generation: string;
  /** `previous`: changes up to the last take have it, or less. */
  readonly changesNumber: number;
}

/** A map by value, to be kept while the device is gone. */
export interface MapState {
  /** Bytes of the device. */
  readonly size: number;
  readonly shift: number;
  readonly active: number;
  readonly previous: number;
  /** 16 bytes. */
  readonly generation: Uint8Array;
  readonly writeMap: Uint8Array;
  readonly readMap: Uint8Array;
}

const ACTIVE = 0;
const PREVIOUS = 1;
const WORDS = 2;
const GENERATION_AT = 4 * WORDS;
const GENERATION_BYTES = 16;
const MAPS_AT = GENERATION_AT + GENERATION_BYTES;

/** The last number of a generation. */
const ACTIVE_MAX = 255;

/** The map of a device of which nothing is known. */
export function createMap(size: number, shift: number): MapDescriptor {
  const descriptor = allocateMap(size, shift);
  new ChangeMap(descriptor).reset();
  return descriptor;
}

/** The map that `saveState` gave. */
export function restoreMap(state: MapState): MapDescriptor {
  const descriptor = allocateMap(state.size, state.shift);
  const { shared } = descriptor;
  const blocks = blocksOf(state.size, state.shift);
  const words = new Int32Array(shared, 0, WORDS);
  words[ACTIVE] = state.active;
  words[PREVIOUS] = state.previous;
  const bytes = new Uint8Array(shared);
  bytes.set(state.generation, GENERATION_AT);
  bytes.set(state.writeMap, MAPS_AT);
  bytes.set(state.readMap, MAPS_AT + blocks);
  return descriptor;
}

function allocateMap(size: number, shift: number): MapDescriptor {
  return { shared: new SharedArrayBuffer(MAPS_AT + 2 * blocksOf(size, shift)), size, shift };
}

/** One thread's view. */
export class ChangeMap {
  /** What the user reads. */
  readonly readMap: Uint8Array;
  private readonly writeMap: Uint8Array;
  private readonly words: Int32Array;
  private readonly generation: Uint8Array;
  private readonly blockBytes: number;

  constructor(private readonly descriptor: MapDescriptor) {
    const { shared, size, shift } = descriptor;
    const blocks = blocksOf(size, shift);
    this.words = new Int32Array(shared, 0, WORDS);
    this.generation = new Uint8Array(shared, GENERATION_AT, GENERATION_BYTES);
    this.writeMap = new Uint8Array(shared, MAPS_AT, blocks);
    this.readMap = new Uint8Array(shared, MAPS_AT + blocks, blocks);
    this.blockBytes = 2 ** shift;
  }

  get size(): number {
    return this.descriptor.size;
  }

  /** The device changes in `length` bytes, at least 1, from `offset` on. The gate is held. */
  mark(offset: number, length: number): void {
    this.fill(this.writeMap, Atomics.load(this.words, ACTIVE), offset, length);
  }

  /** An image changes, or the user says that they have changed: the next backup, too, must copy them. */
  markBoth(offset: number, length: number): void {
    this.mark(offset, length);
    this.fill(this.readMap, Atomics.load(this.words, PREVIOUS), offset, length);
  }

  /** The take. Main thread; the gate is held alone. */
  switch(): void {
    const { words } = this;
    // 255 is the last number: the user sees a new generation and copies everything.
    if (words[ACTIVE] === ACTIVE_MAX) this.reset();
    const active = words[ACTIVE]!;
    Atomics.store(words, PREVIOUS, active);
    Atomics.store(words, ACTIVE, active + 1);
    this.readMap.set(this.writeMap);
  }

  /** A new generation, in which nothing has changed. Main thread, as `switch`. */
  reset(): void {
    this.writeMap.fill(0);
    this.readMap.fill(0);
    Atomics.store(this.words, PREVIOUS, 0);
    Atomics.store(this.words, ACTIVE, 1);
    this.generation.set(Buffer.from(randomUUID().replaceAll('-', ''), 'hex'));
  }

  info(): MapInfo {
    return {
      capacity: this.descriptor.size,
      blockSize: this.blockBytes,
      blockCount: this.readMap.length,
      generation: uuidText(this.generation),
      changesNumber: Atomics.load(this.words, PREVIOUS),
    };
  }

  /** Main thread, while nobody marks. */
  saveState(): MapState {
    const { size, shift } = this.descriptor;
    return {
      size,
      shift,
      active: this.words[ACTIVE]!,
      previous: this.words[PREVIOUS]!,
      generation: this.generation.slice(),
      writeMap: this.writeMap.slice(),
      readMap: this.readMap.slice(),
    };
  }

  /** map-I1 */
  private fill(map: Uint8Array, number: number, offset: number, length: number): void {
    const first = Math.floor(offset / this.blockBytes);
    map.fill(number, first, Math.ceil((offset + length) / this.blockBytes));
  }
}

function uuidText(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes).toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}
