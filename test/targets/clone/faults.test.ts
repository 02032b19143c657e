/**
 * I/O errors below: at every operation of a request, of hydration and of a commit.
 *
 *   faults-P1  Source and destination: the request gets EIO, no byte outside it changes, what is hydrated is whole, and the
 *              same works when the medium does.
 *   faults-P2  Metadata (clone-I7): the target becomes read-only, or fails altogether where not even the superblock can be
 *              read. A new target over the same devices goes on from what is on them.
 *   faults-P3  A destination that forgets what it had not written when a flush fails (clone-I6): whatever is hydrated on the
 *              metadata is on the medium whenever the power fails.
 *   faults-P4  A flush of ours that failed is told to the flush that the user asks for next.
 */
import { describe, expect, it, vi } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import { DmError } from '../../../src/errors.js';
import { createImage } from '../../../src/targets/clone/format.js';
import { createStore, MetadataStore } from '../../../src/targets/clone/store.js';
import { codeOf, contentOf, expectSameBytes, FaultyDisk, readBytes, seeds, underSeed } from '../harness.js';
import { OrdinaryDisk } from '../ordinary-disk.js';
import {
  type CloneRig,
  durableOf,
  garbage,
  hydratedOf,
  hydratorOf,
  makeClone,
  memoryFor,
  sourceOf,
  stepsOf,
} from './rig.js';

const SECTORS = 100;
const REGIONS = 13;
const KINDS = [false, true].flatMap((lasting) =>
  ([false, true, 'some'] as const).map((landed) => ({ lasting, landed })),
);

/** A clone of which region 2 is hydrated and committed, over disks that can fail. */
async function made(seed = 1, options = '') {
  const rng = new Prng(seed);
  const power = new PowerSupply();
  const bytes = rng.bytes(SECTORS * 512);
  const disks = {
    metadata: new SimulatedDisk(40 * 4096, { power, rng }),
    destination: new SimulatedDisk(garbage(SECTORS), { power, rng }),
    source: new SimulatedDisk(bytes, { rng }),
  };
  const faulty = {
    metadata: new FaultyDisk(disks.metadata),
    destination: new FaultyDisk(disks.destination),
    source: new FaultyDisk(disks.source),
  };
  const rig = await makeClone(faulty, { options });
  const model = bytes.slice();
  const data = rng.bytes(4096);
  rig.target.write(2 * 4096, data);
  model.set(data, 2 * 4096);
  rig.target.flush();
  for (const disk of Object.values(faulty)) disk.repair();
  return { rig, target: rig.target, disks, faulty, model, power };
}

