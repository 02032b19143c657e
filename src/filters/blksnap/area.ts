/**
 * The difference area: what one device held at the take of its snapshot, as far as it has changed since [7]. The device is cut
 * into chunks; before the first change of one it is copied into the snapshot's storage.
 *
 * A chunk is new (0), being copied by some thread (-1), or stored in slot n - 1 (n > 0). It goes from new to copying by a
 * compare-and-exchange, so one thread copies it, and everybody who wants to change it meanwhile waits for that.
 *
 * area-I1  A change of the device begins after the states of all its chunks are stored, and these after all their bytes are in
 *          the storage. So who reads a chunk from the device and finds it not stored afterwards has read what the take saw,
 *          and who finds it stored reads the same from the storage.
 * area-I2  Where a copy fails the change passes all the same: ERROR is set before a state goes back to new, hence before any
 *          change that no copy precedes. Who looks at ERROR after his last read therefore knows whether area-I1 held. It is set
 *          once and stays.
 * area-I3  The same for the end of the snapshot: PHASE is ENDED before devices stop copying.
 * area-I4  Nobody waits for a chunk while he copies others: threads that copy one another's chunks cannot wait in a circle.
 *          What is copied is read from what the device stands on, where a read may wait for chunks of devices further below,
 *          never for those above.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { errnoOf, messageOf } from '../../errors.js';
import type { Backing } from '../../targets/target.js';
import { blocksOf } from './params.js';
import { DiffStorage, lowSpaceEvent, type Place, type StorageDescriptor } from './storage.js';

/** Plain data; everything that changes is in `shared` and in the storage's. */
export interface AreaDescriptor {
  /** The words below, and a state a chunk. */
  readonly shared: SharedArrayBuffer;
  /** Name of the device, for events. */
  readonly device: string;
  /** Where the events go. */
  readonly snapshotId: number;
  /** Bytes of the device. */
  readonly size: number;
  /** Chunks are 2^shift bytes; the last one may be short. */
  readonly chunkShift: number;
  /** Neighbouring chunks that are copied with one request at most. */
  readonly batch: number;
  readonly storage: StorageDescriptor;
}

/** What a thread gives its view of an area. */
export interface AreaContext {
  /** What the device's chunks are read from. */
  readonly origin: BlockDevice;
  device(backing: Backing): BlockDevice;
  raiseAt(id: number, event: string): void;
}

/** Bytes that lie in one place. */
export interface Run {
  /** Where, and from which byte of the place on; undefined: on the device. */
  readonly stored: { readonly place: Place; readonly offset: number } | undefined;
  /** First byte of the device after the run. */
  readonly stop: number;
}

// Words.
const PHASE = 0;
const ERROR = 1;
const WORDS = 2;

// Phases.
const PREPARED = 0;
const ACTIVE = 1;
const ENDED = 2;

// States of chunks.
const NEW = 0;
const COPYING = -1;

/** Bytes of a copy at a time at most. */
const BUFFER_BYTES = 2 << 20;
/**
 * Buffers of this thread that are not in use. One will do, unless the device stands on another one of the mount whose own
 * chunks are copied while this one's are read.
 */
const idleBuffers: Uint8Array[] = [];

function withBuffer(work: (buffer: Uint8Array) => void): void {
  const buffer = idleBuffers.pop() ?? new Uint8Array(BUFFER_BYTES);
  try {
    work(buffer);
  } finally {
    idleBuffers.push(buffer);
  }
}

export function createArea(descriptor: Omit<AreaDescriptor, 'shared'>): AreaDescriptor {
  // New chunks are zeros, and take no memory before somebody touches them.
  const words = WORDS + blocksOf(descriptor.size, descriptor.chunkShift);
  return { ...descriptor, shared: new SharedArrayBuffer(4 * words) };
}

/** Whether devices copy, and whether one has failed to. */
export class AreaStatus {
  private readonly words: Int32Array;

  constructor({ shared }: Pick<AreaDescriptor, 'shared'>) {
    this.words = new Int32Array(shared, 0, WORDS);
  }

  /** Whether changes of the device have to be preceded by copies. */
  get isActive(): boolean {
    return Atomics.load(this.words, PHASE) === ACTIVE;
  }

  get isEnded(): boolean {
    return Atomics.load(this.words, PHASE) === ENDED;
  }

  /** The errno, positive, of the copy that failed; 0: none has. */
  get errno(): number {
    return Atomics.load(this.words, ERROR);
  }

  /** The take. Main thread; the gate is held alone. */
  activate(): void {
    Atomics.compareExchange(this.words, PHASE, PREPARED, ACTIVE);
  }

  /** For good. */
  end(): void {
    Atomics.store(this.words, PHASE, ENDED);
  }

  /** For good (area-I2). True for the first who says so. */
  fail(errno: number): boolean {
    return Atomics.compareExchange(this.words, ERROR, 0, errno) === 0;
  }
}

/** One thread's view. */
export class Area {
  readonly status: AreaStatus;
  readonly storage: DiffStorage;
  private readonly states: Int32Array;
  private readonly chunkBytes: number;
  /** Chunks that are copied with one request at most. */
  private readonly batch: number;

