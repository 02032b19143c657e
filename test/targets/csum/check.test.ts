import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { DmError } from '../../../src/errors.js';
import { checkVolume, isSound } from '../../../src/targets/csum/check.js';
import type { Areas } from '../../../src/targets/csum/groups.js';
import { findVolume, writeSuperblock } from '../../../src/targets/csum/volume.js';
import { expectSameBytes } from '../harness.js';
import { areasOf, CountingDevice, PLACEMENTS, placesOf, superblockOf } from './areas.js';
import { type NaiveShape, NaiveVolume, naiveCrc, naiveDataSector } from './naive-volume.js';

/** A volume that was written to, with a superblock. */
function volume(shape: NaiveShape, state: 'clean' | 'in-use', writes = 60): NaiveVolume {
  const naive = NaiveVolume.random(shape, 3, writes);
  writeSuperblock(areasOf(naive), placesOf(shape), superblockOf(shape, { state }));
  return naive;
}

async function check(naive: NaiveVolume, areas: Areas = areasOf(naive)) {
  const before = [naive.data.slice(), naive.imd.slice()];
  const report = await checkVolume(findVolume(areas, placesOf(naive.shape)), areas);
  expectSameBytes(naive.data, before[0]!, 'data');
  expectSameBytes(naive.imd, before[1]!, 'imd');
  return report;
}

const NOTHING = { count: 0, first: [] };
const SHAPES: NaiveShape[] = PLACEMENTS.flatMap((placement) =>
  (['be', 'le'] as const).map((order) => ({
    placement,
    order,
    sectors: 62 * 40 + 17,
    dataStart: 3,
    imdStart: 2,
  })),
);

describe('check', () => {
  it('finds a volume sound, and tells how far it is', async () => {
    for (const shape of SHAPES) {
      for (const state of ['clean', 'in-use'] as const) {
        const naive = volume(shape, state);
        const report = await check(naive);
        expect(report).toEqual({
          sectorsChecked: shape.sectors,
          sectorsUnverifiable: 0,
          badSectors: NOTHING,
          damagedTables: NOTHING,
          unorderedGroups: NOTHING,
        });
        expect(isSound(report)).toBe(true);
        const seen: number[] = [];
        await checkVolume(findVolume(areasOf(naive), placesOf(shape)), areasOf(naive), {
          onProgress: ({ bytes, bytesTotal }) => void seen.push(bytes / bytesTotal),
        });
        expect(seen).toEqual([(32 * 62) / shape.sectors, 1]);
      }
    }
  });

  it('finds each damaged sector, with all three CRCs', async () => {
    const rng = new Prng(1);
    for (const shape of SHAPES) {
      const naive = volume(shape, 'in-use');
      const bad = [0, 61, 62, 1000, 62 * 32, shape.sectors - 1];
      const expected = bad.map((rel) => {
        const before = naiveCrc(naive.sector(rel));
        const content = rng.bytes(512);
        naive.write(rel, content);
        naive.sector(rel)[rng.below(512)]! ^= 1 << rng.below(8);
        return {
          sector: rel,
          deviceSector: naiveDataSector(shape, rel),
          newerCrc: naiveCrc(content),
          olderCrc: before,
          dataCrc: naiveCrc(naive.sector(rel)),
        };
      });
      // Those of one group share its tables: the first one's CRC is in both by now.
      expected[0]!.olderCrc = expected[0]!.newerCrc;
      const report = await check(naive);
      expect(report.badSectors).toEqual({ count: bad.length, first: expected });
      expect(report).toMatchObject({ sectorsChecked: shape.sectors, damagedTables: NOTHING });
      expect(isSound(report)).toBe(false);
    }
  });

  it('takes what the older table says only where an update may have been interrupted', async () => {
    for (const shape of SHAPES) {
      for (const state of ['clean', 'in-use'] as const) {
        const naive = volume(shape, state);
        const old = naive.sector(130).slice();
        naive.write(130, new Prng(2).bytes(512));
        naive.sector(130).set(old);
        const isBad = state === 'clean';
        expect((await check(naive)).badSectors.first).toMatchObject(isBad ? [{ sector: 130 }] : []);
        // A bit of one brother: it is corrected, and the clean volume is no longer taken for all that clean.
        naive.table(2, 0)[300]! ^= 1;
        expect(await check(naive)).toMatchObject({
          badSectors: NOTHING,
          damagedTables: { count: 1, first: [{ group: 2, brothers: 'M1', state: 'corrected' }] },
        });
      }
    }
  });

  it('finds damaged tables: corrected, lost, both', async () => {
    for (const shape of SHAPES) {
      const naive = volume(shape, 'clean', 0);
      naive.table(1, 0)[2]! ^= 8;
      naive.table(2, 1)[511]! ^= 8;
      for (const index of [0, 1] as const) naive.table(3, index)[77]! ^= 8;
      naive.table(4, 0)[77]! ^= 9;
      naive.table(5, 1)[77]! ^= 9;
      for (const index of [0, 1] as const) naive.table(40, index)[77]! ^= 9;
      const report = await check(naive);
      expect(report.damagedTables).toEqual({
        count: 6,
        first: [
          { group: 1, brothers: 'M1', state: 'corrected' },
          { group: 2, brothers: 'M2', state: 'corrected' },
          { group: 3, brothers: 'both', state: 'corrected' },
          { group: 4, brothers: 'M1', state: 'lost' },
          { group: 5, brothers: 'M2', state: 'lost' },
          { group: 40, brothers: 'both', state: 'lost' },
        ],
      });
      expect(report).toMatchObject({
        sectorsUnverifiable: 17,
        sectorsChecked: shape.sectors - 17,
        badSectors: NOTHING,
        unorderedGroups: NOTHING,
      });
      expect(isSound(report)).toBe(false);
    }
  });

  it('with one brother lost, goes by the other one', async () => {
    for (const lost of [0, 1] as const) {
      const naive = volume(SHAPES[0]!, 'clean', 0);
      naive.sector(3).fill(0);
      naive.table(0, lost)[77]! ^= 9;
      const report = await check(naive);
      expect(report.badSectors.first).toMatchObject([{ sector: 3, dataCrc: 0 }]);
      expect(report.badSectors.first[0]!.olderCrc).toBeUndefined();
    }
  });

  it('finds groups without an order, and does not judge their sectors', async () => {
    for (const shape of SHAPES) {
      const naive = volume(shape, 'clean');
      naive.table(7, 1)[0] = naive.table(7, 0)[0]! + 2;
      for (const index of [0, 1] as const) naive.table(40, index).fill(0);
      naive.sector(7 * 62).fill(0);
      const report = await check(naive);
      expect(report).toMatchObject({
        sectorsUnverifiable: 62 + 17,
        sectorsChecked: shape.sectors - 62 - 17,
        badSectors: NOTHING,
        damagedTables: NOTHING,
        unorderedGroups: { count: 2, first: [7, 40] },
      });
      expect(isSound(report)).toBe(false);
    }
  });

  it('lists the first thousand and counts all', async () => {
    const naive = volume({ placement: 'interleaved', order: 'be', sectors: 2000 }, 'clean', 0);
    for (let rel = 0; rel < 1500; rel++) naive.sector(rel)[5]! ^= 1;
    const { badSectors } = await check(naive);
    expect([badSectors.count, badSectors.first.length, badSectors.first.at(-1)!.sector]).toEqual([
      1500, 1000, 999,
    ]);
  });

  it('does not read holes, and finds tables missing in them', async () => {
    const shape = { placement: 'separate-r', order: 'be', sectors: 62 * 4000 } as const;
    const naive = new NaiveVolume(shape).format();
    writeSuperblock(areasOf(naive), placesOf(shape), superblockOf(shape));
    naive.sector(100_006).fill(1);
    const data = new CountingDevice(naive.data, 4096);
    const imd = new CountingDevice(naive.imd, 4096);
    expect((await check(naive, { data, imd })).badSectors.first).toMatchObject([{ sector: 100_006 }]);
    expect(data.bytesRead).toBeLessThan(4 << 20);
    naive.imd.fill(0, 2 << 20, 3 << 20);
    const report = await check(naive, { data, imd: new CountingDevice(naive.imd, 4096) });
    expect(report.unorderedGroups.count).toBe(1024);
    const interleaved = volume({ placement: 'interleaved', order: 'be', sectors: 62 * 200 }, 'clean', 0);
    interleaved.data.fill(0, 32768 * 50 + 512, 32768 * 150 + 512);
    const holey = await check(interleaved, { data: new CountingDevice(interleaved.data, 4096) });
    expect(holey.unorderedGroups).toMatchObject({ count: 100 });
    expect(holey.badSectors).toEqual(NOTHING);
  });
});

