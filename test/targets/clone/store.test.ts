/**
 * The metadata store: what is on the device after each commit, in which order it came there, and what failures and power cuts
 * leave. Devices are read by the strict reader of naive-metadata.ts.
 */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk, type Survivors } from '../../../src/device/simulated.js';
import { DmError } from '../../../src/errors.js';
import { createImage } from '../../../src/targets/clone/format.js';
import { readImage } from '../../../src/targets/clone/image.js';
import { clone } from '../../../src/targets/clone/index.js';
import { createStore, MetadataStore } from '../../../src/targets/clone/store.js';
import { makeRig, seeds, underSeed } from '../harness.js';
import {
  build,
  type NaiveState,
  PER_ARRAY,
  PER_BITMAP,
  randomPlaces,
  rangesOf,
  readStrictly,
  type Shape,
  SparseDevice,
} from './naive-metadata.js';

/** A store over what a device holds, and the regions that it makes durable. */
class Subject {
  readonly image;
  readonly store: MetadataStore;
  readonly regions: number;
  readonly arrays: number;
  private readonly words: Int32Array;
  private readonly dirty = new Set<number>();

  constructor(readonly device: BlockDevice) {
    this.image = readImage(device)!;
    this.store = new MetadataStore(createStore(this.image), device);
    const { targetSectors, regionSectors } = this.image.superblock;
    this.regions = Math.ceil(targetSectors / regionSectors);
    this.arrays = this.image.levels[0]!;
    this.words = new Int32Array(this.image.hydrated);
  }

  hydrate(region: number): void {
    this.words[Math.floor(region / 32)]! |= 1 << (region % 32);
    this.dirty.add(Math.floor(region / PER_ARRAY));
  }

  /** What memory says is hydrated. */
  get ranges(): [number, number][] {
    return rangesOf(new Uint8Array(this.image.hydrated), this.regions);
  }

  /** Commits what is dirty; it stays so when that fails. */
  commit(flushDestination: () => void): number[] {
    const arrays = [...this.dirty].sort((a, b) => a - b);
    this.store.commit(arrays, flushDestination);
    this.dirty.clear();
    return arrays;
  }
}

/** Watches a device: what is written was free in the last committed state, and superblocks come between two flushes. */
class Witness {
  live: ReadonlySet<number>;
  /** Blocks that were written for each superblock since `clear`. */
  commits: number[][] = [];
  destinationFlushes = 0;
  private since: (number | string)[] = [];

  constructor(private readonly device: SparseDevice) {
    this.live = readStrictly(device).live;
    device.before = (operation) => this.before(operation);
  }

  flushDestination = (): void => {
    this.destinationFlushes++;
    this.since.push('destination');
  };

  clear(): void {
    this.commits = [];
    this.destinationFlushes = 0;
    this.since = [];
  }

  private before(operation: number | 'flush'): void {
    if (operation === 'flush' && this.since.at(-1) === 0) {
      const { live } = readStrictly(this.device);
      const written = this.since.filter((entry): entry is number => typeof entry === 'number' && entry > 0);
      // Each block once, then the destination, the metadata, the superblock.
      expect(this.since).toEqual([...written, 'destination', 'flush', 0]);
      expect([...live].filter((block) => !this.live.has(block)).sort()).toEqual([...written].sort());
      expect(live.size).toBe(this.live.size);
      this.live = live;
      this.commits.push(written);
      this.since = [];
      return;
    }
    if (operation !== 0 && operation !== 'flush') {
      expect(this.live.has(operation), `clone-I4: block ${operation} is live`).toBe(false);
    }
    this.since.push(operation);
  }
}

function flawsOf(device: BlockDevice): string[] {
  const flaws: string[] = [];
  readImage(device, ({ message }) => flaws.push(message));
  return flaws;
}

