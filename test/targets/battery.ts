/**
 * What every target promises, whatever it does besides. A target's test names a subject, which is a type, its table
 * arguments and the state to bring it to; the battery runs it over several media.
 *
 *   target-P1  Requests of any alignment read back: a write, and zeros with and without `unmap`. EOPNOTSUPP is the answer of
 *              an unmapping one only. A request refused so, or as the subject announces, changes nothing; only of an
 *              unmapping one, which may be several to the target, some bytes may be zeros already.
 *   target-P2  A discard changes no byte outside its range.
 *   target-P3  The extents tile the device, and one that is said to be a hole reads as zeros.
 *   target-P4  A completed flush leaves nothing of the medium below unflushed; a failed one says so, and the next works.
 *   target-P5  An I/O error below fails the request with its errno. Every byte outside the request is as it was (about
 *              those inside nothing is promised), and the same request works when the medium does.
 *   target-P6  `tableArgs` makes the same target again.
 *   target-P7  All views of a descriptor are one target; opening one does no I/O.
 */
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../src/device/block-device.js';
import { MemoryDevice } from '../../src/device/memory.js';
import { Prng } from '../../src/device/prng.js';
import { SimulatedDisk } from '../../src/device/simulated.js';
import { parseTableLine, quoteWord } from '../../src/table.js';
import { linear } from '../../src/targets/linear/index.js';
import type { Target, TargetType } from '../../src/targets/target.js';
import {
  codeOf,
  contentOf,
  type Devices,
  expectSameBytes,
  FaultyDisk,
  makeRig,
  type Rig,
  type RigOptions,
  seeds,
  underSeed,
  withoutUnmap,
} from './harness.js';

export interface Subject<T extends Target = Target, Descriptor = unknown> {
  readonly name: string;
  readonly type: TargetType<Descriptor, T>;
  /** The table line after the type, for a `<dev>` that is already quoted. */
  readonly args: (device: string) => string;
  /** LENGTH of the table, sectors. */
  readonly length?: number;
  /** Bytes of the device below; without `content`, which makes of so many what it is to hold. */
  readonly bytes: number;
  readonly content?: (random: Uint8Array) => Uint8Array;
  /** Further devices that `args` names; new ones for each target, asked for after `content`. */
  readonly devices?: () => Devices;
  /** Brings a new target to the state that is meant. */
  readonly prepare?: (rig: Rig<T, Descriptor>, rng: Prng) => void;
  /** Errors with which a write may be refused; then nothing has changed. */
  readonly refusals?: readonly string[];
  /** Throws when the target is not at rest between two requests: a lock that is held. */
  readonly atRest?: (rig: Rig<T, Descriptor>) => void;
}

const DEVICE = 'a disk';

/** The media of the battery: each holds `content` at first. */
const MEDIA: Readonly<Record<string, (content: Uint8Array) => Promise<BlockDevice>>> = {
  memory: async (content) => new MemoryDevice(content),
  'a simulated disk': async (content) => new SimulatedDisk(content),
  'a medium that cannot unmap': async (content) => withoutUnmap(new MemoryDevice(content)),
  'a linear target': async (content) => {
    const disk = new Uint8Array(content.length + 2048);
    disk.set(content, 1536);
    return (await makeRig(linear, 'x 3', { x: new MemoryDevice(disk) }, { length: content.length / 512 }))
      .target;
  },
};

/** Declares the battery's tests for a subject. `media` adds media of the caller's own. */
export function testPromises<T extends Target, Descriptor>(
  subject: Subject<T, Descriptor>,
  media: typeof MEDIA = {},
): void {
  const make = async (device: BlockDevice, rng: Prng) => {
    const { type, args, length } = subject;
    const options: RigOptions = length === undefined ? {} : { length };
    const rig = await makeRig(type, args(quoteWord(DEVICE)), devicesOf(subject, device), options);
    subject.prepare?.(rig, rng);
    return rig;
  };
  const start = (rng: Prng) => {
    const content = rng.bytes(subject.bytes);
    // Zeros too, so that holes of the medium below have a chance.
    content.fill(0, subject.bytes >> 1, (subject.bytes * 5) >> 3);
    return subject.content?.(content) ?? content;
  };
  const promise: Promises<T, Descriptor> = { subject, make, start };

  describe(`${subject.name}: what every target promises`, () => {
    for (const [name, medium] of Object.entries({ ...MEDIA, ...media })) {
      it(`target-P1, target-P2, target-P3: random requests over ${name}`, async () => {
        for (const seed of seeds((done) => done >= 6)) {
          await underSeed(seed, () => randomRequests(promise, medium, seed));
        }
      });
    }
    it('target-P4: a flush reaches the medium, and its error the caller', () => flushes(promise));
    it('target-P5: an error below at any operation of a request', () => errorsBelow(promise));
    it('target-P6: its table line makes it again', () => tableRoundTrip(promise));
    it('target-P7: views of one descriptor are one target', () => views(promise));
  });
}