describe.each(KINDS)('faults-P1: landed $landed, lasting $lasting', ({ landed, lasting }) => {
  const from = 700;
  const length = 4 * 4096;
  const requests: Record<string, (target: BlockDevice, data: Uint8Array) => void> = {
    write: (target, data) => target.write(from, data),
    zeroes: (target) => target.writeZeroes(from, length),
    unmap: (target) => target.writeZeroes(from, length, { unmap: true }),
    discard: (target) => target.discard(from, length),
  };

  it.each(['source', 'destination'] as const)('requests, an error of the %s', async (device) => {
    for (const [kind, request] of Object.entries(requests)) {
      let failed = 0;
      for (let at = 1; ; at++) {
        const { rig, target, faulty, model } = await made(at);
        const where = `${kind}, operation ${at}`;
        const data = kind === 'write' ? new Prng(at).bytes(length) : new Uint8Array(length);
        faulty[device].fail({ at, landed, lasting });
        const code = codeOf(() => request(target, data));
        faulty[device].repair();
        if (code === 'none') break;
        failed++;
        expect(code, where).toBe('EIO');
        expect([target.state.mode, rig.events], where).toEqual(['rw', []]);
        const found = contentOf(target);
        found.set(model.subarray(from, from + length), from);
        expectSameBytes(found, model, `${where}: outside`);
        // What it got to before is hydrated, what failed is not.
        const hydrated = hydratedOf(rig);
        expect(hydrated.length, where).toBeLessThan(5);
        expect(
          codeOf(() => request(target, data)),
          where,
        ).toBe('none');
        if (kind === 'discard') {
          expect(hydratedOf(rig), where).toEqual([1, 2, 3]);
          continue;
        }
        model.set(data, from);
        expectSameBytes(contentOf(target), model, where);
        expect(hydratedOf(rig), where).toEqual([0, 1, 2, 3, 4]);
        stepsOf(hydratorOf(rig));
        expectSameBytes(contentOf(target), model, `${where}: hydrated`);
      }
      const needed = device === 'source' ? (kind === 'discard' ? 0 : 2) : 2;
      expect(failed, kind).toBeGreaterThanOrEqual(needed);
    }
  });

  it.each(['source', 'destination'] as const)('hydration, an error of the %s', async (device) => {
    let failed = 0;
    for (let at = 1; ; at++) {
      const { rig, target, faulty, model } = await made(at);
      const hydrator = hydratorOf(rig, 1024);
      faulty[device].fail({ at, landed, lasting });
      const rest = stepsOf(hydrator);
      faulty[device].repair();
      if (rest === 1000) break;
      failed++;
      const where = `operation ${at}`;
      expect(rig.events, where).toHaveLength(1);
      expect(rig.events[0], where).toMatch(
        /^hydration_failed region=\d+ errno=5 reason="simulated disk: injected/,
      );
      expect(hydratedOf(rig).length, where).toBe(lasting ? 1 + Math.floor((at - 1) / 4) : REGIONS - 1);
      expectSameBytes(contentOf(target), model, where);
      expect(stepsOf(hydrator), where).toBe(1000);
      expectSameBytes(contentOf(target), model, where);
      expectSameBytes(readBytes(faulty.destination, 0, model.length), model, where);
    }
    expect(failed).toBeGreaterThan(20);
  });

  it('a flush, an error of the destination', async () => {
    const { rig, target, faulty, model, disks } = await made(1);
    const data = new Prng(2).bytes(10_000);
    target.write(20_000, data);
    model.set(data, 20_000);
    const before = disks.metadata.content().subarray(0, 4096);
    faulty.destination.fail({ at: 1, landed, lasting });
    expect(codeOf(() => target.flush())).toBe('EIO');
    if (lasting) expect(codeOf(() => target.flush())).toBe('EIO');
    faulty.destination.repair();
    expectSameBytes(disks.metadata.content().subarray(0, 4096), before, 'the superblock');
    expect([target.state.mode, rig.events, durableOf(disks.metadata, REGIONS)]).toEqual(['rw', [], [2]]);
    target.flush();
    expect(durableOf(disks.metadata, REGIONS)).toEqual(hydratedOf(rig));
    expect(disks.destination.unflushedAt(disks.destination.operations)).toBe(0);
    expectSameBytes(contentOf(target), model, 'all of it');
  });
});

describe.each(KINDS)('faults-P2: landed $landed, lasting $lasting', ({ landed, lasting }) => {
  it('at every operation of a commit', async () => {
    let failed = 0;
    for (let at = 1; ; at++) {
      const { rig, target, disks, faulty, model } = await made(at);
      const data = new Prng(at).bytes(5000);
      target.write(30_000, data);
      model.set(data, 30_000);
      const hydrated = hydratedOf(rig);
      const other = rig.openView();
      faulty.metadata.fail({ at, landed, lasting });
      const code = codeOf(() => target.flush());
      const where = `operation ${at}`;
      if (code === 'none') break;
      failed++;
      expect(code, where).toBe('EIO');
      const mode = lasting ? 'Fail' : 'ro';
      expect([target.state.mode, other.state.mode], where).toEqual([mode, mode]);
      const { reason } = target.state;
      expect(reason, where).toContain('injected');
      expect(rig.events, where).toEqual([`metadata_mode mode=${mode} reason=${JSON.stringify(reason)}`]);
      const { operations } = disks.metadata;
      if (lasting) expectFailed(other, reason);
      else expectReadOnly({ ...rig, target: other }, model, hydrated, reason);
      other.close();
      expect(stepsOf(hydratorOf({ target: other })), where).toBe(1000);
      expect(rig.events, where).toHaveLength(1);
      expect(hydratedOf(rig), where).toEqual(hydrated);
      // Nothing at all is written to metadata of which nobody knows what it holds.
      expect(
        disks.metadata.trace.some(({ instant }) => instant >= operations),
        where,
      ).toBe(false);

      faulty.metadata.repair();
      const bits = durableOf(disks.metadata, REGIONS);
      expect([[2], hydrated], where).toContainEqual(bits);
      const again = await makeClone(faulty);
      expect(again.target.statusArgs(), where).toMatch(/ rw$/);
      expect(hydratedOf(again), where).toEqual(bits);
      again.target.write(0, new Uint8Array(512));
      again.target.flush();
      expect(durableOf(disks.metadata, REGIONS), where).toEqual([0, ...bits]);
    }
    // An array block, its node, a bitmap, the index, a flush, the superblock, a flush.
    expect(failed).toBe(7);
  });
});

