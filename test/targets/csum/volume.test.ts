import { crc32 as crcOf } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import {
  dataOffset,
  encodeSuperblock,
  groupsOf,
  PAIR_BYTES,
  pairOffset,
  type Superblock,
  sectorsIn,
} from '../../../src/formats/csum.js';
import { checkVolume } from '../../../src/targets/csum/check.js';
import { findVolume, formatArgs, lookForVolume, writeSuperblock } from '../../../src/targets/csum/volume.js';
import { codeOf } from '../harness.js';
import { areasOf, CountingDevice, ID, PLACEMENTS, placesOf, superblockOf } from './areas.js';
import { type NaiveShape, NaiveVolume } from './naive-volume.js';

const SHAPES: NaiveShape[] = PLACEMENTS.flatMap((placement) =>
  (['be', 'le'] as const).flatMap((order) =>
    [1, 61, 62, 63, 500, 1500].map((sectors) => ({ placement, order, sectors })),
  ),
);
const OFFSETS = [{}, { dataStart: 8, imdStart: 24 }, { dataStart: 7, imdStart: 1 }];

/** What findVolume must find. */
const volumeOf = (shape: NaiveShape) => {
  const { dataStart, imdStart } = placesOf(shape);
  return { placement: shape.placement, order: shape.order, sectors: shape.sectors, dataStart, imdStart };
};
const find = (naive: NaiveVolume, length?: number) =>
  findVolume(areasOf(naive), { ...placesOf(naive.shape), length });
const sealed = (naive: NaiveVolume, change: Partial<Superblock> = {}) =>
  writeSuperblock(areasOf(naive), placesOf(naive.shape), superblockOf(naive.shape, change));

describe('a volume of the reference', () => {
  it('is found by its tables: placement, byte order, size, offsets', () => {
    for (const shape of SHAPES) {
      for (const offsets of OFFSETS) {
        const naive = NaiveVolume.random({ ...shape, ...offsets }, shape.sectors, 30);
        const found = { volume: volumeOf(naive.shape), superblock: undefined, isClean: false };
        expect(find(naive), JSON.stringify(naive.shape)).toEqual(found);
      }
    }
  });

  it('with data of zeros has no byte order: that of the reference, le', () => {
    for (const placement of PLACEMENTS) {
      const shape = { placement, order: 'be', sectors: 70_000 } as const;
      expect(find(new NaiveVolume(shape).format()).volume).toEqual(volumeOf({ ...shape, order: 'le' }));
    }
  });

  it('has the byte order of the first group that shows one, however late, past holes that are not read', () => {
    for (const placement of PLACEMENTS) {
      for (const order of ['be', 'le'] as const) {
        const shape = { placement, order, sectors: 62 * 3000 };
        const naive = new NaiveVolume(shape);
        const late = 62 * 2800 + 5;
        naive.format().write(late, new Prng(1).bytes(512));
        // A hole, as a volume of zeros never has one, but where space was given back.
        for (let group = 30; group < 2800; group++) {
          for (const index of [0, 1] as const) naive.table(group, index).fill(0);
        }
        const imd = new CountingDevice(naive.imd, 512);
        const data = naive.imd === naive.data ? imd : new MemoryDevice(naive.data);
        const { volume } = findVolume({ data, imd: data === imd ? undefined : imd }, placesOf(shape));
        expect(volume.order).toBe(order);
        expect(imd.bytesRead).toBeLessThan(imd.size / 2);
      }
    }
  });

  it('is found with damage in less than half of what is looked at', () => {
    for (const placement of PLACEMENTS) {
      const naive = NaiveVolume.random({ placement, order: 'le', sectors: 62 * 40 }, 1);
      // Not group 0, by which R and C are told apart.
      for (const group of [1, 3, 5, 7, 9, 11, 13, 39]) naive.table(group, 0)[77]! ^= 0x18;
      expect(find(naive).volume).toEqual(volumeOf(naive.shape));
      naive.table(15, 0)[0]! ^= 0x18;
      expect(codeOf(() => find(naive))).toBe('EINVAL');
    }
  });

  it('that is smaller than its devices: `length` says so, else the rest cannot be verified', async () => {
    for (const placement of PLACEMENTS) {
      const naive = NaiveVolume.random({ placement, order: 'le', sectors: 1500, spare: 3000 }, 1);
      expect(find(naive, 1500).volume).toEqual(volumeOf(naive.shape));
      expect(find(naive, 700).volume.sectors).toBe(700);
      const all = find(naive);
      expect(all.volume.sectors).toBeGreaterThan(3000);
      const report = await checkVolume(all, areasOf(naive));
      // The group that was cut short is whole now, and zero where nobody wrote.
      expect(report).toMatchObject({ sectorsChecked: 25 * 62, badSectors: { count: 0 } });
      expect(() => find(naive, 1e6)).toThrow(
        /^\/d: has \d+ sectors, a volume of 1000000 sectors needs 10\d+ there$/,
      );
    }
  });
});