/** The device says just what memory says, and nothing is wrong with it. */
function expectDurable(subject: Subject): NaiveState {
  const state = readStrictly(subject.device);
  expect(state.ranges).toEqual(subject.ranges);
  expect(flawsOf(subject.device)).toEqual([]);
  expect(subject.store.used).toBe(state.live.size);
  return state;
}

/** A new image on a device of so many blocks. */
function formatted(regions: number, blocks: number): SparseDevice {
  const device = new SparseDevice(4096 * blocks);
  const image = createImage({ regionSectors: 8, targetSectors: 8 * regions }, device.size);
  new MetadataStore(createStore(image), device).writeAll();
  return device;
}

const SMALL: Shape = { regionSectors: 8, targetSectors: 8 * (9 * PER_ARRAY + 77), deviceBytes: 60 * 4096 };

describe('commits', () => {
  const shapes: Shape[] = [
    SMALL,
    { ...SMALL, targetSectors: 8 * 64, deviceBytes: 10 * 4096 },
    { ...SMALL, nodes: [[3, 3, 1, 3], [2, 2], [2]], stale: 0x5a },
    {
      ...SMALL,
      nodes: [[5, 5], [2]],
      deviceBytes: 70_000 * 4096,
      places: randomPlaces(new Prng(8)),
      slack: 9,
    },
    {
      ...SMALL,
      deviceBytes: 70_000 * 4096,
      managed: 16_340,
      places: (count) => Array.from({ length: count }, (_, i) => 16_339 - i),
    },
    {
      ...SMALL,
      nodes: [[10]],
      deviceBytes: 2 * PER_BITMAP * 4096,
      places: (count) => Array.from({ length: count }, (_, i) => PER_BITMAP - 5 + i),
    },
  ];

  it('any sequence of changes and commits, in any shape', () => {
    const change = fc.record({
      first: fc.nat(),
      count: fc.integer({ min: 1, max: 70 }),
      commits: fc.boolean(),
      reopens: fc.nat(9),
    });
    fc.assert(
      fc.property(fc.nat(shapes.length - 1), fc.array(change, { maxLength: 40 }), (which, changes) => {
        const shape = shapes[which]!;
        const { device } = build({ ...shape, hydrated: [0, 3] });
        const witness = new Witness(device);
        let subject = new Subject(device);
        for (const { first, count, commits, reopens } of changes) {
          for (let i = 0; i < count; i++) subject.hydrate((first + i) % subject.regions);
          if (!commits) continue;
          witness.clear();
          const arrays = subject.commit(witness.flushDestination);
          const { depth } = expectDurable(subject);
          expect(witness.destinationFlushes).toBe(witness.commits.length);
          // Each array block at most with all nodes above it, the bitmaps and the index.
          for (const written of witness.commits) {
            const bitmaps = subject.image.counts.byteLength / 4080;
            expect(written.length).toBeLessThanOrEqual(arrays.length * (1 + depth) + bitmaps + 1);
          }
          if (reopens === 0) subject = new Subject(device);
        }
      }),
      { numRuns: 60 },
    );
  });

  it('of one region: an array block, the nodes above it, a bitmap, the index', () => {
    for (const [nodes, written] of [
      [[[10]], 4],
      [[[4, 6], [2]], 5],
      [[[3, 3, 1, 3], [2, 2], [2]], 6],
    ] as [number[][], number][]) {
      const { device } = build({ ...SMALL, nodes });
      const witness = new Witness(device);
      const subject = new Subject(device);
      for (const region of [5, 4 * PER_ARRAY, 6 * PER_ARRAY - 1]) {
        witness.clear();
        subject.hydrate(region);
        subject.commit(witness.flushDestination);
        expect(witness.commits.map((blocks) => blocks.length)).toEqual([written]);
        expectDurable(subject);
      }
    }
  });

  it('a node is written once for all that changes below it', () => {
    const { device } = build({ ...SMALL, nodes: [[3, 3, 4], [3]] });
    const witness = new Witness(device);
    const subject = new Subject(device);
    for (const array of [0, 2, 6, 7, 9]) subject.hydrate(array * PER_ARRAY);
    subject.commit(witness.flushDestination);
    // Five array blocks, two leaves, the root, a bitmap, the index.
    expect(witness.commits.map((blocks) => blocks.length)).toEqual([10]);
    expectDurable(subject);
  });

  it('clone-I3: what is hydrated while the destination is flushed does not count yet', () => {
    const device = formatted(1000, 20);
    const witness = new Witness(device);
    const subject = new Subject(device);
    subject.hydrate(7);
    subject.commit(() => {
      subject.hydrate(8);
      witness.flushDestination();
    });
    expect(readStrictly(device).ranges).toEqual([[7, 1]]);
    subject.hydrate(8);
    subject.commit(witness.flushDestination);
    expectDurable(subject);
  });

  it('only the array blocks that it is told of', () => {
    const { device } = build(SMALL);
    const witness = new Witness(device);
    const subject = new Subject(device);
    for (const array of [1, 2, 3]) subject.hydrate(array * PER_ARRAY);
    subject.store.commit([2], witness.flushDestination);
    expect(readStrictly(device).ranges).toEqual([[2 * PER_ARRAY, 1]]);
    expect(Buffer.from(subject.store.readArray(1)).every((byte) => byte === 0)).toBe(true);
    expect(subject.store.readArray(2)[0]).toBe(1);
    subject.commit(witness.flushDestination);
    expectDurable(subject);
    expect(subject.store.readArray(9)).toHaveLength(16);
  });

  it('probe tells a superblock from none', () => {
    const device = formatted(1000, 20);
    const { store } = new Subject(device);
    store.probe();
    device.blocks.get(0)![100] = 1;
    expect(() => store.probe()).toThrow('metadata block 0');
    device.blocks.get(0)!.fill(0);
    expect(() => store.probe()).toThrow('the superblock is gone');
  });

  it('two views of one store take turns', () => {
    const device = formatted(4 * PER_ARRAY, 40);
    const witness = new Witness(device);
    const image = readImage(device)!;
    const descriptor = createStore(image);
    const views = [0, 1, 2].map(() => new MetadataStore(descriptor, device));
    const words = new Int32Array(image.hydrated);
    for (let turn = 0; turn < 60; turn++) {
      const array = turn % 4;
      words[(array * PER_ARRAY) / 32]! |= 1 << (turn % 32);
      views[turn % 3]!.commit([array], witness.flushDestination);
      expect(readStrictly(device).ranges).toEqual(rangesOf(new Uint8Array(image.hydrated), 4 * PER_ARRAY));
    }
    expect(views.map(({ used }) => used)).toEqual([9, 9, 9]);
  });
});