/** `hydrated`: what memory says; all of it is read from the destination. */
function expectReadOnly(rig: CloneRig, model: Uint8Array, hydrated: readonly number[], reason: string): void {
  const { target } = rig;
  expectSameBytes(contentOf(target), model, 'read-only');
  expect(target.statusArgs()).toContain(` hydration_batch_size 1 ro reason=${JSON.stringify(reason)}`);
  const [there, missing] = [hydrated.at(-1)! * 4096, 0];
  const data = new Uint8Array(1000).fill(3);
  target.write(there + 50, data);
  model.set(data, there + 50);
  target.writeZeroes(there + 3000, 96);
  model.fill(0, there + 3000, there + 3096);
  for (const request of [
    () => target.write(missing, data),
    () => target.writeZeroes(missing, 4096),
    () => target.writeZeroes(missing, 4096, { unmap: true }),
    () => target.flush(),
    () => target.flush(),
  ]) {
    expect(codeOf(request)).toBe('EIO');
    expect(request).toThrow(`the metadata is read-only: ${reason}; remove the target and create it anew`);
  }
  target.discard(missing, 4096);
  target.discard(0, target.size);
  expectSameBytes(contentOf(target), model, 'read-only, after requests');
  const [from, to] = [there, there + 4096];
  target.discard(from, 4096);
  target.read(from, model.subarray(from, to));
  expect(model.subarray(from, to).every((byte) => byte === 0xdd)).toBe(true);
}

function expectFailed(target: CloneRig['target'], reason: string): void {
  expect(target.statusArgs()).toBe(`Fail reason=${JSON.stringify(reason)}`);
  for (const request of [
    () => target.read(0, new Uint8Array(10)),
    () => target.read(2 * 4096, new Uint8Array(10)),
    () => target.write(2 * 4096, new Uint8Array(10)),
    () => target.write(0, new Uint8Array(10)),
    () => target.writeZeroes(0, 10),
    () => target.discard(0, 4096),
    () => target.discard(5, 10),
    () => target.flush(),
  ]) {
    expect(codeOf(request)).toBe('EIO');
  }
}

