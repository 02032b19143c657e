/**
 * Tables, the status, control files, and when the kernel may take over. What a refused table may not do: touch anything.
 */
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk } from '../../../src/device/simulated.js';
import { clone } from '../../../src/targets/clone/index.js';
import { contentOf, expectSameBytes, hooked, makeRig, withHoles } from '../harness.js';
import {
  type Devices,
  durableOf,
  GARBAGE,
  garbage,
  hydratedOf,
  hydratorOf,
  imageOf,
  makeClone,
  memoryFor,
  sourceOf,
  stepsOf,
} from './rig.js';

const SECTORS = 100;
const REGIONS = 13;

/** Disks that know whether anything was done to them. */
function disksFor(metadata: Uint8Array | number = 40 * 4096, sectors = SECTORS) {
  return {
    metadata: new SimulatedDisk(metadata),
    destination: new SimulatedDisk(garbage(sectors)),
    source: new SimulatedDisk(new Prng(3).bytes(sectors * 512)),
  };
}

async function expectRefused(
  args: string,
  message: string | RegExp,
  { disks = disksFor(), length }: { disks?: ReturnType<typeof disksFor>; length?: number } = {},
): Promise<void> {
  const before = Object.values(disks).map((disk) => disk.content());
  const made = makeRig(clone, args, disks, length === undefined ? {} : { length });
  await expect(made, args).rejects.toMatchObject({
    code: 'EINVAL',
    message: typeof message === 'string' ? expect.stringContaining(message) : expect.stringMatching(message),
  });
  Object.values(disks).forEach((disk, i) => {
    expect(disk.operations, args).toBe(0);
    expectSameBytes(disk.content(), before[i]!, args);
  });
}

describe('the table', () => {
  const DEVICES = 'metadata destination source';

  it.each([
    ['', 'found 0 words'],
    ['metadata', 'found 1 words'],
    ['metadata destination', 'found 2 words'],
    [DEVICES, 'found 3 words'],
    [`${DEVICES} x`, 'the region size (sectors) must be a decimal number, found `x`'],
    [`${DEVICES} 0x8`, '`0x8`'],
    [`${DEVICES} -8`, '`-8`'],
    [`${DEVICES} 0`, '0 sectors is no region size'],
    [`${DEVICES} 4`, '4 sectors is no region size: a power of two, 8 to 2097152'],
    [`${DEVICES} 9`, '9 sectors is no region size'],
    [`${DEVICES} 24`, '24 sectors is no region size'],
    [`${DEVICES} 4194304`, '4194304 sectors is no region size'],
    [`${DEVICES} 8 x`, 'the number of features must be a decimal number, found `x`'],
    [`${DEVICES} 8 1`, 'promises 1 features and gives 0'],
    [`${DEVICES} 8 2 no_hydration`, 'promises 2 features and gives 1'],
    [`${DEVICES} 8 1 hydration`, 'no feature `hydration`: known are no_hydration, no_discard_passdown'],
    [`${DEVICES} 8 0 x`, 'the number of core arguments must be a decimal number, found `x`'],
    [`${DEVICES} 8 0 2 hydration_threshold`, 'promises 2 core arguments and gives 1'],
    [`${DEVICES} 8 0 1 hydration_threshold`, 'pairs'],
    [`${DEVICES} 8 0 2 hydration_treshold 1`, 'no core argument `hydration_treshold`'],
    [
      `${DEVICES} 8 0 2 hydration_threshold x`,
      'hydration_threshold (regions) must be a decimal number, found `x`',
    ],
    [
      `${DEVICES} 8 0 2 hydration_batch_size -1`,
      'hydration_batch_size (regions) must be a decimal number, found `-1`',
    ],
    [
      `${DEVICES} 8 0 2 hydration_batch_size 4294967296`,
      'hydration_batch_size is 4294967296: 4294967295 at most',
    ],
    [`${DEVICES} 8 0 0 rest`, '`rest` is behind the last argument'],
    [`${DEVICES} 8 1 no_hydration 2 hydration_threshold 1 more`, '`more` is behind the last argument'],
  ])('refuses `%s`', (args, message) => expectRefused(args, message));

  it('takes arguments in any order and case, and gives them back as they were', async () => {
    for (const [options, status] of [
      ['', '0 4 hydration_threshold 1 hydration_batch_size 1'],
      ['0', '0 4 hydration_threshold 1 hydration_batch_size 1'],
      ['0 0', '0 4 hydration_threshold 1 hydration_batch_size 1'],
      ['1 No_Hydration', '1 no_hydration 4 hydration_threshold 1 hydration_batch_size 1'],
      [
        '2 NO_DISCARD_PASSDOWN no_hydration 4 hydration_batch_size 7 HYDRATION_threshold 9',
        '2 no_hydration no_discard_passdown 4 hydration_threshold 9 hydration_batch_size 7',
      ],
      ['0 2 hydration_batch_size 0', '0 4 hydration_threshold 1 hydration_batch_size 0'],
      [
        '1 no_discard_passdown 2 hydration_threshold 4294967295',
        '1 no_discard_passdown 4 hydration_threshold 4294967295 hydration_batch_size 1',
      ],
    ] as const) {
      const { target } = await makeClone(memoryFor(SECTORS, new Prng(1)), { options });
      const table = `metadata destination source 8 ${options}`.trim();
      expect(target.tableArgs()).toBe(table);
      expect(target.statusArgs()).toBe(`8 6/40 8 0/${REGIONS} 0 ${status} rw`);
    }
  });

  it('quotes the paths of the devices', async () => {
    const { metadata, destination, source } = memoryFor(SECTORS, new Prng(1));
    const devices = { 'm d': metadata!, 'd\\': destination!, '@s': source! };
    const { target } = await makeRig(clone, 'm\\ d d\\\\ @s 8', devices);
    expect(target.tableArgs()).toBe('m\\ d d\\\\ @s 8');
  });

  it('prints the status as the kernel does for the same devices', async () => {
    // 4 MiB of metadata, 64 MiB of regions of 4 KiB.
    const sectors = 16_384 * 8;
    const devices = {
      metadata: new MemoryDevice(4 << 20),
      destination: new MemoryDevice(sectors * 512),
      source: new MemoryDevice(sectors * 512),
    };
    const { target } = await makeClone(devices, { options: '1 no_hydration' });
    expect(target.statusArgs()).toBe(
      '8 6/1024 8 0/16384 0 1 no_hydration 4 hydration_threshold 1 hydration_batch_size 1 rw',
    );
  });
});