describe('small devices', () => {
  it('ten blocks do for six that are live, for ever; nine are refused', async () => {
    const device = formatted(640, 10);
    const witness = new Witness(device);
    const subject = new Subject(device);
    for (let i = 0; i < 500; i++) {
      subject.hydrate(i);
      subject.commit(witness.flushDestination);
      expectDurable(subject);
    }
    expect(witness.commits).toHaveLength(500);

    const small = new SparseDevice(10 * 4096 - 1);
    const disk = new SparseDevice(640 * 4096);
    const made = makeRig(clone, 'small dest src 8 1 no_hydration', { small, dest: disk, src: disk });
    await expect(made).rejects.toThrow(
      'small: has 40959 bytes: metadata of 640 regions needs 40960 at least',
    );
    expect(small.log).toEqual([]);
  });

  it.each([1, 2, 3, 8, 20])('20 changed array blocks and %i blocks more than one needs: in parts', (more) => {
    const regions = 20 * PER_ARRAY;
    // The superblock, index, overflow root, bitmap, a node; to one commit belong an array block, the node, a bitmap, the index.
    const device = formatted(regions, 25 + 3 + more);
    const witness = new Witness(device);
    const subject = new Subject(device);
    for (let round = 0; round < 10; round++) {
      witness.clear();
      for (let array = 0; array < 20; array++) subject.hydrate(array * PER_ARRAY + round);
      subject.commit(witness.flushDestination);
      expectDurable(subject);
      expect(witness.commits.length).toBeGreaterThanOrEqual(Math.ceil(20 / more));
      expect(witness.commits.flat()).toHaveLength(20 + 3 * witness.commits.length);
    }
  });

  it('the least device is enough also where the free blocks lie on both sides of two bitmaps', () => {
    // 16,317 blocks are in use, or one less room: the first free ones are the last of bitmap 0.
    const regions = 16_246 * PER_ARRAY;
    const sizes = { regionSectors: 8, targetSectors: 8 * regions };
    const needed = 3 + 2 + 66 + 16_246 + 3 + 2 + 1;
    expect(() => createImage(sizes, 4096 * (needed - 1))).toThrow(`needs ${4096 * needed} at least`);
    const device = new SparseDevice(4096 * needed);
    const image = createImage(sizes, device.size);
    const store = new MetadataStore(createStore(image), device);
    store.writeAll();
    const words = new Int32Array(image.hydrated);
    for (const array of [0, 16_245, 7000, 0]) {
      words[(array * PER_ARRAY) / 32] = -1;
      store.commit([array], () => {});
      expect(flawsOf(device)).toEqual([]);
    }
    expect(readStrictly(device).ranges).toEqual([0, 7000, 16_245].map((array) => [array * PER_ARRAY, 32]));
  });

  it('an image of somebody else without room: ENOSPC, and nothing has changed', () => {
    const { device } = build({ ...SMALL, targetSectors: 8 * 64, deviceBytes: 9 * 4096 });
    const before = readStrictly(device);
    const subject = new Subject(device);
    subject.hydrate(3);
    device.log.length = 0;
    for (let i = 0; i < 3; i++) {
      expect(() => subject.commit(() => {})).toThrow('the metadata device is full: ');
    }
    expect(device.log).toEqual([]);
    expect(readStrictly(device)).toEqual(before);
    expect(subject.store.used).toBe(6);
    expect(() => subject.store.commit([], () => {})).not.toThrow(RangeError);
  });
});