describe('faults-P2', () => {
  it('a superblock that is no longer one fails the target', async () => {
    const { target, faulty, disks } = await made();
    target.write(0, new Uint8Array(1));
    disks.metadata.write(0, new Uint8Array(4096));
    faulty.metadata.fail({ at: 1, landed: false });
    expect(codeOf(() => target.flush())).toBe('EIO');
    expect(target.statusArgs()).toMatch(/^Fail reason="simulated disk: .*; the superblock is gone"$/);
  });

  it('metadata that is full makes it read-only', async () => {
    const image = createImage({ regionSectors: 8, targetSectors: SECTORS }, 40 * 4096);
    const full = { ...image, superblock: { ...image.superblock, managedBlocks: 9 } };
    const memory = memoryFor(SECTORS, new Prng(1));
    new MetadataStore(createStore(full), memory.metadata!).writeAll();
    const rig = await makeClone({ ...memory });
    rig.target.write(0, new Uint8Array(4096));
    const before = memory.metadata!.bytes.slice();
    expect(codeOf(() => rig.target.flush())).toBe('ENOSPC');
    expectSameBytes(memory.metadata!.bytes, before, 'the metadata');
    const reason = 'the metadata device is full: 6 of its 9 blocks are in use, a commit needs more';
    expect(rig.events).toEqual([`metadata_mode mode=ro reason="${reason}"`]);
    expect(rig.target.statusArgs()).toContain(
      `8 6/9 8 1/13 0 0 4 hydration_threshold 1 hydration_batch_size 1 ro reason="${reason}"`,
    );
    expect(codeOf(() => rig.target.flush())).toBe('EIO');
    expect(codeOf(() => rig.target.write(4096, new Uint8Array(1)))).toBe('EIO');
    expect(
      contentOf(rig.target)
        .subarray(0, 4096)
        .every((byte) => byte === 0),
    ).toBe(true);
    expect((await makeClone({ ...memory })).target.statusArgs()).toContain('0/13');
  });

  it('in the background: an event, and none when there is nothing to commit', async () => {
    const { rig, target, faulty } = await made();
    target.write(0, new Uint8Array(1));
    faulty.metadata.fail({ at: 1, landed: false });
    target.close();
    expect(rig.events.map((line) => line.split(' ')[0])).toEqual(['metadata_mode', 'commit_failed']);
    target.close();
    expect(rig.events).toHaveLength(2);
  });

  it('a reason that is too long is cut, not garbled', async () => {
    const { target } = await made();
    target.state.degrade('ro', `${'ä'.repeat(400)}`);
    expect(target.state.reason).toBe('ä'.repeat(256));
  });
});

/** What reads show, what is on the medium, and which sectors have yet to get there: a flush that fails forgets them. */
class ForgetfulDisk implements BlockDevice {
  readonly size: number;
  readonly cache: Uint8Array;
  readonly medium: Uint8Array;
  private readonly dirty = new Set<number>();
  /** Whether the next flush fails. */
  fails = false;
  /** Comes after each write. */
  afterWrite: (offset: number, length: number) => void = () => {};

  constructor(
    content: Uint8Array,
    private readonly power = new PowerSupply(),
  ) {
    this.size = content.length;
    this.cache = content.slice();
    this.medium = content.slice();
  }

  /** The medium if the power fails now. */
  image(rng: Prng): Uint8Array {
    const image = this.medium.slice();
    const likely = rng.pick([0, 0, 0.1, 0.5, 0.9, 1]);
    for (const sector of this.dirty) if (rng.chance(likely)) this.land(image, sector);
    return image;
  }

  read(offset: number, into: Uint8Array): void {
    this.power.check();
    into.set(this.cache.subarray(offset, offset + into.length));
  }

  write(offset: number, from: Uint8Array): void {
    this.operate();
    this.cache.set(from, offset);
    for (let at = offset; at < offset + from.length; at += 512) this.dirty.add(Math.floor(at / 512));
    this.dirty.add(Math.floor((offset + from.length - 1) / 512));
    this.afterWrite(offset, from.length);
  }

  writeZeroes(offset: number, length: number): void {
    if (length > 0) this.write(offset, new Uint8Array(length));
  }

  discard(offset: number, length: number): void {
    this.write(offset, new Uint8Array(length).fill(0xdd));
  }

  flush(): void {
    this.operate();
    const { fails } = this;
    this.fails = false;
    if (!fails) for (const sector of this.dirty) this.land(this.medium, sector);
    this.dirty.clear();
    if (fails) throw new DmError('EIO', 'the destination forgets');
  }

  private operate(): void {
    this.power.check();
    this.power.operations++;
    this.power.check();
  }

  private land(image: Uint8Array, sector: number): void {
    image.set(this.cache.subarray(sector * 512, sector * 512 + 512), sector * 512);
  }
}