describe('sizes', () => {
  it('of the clone: the table says it, else the metadata, else the source', async () => {
    const devices = memoryFor(SECTORS, new Prng(1));
    const source = new MemoryDevice(SECTORS * 512 + 700);
    const destination = new MemoryDevice((SECTORS + 20) * 512);
    const first = await makeClone({ ...devices, source, destination });
    expect(first.target.size).toBe((SECTORS + 1) * 512);
    const fresh = { ...devices, metadata: new MemoryDevice(40 * 4096) };
    expect((await makeClone(fresh, { sectors: 50 })).target.size).toBe(50 * 512);
    expect((await makeClone(fresh)).target.size).toBe(50 * 512);
  });

  it.each([
    [
      { length: 101 },
      /source has 100 sectors, the clone has 101|destination has 100 sectors, the clone has 101/,
    ],
    [{ length: 1 << 30 }, `the clone has ${1 << 30}`],
  ])('of the devices: %o', (options, message) =>
    expectRefused('metadata destination source 8', message, options),
  );

  it('of the destination and the source', async () => {
    const small = new SimulatedDisk(99 * 512);
    const at = 'metadata destination source 8';
    await expectRefused(at, 'destination has 99 sectors, the clone has 100', {
      disks: { ...disksFor(), destination: small },
    });
    await expectRefused(at, 'source has 99 sectors, the clone has 100', {
      disks: { ...disksFor(), source: small },
      length: 100,
    });
    await expectRefused(at, 'source has 0 sectors, the clone has 1', {
      disks: { ...disksFor(), source: new SimulatedDisk(511) },
    });
  });

  it('of the metadata device', async () => {
    const at = 'metadata destination source 8';
    await expectRefused(at, 'metadata: has 4095 bytes', { disks: disksFor(4095) });
    await expectRefused(at, 'metadata: has 36864 bytes: metadata of 13 regions needs 40960 at least', {
      disks: disksFor(9 * 4096),
    });
    const { target } = await makeClone(disksFor(10 * 4096));
    expect(target.statusArgs()).toContain('8 6/10 8 0/13');
    target.write(0, new Uint8Array(512));
    target.flush();
    expect(target.statusArgs()).toContain('8 6/10 8 1/13');
  });

  it('against those in the metadata', async () => {
    const disks = disksFor();
    await makeClone(disks);
    const image = disks.metadata.content();
    await expectRefused(
      'metadata destination source 16',
      'metadata: is of a clone with regions of 8 sectors, the table says 16',
      { disks: disksFor(image) },
    );
    await expectRefused(
      'metadata destination source 8',
      'metadata: is of a clone of 100 sectors, the table says 96',
      { disks: disksFor(image), length: 96 },
    );
    await expectRefused('metadata destination source 8', 'destination has 99 sectors, the clone has 100', {
      disks: { ...disksFor(image), destination: new SimulatedDisk(99 * 512) },
    });
  });

  it('more regions than metadata can have', async () => {
    const size = 2 ** 31 * 4096 + 512;
    const huge = (bytes: number): BlockDevice => ({
      ...{ size: bytes, read: (_: number, into: Uint8Array) => void into.fill(0) },
      ...{ flush: () => {}, discard: () => {}, writeZeroes: () => {} },
      write: () => {
        throw new Error('written');
      },
    });
    const devices = { metadata: huge(2 ** 34), destination: huge(size), source: huge(size) };
    await expect(makeClone(devices)).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining('2147483649 regions of 8, 2147483648 at most'),
    });
  });
});

