/**
 * The simulated disk: a block device in memory with a volatile cache, whose power can fail. It keeps a trace of every
 * change, so that one run of a workload gives the crash images of every instant of it; nothing is run again.
 *
 * The fault model, per property:
 *
 *   atomicity   A sector of 512 bytes changes as a whole or not at all, also where a change covers only part of it.
 *               Nothing wider is atomic: of a longer change any subset of its sectors may land (tearing).
 *   cache       A completed change is in the cache: every read sees it. It is not durable. Until a flush completes,
 *               each sector on the medium holds its last durable version or any version that the cache has held
 *               since, each sector independently of all others and of the order of the changes.
 *   flush       A completed flush makes every change completed before it durable. A flush that the power cut hits has
 *               made any subset of them durable.
 *   discard     A change like a write, of bytes that nobody wrote (0xdd): not durable before a flush, torn at sectors.
 *   zeroes      writeZeroes is a change like a write of zeros.
 *   the cut     The operation it hits, and every later one, throws PowerCut. A change that it hits may have landed in
 *               part, in full or not at all.
 *   errors      An operation may fail with EIO. A failed read gives nothing. A failed change has reached the cache in
 *               full, in some of its sectors, or not at all. A failed flush has made everything durable or nothing;
 *               in the latter case all stays in the cache and the next flush that works makes it durable.
 *   several     Disks of one PowerSupply lose power at the same instant: it numbers the operations of all of them, and a
 *               cut hits one operation of one disk. The caches are separate: a flush makes only its own disk's changes
 *               durable, and what survives on one disk says nothing about another.
 *
 * sim-I1  What a completed flush covers is in every later crash image.
 * sim-I2  Every sector of a crash image is a version that this sector had since the last completed flush before it.
 * sim-I3  Every combination of such versions can come out, also of several disks.
 *
 * Left out: media that lose what was flushed, bit rot, misdirected writes, a failed flush after which the cache forgets
 * what it did not write (Linux's page cache marks such pages clean).
 */

import { DmError } from '../errors.js';
import { SECTOR_BYTES } from '../units.js';
import type { BlockDevice } from './block-device.js';
import { Prng } from './prng.js';

/** What a discarded byte reads as: not zero, so that code which relies on zeros is found out. */
export const DISCARDED = 0xdd;

export type ChangeKind = 'write' | 'discard' | 'writeZeroes';
export type OperationKind = 'read' | 'flush' | ChangeKind;

/** One operation of the trace. */
export interface TraceEntry {
  readonly kind: 'flush' | ChangeKind;
  /** Bytes; where `sectors` starts, a multiple of 512. 0 for a flush. */
  readonly offset: number;
  /** Every sector that was touched, as it was in the cache afterwards; empty for a flush. */
  readonly sectors: Uint8Array;
  /** How many operations of the trace were durable when this one began. */
  readonly durable: number;
  /** Its number among all operations of the power supply; the index in the trace where the disk is alone on it. */
  readonly instant: number;
}

/** Which unflushed changes reach the medium: none, all, only the n-th of them (0 is the oldest), or a random choice. */
export type Survivors = 'none' | 'all' | { readonly only: number } | Prng;

export interface ErrorInjection {
  readonly op: OperationKind;
  /** Which operation of this kind fails, counted from this call on; 1 is the next one. */
  readonly at: number;
  /** Whether a failing change reaches the cache, or a failing flush the medium. Default false. */
  readonly landed?: boolean | 'some';
}

/** Thrown by the operation that the power cut hits, and by every later one. */
export class PowerCut extends Error {
  constructor(operation: number) {
    super(`simulated disk: the power failed at operation ${operation}`);
    this.name = 'PowerCut';
  }
}

/** What several disks share so that one cut hits them all. */
export class PowerSupply {
  /** In the order in which they were made. */
  readonly disks: SimulatedDisk[] = [];
  /** Flushes and changes so far, of all its disks. */
  operations = 0;
  /** The operation in which the power fails. */
  cutAt = Number.POSITIVE_INFINITY;