describe('faults-P3: a destination that forgets', () => {
  it('random requests, hydration and commits, and a power cut', async () => {
    let [failures, checks] = [0, 0];
    for (const seed of seeds((done) => done >= 40)) {
      await underSeed(seed, async () => {
        const whole = await forgetfulRun(seed, Number.POSITIVE_INFINITY);
        failures += whole.failures;
        for (let cut = 0; cut < whole.operations; cut += 1 + (seed % 7)) {
          await forgetfulRun(seed, cut);
          checks++;
        }
      });
    }
    if (process.env.DMFUSE_SEED !== undefined) return;
    expect(failures).toBeGreaterThan(50);
    expect(checks).toBeGreaterThan(1000);
  });

  async function forgetful(seed = 1) {
    const bytes = new Prng(seed).bytes(SECTORS * 512);
    const destination = new ForgetfulDisk(garbage(SECTORS));
    const metadata = new SimulatedDisk(40 * 4096);
    const rig = await makeClone({ metadata, destination, source: sourceOf(new MemoryDevice(bytes)) });
    const expectOnMedium = (model: Uint8Array) => {
      const image = metadata.crashImage('none');
      for (const region of durableOf(new MemoryDevice(image), REGIONS)) {
        const [from, to] = [region * 4096, Math.min((region + 1) * 4096, model.length)];
        expectSameBytes(destination.medium.subarray(from, to), model.subarray(from, to), `region ${region}`);
      }
      return durableOf(new MemoryDevice(image), REGIONS);
    };
    return { rig, target: rig.target, bytes, destination, metadata, expectOnMedium };
  }

  it('a flush that fails while somebody is between copying a region and its bit', async () => {
    const { rig, target, bytes, destination, expectOnMedium } = await forgetful();
    const other = rig.openView();
    const model = bytes.slice();
    const fails = (offset: number, length: number) => {
      // The end of region 1: the last that is copied.
      if (offset + length !== 8192) return;
      destination.afterWrite = () => {};
      destination.fails = true;
      expect(codeOf(() => other.flush())).toBe('EIO');
    };
    destination.afterWrite = fails;
    target.write(5000, new Uint8Array(100));
    model.fill(0, 5000, 5100);
    expect(hydratedOf(rig)).toEqual([1]);
    target.flush();
    expect(expectOnMedium(model)).toEqual([1]);

    destination.afterWrite = (offset, length) => fails(offset - 4096, length);
    const hydrator = hydratorOf(rig, 1024);
    stepsOf(hydrator);
    expect(hydratedOf(rig)).toHaveLength(REGIONS);
    target.flush();
    expect(expectOnMedium(model)).toHaveLength(REGIONS);
  });

  it('the bit is set before it is counted that the flush failed', async () => {
    const { rig, target, bytes, destination, expectOnMedium } = await forgetful();
    const other = rig.openView();
    // The other thread has come as far as the failure when the bit is set.
    let count = () => {};
    const { state } = other;
    const countLoss = state.countLoss.bind(state);
    vi.spyOn(state, 'countLoss').mockImplementation(() => {
      count = countLoss;
    });
    destination.afterWrite = () => {
      destination.afterWrite = () => {};
      destination.fails = true;
      expect(codeOf(() => other.flush())).toBe('EIO');
    };
    target.write(4096, new Uint8Array(4096));
    expect(hydratedOf(rig)).toEqual([1]);
    count();
    target.flush();
    const model = bytes.slice();
    model.fill(0, 4096, 8192);
    expect(expectOnMedium(model)).toEqual([1]);
  });

  it('a part of a region that was copied before is copied again', async () => {
    const { rig, target, bytes, destination, expectOnMedium } = await forgetful();
    const hydrator = hydratorOf(rig, 1024);
    hydrator.step();
    destination.fails = true;
    expect(codeOf(() => target.flush())).toBe('EIO');
    target.flush();
    stepsOf(hydrator);
    target.flush();
    expect(expectOnMedium(bytes)).toHaveLength(REGIONS);
  });

  it('one that fails between the look at the losses and the look at the part', async () => {
    // Every look at the counter of losses, in turn, is followed by a failure that another thread counts.
    for (let look = 1; look <= 4; look++) {
      const { rig, target, bytes, destination, expectOnMedium } = await forgetful(look);
      const other = rig.openView();
      const hydrator = hydratorOf(rig, 2048);
      hydrator.step();
      const { state } = target;
      const real = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(state), 'losses')!.get!;
      let left = look;
      Object.defineProperty(state, 'losses', {
        configurable: true,
        get() {
          const losses = real.call(state);
          // Not where the look is one step with setting the bit: the commit waits for that.
          const isApart = new Int32Array(rig.descriptor.marks)[0] === 0;
          if (isApart && --left === 0) {
            destination.fails = true;
            expect(codeOf(() => other.flush())).toBe('EIO');
            // And the next one works, so that all that was lost so far counts as written again.
            if (look === 1) other.flush();
          }
          return losses;
        },
      });
      stepsOf(hydrator);
      Reflect.deleteProperty(state, 'losses');
      target.flush();
      expect(expectOnMedium(bytes), `look ${look}`).toHaveLength(REGIONS);
    }
  });

  it('what is durable is not written again, what is not is, once', async () => {
    const { target, destination, rig } = await forgetful();
    target.write(0, new Uint8Array(4096));
    target.flush();
    target.write(0, new Uint8Array(100));
    target.write(3 * 4096, new Uint8Array(8192));
    target.write(12 * 4096, new Uint8Array(512));
    destination.fails = true;
    expect(codeOf(() => target.flush())).toBe('EIO');
    const written: number[] = [];
    destination.afterWrite = (offset, length) => {
      for (let at = offset; at < offset + length; at += 4096) written.push(at / 4096);
    };
    target.flush();
    expect(written).toEqual([3, 4, 12]);
    target.write(5 * 4096, new Uint8Array(4096));
    written.length = 0;
    target.flush();
    expect(written).toEqual([]);
    expect(hydratedOf(rig)).toEqual([0, 3, 4, 5, 12]);
  });

  it('errors while it is written again', async () => {
    const { target, faulty, disks, model, rig } = await made();
    target.write(0, new Uint8Array(4096 * 2));
    model.fill(0, 0, 8192);
    faulty.destination.fail({ at: 1, landed: false });
    expect(codeOf(() => target.flush())).toBe('EIO');
    // Its read, its write, and the flush behind it.
    for (let at = 1; at <= 3; at++) {
      faulty.destination.fail({ at, landed: false });
      expect(
        codeOf(() => target.flush()),
        `operation ${at}`,
      ).toBe('EIO');
      expect(durableOf(disks.metadata, REGIONS)).toEqual([2]);
      expect(target.state.mode).toBe('rw');
    }
    faulty.destination.repair();
    target.write(5 * 4096, new Uint8Array(1));
    target.flush();
    expect(durableOf(disks.metadata, REGIONS)).toEqual([0, 1, 2, 5]);
    expect(rig.events).toEqual([]);

    target.write(6 * 4096, new Uint8Array(1));
    faulty.destination.fail({ at: 1, landed: false });
    expect(codeOf(() => target.flush())).toBe('EIO');
    faulty.destination.repair();
    // Which of them are durable cannot be read.
    faulty.metadata.fail({ at: 1, landed: false });
    expect(codeOf(() => target.flush())).toBe('EIO');
    expect(target.state.mode).toBe('ro');
    faulty.metadata.repair();
    expect(codeOf(() => target.flush())).toBe('EIO');
    expect(rig.events).toHaveLength(1);
  });
});