function devicesOf({ devices }: Pick<Subject, 'devices'>, device: BlockDevice): Devices {
  return { ...devices?.(), [DEVICE]: device };
}

interface Promises<T extends Target, Descriptor> {
  readonly subject: Subject<T, Descriptor>;
  readonly make: (device: BlockDevice, rng: Prng) => Promise<Rig<T, Descriptor>>;
  readonly start: (rng: Prng) => Uint8Array;
}

async function randomRequests<T extends Target, D>(
  { subject, make, start }: Promises<T, D>,
  medium: (content: Uint8Array) => Promise<BlockDevice>,
  seed: number,
): Promise<void> {
  const rng = new Prng(seed);
  const rig = await make(await medium(start(rng)), rng);
  const { target } = rig;
  const model = contentOf(target);
  const longest = rng.pick([700, 5000, 40_000]);
  const kinds = ['write', 'write', 'zeroes', 'unmap', 'discard', 'flush'].filter(() => rng.chance(0.8));
  for (let step = 0; step < 250 && kinds.length > 0; step++) {
    const kind = rng.pick(kinds);
    const unit = rng.pick([1, 512, 4096]);
    const offset = Math.min(target.size, rng.below(target.size / unit + 1) * unit);
    const length = Math.min(target.size - offset, rng.below(longest / unit + 1) * unit);
    const where = `step ${step}: ${kind} of ${length} at ${offset}`;
    const data = rng.bytes(length);
    const code = codeOf(() => request(target, kind, offset, data));
    if (code === 'none') apply(model, target, kind, offset, data);
    else {
      expect(refusals(subject, kind), where).toContain(code);
      if (kind === 'unmap') acceptZeroes(model, target, offset, length);
    }
    subject.atRest?.(rig);
    const from = Math.max(0, offset - 4096);
    const around = new Uint8Array(Math.min(target.size, offset + length + 4096) - from);
    target.read(from, around);
    expectSameBytes(around, model.subarray(from, from + around.length), where);
    if (step % 25 === 0) expectSameBytes(contentOf(target), model, where);
    if (step % 10 === 0) expectExtents(target, model, where);
  }
  expectSameBytes(contentOf(target), model, 'at the end');
}

function request(target: Target, kind: string, offset: number, data: Uint8Array): void {
  if (kind === 'write') target.write(offset, data);
  else if (kind === 'zeroes') target.writeZeroes(offset, data.length);
  else if (kind === 'unmap') target.writeZeroes(offset, data.length, { unmap: true });
  else if (kind === 'discard') target.discard(offset, data.length);
  else target.flush();
}

/** What the request made of the bytes; discarded ones are what they read as now. */
function apply(model: Uint8Array, target: Target, kind: string, offset: number, data: Uint8Array): void {
  if (kind === 'write') model.set(data, offset);
  else if (kind === 'discard') target.read(offset, model.subarray(offset, offset + data.length));
  else if (kind !== 'flush') model.fill(0, offset, offset + data.length);
}

/** Takes over the zeros that a refused request left in its range. */
function acceptZeroes(model: Uint8Array, target: Target, offset: number, length: number): void {
  const found = new Uint8Array(length);
  target.read(offset, found);
  for (const [index, byte] of found.entries()) if (byte === 0) model[offset + index] = 0;
}

function refusals(
  { refusals = [] }: Subject<never, never> | Pick<Subject, 'refusals'>,
  kind: string,
): string[] {
  return kind === 'unmap' ? [...refusals, 'EOPNOTSUPP'] : kind === 'flush' ? [] : [...refusals];
}

