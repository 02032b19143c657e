/**
 * A target on one thread, with no FUSE: made from its type and table arguments over devices that the test passes in.
 *
 *     const rig = await makeRig(bow, 'disk 1 block_size:512', { disk });
 *     rig.target.write(…); rig.write('state', '1'); rig.read('free'); rig.events
 *
 * A word of the table names a device of the test: `disk` becomes a file, `@upper` another target. Around it: `FaultyDisk`
 * counts and fails operations, `withoutUnmap` is a medium that cannot give space back, `seedFromEnv` repeats a failure.
 */
import fc from 'fast-check';
import { expect } from 'vitest';
import type { BlockDevice } from '../../src/device/block-device.js';
import type { OperationKind, SimulatedDisk } from '../../src/device/simulated.js';
import { DmError } from '../../src/errors.js';
import { parseTableLine } from '../../src/table.js';
import type { Backing, OpenContext, Target, TargetType } from '../../src/targets/target.js';

export interface Rig<T extends Target = Target, Descriptor = unknown> {
  readonly target: T;
  readonly descriptor: Descriptor;
  /** The lines that the target raised. */
  readonly events: string[];
  /** What a control file says. */
  read(file: string): string;
  /** Writes a control file. */
  write(file: string, text: string): void | Promise<void>;
  /** Another view of the same target, as a lane has one. */
  openView(): T;
}

/** What the words of a table stand for. */
export type Devices = Readonly<Record<string, BlockDevice>>;

export interface RigOptions {
  /** LENGTH of the table line, sectors. */
  readonly length?: number;
  /** Filled with the devices that `create` opened, also when it fails afterwards. */
  readonly opened?: string[];
}

/** Makes a target; throws what its `create` throws. `args` is the table line after the type. */
export async function makeRig<Descriptor, T extends Target>(
  type: TargetType<Descriptor, T>,
  args: string,
  devices: Devices,
  { length, opened = [] }: RigOptions = {},
): Promise<Rig<T, Descriptor>> {
  const events: string[] = [];
  const context: OpenContext = {
    device: ({ path }) => deviceOf(devices, path),
    raise: (event) => events.push(event),
  };
  const descriptor = await type.create(parseTableLine(`${type.name} ${args}`).args, {
    ...context,
    length,
    openBacking: async (device) => {
      const backing = backingOf(devices, device);
      opened.push(device);
      return backing;
    },
  });
  const openView = () => type.open(descriptor, context);
  const target = openView();
  const file = (name: string) => {
    const found = type.files.find((candidate) => candidate.name === name);
    if (found === undefined) throw new Error(`${type.name} has no control file ${name}`);
    return found;
  };
  return {
    target,
    descriptor,
    events,
    openView,
    read: (name) => file(name).read!(target),
    write: (name, text) => file(name).write!(target, text),
  };
}

function deviceOf(devices: Devices, word: string): BlockDevice {
  const device = devices[word];
  if (device === undefined) throw new DmError('ENOENT', `${word}: no such file or device`);
  return device;
}

function backingOf(devices: Devices, word: string): Backing {
  const { size } = deviceOf(devices, word);
  if (word.startsWith('@')) return { kind: 'target', id: 1, path: word, size };
  return { kind: 'file', fd: -1, path: word, size };
}

/** Everything that can be read of a device. */
export function contentOf(device: BlockDevice): Uint8Array {
  const bytes = new Uint8Array(device.size);
  device.read(0, bytes);
  return bytes;
}

/** `length` bytes of a device from `offset` on. */
export function readBytes(device: BlockDevice, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  device.read(offset, bytes);
  return bytes;
}

/** `code` of what `request` throws; 'none' when it throws nothing. An error that is no DmError is thrown on. */
export function codeOf(request: () => unknown): string {
  try {
    request();
    return 'none';
  } catch (error) {
    if (error instanceof DmError) return error.code;
    throw error;
  }
}

/** Compares bytes without printing megabytes of them. */
export function expectSameBytes(actual: Uint8Array, expected: Uint8Array, what: string): void {
  if (Buffer.compare(actual, expected) === 0) return;
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  const found = Buffer.from(actual.subarray(at, at + 16)).toString('hex');
  const wanted = Buffer.from(expected.subarray(at, at + 16)).toString('hex');
  expect.fail(
    `${what}: byte ${at} (sector ${Math.floor(at / 512)}) of ${expected.length}: ${found}, expected ${wanted}`,
  );
}

/** The seeds of a randomised test: `DMFUSE_SEED=N` alone, otherwise 1, 2, 3… until `enough` says so. */
export function* seeds(enough: (done: number) => boolean): Generator<number> {
  const fixed = process.env.DMFUSE_SEED;
  if (fixed !== undefined) {
    yield Number(fixed);
    return;
  }
  for (let seed = 1; !enough(seed - 1); seed++) yield seed;
}

/** Tries a property of fast-check so many times: from seed 1, or `DMFUSE_SEED=N`. What keeps its state from run to run is not `pure`. */
export async function fuzz<T>(
  property: fc.IAsyncProperty<T> | fc.IProperty<T>,
  { runs, pure = true }: { runs: number; pure?: boolean },
): Promise<void> {
  const [seed = 1] = seeds((done) => done === 1);
  // To make an example smaller takes runs on a state that others have left.
  await underSeed(seed, () =>
    fc.assert(property as fc.IAsyncProperty<T>, { numRuns: runs, seed, endOnFailure: !pure }),
  );
}

