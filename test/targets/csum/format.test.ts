import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { PowerCut, PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import { DmError } from '../../../src/errors.js';
import { decodeSuperblock, type Superblock } from '../../../src/formats/csum.js';
import type { WorkDone } from '../../../src/progress.js';
import { checkVolume, isSound } from '../../../src/targets/csum/check.js';
import { type FormatOptions, formatVolume } from '../../../src/targets/csum/format.js';
import type { Areas } from '../../../src/targets/csum/groups.js';
import { lookForVolume, writeSuperblock } from '../../../src/targets/csum/volume.js';
import { expectSameBytes } from '../harness.js';
import { areasOf, CountingDevice, placesOf, superblockOf } from './areas.js';
import { type NaiveShape, NaiveVolume } from './naive-volume.js';

const FORMATS = ['interleaved', 'separate-r'] as const;
const optionsOf = (shape: NaiveShape, change: Partial<FormatOptions> = {}): FormatOptions => ({
  ...placesOf(shape),
  force: false,
  ...change,
});
const superblockAt = ({ data }: Areas, { dataStart = 0 }: NaiveShape): Superblock | undefined => {
  const bytes = new Uint8Array(512);
  data.read(dataStart * 512, bytes);
  return decodeSuperblock('data', bytes);
};

/** The message of what formatting throws. */
async function refusal(areas: Areas, options: FormatOptions): Promise<[string, string]> {
  try {
    await formatVolume(areas, options);
  } catch (error) {
    if (error instanceof DmError) return [error.code, error.message];
    throw error;
  }
  return ['none', ''];
}

/** There is a volume, clean, and all of it verifies. */
async function expectSound(areas: Areas, shape: NaiveShape, where = ''): Promise<void> {
  const found = lookForVolume(areas, placesOf(shape));
  expect(found, where).toMatchObject({ isClean: true });
  const report = await checkVolume(found!, areas);
  expect(isSound(report), `${where}: ${JSON.stringify(report)}`).toBe(true);
  expect(report.sectorsChecked).toBe(found!.volume.sectors);
}

describe('a format', () => {
  it('writes what the document says and touches no data: random, sparse and empty, all sizes and offsets', async () => {
    const rng = new Prng(1);
    for (const placement of FORMATS) {
      for (const sectors of [1, 61, 62, 63, 500, 62 * 33, 62 * 33 + 1, 5000]) {
        for (const offsets of [{}, { dataStart: 8, imdStart: 3 }]) {
          const order = rng.pick(['be', 'le'] as const);
          const shape = { placement, order, sectors, ...offsets };
          const expected = new NaiveVolume(shape);
          const kind = rng.pick(['empty', 'sparse', 'random']);
          for (let rel = 0; rel < sectors; rel++) {
            if (kind === 'random' || (kind === 'sparse' && rng.chance(0.003)))
              expected.sector(rel).set(rng.bytes(512));
          }
          const before = [expected.data.slice(), expected.imd.slice()];
          // What the areas hold where the tables go does not matter.
          const [data, imd] = before.map((bytes) => new CountingDevice(bytes, rng.pick([0, 512, 4096])));
          const areas = { data: data!, imd: placement === 'interleaved' ? undefined : imd! };
          const { volume, groupsBefore } = await formatVolume(areas, optionsOf(shape, { order }), {
            recordGroups: rng.pick([1, 3, 2048]),
          });
          const { dataStart, imdStart } = placesOf(shape);
          expect(volume).toEqual({ placement, order, sectors, dataStart, imdStart });
          expect(groupsBefore).toBe(0);
          expected.format();
          const superblock = superblockAt(areas, shape)!;
          expect(superblock).toMatchObject({ order, placement, sectors, state: 'clean' });
          writeSuperblock(areasOf(expected), placesOf(shape), superblock);
          if (imd && areas.imd)
            writeSuperblock({ imd: new MemoryDevice(expected.imd) }, placesOf(shape), {
              ...superblock,
              state: 'formatting',
              groupsFormatted: 0,
            });
          expectSameBytes(data!.bytes, expected.data, `${kind} ${JSON.stringify(shape)}`);
          if (areas.imd) expectSameBytes(imd!.bytes, expected.imd, `${kind} ${JSON.stringify(shape)}`);
          await expectSound(areas, shape);
          const last = data!.bytes.at(-1)!;
          data!.bytes[data!.size - 1] = last ^ 1;
          expect(isSound(await checkVolume(lookForVolume(areas, placesOf(shape))!, areas))).toBe(false);
        }
      }
    }
  });

  it('has random ids, order be and all the room by default', async () => {
    const ids = new Set<string>();
    for (let i = 0; i < 4; i++) {
      const data = new MemoryDevice(2048 * 512 + 100);
      const { volume } = await formatVolume(
        { data },
        { dataPath: '/d', dataStart: 0, imdStart: 0, force: false },
      );
      expect(volume).toMatchObject({ sectors: 1983, order: 'be' });
      ids.add(
        Buffer.from(superblockAt({ data }, { placement: 'interleaved' } as NaiveShape)!.id).toString('hex'),
      );
    }
    expect(ids.size).toBe(4);
  });

  it('does not read holes, reads data a mebibyte at a time, and writes many tables with one request', async () => {
    const sectors = 62 * 4096;
    const shape = { placement: 'separate-r', order: 'be', sectors } as const;
    const data = new CountingDevice(new Uint8Array(512 * (1 + sectors)), 4096);
    const imd = new CountingDevice(new Uint8Array(512 * (3 + 2 * 4096)));
    data.bytes.fill(7, 100 << 20, (101 << 20) + 5000);
    await formatVolume({ data, imd }, optionsOf(shape));
    expect(data.bytesRead).toBeLessThan(5 << 20);
    expect(imd.writes).toBeLessThan(8);
    expect(data.writes).toBeLessThan(8);
    await expectSound({ data, imd }, shape);
    data.reads = data.bytesRead = 0;
    data.bytes.fill(7);
    writeSuperblock({ data, imd }, placesOf(shape), superblockOf(shape));
    await formatVolume({ data, imd }, optionsOf(shape, { force: true }));
    expect(data.bytesRead / data.reads).toBeGreaterThan(950_000);
    expect(data.longest).toBeLessThanOrEqual(1 << 20);
  });

  it('tells how far it is, and stops where that throws; the next one goes on', async () => {
    for (const placement of FORMATS) {
      const shape = { placement, order: 'le', sectors: 62 * 200 + 7 } as const;
      const naive = NaiveVolume.random(shape, 1);
      naive.imd.fill(0, 512);
      const areas = areasOf(naive);
      const seen: WorkDone[] = [];
      const onProgress = (progress: WorkDone) => {
        seen.push(progress);
        if (seen.length === 5) throw new Error('stop');
      };
      const recordGroups = 64;
      await expect(
        formatVolume(areas, optionsOf(shape, { order: 'le' }), { onProgress, recordGroups }),
      ).rejects.toThrow('stop');
      const { id } = superblockAt(areas, shape)!;
      expect(() => lookForVolume(areas, placesOf(shape))).toThrow('its format was interrupted');
      const { groupsBefore } = await formatVolume(areas, optionsOf(shape), { onProgress, recordGroups });
      expect(groupsBefore).toBe(128);
      expect(seen[5]!.bytes).toBe((128 + 32) * 62 * 512);
      expect(seen.at(-1)).toEqual({ bytes: shape.sectors * 512, bytesTotal: shape.sectors * 512 });
      expect(superblockAt(areas, shape)).toMatchObject({ id, order: 'le', state: 'clean' });
      await expectSound(areas, shape);
    }
  });
});

describe('a format refuses, and changes nothing', () => {
  const SHAPE = { placement: 'separate-r', order: 'be', sectors: 500 } as const;
  const unchanged = async (naive: NaiveVolume, areas: Areas, options: FormatOptions) => {
    const before = [naive.data.slice(), naive.imd.slice()];
    const reason = await refusal(areas, options);
    expectSameBytes(naive.data, before[0]!, 'data');
    expectSameBytes(naive.imd, before[1]!, 'imd');
    return reason;
  };

  it('what is a volume: with a superblock, a damaged one, or of the reference; --force does it', async () => {
    for (const placement of ['interleaved', 'separate-r', 'separate-c'] as const) {
      for (const kind of ['clean', 'in-use', 'damaged', 'reference'] as const) {
        const shape = { ...SHAPE, placement };
        const naive = NaiveVolume.random(shape, 1);
        const areas = areasOf(naive);
        const state = kind === 'in-use' ? 'in-use' : 'clean';
        if (kind !== 'reference') writeSuperblock(areas, placesOf(shape), superblockOf(shape, { state }));
        if (kind === 'damaged') naive.data[100]! ^= 1;
        const [code, message] = await unchanged(naive, areas, optionsOf(shape));
        expect(code).toBe('EEXIST');
        expect(message).toMatch(/^\/[di]: .* already\. A new format .* for ever: .*--force does that$/);
        naive.sector(5).fill(9);
        await formatVolume(areas, optionsOf(shape, { force: true }));
        await expectSound(areas, shape);
      }
    }
  });

  it('an interleaved volume of the reference that is to get an imd device, tables that are to be data', async () => {
    const naive = NaiveVolume.random({ ...SHAPE, placement: 'interleaved' }, 1);
    const imd = new MemoryDevice(512 * 100);
    expect(await unchanged(naive, { data: new MemoryDevice(naive.data), imd }, optionsOf(SHAPE))).toEqual([
      'EEXIST',
      expect.stringContaining('/d: has the tables of a csum volume, without a sound superblock already'),
    ]);
    const other = NaiveVolume.random(SHAPE, 1);
    writeSuperblock(areasOf(other), placesOf(SHAPE), superblockOf(SHAPE));
    const fresh = new MemoryDevice(512 * 600);
    const tables = areasOf(other).imd!;
    for (const areas of [{ data: fresh, imd: tables }, { data: tables }]) {
      const places = areas.imd ? SHAPE : ({ ...SHAPE, placement: 'interleaved' } as const);
      expect(await unchanged(other, areas, optionsOf(places))).toEqual([
        'EEXIST',
        expect.stringContaining('holds the tables of a csum volume already'),
      ]);
    }
  });

  it('areas that are too small, says how small', async () => {
    const needs: [number, number | undefined, Partial<FormatOptions>, string | RegExp][] = [
      [3, undefined, {}, '/d: has 3 sectors, a volume of 1 sectors needs 4 there'],
      [100, undefined, { sectors: 100 }, '/d: has 100 sectors, a volume of 100 sectors needs 105 there'],
      [
        100,
        undefined,
        { dataStart: 98 * 512 },
        '/d: has 2 sectors from sector 98 on, a volume of 1 sectors needs 4 there',
      ],
      [100, undefined, { dataStart: 200 * 512 }, /none at offset 200|has 0 sectors from sector 200 on/],
      [1, 100, {}, '/d: has 1 sectors, a volume of 1 sectors needs 2 there'],
      [100, 4, {}, '/i: has 4 sectors, a volume of 1 sectors needs 5 there'],
      [100, 6, { sectors: 63 }, '/i: has 6 sectors, a volume of 63 sectors needs 7 there'],
    ];
    for (const [dataSectors, imdSectors, change, message] of needs) {
      const data = new MemoryDevice(dataSectors * 512);
      const imd = imdSectors === undefined ? undefined : new MemoryDevice(imdSectors * 512);
      const shape = { ...SHAPE, placement: imd ? ('separate-r' as const) : ('interleaved' as const) };
      for (const force of [false, true]) {
        const [code, reason] = await refusal({ data, imd }, optionsOf(shape, { ...change, force }));
        expect(code).toBe('EINVAL');
        if (typeof message === 'string') expect(reason).toBe(message);
        else expect(reason).toMatch(message);
      }
      expect(data.bytes.every((byte) => byte === 0)).toBe(true);
    }
  });

  it('data and tables on the same device', async () => {
    const data = new MemoryDevice(1 << 16);
    expect(await refusal({ data, imd: data }, optionsOf(SHAPE))).toEqual([
      'EINVAL',
      '/d: data and imd are the same device',
    ]);
  });

  it('to go on with another order, size, or imd device than it began with; --force starts anew', async () => {
    const contradictions: [Partial<FormatOptions>, RegExp][] = [
      [
        { order: 'le' },
        /^\/d: an interrupted format of 500 sectors, order be: go on with `dmfuse csum format \/d \/i`/,
      ],
      [{ sectors: 499 }, /start anew with --force$/],
      [{ imdPath: undefined }, /formatted with its tables on an imd device/],
    ];
    for (const [change, message] of contradictions) {
      const naive = NaiveVolume.random(SHAPE, 1);
      const areas = areasOf(naive);
      const superblock = superblockOf(SHAPE, { state: 'formatting', groupsFormatted: 3 });
      writeSuperblock(areas, placesOf(SHAPE), superblock);
      const used = 'imdPath' in change ? { data: areas.data } : areas;
      const [code, reason] = await unchanged(naive, used, optionsOf(SHAPE, change));
      expect(code).toBe('EINVAL');
      expect(reason).toMatch(message);
      naive.sector(3).fill(1);
      await formatVolume(areas, optionsOf(SHAPE, { force: true }));
      await expectSound(areas, SHAPE);
      expect(Buffer.from(superblockAt(areas, SHAPE)!.id).equals(superblock.id)).toBe(false);
    }
    const naive = NaiveVolume.random(SHAPE, 1);
    const { data } = areasOf(naive);
    writeSuperblock(
      { data },
      placesOf(SHAPE),
      superblockOf(SHAPE, { state: 'formatting', groupsFormatted: 3 }),
    );
    expect((await unchanged(naive, areasOf(naive), optionsOf(SHAPE)))[1]).toContain('do not belong together');
    // Nothing was done yet: an imd area of no volume is taken, one of another volume is not.
    const began = superblockOf(SHAPE, { state: 'formatting' });
    const [before, other] = [naive.imd.slice(), superblockOf(SHAPE, { id: new Uint8Array(16) })];
    writeSuperblock(areasOf(naive), placesOf(SHAPE), other);
    writeSuperblock({ data }, placesOf(SHAPE), began);
    expect((await unchanged(naive, areasOf(naive), optionsOf(SHAPE)))[1]).toMatch(/^\/i: holds the tables/);
    naive.imd.set(before);
    await formatVolume(areasOf(naive), optionsOf(SHAPE));
    await expectSound(areasOf(naive), SHAPE);
  });
});

describe('csum-F1, csum-F2, csum-F3: a format that is interrupted', () => {
  const SECTORS = 62 * 9 + 20;

  /** Disks with random data, on one supply. */
  function disks(shape: NaiveShape, seed: number, content?: readonly Uint8Array[]) {
    const naive = NaiveVolume.random(shape, seed);
    naive.imd.fill(0, 0, shape.placement === 'interleaved' ? 0 : undefined);
    for (let group = 0; group < naive.groups; group++) {
      for (const index of [0, 1] as const) naive.table(group, index).fill(0);
    }
    const power = new PowerSupply();
    const bytes = content ?? [naive.data, naive.imd];
    const data = new SimulatedDisk(bytes[0]!, { power });
    const imd = shape.placement === 'interleaved' ? undefined : new SimulatedDisk(bytes[1]!, { power });
    return { naive, power, areas: { data, imd }, list: imd ? [data, imd] : [data] };
  }

  /** What may be there after a cut: nothing, a refusal, or a volume that is whole. */
  async function expectNoHalf(areas: Areas, shape: NaiveShape, where: string): Promise<string> {
    let found: ReturnType<typeof lookForVolume>;
    try {
      found = lookForVolume(areas, placesOf(shape));
    } catch (error) {
      expect((error as DmError).message, where).toMatch(/its format was interrupted|do not belong together/);
      return 'refused';
    }
    if (!found) return 'nothing';
    await expectSound(areas, shape, where);
    return 'whole';
  }

  const data = (naive: NaiveVolume, bytes: Uint8Array) => {
    const copy = new NaiveVolume(naive.shape);
    copy.data.set(bytes);
    for (let rel = 0; rel < naive.shape.sectors; rel++) {
      if (!Buffer.from(copy.sector(rel)).equals(naive.sector(rel))) return `sector ${rel} changed`;
    }
    return 'the same';
  };

  it('by a power cut at any operation: refused in between, the same volume after the next run', async () => {
    const rng = new Prng(1);
    const seen = { nothing: 0, refused: 0, whole: 0, resumed: 0 };
    for (const placement of FORMATS) {
      const shape = { placement, order: 'be', sectors: SECTORS, dataStart: 2, imdStart: 1 } as const;
      const { naive, power, areas, list } = disks(shape, 1);
      await formatVolume(areas, optionsOf(shape), { recordGroups: 2 });
      for (let cut = 0; cut <= power.operations; cut++) {
        for (const survivors of ['none', 'all', rng, rng, rng, rng] as const) {
          const where = `${placement}, cut ${cut} of ${power.operations}`;
          const [dataDevice, imd] = list.map((disk) => new MemoryDevice(disk.imageAt(cut, survivors)));
          const left = { data: dataDevice!, imd };
          const state = (await expectNoHalf(left, shape, where)) as 'nothing' | 'refused' | 'whole';
          seen[state]++;
          const before = superblockAt(left, shape);
          if (state !== 'whole') {
            const { groupsBefore } = await formatVolume(left, optionsOf(shape), { recordGroups: 3 });
            if (groupsBefore > 0) seen.resumed++;
            if (before) expect(superblockAt(left, shape)!.id).toEqual(before.id);
          }
          await expectSound(left, shape, where);
          expect(data(naive, left.data.bytes), where).toBe('the same');
        }
      }
    }
    expect(Math.min(...Object.values(seen))).toBeGreaterThan(5);
  });

  it('again and again, at random, by cuts and errors', async () => {
    for (let seed = 1; seed <= 60; seed++) {
      const rng = new Prng(seed);
      const shape: NaiveShape = { placement: rng.pick(FORMATS), order: 'be', sectors: 1 + rng.below(900) };
      let content: Uint8Array[] | undefined;
      for (let run = 0; ; run++) {
        expect(run).toBeLessThan(200);
        const { naive, power, areas, list } = disks(shape, seed, content);
        const options = optionsOf(shape);
        if (rng.chance(0.7)) power.cutAfter(rng.below(25));
        else {
          const op = rng.pick(['read', 'write', 'flush'] as const);
          rng.pick(list).injectError({ op, at: 1 + rng.below(20), landed: rng.pick([true, false, 'some']) });
        }
        try {
          await formatVolume(areas, options, { recordGroups: 1 + rng.below(4) });
        } catch (error) {
          const { code } = error as DmError;
          // The last record had landed before the run that wrote it was cut.
          const hadEnded = code === 'EEXIST' && superblockAt(areas, shape)?.state === 'clean';
          if (!hadEnded) {
            if (!(error instanceof PowerCut) && code !== 'EIO') throw error;
            content = list.map((disk) => disk.crashImage(rng));
            continue;
          }
        }
        const left = list.map((disk) => new MemoryDevice(disk.crashImage('none')));
        await expectSound({ data: left[0]!, imd: left[1] }, shape, `seed ${seed}`);
        expect(data(naive, left[0]!.bytes)).toBe('the same');
        break;
      }
    }
  });

  it('of what was a volume before: the old one, refused, or the new one, never a mixture', async () => {
    const rng = new Prng(5);
    const seen = { old: 0, refused: 0, new: 0 };
    for (const placement of FORMATS) {
      const shape = { placement, order: 'le', sectors: SECTORS } as const;
      const before = NaiveVolume.random(shape, 1, 40);
      const old = superblockOf(shape);
      writeSuperblock(areasOf(before), placesOf(shape), old);
      // Damage that the old tables know of, and the new ones do not.
      before.sector(100).fill(1);
      const { power, areas, list } = disks(shape, 1, [before.data, before.imd]);
      await formatVolume(areas, optionsOf(shape, { force: true, order: 'be' }), { recordGroups: 2 });
      for (let cut = 0; cut <= power.operations; cut++) {
        for (const survivors of ['none', 'all', rng, rng, rng] as const) {
          const [dataDevice, imd] = list.map((disk) => new MemoryDevice(disk.imageAt(cut, survivors)));
          const left = { data: dataDevice!, imd };
          const isOld = Buffer.compare(superblockAt(left, shape)!.id, old.id) === 0;
          if (isOld) {
            const report = await checkVolume(lookForVolume(left, placesOf(shape))!, left);
            expect(report.badSectors.first.map(({ sector }) => sector)).toEqual([100]);
            seen.old++;
            continue;
          }
          const state = await expectNoHalf(left, shape, `${placement}, cut ${cut}`);
          seen[state === 'whole' ? 'new' : 'refused']++;
          if (state === 'whole') continue;
          // The imd area may still have the old id: then only --force takes it.
          const [code] = await refusal(left, optionsOf(shape));
          if (code === 'EEXIST') {
            expect(superblockAt(left, shape)!.groupsFormatted).toBe(0);
            await formatVolume(left, optionsOf(shape, { force: true }));
          } else expect(code).toBe('none');
          await expectSound(left, shape);
        }
      }
    }
    expect(Math.min(...Object.values(seen))).toBeGreaterThan(2);
  });
});