async function forgetfulRun(seed: number, cut: number): Promise<{ operations: number; failures: number }> {
  const rng = new Prng(seed);
  const power = new PowerSupply();
  const bytes = rng.bytes(SECTORS * 512);
  const metadata = new SimulatedDisk(40 * 4096, { power });
  const destination = new ForgetfulDisk(garbage(SECTORS), power);
  const source = sourceOf(new MemoryDevice(bytes));
  const rig = await makeClone({ metadata, destination, source });
  const first = power.operations;
  const views = [rig.target, rig.openView()];
  const hydrator = hydratorOf(rig, 1024 * (1 + rng.below(8)));
  const ordinary = new OrdinaryDisk(bytes, power);
  power.cutAt = first + cut;
  let failures = 0;
  try {
    for (let step = 0; step < 25 && power.operations <= power.cutAt; step++) {
      const start = power.operations;
      destination.fails = rng.chance(0.3);
      const kind = rng.pick(['write', 'write', 'hydrate', 'flush', 'flush', 'background']);
      const view = rng.pick(views);
      if (kind === 'write') {
        // What was durable and written again is lost with the flush that fails, and only told to the user.
        const durable = durableOf(metadata, REGIONS);
        const region = rng.below(REGIONS);
        if (durable.includes(region)) continue;
        const offset = region * 4096 + rng.below(2000);
        const data = rng.bytes(1 + rng.below(Math.min(2000, rig.target.size - offset)));
        ordinary.write(start, offset, data);
        view.write(offset, data);
      } else if (kind === 'hydrate') {
        hydrator.step();
      } else if (kind === 'background') {
        view.close();
      } else if (codeOf(() => view.flush()) === 'none') {
        ordinary.note({ kind: 'flush', offset: 0, data: new Uint8Array(0), start, code: 'none' });
      } else {
        failures++;
      }
    }
  } catch (error) {
    if (power.operations <= power.cutAt) throw error;
  }
  const image = destination.image(rng);
  const at = Math.min(power.operations, power.cutAt);
  const naive = bytes.slice();
  for (const region of durableOf(new MemoryDevice(metadata.imageAt(at, rng)), REGIONS)) {
    naive.set(image.subarray(region * 4096, Math.min((region + 1) * 4096, naive.length)), region * 4096);
  }
  ordinary.check(naive, at);
  return { operations: power.operations - first, failures };
}