function expectExtents(target: Target, model: Uint8Array, where: string): void {
  for (let at = 0; at < target.size; ) {
    const { data, end } = target.extentAt?.(at) ?? { data: true, end: target.size };
    if (end <= at || end > target.size) expect.fail(`${where}: an extent ends at ${end}, asked at ${at}`);
    const bytes = model.subarray(at, end);
    if (!data) expectSameBytes(bytes, new Uint8Array(bytes.length), `${where}: hole at ${at}`);
    at = end;
  }
}

async function flushes<T extends Target, D>({ make, start }: Promises<T, D>): Promise<void> {
  const rng = new Prng(4);
  const disk = new SimulatedDisk(start(rng));
  const { target } = await make(disk, rng);
  target.write(target.size >> 1, rng.bytes(1000));
  target.flush();
  expect(disk.unflushedAt(disk.operations)).toBe(0);
  target.write((target.size >> 1) + 5000, rng.bytes(1000));
  disk.injectError({ op: 'flush', at: 1 });
  expect(codeOf(() => target.flush())).toBe('EIO');
  target.flush();
  expect(disk.unflushedAt(disk.operations)).toBe(0);
}

async function errorsBelow<T extends Target, D>({ subject, make, start }: Promises<T, D>): Promise<void> {
  for (const [index, kind] of ['read', 'write', 'zeroes', 'unmap'].entries()) {
    for (const lasting of [false, true]) {
      for (const landed of [false, true, 'some'] as const) {
        for (let at = 1; ; at++) {
          const rng = new Prng(index);
          const faulty = new FaultyDisk(new SimulatedDisk(start(rng), { rng: new Prng(at) }));
          const rig = await make(faulty, rng);
          const { target } = rig;
          const before = contentOf(target);
          const offset = (target.size >> 2) + rng.below(5000);
          const data = rng.bytes(9000);
          const run = () =>
            kind === 'read' ? target.read(offset, data) : request(target, kind, offset, data);
          faulty.fail({ at, landed, lasting });
          const code = codeOf(run);
          faulty.repair();
          if (code === 'none') break;
          const where = `${kind}, operation ${at}, landed ${landed}, lasting ${lasting}`;
          expect(code, where).toBe('EIO');
          subject.atRest?.(rig);
          const after = before.slice();
          if (kind !== 'read') apply(after, target, kind, offset, data);
          expectSameOutside(contentOf(target), before, offset, data.length, where);
          expect(codeOf(run), where).toBe('none');
          expectSameBytes(contentOf(target), after, where);
        }
      }
    }
  }
}

function expectSameOutside(
  found: Uint8Array,
  expected: Uint8Array,
  offset: number,
  length: number,
  where: string,
): void {
  expectSameBytes(found.subarray(0, offset), expected.subarray(0, offset), `${where}, before it`);
  expectSameBytes(found.subarray(offset + length), expected.subarray(offset + length), `${where}, after it`);
}

async function tableRoundTrip<T extends Target, D>({ subject, make, start }: Promises<T, D>): Promise<void> {
  const rng = new Prng(6);
  const rig = await make(new MemoryDevice(start(rng)), rng);
  const line = `0 ${rig.target.size / 512} ${subject.type.name} ${rig.target.tableArgs()}`;
  const { args, length, type } = parseTableLine(line);
  expect(type).toBe(subject.type.name);
  const words = args.map(quoteWord).join(' ');
  const again = await makeRig(subject.type, words, devicesOf(subject, new MemoryDevice(start(rng))), {
    length: length!,
  });
  expect(again.target.tableArgs()).toBe(rig.target.tableArgs());
  expect(again.target.size).toBe(rig.target.size);
}

async function views<T extends Target, D>({ make, start }: Promises<T, D>): Promise<void> {
  const rng = new Prng(7);
  const faulty = new FaultyDisk(new SimulatedDisk(start(rng)));
  const rig = await make(faulty, rng);
  faulty.repair();
  const other = rig.openView();
  expect(faulty.operations).toBe(0);
  expect([other.size, other.tableArgs(), other.statusArgs()]).toEqual([
    rig.target.size,
    rig.target.tableArgs(),
    rig.target.statusArgs(),
  ]);
  for (const [index, writer] of [rig.target, other, rig.target].entries()) {
    writer.write((rig.target.size >> 1) + index * 700, rng.bytes(3000));
    expectSameBytes(contentOf(other), contentOf(rig.target), `write ${index}`);
    expect(other.statusArgs()).toBe(rig.target.statusArgs());
  }
}