describe('a superblock', () => {
  it('says what the volume is, whatever the tables say', () => {
    for (const shape of SHAPES) {
      for (const state of ['clean', 'in-use'] as const) {
        const naive = new NaiveVolume({ ...shape, dataStart: 3, imdStart: 5, spare: 200 });
        sealed(naive, { state });
        const superblock = superblockOf(shape, { state });
        expect(find(naive)).toEqual({
          volume: volumeOf(naive.shape),
          superblock,
          isClean: state === 'clean',
        });
      }
    }
  });

  it('of a format that did not end is refused', () => {
    const naive = NaiveVolume.random({ placement: 'separate-r', order: 'be', sectors: 99, dataStart: 1 }, 1);
    sealed(naive, { state: 'formatting', groupsFormatted: 1 });
    expect(() => find(naive)).toThrow(
      '/d: its format was interrupted; run `dmfuse csum format /d /i --offset 1` again to go on',
    );
  });

  it('must fit what is given: an imd device or none, and their sizes', () => {
    for (const shape of SHAPES) {
      const naive = NaiveVolume.random(shape, 1);
      sealed(naive);
      const areas = areasOf(naive);
      if (shape.placement === 'interleaved') {
        expect(() =>
          findVolume({ ...areas, imd: areas.data }, { ...placesOf(shape), imdPath: '/other' }),
        ).toThrow('/d: formatted with its tables among its data, without an imd device; leave out /other');
      } else {
        expect(() => findVolume({ data: areas.data }, { ...placesOf(shape), imdPath: undefined })).toThrow(
          '/d: formatted with its tables on an imd device, which must be given too',
        );
      }
      const needed = naive.data.length / 512;
      const small = new MemoryDevice(naive.data.slice(0, -512));
      expect(() => findVolume({ ...areas, data: small }, placesOf(shape))).toThrow(
        `/d: has ${needed - 1} sectors, a volume of ${shape.sectors} sectors needs ${needed} there`,
      );
      if (areas.imd) {
        const smallImd = new MemoryDevice(naive.imd.slice(0, -512));
        const imdNeeded = naive.imd.length / 512;
        expect(() => findVolume({ ...areas, imd: smallImd }, placesOf(shape))).toThrow(
          `/i: has ${imdNeeded - 1} sectors, a volume of ${shape.sectors} sectors needs ${imdNeeded} there`,
        );
      }
    }
  });

  it('must have the id of the imd area', () => {
    const shape = { placement: 'separate-r', order: 'be', sectors: 200 } as const;
    const [one, other, reference] = [1, 2, 3].map((seed) => NaiveVolume.random(shape, seed));
    sealed(one!);
    sealed(other!, { id: ID.map((byte) => byte + 1) });
    const mixed = (data: NaiveVolume, imd: NaiveVolume) => () =>
      findVolume({ data: areasOf(data).data, imd: areasOf(imd).imd }, placesOf(shape));
    const strangers = '/d and /i: these two do not belong together';
    expect(mixed(one!, other!)).toThrow(strangers);
    expect(mixed(one!, reference!)).toThrow(strangers);
    expect(mixed(reference!, other!)).toThrow(strangers);
    const swapped = () => findVolume({ data: areasOf(one!).imd!, imd: areasOf(one!).data }, placesOf(shape));
    expect(swapped).toThrow('/d: holds the tables of a csum volume; its data device comes first');
  });

  it('that is damaged: the volume is found by its tables, or by the copy in the imd area', () => {
    for (const placement of PLACEMENTS) {
      const shape = { placement, order: 'be', sectors: 500, spare: 100 } as const;
      for (const at of [0, 9, 14, 20, 300, 511]) {
        const naive = NaiveVolume.random(shape, 1);
        sealed(naive);
        naive.data[at]! ^= 0x40;
        const { volume, superblock, isClean } = find(naive);
        expect([superblock, isClean]).toEqual([undefined, false]);
        // The tables alone do not tell how much of the device it has.
        const sectors = placement === 'interleaved' ? volume.sectors : 500;
        expect(volume).toEqual({ ...volumeOf(shape), sectors });
        sealed(naive);
        if (naive.imd !== naive.data) naive.imd[at]! ^= 0x40;
        expect(find(naive)).toMatchObject({ volume: volumeOf(shape), isClean: true });
      }
    }
  });

  it('of a later version is named', () => {
    const naive = NaiveVolume.random({ placement: 'interleaved', order: 'be', sectors: 62 }, 1);
    sealed(naive);
    naive.data[8] = 2;
    const bytes = naive.data.subarray(0, 512);
    new DataView(bytes.buffer).setUint32(508, crcOf(bytes.subarray(0, 508)), true);
    expect(() => find(naive)).toThrow('/d: csum superblock of version 2: this dmfuse knows 1');
  });
});