  /** Lets `operations` more flushes and changes complete; the power fails in the one after them. */
  cutAfter(operations: number): void {
    this.cutAt = this.operations + operations;
  }

  /** Throws when the power is gone. */
  check(): void {
    if (this.operations > this.cutAt) throw new PowerCut(this.cutAt);
  }
}

export class SimulatedDisk implements BlockDevice {
  readonly size: number;
  /** Every flush and change of this disk so far, in order; a change that the cut hit is the last. */
  readonly trace: TraceEntry[] = [];
  readonly power: PowerSupply;

  /** What reads see. */
  private readonly cache: Uint8Array;
  /** The content before the trace. */
  private readonly origin: Uint8Array;
  private readonly rng: Prng;
  private readonly injections: { op: OperationKind; left: number; landed: boolean | 'some' }[] = [];
  private durable = 0;
  /** The medium after `mediumAt` operations of the trace: where the last `imageAt` left it. */
  private medium: Uint8Array;
  private mediumAt = 0;

  /**
   * `content`: bytes, copied, or a size in bytes. `rng` decides only which sectors of a failing change land. Without
   * `power` the disk has a supply of its own.
   */
  constructor(content: number | Uint8Array, options: { rng?: Prng; power?: PowerSupply } = {}) {
    this.cache = new Uint8Array(typeof content === 'number' ? content : content.length);
    if (typeof content !== 'number') this.cache.set(content);
    this.origin = this.cache.slice();
    this.medium = this.cache.slice();
    this.size = this.cache.length;
    this.rng = options.rng ?? new Prng(1);
    this.power = options.power ?? new PowerSupply();
    this.power.disks.push(this);
  }

  /** Flushes and changes so far, of all disks of its power supply: the length of the trace where it is alone. */
  get operations(): number {
    return this.power.operations;
  }

  /** As that of the power supply. */
  cutAfter(operations: number): void {
    this.power.cutAfter(operations);
  }

  injectError({ op, at, landed = false }: ErrorInjection): void {
    this.injections.push({ op, left: at, landed });
  }

  /** What reads see now; a copy. */
  content(): Uint8Array {
    return this.cache.slice();
  }

  read(offset: number, into: Uint8Array): void {
    this.check(offset, into.length);
    this.power.check();
    if (this.injected('read') !== undefined) throw this.failure('read', offset, into.length);
    into.set(this.cache.subarray(offset, offset + into.length));
  }

  write(offset: number, from: Uint8Array): void {
    this.change('write', offset, from.length, (bytes) => bytes.set(from));
  }

  discard(offset: number, length: number): void {
    this.change('discard', offset, length, (bytes) => bytes.fill(DISCARDED));
  }

  writeZeroes(offset: number, length: number, _options?: { unmap?: boolean }): void {
    this.change('writeZeroes', offset, length, (bytes) => bytes.fill(0));
  }

  flush(): void {
    this.power.check();
    const failed = this.injected('flush');
    if (failed === undefined || failed === true) {
      this.record('flush', 0, new Uint8Array(0));
      this.durable = this.trace.length;
    }
    if (failed !== undefined) throw this.failure('flush', 0, this.size);
  }

  /** How many changes may or may not be on the medium when the power fails in operation `position` of its supply. */
  unflushedAt(position: number): number {
    return this.pending(position).length;
  }

  /** A possible content after the power cut that happened, or that would happen now. */
  crashImage(survivors: Survivors): Uint8Array {
    return this.imageAt(Math.min(this.power.operations, this.power.cutAt), survivors);
  }

  /**
   * A possible content of the medium when the power fails in operation `position` of its supply (the number of
   * operations: after all of them). Cheap for positions that rise from call to call.
   */
  imageAt(position: number, survivors: Survivors): Uint8Array {
    this.advanceMedium(position);
    const image = this.medium.slice();
    const pending = this.pending(position);
    if (survivors instanceof Prng) landAtRandom(image, pending, survivors);
    else if (survivors === 'all') for (const entry of pending) image.set(entry.sectors, entry.offset);
    else if (survivors !== 'none') {
      const only = pending[survivors.only];
      if (only) image.set(only.sectors, only.offset);
    }
    return image;
  }