describe('several bitmaps', () => {
  it('the cursor goes on from commit to commit, over all bitmaps and around', () => {
    const blocks = 2 * PER_BITMAP + 900;
    const device = formatted(60 * PER_ARRAY, blocks);
    const subject = new Subject(device);
    const touched = new Set<number>();
    let last = readStrictly(device).live.size - 1;
    let wraps = 0;
    for (let round = 0; wraps < 2; round++) {
      expect(round).toBeLessThan(2000);
      for (let array = 0; array < 60; array++) subject.hydrate(array * PER_ARRAY + (round % PER_ARRAY));
      const start = device.log.length;
      subject.commit(() => {});
      // Where the new ones are: the array blocks in order, from the last one on.
      const written = device.log
        .slice(start)
        .filter((entry): entry is number => entry !== 'flush' && entry > 0);
      for (const block of written) {
        touched.add(Math.floor(block / PER_BITMAP));
        if (block > last) {
          expect(block).toBe(last + 1);
        } else {
          expect(last).toBe(blocks - 1);
          wraps++;
        }
        last = block;
        if (wraps > 0) break;
      }
      if (wraps > 0) last = written.at(-1)!;
      if (round % 40 === 0 || wraps > 0) {
        expectDurable(subject);
        if (wraps > 0) wraps++;
      }
    }
    expect([...touched].sort()).toEqual([0, 1, 2]);
    expectDurable(subject);
  });

  it('a full bitmap is passed over', () => {
    const { device } = build({ ...SMALL, targetSectors: 8 * 64, deviceBytes: 3 * PER_BITMAP * 4096 });
    const image = readImage(device)!;
    // All of the second one is in use by nobody: what an unclean tool leaves.
    new Uint8Array(image.counts).fill(0xaa, 4080, 2 * 4080);
    // Of the first one two are left, 8 and 9.
    new Uint8Array(image.counts).fill(0xaa, 3, 4080)[2] = 0xa0;
    const store = new MetadataStore(createStore(image), device);
    new Int32Array(image.hydrated)[0] = 1;
    device.log.length = 0;
    store.commit([0], () => {});
    const written = device.log.filter((entry): entry is number => entry !== 'flush' && entry > 0);
    // The array block and the node; the index, and the bitmaps 0 and 2.
    expect(written.sort((a, b) => a - b)).toEqual([8, 9, ...[0, 1, 2].map((i) => 2 * PER_BITMAP + i)]);
    const left = 3 * PER_BITMAP - store.used;
    expect(left).toBe(PER_BITMAP + 2);
  });
});