describe('other content', () => {
  it('zeros, random bytes, text: not a volume, and the command that makes one', () => {
    const text = Buffer.alloc(1 << 18, 'all work and no play makes jack a dull boy. ');
    for (const bytes of [new Uint8Array(1 << 18), new Prng(1).bytes(1 << 18), text, new Uint8Array(512)]) {
      const places = { dataPath: '/d', dataStart: 0, imdStart: 0 };
      const data = new MemoryDevice(bytes);
      expect(() => findVolume({ data }, places)).toThrow(
        '/d: not a csum volume; `dmfuse csum format /d` prepares it',
      );
      expect(lookForVolume({ data }, places)).toBeUndefined();
      const two = { ...places, imdPath: '/i' };
      expect(lookForVolume({ data, imd: new MemoryDevice(bytes.slice()) }, two)).toBeUndefined();
    }
  });

  it('too small for anything: says how small', () => {
    const data = new MemoryDevice(1024);
    expect(() => findVolume({ data }, { dataPath: '/d', dataStart: 1024, imdStart: 0 })).toThrow(
      '/d: has 2 sectors, none at offset 2',
    );
  });

  it('the command names offsets, quotes blanks, and goes through the file of another target', () => {
    const places = { dataPath: '/a b', imdPath: '@low', dataStart: 4096, imdStart: 512 };
    expect(formatArgs(places)).toBe('/a\\ b MNT/low/device --offset 8 --imd-offset 1');
    expect(formatArgs({ ...places, imdPath: undefined, dataStart: 0 })).toBe('/a\\ b');
  });

  it('10 000 mutated volumes: refused in a sentence, or one that lies within its devices', async () => {
    const rng = new Prng(7);
    const seen = { refused: 0, found: 0, checked: 0 };
    const originals = PLACEMENTS.map((placement) => {
      const naive = NaiveVolume.random(
        { placement, order: rng.pick(['be', 'le']), sectors: 700, spare: 70 },
        1,
      );
      sealed(naive);
      return naive;
    });
    for (let i = 0; i < 10_000; i++) {
      const { shape, data, imd } = rng.pick(originals);
      const copies = data === imd ? [data.slice()] : [data.slice(), imd.slice()];
      mutate(copies, rng);
      const [dataDevice, imdDevice] = copies.map((bytes) => new MemoryDevice(bytes));
      const areas = { data: dataDevice!, imd: imdDevice };
      const places = { ...placesOf(shape), dataStart: 512 * rng.pick([0, 0, 0, 1]) };
      const code = await codeOfWork(async () => {
        const found = findVolume(areas, places);
        seen.found++;
        const { volume } = found;
        const last = groupsOf(volume) - 1;
        const dataEnd = dataOffset(volume, last) + 512 * sectorsIn(volume, last);
        expect(dataEnd).toBeLessThanOrEqual(dataDevice!.size);
        expect(pairOffset(volume, last) + PAIR_BYTES).toBeLessThanOrEqual((imdDevice ?? dataDevice)!.size);
        if (rng.chance(0.1)) {
          const report = await checkVolume(found, areas);
          expect(report.sectorsChecked + report.sectorsUnverifiable).toBe(volume.sectors);
          seen.checked++;
        }
      });
      if (code === 'EINVAL') seen.refused++;
      else expect(code).toBe('none');
    }
    expect(Math.min(...Object.values(seen))).toBeGreaterThan(200);
  });
});

/** As codeOf, of work that is waited for. */
async function codeOfWork(work: () => Promise<void>): Promise<string> {
  const error: unknown = await work().then(
    () => undefined,
    (thrown) => thrown,
  );
  return codeOf(() => {
    if (error !== undefined) throw error;
  });
}

/** Damages superblocks (with a right checksum, mostly) and tables. */
function mutate(devices: readonly Uint8Array[], rng: Prng): void {
  for (const [index, bytes] of devices.entries()) {
    if (rng.chance(0.7)) {
      for (let n = 1 + rng.below(4); n > 0; n--)
        bytes[8 + rng.below(32)] = rng.pick([0, 1, 2, 3, rng.next()]);
      const superblock = bytes.subarray(0, 512);
      if (rng.chance(0.8))
        new DataView(bytes.buffer).setUint32(508, crcOf(superblock.subarray(0, 508)), true);
    }
    if (rng.chance(0.2)) bytes.set(encodeSuperblock(index === 0 ? 'data' : 'imd', randomSuperblock(rng)));
    if (rng.chance(0.3)) {
      for (let n = rng.below(200); n > 0; n--) bytes[rng.below(bytes.length)] = rng.next();
    }
    if (rng.chance(0.1)) bytes.fill(rng.next(), 512 * rng.below(20), 512 * (20 + rng.below(200)));
  }
}

function randomSuperblock(rng: Prng): Superblock {
  return {
    placement: rng.pick(PLACEMENTS),
    order: rng.pick(['be', 'le']),
    state: rng.pick(['clean', 'in-use', 'formatting']),
    sectors: 1 + rng.below(rng.pick([100, 1000, 2 ** 32])) * rng.pick([1, 2 ** 11]),
    groupsFormatted: 0,
    id: ID,
  };
}