describe('metadata that is damaged', () => {
  it('is refused with its path and block, and nothing is touched', async () => {
    const disks = disksFor();
    const { target } = await makeClone(disks);
    target.write(0, new Uint8Array(4096));
    target.flush();
    const image = disks.metadata.content();
    const used = imageOf(new MemoryDevice(image));
    for (const block of [
      0,
      used.superblock.indexBlock,
      used.superblock.bitsetRoot,
      new Int32Array(used.places)[0]!,
    ]) {
      const damaged = image.slice();
      damaged[block * 4096 + 100]! ^= 1;
      await expect(makeClone(disksFor(damaged))).rejects.toThrow(new RegExp(`^metadata: .*${block}`));
      const disksOf = disksFor(damaged);
      await makeClone(disksOf).catch(() => {});
      for (const disk of Object.values(disksOf)) expect(disk.operations).toBe(0);
    }
  });

  it('a superblock that another daemon could not flush is made durable before anything else', async () => {
    const first = disksFor();
    await makeClone(first);
    const again = disksFor(first.metadata.content());
    await makeClone(again);
    const [written, flushed, ...more] = again.metadata.trace;
    expect([written?.kind, written?.offset, flushed?.kind, more]).toEqual(['write', 0, 'flush', []]);
    expectSameBytes(again.metadata.content(), first.metadata.content(), 'the metadata');
    expect([again.destination.operations, again.source.operations]).toEqual([0, 0]);
  });
});