describe('failures', () => {
  /** Operations of one commit, counted with the destination's flush. */
  const setUp = () => {
    const { device } = build({ ...SMALL, nodes: [[5, 5], [2]], hydrated: [2] });
    const witness = new Witness(device);
    const subject = new Subject(device);
    subject.hydrate(100);
    subject.hydrate(8 * PER_ARRAY);
    return { device, witness, subject };
  };
  // Two array blocks, two leaves, the root, the index, a bitmap.
  const WRITES = 7;

  it.each([...Array.from({ length: WRITES }, (_, i) => i), WRITES, WRITES + 1])(
    'operation %i before the superblock: nothing has changed, and the next commit works',
    (failing) => {
      for (const landed of [false, true]) {
        const { device, witness, subject } = setUp();
        const before = readStrictly(device);
        let operations = 0;
        const check = device.before;
        const boom = new DmError('EIO', 'injected');
        const fail = (operation: number | 'flush') => {
          if (operations++ !== failing) return check(operation);
          if (landed && typeof operation === 'number')
            device.blocks.set(operation, new Uint8Array(4096).fill(0xbd));
          throw boom;
        };
        device.before = fail;
        const flush = () => {
          if (operations++ === failing) throw boom;
          witness.flushDestination();
        };
        expect(() => subject.commit(flush)).toThrow(boom);
        expect(readStrictly(device)).toEqual(before);
        expect(subject.store.used).toBe(before.live.size);
        device.before = check;
        witness.clear();
        for (let i = 0; i < 30; i++) {
          subject.hydrate(200 + i);
          subject.commit(witness.flushDestination);
          expectDurable(subject);
        }
      }
    },
  );

  it('of many commits, again and again: no block is lost', () => {
    const { device, witness, subject } = setUp();
    const rng = new Prng(5);
    const check = device.before;
    let failures = 0;
    for (let round = 0; round < 300; round++) {
      subject.hydrate(rng.below(subject.regions));
      let left = rng.below(12);
      device.before = (operation) => {
        // From the superblock on nothing fails: after that there is no next commit.
        if (operation === 0) left = -1;
        if (left-- === 0) throw new DmError('EIO', 'injected');
        check(operation);
      };
      try {
        subject.commit(witness.flushDestination);
        expectDurable(subject);
      } catch (error) {
        expect((error as Error).message).toBe('injected');
        failures++;
        witness.clear();
        expect(subject.store.used).toBe(readStrictly(device).live.size);
      }
    }
    expect(failures).toBeGreaterThan(100);
    device.before = check;
    witness.clear();
    subject.hydrate(1);
    subject.commit(witness.flushDestination);
    expectDurable(subject);
  });

  it('in the second part of a commit in parts: the first part counts', () => {
    const device = formatted(20 * PER_ARRAY, 32);
    const witness = new Witness(device);
    const subject = new Subject(device);
    for (let array = 0; array < 20; array++) subject.hydrate(array * PER_ARRAY);
    let flushes = 0;
    const flush = () => {
      if (++flushes === 3) throw new DmError('EIO', 'injected');
      witness.flushDestination();
    };
    expect(() => subject.commit(flush)).toThrow('injected');
    const { ranges } = readStrictly(device);
    expect(ranges.length).toBeGreaterThan(0);
    expect(ranges).toEqual(subject.ranges.slice(0, ranges.length));
    expect(flawsOf(device)).toEqual([]);
    witness.clear();
    subject.commit(witness.flushDestination);
    expectDurable(subject);
  });

  it('of the superblock or the last flush are thrown', () => {
    for (const operation of [WRITES + 2, WRITES + 3]) {
      const { device, subject } = setUp();
      let operations = 0;
      device.before = () => {
        if (++operations === operation) throw new DmError('EIO', 'injected');
      };
      expect(() => subject.commit(() => {})).toThrow('injected');
    }
  });
});

