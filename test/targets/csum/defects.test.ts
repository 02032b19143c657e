/**
 * Section 9 of the dm-csum format document, defect by defect, and its section 8. What is not here cannot happen: 2 and 3,
 * which need a place in a mapped device (`model-P1` of target.test.ts has every alignment), 8, whose barriers are flushes
 * here (faults.test.ts), 11 (each group has its lock; an error leaves none held: the battery).
 *
 *   crash-P1   Section 8: A, B, A again, and a stop before its data has landed, is no corruption, now or after more updates.
 *   crash-P2   So it is for random updates and stops at any point, also on a volume that the reference has left.
 *   defect-PN  (the number of section 9's table) What the reference does wrong is not done.
 */
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { PowerCut, PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import { csum } from '../../../src/targets/csum/index.js';
import { codeOf, contentOf, expectSameBytes, makeRig, readBytes } from '../harness.js';
import { Images, LAYOUTS } from './images.js';
import { bitwiseCrc } from './naive-volume.js';
import { attach, attachImages, type Layout } from './rig.js';

const filled = (value: number, sectors = 1) => new Uint8Array(512 * sectors).fill(value);

describe.each(LAYOUTS)('%s', (layout) => {
  it('crash-P1: the sequence of section 8', async () => {
    const images = new Images({ layout });
    const power = new PowerSupply();
    const disks = images.bytes.map((image) => new SimulatedDisk(image, { power }));
    const { target } = await attach(disks);
    for (const [rel, value] of [
      [10, 1],
      [11, 1],
    ] as const) {
      target.write(rel * 512, filled(value));
      target.flush();
    }
    target.write(10 * 512, filled(2));
    const before = power.operations;
    target.flush();
    // Table, flush, data, flush: cut in the data.
    const cut = before + 2;
    for (const survivors of ['none', new Prng(1), new Prng(2)] as const) {
      const left = disks.map((disk) => disk.imageAt(cut, survivors));
      const rig = await attachImages(left);
      const found = readBytes(rig.target, 10 * 512, 512);
      expect([1, 2]).toContain(found[0]);
      expectSameBytes(found, filled(found[0]!), 'old or new');
      for (let update = 0; update < 3; update++) {
        rig.target.write(12 * 512, filled(update));
        rig.target.flush();
        const again = await attachImages(left.map((image) => image.slice()));
        expectSameBytes(readBytes(again.target, 10 * 512, 512), found, `after update ${update}`);
      }
      expect(rig.read('errors')).toBe('count 0\n');
    }
  });

  it('crash-P1: what the reference leaves of it is damage, told as such and of that sector alone', async () => {
    const images = new Images({ layout });
    // A1 on the medium, M1 says A2, M2 says A0: nothing on the disk knows A1.
    images.data(10).set(filled(1));
    images.halfUpdate([10], bitwiseCrc(filled(2)));
    images.setState('in-use');
    const rig = await images.attach();
    expect(codeOf(() => readBytes(rig.target, 10 * 512, 512))).toBe('EIO');
    rig.target.write(11 * 512, filled(5));
    rig.target.flush();
    expect(codeOf(() => readBytes(rig.target, 10 * 512, 512))).toBe('EIO');
    rig.target.write(10 * 512, filled(6));
    rig.target.flush();
    expectSameBytes(contentOf((await images.attach()).target).subarray(5120, 5632), filled(6), 'healed');
  });

  it.each([false, true])(
    'crash-P2: random updates and stops; left by the reference: %s',
    async (isReference) => {
      for (let seed = 1; seed <= 60; seed++) await randomStops(layout, isReference, seed);
    },
  );

  it('defect-P4: start offsets count', async () => {
    const { sectors, content, bytes } = new Images({ layout });
    const shifted = bytes.map((image, index) => {
      const larger = new Prng(index).bytes(image.length + 512 * 40);
      larger.set(image, 512 * (11 + index));
      return larger;
    });
    const before = shifted.map((image) => image.slice());
    const [data, imd] = shifted.map((image) => new MemoryDevice(image));
    const devices = imd === undefined ? { data: data! } : { data: data!, imd };
    const rig = await makeRig(csum, imd === undefined ? 'data 11' : 'data 11 imd 12', devices);
    expect(rig.target.tableArgs()).toBe(imd === undefined ? 'data 11' : 'data 11 imd 12');
    expectSameBytes(contentOf(rig.target), content, 'found');
    rig.target.write(0, filled(1, sectors));
    rig.target.flush();
    rig.target.close();
    for (const [index, image] of shifted.entries()) {
      const [start, end] = [512 * (11 + index), 512 * (11 + index) + bytes[index]!.length];
      expectSameBytes(image.subarray(0, start), before[index]!.subarray(0, start), 'in front');
      expectSameBytes(image.subarray(end), before[index]!.subarray(end), 'behind');
    }
  });

  it('defect-P5: every sector lies inside the devices, the last one too', async () => {
    for (const sectors of [1, 61, 62, 63, 124, 125]) {
      // The devices are as small as can be, and throw a RangeError outside.
      const { target } = await new Images({ layout, sectors }).attach();
      target.write(0, filled(3, sectors));
      target.flush();
      expectSameBytes(contentOf(target), filled(3, sectors), `${sectors} sectors`);
    }
  });

  it('defect-P9: an update writes one brother, the older', async () => {
    const images = new Images({ layout });
    const { target } = await images.attach();
    for (let update = 0; update < 4; update++) {
      const [newer, older] = [images.newer(0), images.older(0)];
      const kept = images.table(0, newer).slice();
      target.write((20 + update) * 512, filled(update));
      target.flush();
      expectSameBytes(images.table(0, newer), kept, 'the newer brother');
      expect(images.newer(0)).toBe(older);
    }
  });

  it('defect-P10: requests that start on a group border, of any length', async () => {
    const images = new Images({ layout, sectors: 200 });
    const { target } = await images.attach();
    const model = images.content.slice();
    for (const count of [1, 61, 62, 63, 76, 123, 124, 125, 138]) {
      model.fill(count, 62 * 512, (62 + count) * 512);
      target.write(62 * 512, filled(count, count));
      target.flush();
      expectSameBytes(contentOf(target), model, `${count} sectors`);
    }
  });
});

/** Few sectors, so that updates meet; each start ends in a cut, and the next one goes on from what it left. */
async function randomStops(layout: Layout, isReference: boolean, seed: number): Promise<void> {
  const rng = new Prng(seed);
  const sectors = 4 + rng.below(2);
  const images = new Images({ layout, sectors, superblock: !isReference });
  let left = isReference ? leftByReference(images, rng) : images.bytes;
  let flushed = contentOf((await attachImages(left.map((image) => image.slice()))).target);
  for (let start = 0; start < 12; start++) {
    const power = new PowerSupply();
    const disks = left.map((image) => new SimulatedDisk(image, { power }));
    const { target } = await attach(disks);
    const where = `seed ${seed}, start ${start}`;
    expectSameBytes(contentOf(target), flushed, where);
    power.cutAfter(rng.below(25));
    // Of each sector, what it may be since the last flush.
    const open = Array.from({ length: sectors }, (_, rel) => [flushed.slice(rel * 512, rel * 512 + 512)]);
    try {
      for (;;) {
        for (let writes = rng.below(3); writes >= 0; writes--) {
          const rel = rng.below(sectors);
          const data = filled(rng.below(256));
          open[rel]!.push(data);
          target.write(rel * 512, data);
        }
        target.flush();
        for (const versions of open) versions.splice(0, versions.length - 1);
      }
    } catch (error) {
      if (!(error instanceof PowerCut)) throw error;
    }
    left = disks.map((disk) => disk.crashImage(rng));
    const after = await attachImages(left.map((image) => image.slice()));
    const found = contentOf(after.target);
    for (const [rel, versions] of open.entries()) {
      const sector = Buffer.from(found.subarray(rel * 512, rel * 512 + 512));
      expect(
        versions.some((version) => sector.equals(version)),
        `${where}, sector ${rel}`,
      ).toBe(true);
    }
    expect(after.read('errors'), where).toBe('count 0\n');
    flushed = found;
  }
}

/**
 * By the reference's rule an update changes only its own tuples of the older brother, which so falls behind in the others.
 * Each sector is written at most twice in a row here, else what it leaves is damage (section 8).
 */
function leftByReference(images: Images, rng: Prng): Uint8Array[] {
  for (let rel = 0; rel < images.sectors; rel++) {
    const older = images.older(0);
    const counter = (images.table(0, images.newer(0))[0]! + 1) & 255;
    const data = filled(rng.below(256));
    images.setCrc(rel, older, bitwiseCrc(data));
    images.table(0, older)[0] = counter;
    if (rel < images.sectors - 1 || rng.chance(0.5)) images.data(rel).set(data);
  }
  return images.bytes;
}

describe('other defects of section 9', () => {
  it.each(['be', 'le'] as const)(
    'defect-P1: CRCs are stored in the order of the volume, %s',
    async (order) => {
      const images = new Images({ order });
      const { target } = await images.attach();
      target.write(0, filled(0x41));
      target.flush();
      const table = images.table(0, images.newer(0));
      expect([...table.subarray(8, 10)]).toEqual(order === 'be' ? [0xd3, 0x76] : [0x76, 0xd3]);
    },
  );

  it('defect-P7: errors of the tables below fail the request', async () => {
    const images = new Images({ layout: 'separate' });
    const [data, imd] = images.bytes.map((image) => new MemoryDevice(image));
    const rig = await attach([data!, imd!]);
    const read = imd!.read.bind(imd);
    imd!.read = () => {
      throw Object.assign(new Error('EIO'), { code: 'EIO' });
    };
    expect(() => readBytes(rig.target, 0, 512)).toThrow('EIO');
    expect(() => rig.target.write(0, filled(1))).toThrow('EIO');
    imd!.read = read;
    expectSameBytes(contentOf(rig.target), images.content, 'and work after it');
    rig.target.write(0, filled(1));
    rig.target.flush();
  });

  it('defect-P12: (0, 5) is no order, (255, 0) is', async () => {
    const images = new Images();
    [images.table(0, 0)[0], images.table(0, 1)[0]] = [0, 5];
    [images.table(1, 0)[0], images.table(1, 1)[0]] = [255, 0];
    const { target } = await images.attach();
    expect(codeOf(() => readBytes(target, 0, 512))).toBe('EIO');
    expect(codeOf(() => readBytes(target, 62 * 512, 512))).toBe('none');
  });
});