/** A device of which some sectors cannot be read. */
function withBadSectors(device: MemoryDevice, bad: ReadonlySet<number>): BlockDevice {
  const { size, bytes } = device;
  return Object.assign(new MemoryDevice(bytes), {
    size,
    read(offset: number, into: Uint8Array) {
      for (let at = offset; at < offset + into.length; at += 512) {
        if (bad.has(at / 512)) throw new DmError('EIO', `sector ${at / 512} cannot be read`);
      }
      into.set(bytes.subarray(offset, offset + into.length));
    },
  });
}

describe('check of a disk that cannot be read everywhere', () => {
  it('reports these sectors and tables, and verifies all others', async () => {
    for (const shape of SHAPES) {
      const naive = volume(shape, 'in-use', 0);
      const areas = areasOf(naive);
      const tableAt = (group: number, index: 0 | 1) => naive.table(group, index).byteOffset / 512;
      const badData = new Set([0, 62, 62 * 2 + 9, 62 * 40 + 16].map((rel) => naiveDataSector(shape, rel)));
      const badTables = new Set([tableAt(2, 0), tableAt(3, 1), tableAt(33, 0), tableAt(33, 1)]);
      naive.sector(63).fill(1);
      const isOne = shape.placement === 'interleaved';
      const report = await check(naive, {
        data: withBadSectors(areas.data, isOne ? new Set([...badData, ...badTables]) : badData),
        imd: areas.imd && withBadSectors(areas.imd, badTables),
      });
      expect(report.badSectors.first.map(({ sector, dataCrc }) => [sector, dataCrc])).toEqual([
        [0, undefined],
        [62, undefined],
        [63, naiveCrc(naive.sector(63))],
        [62 * 2 + 9, undefined],
        [62 * 40 + 16, undefined],
      ]);
      expect(report.damagedTables.first).toEqual([
        { group: 2, brothers: 'M1', state: 'lost' },
        { group: 3, brothers: 'M2', state: 'lost' },
        { group: 33, brothers: 'both', state: 'lost' },
      ]);
      expect(report.sectorsChecked).toBe(shape.sectors - 62);
    }
  });

  it('gives up where nothing can be read', async () => {
    const naive = volume(SHAPES[0]!, 'clean');
    const { data } = areasOf(naive);
    const found = findVolume({ data }, placesOf(SHAPES[0]!));
    const dead = withBadSectors(data, new Set(Array.from({ length: data.size / 512 }, (_, i) => i)));
    await expect(checkVolume(found, { data: dead })).rejects.toThrow('cannot be read');
  });
});