describe('power cuts', () => {
  const images = function* (disk: SimulatedDisk, cut: number, rng: Prng): Generator<Survivors> {
    yield 'none';
    yield 'all';
    for (let only = 0; only < disk.unflushedAt(cut); only++) yield { only };
    for (let i = 0; i < 3; i++) yield new Prng(rng.next());
  };

  it('at every operation: the state before, or the one after', async () => {
    let checked = 0;
    for (const seed of seeds((done) => done >= 4)) {
      await underSeed(seed, () => {
        const rng = new Prng(seed);
        const arrays = 1 + rng.below(6);
        const regions = arrays * PER_ARRAY - rng.below(1000);
        // Often so few blocks that they are used again at once, or that a commit comes in parts.
        const disk = new SimulatedDisk(4096 * (11 + arrays + rng.below(rng.pick([3, 40]))));
        const fresh = createImage({ regionSectors: 8, targetSectors: 8 * regions }, disk.size);
        new MetadataStore(createStore(fresh), disk).writeAll();
        const made = disk.operations;
        const subject = new Subject(disk);
        // What may be there from an operation on: the ends of commits, and where their superblocks begin.
        const states: { from: number; until: number; ranges: string }[] = [];
        states.push({ from: made, until: Number.POSITIVE_INFINITY, ranges: '[]' });
        for (let commit = 0; commit < 6; commit++) {
          for (let i = 1 + rng.below(8); i > 0; i--) subject.hydrate(rng.below(regions));
          const before = disk.trace.length;
          subject.commit(() => {});
          const written = disk.trace.slice(before);
          written.forEach(({ kind, offset }, i) => {
            if (kind !== 'write' || offset !== 0) return;
            const last = states.at(-1)!;
            last.until = before + i + 1;
            const whole = disk.imageAt(before + i + 2, 'none');
            const { ranges } = readStrictly(new MemoryDevice(whole));
            states.push({
              from: before + i,
              until: Number.POSITIVE_INFINITY,
              ranges: JSON.stringify(ranges),
            });
          });
          expect(states.at(-1)!.ranges).toBe(JSON.stringify(subject.ranges));
        }
        for (let cut = 0; cut <= disk.operations; cut++) {
          for (const survivors of images(disk, cut, rng)) {
            const device = new MemoryDevice(disk.imageAt(cut, survivors));
            checked++;
            if (cut < made && readImage(device) === undefined) {
              expect(cut).toBeLessThan(made);
              continue;
            }
            expect(flawsOf(device), `cut ${cut}`).toEqual([]);
            const found = JSON.stringify(readStrictly(device).ranges);
            const possible = states
              .filter(({ from, until }) => cut >= from && cut <= until)
              .map(({ ranges }) => ranges);
            expect(cut < made ? ['[]'] : possible, `cut ${cut}`).toContain(found);
            expect(possible.length).toBeLessThanOrEqual(2);
          }
        }
      });
    }
    if (process.env.DMFUSE_SEED === undefined) expect(checked).toBeGreaterThan(1000);
  });
});