  /** Changes that completed after the last flush before `position`, and the change at `position` if it is this disk's. */
  private pending(position: number): TraceEntry[] {
    const begun = this.indexOf(position + 1);
    return this.trace.slice(this.durableAt(position), begun).filter(({ kind }) => kind !== 'flush');
  }

  private durableAt(position: number): number {
    return this.trace[this.indexOf(position)]?.durable ?? this.durable;
  }

  /** How many operations of this disk came before operation `position` of its supply. */
  private indexOf(position: number): number {
    let low = 0;
    for (let high = this.trace.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (this.trace[middle]!.instant < position) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  private advanceMedium(position: number): void {
    const target = this.durableAt(position);
    if (target < this.mediumAt) {
      this.medium.set(this.origin);
      this.mediumAt = 0;
    }
    for (; this.mediumAt < target; this.mediumAt++) {
      const entry = this.trace[this.mediumAt]!;
      this.medium.set(entry.sectors, entry.offset);
    }
  }

  private change(kind: ChangeKind, offset: number, length: number, apply: (bytes: Uint8Array) => void): void {
    this.check(offset, length);
    this.power.check();
    const failed = this.injected(kind);
    const first = Math.floor(offset / SECTOR_BYTES) * SECTOR_BYTES;
    const end = Math.min(this.size, Math.ceil((offset + length) / SECTOR_BYTES) * SECTOR_BYTES);
    if (failed !== false) {
      const before = this.cache.slice(first, end);
      apply(this.cache.subarray(offset, offset + length));
      if (failed === 'some') this.takeBackSome(first, before);
      this.record(kind, first, this.cache.slice(first, end));
    }
    if (failed !== undefined) throw this.failure(kind, offset, length);
  }

  /** Puts an operation in the trace; throws where the cut hits it. */
  private record(kind: TraceEntry['kind'], offset: number, sectors: Uint8Array): void {
    this.trace.push({ kind, offset, sectors, durable: this.durable, instant: this.power.operations++ });
    this.power.check();
  }

  private takeBackSome(offset: number, before: Uint8Array): void {
    for (let at = 0; at < before.length; at += SECTOR_BYTES) {
      if (this.rng.chance(0.5)) this.cache.set(before.subarray(at, at + SECTOR_BYTES), offset + at);
    }
  }

  /** `landed` of the injection that hits this operation; undefined when none does. */
  private injected(op: OperationKind): boolean | 'some' | undefined {
    let hit: boolean | 'some' | undefined;
    for (const injection of this.injections) {
      if (injection.op === op && --injection.left === 0) hit = injection.landed;
    }
    return hit;
  }

  private failure(op: OperationKind, offset: number, length: number): DmError {
    return new DmError('EIO', `simulated disk: injected ${op} error, ${length} bytes at ${offset}`);
  }

  private check(offset: number, length: number): void {
    if (offset < 0 || length < 0 || offset + length > this.size) {
      throw new RangeError(`simulated disk: ${length} bytes at ${offset} are outside its ${this.size} bytes`);
    }
  }
}

/**
 * Whole changes that land or not show bugs of order, single sectors show tearing, a few exceptions among many show what
 * an even coin hides: each image draws one of these ways, and how likely a change is to land.
 */
function landAtRandom(image: Uint8Array, pending: readonly TraceEntry[], rng: Prng): void {
  const likely = rng.pick([0.5, 0.5, 0.1, 0.9]);
  if (rng.chance(0.33)) {
    for (const { offset, sectors } of pending) if (rng.chance(likely)) image.set(sectors, offset);
    return;
  }
  const versions = new Map<number, Uint8Array[]>();
  for (const { offset, sectors } of pending) {
    for (let at = 0; at < sectors.length; at += SECTOR_BYTES) {
      const held = versions.get(offset + at);
      const version = sectors.subarray(at, at + SECTOR_BYTES);
      if (held) held.push(version);
      else versions.set(offset + at, [version]);
    }
  }
  for (const [offset, held] of versions) if (rng.chance(likely)) image.set(rng.pick(held), offset);
}