/** Runs `body`; a failure says how to repeat it. */
export async function underSeed(seed: number, body: () => void | Promise<void>): Promise<void> {
  try {
    await body();
  } catch (error) {
    if (error instanceof Error) error.message = `DMFUSE_SEED=${seed} repeats this: ${error.message}`;
    throw error;
  }
}

/** A medium whose `writeZeroes {unmap}` throws EOPNOTSUPP. */
export function withoutUnmap(device: BlockDevice): BlockDevice {
  return {
    size: device.size,
    read: (offset, into) => device.read(offset, into),
    write: (offset, from) => device.write(offset, from),
    flush: () => device.flush(),
    discard: () => {},
    writeZeroes(offset, length, { unmap = false } = {}) {
      if (unmap) throw new DmError('EOPNOTSUPP', 'this medium cannot unmap');
      device.writeZeroes(offset, length);
    },
  };
}

/** A device that must not be changed, and not even be flushed: `broken` says what is when it is. */
export function readOnly(device: BlockDevice, broken: string): BlockDevice {
  const refuse = () => {
    throw new Error(broken);
  };
  return {
    size: device.size,
    read: (offset, into) => device.read(offset, into),
    write: refuse,
    flush: refuse,
    discard: refuse,
    writeZeroes: refuse,
  };
}

/** A device whose zeros are holes, `grain` bytes at a time. */
export function withHoles(device: BlockDevice, grain = 4096): BlockDevice {
  const isHole = (at: number) =>
    readBytes(device, at, Math.min(grain, device.size - at)).every((byte) => byte === 0);
  return {
    size: device.size,
    read: (offset, into) => device.read(offset, into),
    write: (offset, from) => device.write(offset, from),
    flush: () => device.flush(),
    discard: (offset, length) => device.discard(offset, length),
    writeZeroes: (offset, length, options) => device.writeZeroes(offset, length, options),
    extentAt(offset) {
      let end = offset - (offset % grain);
      const data = !isHole(end);
      while (end < device.size && isHole(end) === !data) end += grain;
      return { data, end: Math.min(end, device.size) };
    },
  };
}

export type Hook = (op: string, offset: number, length: number) => void;

/** Tells the hook of each operation before it is done; what it throws is the operation's error. */
export function hooked(device: BlockDevice, before: Hook): BlockDevice {
  return {
    size: device.size,
    read(offset, into) {
      before('read', offset, into.length);
      device.read(offset, into);
    },
    write(offset, from) {
      before('write', offset, from.length);
      device.write(offset, from);
    },
    flush() {
      before('flush', 0, 0);
      device.flush();
    },
    discard(offset, length) {
      before('discard', offset, length);
      device.discard(offset, length);
    },
    writeZeroes(offset, length, options) {
      before(options?.unmap ? 'unmap' : 'zeroes', offset, length);
      device.writeZeroes(offset, length, options);
    },
  };
}

/** A device that remembers what it throws, for a target may catch it: one in memory throws when it is asked outside its bytes. */
export class Guarded<D extends BlockDevice> implements BlockDevice {
  readonly size: number;
  outside: unknown;

  constructor(readonly device: D) {
    this.size = device.size;
  }

  read(offset: number, into: Uint8Array): void {
    this.guard(() => this.device.read(offset, into));
  }

  write(offset: number, from: Uint8Array): void {
    this.guard(() => this.device.write(offset, from));
  }

  flush(): void {
    this.device.flush();
  }

  discard(offset: number, length: number): void {
    this.guard(() => this.device.discard(offset, length));
  }

  writeZeroes(offset: number, length: number, options?: { unmap?: boolean }): void {
    this.guard(() => this.device.writeZeroes(offset, length, options));
  }

  private guard(operation: () => void): void {
    try {
      operation();
    } catch (error) {
      this.outside = error;
      throw error;
    }
  }
}

export interface Fault {
  /** Which operation of any kind fails, counted from the call on; 1 is the next one. */
  readonly at: number;
  /** Whether a failing change reaches the cache, or a failing flush the medium. */
  readonly landed: boolean | 'some';
  /** All that follow fail as well, until `repair`. */
  readonly lasting?: boolean;
}

/** A simulated disk that counts its operations, reads among them, and fails those that the test chooses. */
export class FaultyDisk implements BlockDevice {
  readonly size: number;
  /** Operations since the last `fail` or `repair`. */
  operations = 0;
  private fault: Fault | undefined;

  constructor(readonly disk: SimulatedDisk) {
    this.size = disk.size;
  }

  fail(fault: Fault): void {
    this.fault = fault;
    this.operations = 0;
  }

  repair(): void {
    this.fault = undefined;
    this.operations = 0;
  }

  read(offset: number, into: Uint8Array): void {
    this.count('read');
    this.disk.read(offset, into);
  }

  write(offset: number, from: Uint8Array): void {
    this.count('write');
    this.disk.write(offset, from);
  }

  flush(): void {
    this.count('flush');
    this.disk.flush();
  }

  discard(offset: number, length: number): void {
    this.count('discard');
    this.disk.discard(offset, length);
  }

  writeZeroes(offset: number, length: number, options?: { unmap?: boolean }): void {
    this.count('writeZeroes');
    this.disk.writeZeroes(offset, length, options);
  }

  private count(op: OperationKind): void {
    this.operations++;
    const { fault } = this;
    if (fault === undefined || this.operations < fault.at) return;
    if (this.operations === fault.at || fault.lasting)
      this.disk.injectError({ op, at: 1, landed: fault.landed });
  }
}