describe('requests', () => {
  /** What the devices are asked, as words `device op first+length`, in sectors. */
  async function recorded(options = '') {
    const memory = memoryFor(SECTORS, new Prng(2));
    const asked: string[] = [];
    const record = (name: string, device: BlockDevice) =>
      hooked(device, (op, at, length) => {
        if (op !== 'flush') asked.push(`${name} ${op} ${at / 512}+${length / 512}`);
      });
    const devices: Devices = {
      metadata: memory.metadata!,
      destination: record('d', memory.destination!),
      source: record('s', sourceOf(memory.source!)),
    };
    const rig = await makeClone(devices, { options });
    asked.length = 0;
    return { ...rig, rig, memory, asked };
  }

  it('a write of whole regions copies nothing, the short last one included', async () => {
    const { target, rig, asked } = await recorded();
    target.write(8 * 512, new Uint8Array(16 * 512));
    target.write(96 * 512, new Uint8Array(4 * 512));
    expect(asked).toEqual(['d write 8+16', 'd write 96+4']);
    expect(hydratedOf(rig)).toEqual([1, 2, 12]);
  });

  it('of others it copies what the request leaves, and only that', async () => {
    const { target, rig, asked } = await recorded();
    target.write(3 * 512, new Uint8Array(17 * 512));
    expect(asked).toEqual(['s read 0+3', 'd write 0+3', 'd write 3+17', 's read 20+4', 'd write 20+4']);
    expect(hydratedOf(rig)).toEqual([0, 1, 2]);
    asked.length = 0;
    target.write(97 * 512, new Uint8Array(512));
    expect(asked).toEqual(['s read 96+1', 'd write 96+1', 'd write 97+1', 's read 98+2', 'd write 98+2']);
    asked.length = 0;
    target.write(5 * 512 + 100, new Uint8Array(100));
    expect(asked).toHaveLength(1);
    expect(asked[0]).toMatch(/^d write/);
  });

  it('one over hydrated and other regions is cut where they meet', async () => {
    const { target, rig, asked } = await recorded();
    target.write(16 * 512, new Uint8Array(8 * 512));
    asked.length = 0;
    target.read(0, new Uint8Array(40 * 512));
    expect(asked).toEqual(['s read 0+16', 'd read 16+8', 's read 24+16']);
    asked.length = 0;
    target.writeZeroes(8 * 512, 24 * 512, { unmap: true });
    expect(asked).toEqual(['d unmap 8+8', 'd unmap 16+8', 'd unmap 24+8']);
    expect(hydratedOf(rig)).toEqual([1, 2, 3]);
  });

  it('a trim takes whole regions, never the short last one', async () => {
    const { target, rig, asked } = await recorded();
    target.discard(1 * 512, 15 * 512);
    expect(asked.splice(0)).toEqual(['d discard 8+8']);
    target.discard(17 * 512, 14 * 512);
    target.discard(96 * 512, 4 * 512);
    target.discard(0, 0);
    expect(asked).toEqual([]);
    expect(hydratedOf(rig)).toEqual([1]);
    target.discard(0, SECTORS * 512);
    expect(asked).toEqual(['d discard 0+8', 'd discard 8+8', 'd discard 16+80']);
    expect(hydratedOf(rig)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
  });

  it('without passdown trims stay here, and zeros keep their space', async () => {
    const { target, rig, memory, asked } = await recorded('1 no_discard_passdown');
    target.discard(0, 16 * 512);
    expect(asked).toEqual([]);
    expect(hydratedOf(rig)).toEqual([0, 1]);
    expect(
      contentOf(target)
        .subarray(0, 16 * 512)
        .every((byte) => byte === GARBAGE),
    ).toBe(true);
    asked.length = 0;
    target.writeZeroes(0, 24 * 512, { unmap: true });
    expect(asked).toEqual(['d zeroes 0+16', 'd zeroes 16+8']);
    expect(memory.destination!.bytes.subarray(0, 24 * 512).every((byte) => byte === 0)).toBe(true);
  });

  it('a request of no bytes does nothing', async () => {
    const { target, asked } = await recorded();
    target.write(5000, new Uint8Array(0));
    target.read(5000, new Uint8Array(0));
    target.writeZeroes(target.size, 0);
    expect(asked).toEqual([]);
  });

  it('tells the extents of where each region is', async () => {
    const { metadata, source } = memoryFor(SECTORS, new Prng(1));
    const destination = withHoles(new MemoryDevice(SECTORS * 512));
    const rig = await makeClone({ metadata: metadata!, destination, source: withHoles(source!) });
    rig.target.write(8 * 512, new Uint8Array(16 * 512));
    const at = (sector: number) => {
      const { data, end } = rig.target.extentAt(sector * 512);
      return [data, end / 512];
    };
    // The source has a hole from 56 to 62.5, of which a block of 8 sectors is one.
    expect([at(0), at(5), at(9), at(23), at(24), at(99)]).toEqual([
      [true, 8],
      [true, 8],
      [false, 24],
      [false, 24],
      [true, 100],
      [true, 100],
    ]);
    rig.target.write(0, new Uint8Array(1).fill(1));
    expect([at(0), at(8)]).toEqual([
      [true, 8],
      [false, 24],
    ]);
    expect(rig.target.trimGranularity).toBe(4096);
  });

  it('data before a hole that was copied is data', async () => {
    const { metadata, destination, source } = memoryFor(SECTORS, new Prng(1));
    source!.bytes.fill(0, 40 * 512);
    const model = source!.bytes.slice();
    const devices = { metadata: metadata!, destination: destination!, source: withHoles(source!) };
    const { target } = await makeClone(devices);
    for (const offset of [60 * 512, 33 * 512, 5000]) {
      target.write(offset, new Uint8Array([1]));
      model[offset] = 1;
    }
    expectSameBytes(contentOf(target), model, 'the clone');
  });

  it('a region may become hydrated between two looks at its bit', async () => {
    const { target, rig, memory } = await recorded();
    const other = rig.openView();
    const model = contentOf(target);
    const hydrated = target.state.hydrated;
    const { load } = Atomics;
    /** Hydrates region 2 as soon as somebody has looked at its bit. */
    const racing = (work: () => void) => {
      let left = 1;
      Atomics.load = ((words: Int32Array, index: number) => {
        const value = load(words, index);
        if (words.buffer === hydrated.buffer && left-- === 1) {
          Atomics.load = load;
          other.write(2 * 4096 + 1000, model.subarray(2 * 4096 + 1000, 2 * 4096 + 1001));
        }
        return value;
      }) as typeof load;
      try {
        work();
      } finally {
        Atomics.load = load;
      }
    };
    const found = new Uint8Array(3000);
    racing(() => target.read(2 * 4096 + 500, found));
    expect(hydratedOf(rig)).toEqual([2]);
    expectSameBytes(found, model.subarray(2 * 4096 + 500, 2 * 4096 + 3500), 'what was read');
    expect(memory.source!.bytes.length).toBe(SECTORS * 512);
  });

  it.each([0, 500])('the same, and a write at byte %i of it', async (within) => {
    const { target, rig } = await recorded();
    const other = rig.openView();
    const model = contentOf(target);
    const hydrated = target.state.hydrated;
    const { load } = Atomics;
    let left = 1;
    Atomics.load = ((words: Int32Array, index: number) => {
      const value = load(words, index);
      if (words.buffer === hydrated.buffer && left-- === 1) {
        Atomics.load = load;
        other.write(2 * 4096 + 4000, new Uint8Array([1, 2, 3]));
      }
      return value;
    }) as typeof load;
    try {
      target.write(2 * 4096 + within, new Uint8Array(600));
    } finally {
      Atomics.load = load;
    }
    model.fill(0, 2 * 4096 + within, 2 * 4096 + within + 600);
    model.set([1, 2, 3], 2 * 4096 + 4000);
    expectSameBytes(contentOf(target), model, 'after both');
  });
});

describe('control files', () => {
  it('settings: good values, bad values', async () => {
    const rig = await makeClone(memoryFor(SECTORS, new Prng(1)));
    expect([
      rig.read('hydration'),
      rig.read('hydration_threshold'),
      rig.read('hydration_batch_size'),
    ]).toEqual(['1\n', '1\n', '1\n']);
    for (const text of ['', 'on', '2', '01', '-1', '0\n0', ' 1']) {
      expect(() => rig.write('hydration', text), text).toThrow(
        `hydration: takes 0 (off) or 1 (on), not \`${text}\``,
      );
    }
    for (const name of ['hydration_threshold', 'hydration_batch_size']) {
      for (const text of ['', 'x', '-1', '1.5', '0x10', '1e3']) {
        expect(() => rig.write(name, text), text).toThrow(
          `${name} (regions) must be a decimal number, found \`${text}\``,
        );
      }
      expect(() => rig.write(name, '4294967296')).toThrow(`${name} is 4294967296: 4294967295 at most`);
    }
    expect(rig.target.statusArgs()).toContain(' 0 4 hydration_threshold 1 hydration_batch_size 1 rw');
    rig.write('hydration', '0');
    rig.write('hydration_threshold', '4294967295');
    rig.write('hydration_batch_size', '0');
    expect([
      rig.read('hydration'),
      rig.read('hydration_threshold'),
      rig.read('hydration_batch_size'),
    ]).toEqual(['0\n', '4294967295\n', '0\n']);
    const line = '1 no_hydration 4 hydration_threshold 4294967295 hydration_batch_size 0 rw';
    expect(rig.target.statusArgs()).toContain(line);
    expect(rig.openView().statusArgs()).toContain(line);
    // The table stays what was asked for.
    expect(rig.target.tableArgs()).toBe('metadata destination source 8');
  });

  it('regions: a bit each, nothing behind the last', async () => {
    const rig = await makeClone(memoryFor(SECTORS, new Prng(1)));
    const file = clone.files.find(({ name }) => name === 'regions')!;
    expect([...file.bytes!(rig.target).slice(0, 99)]).toEqual([0, 0]);
    rig.target.write(0, new Uint8Array(1));
    rig.target.write(9 * 4096, new Uint8Array(1));
    rig.target.write(12 * 4096, new Uint8Array(1));
    expect([...file.bytes!(rig.target).slice(0, 99)]).toEqual([1, 0x12]);
    rig.target.write(0, new Uint8Array(rig.target.size));
    expect([...file.bytes!(rig.target).slice(0, 99)]).toEqual([0xff, 0x1f]);
  });
});

describe('passthrough', () => {
  it('when all is hydrated and committed, and not before', async () => {
    const { metadata, destination, source } = memoryFor(SECTORS, new Prng(1));
    const devices = { metadata: metadata!, destination: destination!, source: source! };
    const rig = await makeClone(devices);
    const views = [rig.target, rig.openView()];
    const allowed = () => views.map((view) => view.passthrough()?.path);
    expect(allowed()).toEqual([undefined, undefined]);
    views[1]!.write(0, new Uint8Array(96 * 512));
    views[1]!.flush();
    expect(allowed()).toEqual([undefined, undefined]);
    views[1]!.write(97 * 512, new Uint8Array(1));
    expect(rig.target.statusArgs()).toContain('13/13');
    expect(allowed()).toEqual([undefined, undefined]);
    views[0]!.flush();
    expect(durableOf(metadata!, REGIONS)).toHaveLength(REGIONS);
    expect(allowed()).toEqual(['destination', 'destination']);
    expect(rig.events).toEqual(['hydrated regions=13']);
    const again = await makeClone(devices);
    expect(again.target.passthrough()?.path).toBe('destination');
    views[0]!.flush();
    again.target.flush();
    expect([...rig.events, ...again.events]).toEqual(['hydrated regions=13']);
  });

  it('only of a file of exactly that size', async () => {
    for (const [name, more, isFile] of [
      ['destination', 0, true],
      ['destination', 1, false],
      ['destination', 512, false],
      ['@destination', 0, false],
    ] as const) {
      const { metadata, source } = memoryFor(SECTORS, new Prng(1));
      const devices = {
        metadata: metadata!,
        source: source!,
        [name]: new MemoryDevice(SECTORS * 512 + more),
      };
      const { target } = await makeRig(clone, `metadata ${name} source 8`, devices);
      target.write(0, new Uint8Array(target.size));
      target.flush();
      expect(target.passthrough() !== undefined, `${name} ${more}`).toBe(isFile);
    }
  });

  it('waits where the last bit was set while the commit was under way', async () => {
    const { metadata, destination, source } = memoryFor(SECTORS, new Prng(1));
    let rest = () => {};
    const onFlush = hooked(destination!, (op) => op === 'flush' && rest());
    const rig = await makeClone({ metadata: metadata!, destination: onFlush, source: source! });
    rig.target.write(0, new Uint8Array(96 * 512));
    rest = () => rig.openView().write(96 * 512, new Uint8Array(4 * 512));
    rig.target.flush();
    expect([rig.target.state.hydratedCount, durableOf(metadata!, REGIONS).length]).toEqual([13, 12]);
    expect([rig.target.passthrough(), rig.events]).toEqual([undefined, []]);
    rig.target.flush();
    expect(rig.events).toEqual(['hydrated regions=13']);
  });

  it('waits for who has set the last bit and not marked it yet', async () => {
    const { metadata, destination, source } = memoryFor(SECTORS, new Prng(1));
    let duringFlush = () => {};
    const rig = await makeClone({
      metadata: metadata!,
      source: source!,
      destination: {
        ...{ size: destination!.size, discard: () => {}, writeZeroes: () => {} },
        read: (at, into) => destination!.read(at, into),
        write: (at, from) => destination!.write(at, from),
        flush: () => duringFlush(),
      },
    });
    const other = rig.openView();
    rig.target.write(0, new Uint8Array(96 * 512));
    // Another thread hydrates the last region while the commit is under way, stopped where its mark comes.
    const { or } = Atomics;
    const marks = rig.descriptor.marks;
    const stop = new Error('stopped');
    duringFlush = () => {
      Atomics.or = ((words: Int32Array, index: number, value: number) => {
        if (words.buffer === marks) throw stop;
        return or(words, index, value);
      }) as typeof or;
      try {
        expect(() => other.write(96 * 512, new Uint8Array(4 * 512))).toThrow(stop);
      } finally {
        Atomics.or = or;
      }
    };
    rig.target.flush();
    expect(durableOf(metadata!, REGIONS)).not.toContain(12);
    expect(rig.target.passthrough()).toBeUndefined();
    expect(rig.events).toEqual([]);
  });
});

it('closing commits what is hydrated', async () => {
  const { metadata, destination, source } = memoryFor(SECTORS, new Prng(1));
  const rig = await makeClone({ metadata: metadata!, destination: destination!, source: source! });
  hydratorOf(rig, 4096).step();
  stepsOf(hydratorOf(rig, 4096));
  expect(durableOf(metadata!, REGIONS)).toEqual([]);
  rig.target.close();
  expect(durableOf(metadata!, REGIONS)).toHaveLength(REGIONS);
});