describe('faults-P4: the background, and the user', () => {
  it('is told once', async () => {
    const { rig, target, faulty } = await made();
    // Into a region that is durable: no commit writes that again.
    target.write(2 * 4096, new Uint8Array(100));
    target.write(0, new Uint8Array(1));
    faulty.destination.fail({ at: 1, landed: false });
    target.close();
    faulty.destination.repair();
    expect(rig.events).toEqual([
      expect.stringMatching(/^commit_failed errno=5 reason="simulated disk: injected flush/),
    ]);
    expect(() => rig.openView().flush()).toThrow(
      'an earlier flush of the destination failed: writes may be lost',
    );
    expect(codeOf(() => target.flush())).toBe('none');
  });

  it('is told even where a commit in the background has worked since', async () => {
    const { rig, target, faulty } = await made();
    target.write(0, new Uint8Array(1));
    faulty.destination.fail({ at: 1, landed: false });
    target.close();
    target.close();
    faulty.destination.repair();
    target.close();
    expect(target.state.marks.areThere).toBe(false);
    expect(codeOf(() => target.flush())).toBe('EIO');
    expect(codeOf(() => target.flush())).toBe('none');
    expect(rig.events).toHaveLength(1);
  });

  it('one that the user asked for is not told again', async () => {
    const { target, faulty } = await made();
    target.write(0, new Uint8Array(1));
    faulty.destination.fail({ at: 1, landed: false });
    expect(codeOf(() => target.flush())).toBe('EIO');
    expect(codeOf(() => target.flush())).toBe('none');
  });

  it('a failure in the background is an event, once until it works again', async () => {
    const { rig, target, faulty } = await made();
    target.write(0, new Uint8Array(1));
    faulty.destination.fail({ at: 1, landed: false, lasting: true });
    target.close();
    expect(rig.events).toHaveLength(1);
    // Now it is reading that fails.
    target.close();
    target.close();
    expect(rig.events).toHaveLength(2);
    faulty.destination.repair();
    target.close();
    target.write(4096, new Uint8Array(1));
    faulty.destination.fail({ at: 1, landed: false });
    target.close();
    expect(rig.events).toHaveLength(3);
  });
});

it('metadata that was never made whole is not there', async () => {
  // A power cut at each operation of making it: either nothing, or all of it.
  const power = new PowerSupply();
  const metadata = new SimulatedDisk(40 * 4096, { power });
  const memory = memoryFor(SECTORS, new Prng(1));
  await makeClone({ ...memory, metadata });
  const rng = new Prng(1);
  let whole = 0;
  for (let cut = 0; cut <= power.operations; cut++) {
    for (let times = 0; times < 10; times++) {
      const image = new MemoryDevice(metadata.imageAt(cut, rng));
      if (image.bytes.subarray(0, 4096).every((byte) => byte === 0)) {
        const again = await makeClone({ ...memory, metadata: image });
        expect(again.target.statusArgs()).toContain('0/13');
      } else {
        expect(durableOf(image, REGIONS)).toEqual([]);
        whole++;
      }
    }
  }
  expect(whole).toBeGreaterThan(0);
});