  constructor(
    readonly descriptor: AreaDescriptor,
    private readonly context: AreaContext,
  ) {
    this.status = new AreaStatus(descriptor);
    this.storage = new DiffStorage(descriptor.storage, context.device);
    this.states = new Int32Array(descriptor.shared, 4 * WORDS);
    this.chunkBytes = 2 ** descriptor.chunkShift;
    this.batch = Math.max(1, Math.min(descriptor.batch, Math.floor(BUFFER_BYTES / this.chunkBytes)));
  }

  /**
   * Returns when the chunks of `length` bytes, at least 1, at `offset` are stored, or when the area has failed: throws
   * nothing, for the change of the device passes in any case.
   */
  copyBefore(offset: number, length: number): void {
    const { states } = this;
    const end = Math.ceil((offset + length) / this.chunkBytes);
    for (let chunk = Math.floor(offset / this.chunkBytes); chunk < end; ) {
      const state = Atomics.load(states, chunk);
      if (state > 0) {
        chunk++;
      } else if (state === COPYING) {
        Atomics.wait(states, chunk, COPYING);
      } else {
        // After the state: where a copy has failed it is new again, and ERROR was set before (area-I2).
        if (this.status.errno !== 0) return;
        const stop = this.claim(chunk, Math.min(end, chunk + this.batch));
        if (stop > chunk) this.copy(chunk, stop);
      }
    }
  }

  /** The run of bytes from `at` on, up to `end` at most: on the device, or one after the other in the storage. */
  runAt(at: number, end: number): Run {
    const { states, chunkBytes } = this;
    const first = Math.floor(at / chunkBytes);
    const limit = Math.ceil(end / chunkBytes);
    const state = Atomics.load(states, first);
    let chunk = first + 1;
    if (state <= 0) {
      while (chunk < limit && Atomics.load(states, chunk) <= 0) chunk++;
      return { stored: undefined, stop: Math.min(end, chunk * chunkBytes) };
    }
    const place = this.storage.locate(state - 1);
    const last = Math.min(limit, first + place.slots);
    while (chunk < last && Atomics.load(states, chunk) === state + chunk - first) chunk++;
    const offset = place.offset + at - first * chunkBytes;
    return { stored: { place, offset }, stop: Math.min(end, chunk * chunkBytes) };
  }

  /** Something that the area cannot do without has failed. */
  fail(error: unknown): void {
    const { device, snapshotId } = this.descriptor;
    const errno = errnoOf(error);
    if (!this.status.fail(errno)) return;
    const reason = JSON.stringify(messageOf(error));
    this.context.raiseAt(snapshotId, `corrupted device=${device} err=${errno} reason=${reason}`);
  }

  /** Takes the new chunks from `first` on, up to `limit`, for copying. Returns the one after the last. */
  private claim(first: number, limit: number): number {
    let chunk = first;
    while (chunk < limit && Atomics.compareExchange(this.states, chunk, NEW, COPYING) === NEW) chunk++;
    return chunk;
  }

  /** Copies claimed chunks [first, end), one or as many as go into the buffer. */
  private copy(first: number, end: number): void {
    let done = first;
    try {
      withBuffer((buffer) => {
        if (this.chunkBytes > buffer.length) {
          this.publish(first, this.storeInPieces(first, buffer), 1);
          return;
        }
        const from = this.startOf(first);
        const data = buffer.subarray(0, this.startOf(end) - from);
        this.context.origin.read(from, data);
        while (done < end) {
          const { first: slot, count } = this.allocate(end - done);
          const { device, offset } = this.storage.locate(slot);
          device.write(offset, data.subarray(this.startOf(done) - from, this.startOf(done + count) - from));
          this.publish(done, slot, count);
          done += count;
        }
      });
    } catch (error) {
      this.fail(error);
      this.giveBack(done, end);
    }
  }

  /** Copies a chunk that is larger than the buffer. Returns its slot. */
  private storeInPieces(chunk: number, buffer: Uint8Array): number {
    const from = this.startOf(chunk);
    const end = this.startOf(chunk + 1);
    const { first: slot } = this.allocate(1);
    const { device, offset } = this.storage.locate(slot);
    for (let at = from; at < end; at += buffer.length) {
      const piece = buffer.subarray(0, Math.min(buffer.length, end - at));
      this.context.origin.read(at, piece);
      device.write(offset + at - from, piece);
    }
    return slot;
  }

  private allocate(count: number): { first: number; count: number } {
    const allocation = this.storage.allocate(count);
    const { snapshotId, storage } = this.descriptor;
    if (allocation.isAlarm) this.context.raiseAt(snapshotId, lowSpaceEvent(storage));
    return allocation;
  }

  /** Chunks [first, first + count) are in the slots from `slot` on (area-I1). */
  private publish(first: number, slot: number, count: number): void {
    for (let i = 0; i < count; i++) this.change(first + i, slot + i + 1);
  }

  private giveBack(first: number, end: number): void {
    for (let chunk = first; chunk < end; chunk++) this.change(chunk, NEW);
  }

  private change(chunk: number, state: number): void {
    Atomics.store(this.states, chunk, state);
    Atomics.notify(this.states, chunk);
  }

  /** First byte of a chunk; of the one after the last, the end of the device. */
  private startOf(chunk: number): number {
    return Math.min(chunk * this.chunkBytes, this.descriptor.size);
  }
}
