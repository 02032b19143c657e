/**
 * What the medium does to a volume, and what is said of it.
 *
 *   corrupt-P1  A flipped bit of data is EIO for its sector and for no other, an event and a line in `errors`. It is told
 *               once. A write of the whole sector heals it; one of a part is refused.
 *   corrupt-P2  One flipped bit of a table is put right: told, nothing refused; updates of the group write it right again.
 *   corrupt-P3  A brother with more than that counts as lost: the other one is used, and the next update replaces it. Also
 *               when its counter, or what a correction makes of it, would make nonsense of the pair.
 *   corrupt-P4  Where both are lost, or their counters are in no order, the group cannot be read or written; others can.
 *   corrupt-P5  A write that the disk has lost is found out after a clean end, though the older brother still knows the data;
 *               after any other end the sector reads as the old data, until a commit or a scrub has settled the group.
 *   corrupt-P6  Flags, tags and CRC order stay; what is unused is ignored, and written as zeros [dm-csum format, 2].
 */
import { describe, expect, it } from 'vitest';
import { Prng } from '../../../src/device/prng.js';
import { codeOf, contentOf, expectSameBytes, readBytes } from '../harness.js';
import { type ImageOptions, Images, LAYOUTS } from './images.js';
import { bitwiseCrc } from './naive-volume.js';
import type { CsumRig } from './rig.js';

/** The sectors that cannot be read one by one. */
function refused({ target }: CsumRig): number[] {
  const all = Array.from({ length: target.size / 512 }, (_, sector) => sector);
  return all.filter((sector) => {
    const code = codeOf(() => readBytes(target, sector * 512, 512));
    if (code !== 'none') expect(code).toBe('EIO');
    return code !== 'none';
  });
}

const hex = (crc: number) => `0x${crc.toString(16).padStart(4, '0')}`;
const filled = (value: number, sectors = 1) => new Uint8Array(512 * sectors).fill(value);

/** A volume in which group 1 was written often enough for its brothers to differ in sector 70 only. Closed. */
async function written(options: ImageOptions = {}): Promise<Images> {
  const images = new Images(options);
  const { target } = await images.attach();
  for (const value of [1, 2, 3]) {
    target.write(70 * 512, filled(value));
    target.flush();
  }
  target.close();
  expect(images.state).toBe('clean');
  return images;
}

describe.each(LAYOUTS)('%s', (layout) => {
  it('corrupt-P1: a flipped bit of data', async () => {
    const images = new Images({ layout });
    for (const rel of [3, 70, 149]) images.flipData(rel);
    const rig = await images.attach();
    expect(refused(rig)).toEqual([3, 70, 149]);
    const crc = [hex(images.crc(70, 1)), hex(bitwiseCrc(images.data(70)))];
    expect(rig.events[1]).toBe(`corrupt sector=70 stored=${crc[0]} computed=${crc[1]}`);
    expect(rig.events).toHaveLength(3);
    expect(rig.read('errors')).toBe('count 3\nsector 3\nsector 70\nsector 149\n');
    expect(rig.target.statusArgs()).toBe('errors:3 pending:0');
    // A request over it fails, and tells nothing new.
    expect(codeOf(() => readBytes(rig.target, 69 * 512, 3 * 512))).toBe('EIO');
    expect(codeOf(() => readBytes(rig.target, 70 * 512 + 7, 1))).toBe('EIO');
    expect(codeOf(() => rig.target.write(70 * 512 + 7, filled(1).subarray(9)))).toBe('EIO');
    expect(codeOf(() => rig.target.writeZeroes(3 * 512 + 7, 1))).toBe('EIO');
    expect(rig.events).toHaveLength(3);
    rig.target.write(69 * 512, filled(5, 2));
    expect(refused(rig)).toEqual([3, 149]);
    expect(rig.read('errors')).toBe('count 3\nsector 3\nsector 149\n');
    rig.target.discard(3 * 512, 512);
    rig.target.flush();
    expect(refused(rig)).toEqual([149]);
    const again = await images.attach();
    expect(refused(again)).toEqual([149]);
    expectSameBytes(readBytes(again.target, 70 * 512, 512), filled(5), 'healed');
  });

  it('corrupt-P1: a write to a part of a sector reads only what it keeps of it', async () => {
    const images = new Images({ layout });
    for (const rel of [10, 12]) images.flipData(rel);
    const rig = await images.attach();
    // 10 whole, 11 in part; 11 in part, 12 whole.
    rig.target.write(10 * 512, filled(1, 2).subarray(3));
    rig.target.write(11 * 512 + 3, filled(2, 2).subarray(3));
    expect(refused(rig)).toEqual([]);
    expect(codeOf(() => rig.target.flush())).toBe('none');
  });

  it('corrupt-P2: one flipped bit of a table', async () => {
    const rng = new Prng(3);
    for (let round = 0; round < 60; round++) {
      const images = await written({ layout });
      const isNewer = round % 2 === 0;
      const brother = isNewer ? images.newer(1) : images.older(1);
      images.table(1, brother)[rng.pick([2, 3, 8 + rng.below(504)])]! ^= 1 << rng.below(8);
      const rig = await images.attach();
      expect(refused(rig)).toEqual([]);
      expect(rig.events).toEqual([`imd_damaged group=1 corrected=M${brother + 1}`]);
      expect(rig.read('errors')).toBe('count 1\ngroup 1\n');
      rig.target.write(71 * 512, filled(7));
      rig.target.flush();
      // The older brother is overwritten by the first update, the newer one by the second.
      expect(rig.read('errors')).toBe(isNewer ? 'count 1\ngroup 1\n' : 'count 1\n');
      rig.target.write(71 * 512, filled(8));
      rig.target.flush();
      expect(rig.read('errors')).toBe('count 1\n');
      expect([images.isSound(1, 0), images.isSound(1, 1)]).toEqual([true, true]);
      expect(refused(await images.attach())).toEqual([]);
    }
  });

  it('corrupt-P2: a sector that is corrupt is so beside a damaged table too', async () => {
    const images = await written({ layout });
    images.table(1, images.newer(1))[300]! ^= 1;
    images.flipData(75);
    const rig = await images.attach();
    expect(refused(rig)).toEqual([75]);
  });

  it('corrupt-P3: the older brother is lost', async () => {
    const images = await written({ layout });
    images.table(1, images.older(1)).fill(0x77, 8);
    const rig = await images.attach();
    expect(refused(rig)).toEqual([]);
    expect(rig.events).toEqual([`imd_damaged group=1 lost=M${images.older(1) + 1}`]);
    rig.target.write(71 * 512, filled(7));
    rig.target.flush();
    expect(rig.read('errors')).toBe('count 1\n');
    const again = await images.attach();
    expect([refused(again), again.events]).toEqual([[], []]);
  });

  it('corrupt-P3: the newer brother is lost', async () => {
    const images = await written({ layout });
    images.table(1, images.newer(1)).fill(0x77, 0);
    const rig = await images.attach();
    expect(refused(rig)).toEqual([70]);
    rig.target.write(71 * 512, filled(7));
    rig.target.flush();
    expect(rig.read('errors')).toBe('count 2\nsector 70\n');
    const again = await images.attach();
    expect(refused(again)).toEqual([70]);
    again.target.write(70 * 512, filled(9));
    again.target.flush();
    expect(refused(await images.attach())).toEqual([]);
  });

  it('corrupt-P3: a brother of random bytes', async () => {
    const rng = new Prng(5);
    let corrected = 0;
    for (let round = 0; round < 300; round++) {
      const images = new Images({ layout });
      const brother = rng.below(2) as 0 | 1;
      images.table(1, brother).set(rng.bytes(512));
      const rig = await images.attach();
      expect([round, refused(rig)]).toEqual([round, []]);
      if (rig.events[0]?.includes('corrected')) corrected++;
      rig.target.write(71 * 512, filled(7));
      rig.target.flush();
      expect([round, refused(await images.attach())]).toEqual([round, []]);
    }
    // A correction that makes the pair look right is a matter of one in 4000.
    expect(corrected).toBeLessThan(3);
  });

  it('corrupt-P4: both brothers are lost', async () => {
    const images = await written({ layout });
    for (const brother of [0, 1] as const) images.table(1, brother).fill(0x77 + brother, 9);
    const rig = await images.attach();
    const group = Array.from({ length: 62 }, (_, k) => 62 + k);
    expect(refused(rig)).toEqual(group);
    expect(rig.events).toEqual(['imd_damaged group=1 lost=M1,M2']);
    expect(rig.read('errors')).toBe('count 1\ngroup 1\n');
    for (const write of [
      () => rig.target.write(70 * 512, filled(1)),
      () => rig.target.writeZeroes(62 * 512, 62 * 512),
      () => rig.target.discard(100 * 512, 512),
      () => rig.target.write(61 * 512, filled(1, 2)),
    ]) {
      expect(codeOf(write)).toBe('EIO');
    }
    rig.target.write(0, filled(3, 62));
    rig.target.write(124 * 512, filled(3, 26));
    rig.target.flush();
    expectSameBytes(readBytes(rig.target, 124 * 512, 512 * 26), filled(3, 26), 'the others');
    expect(refused(await images.attach())).toEqual(group);
  });

  it('corrupt-P4: counters in no order', async () => {
    for (const [m1, m2] of [
      [0, 0],
      [0, 5],
      [7, 7],
      [9, 7],
      [0, 128],
      [254, 0],
      [2, 255],
    ] as const) {
      const images = new Images({ layout });
      images.table(2, 0)[0] = m1;
      images.table(2, 1)[0] = m2;
      const rig = await images.attach();
      expect(refused(rig)).toEqual(Array.from({ length: 26 }, (_, k) => 124 + k));
      expect(rig.events).toEqual(['imd_damaged group=2 unordered=M1,M2']);
      expect(codeOf(() => rig.target.write(124 * 512, filled(1)))).toBe('EIO');
      expect(codeOf(() => rig.target.write(123 * 512, filled(1)))).toBe('none');
    }
  });

  it('corrupt-P4: counters at every place of their circle', async () => {
    for (const older of [0, 1, 127, 128, 253, 254, 255]) {
      const images = new Images({ layout });
      images.setCounters(1, older);
      let newer = 1;
      const rig = await images.attach();
      for (let update = 0; update < 4; update++) {
        expect([older, refused(rig)]).toEqual([older, []]);
        rig.target.write(80 * 512, filled(update));
        rig.target.flush();
        newer = 1 - newer;
        expect(images.newer(1)).toBe(newer);
        expect(images.table(1, newer as 0 | 1)[0]).toBe((older + 2 + update) & 255);
        expect(refused(await images.attach())).toEqual([]);
      }
    }
  });

  it('corrupt-P5: a lost write', async () => {
    const images = await written({ layout });
    images.data(70).set(filled(2));
    expect(images.crc(70, images.older(1))).toBe(bitwiseCrc(filled(2)));
    expect(refused(await images.copy().attach())).toEqual([70]);
    images.setState('in-use');
    const rig = await images.attach();
    expect(refused(rig)).toEqual([]);
    expectSameBytes(readBytes(rig.target, 70 * 512, 512), filled(2), 'the old data');
    // A commit to the group repairs, so that the old data is what the newer brother says.
    rig.target.write(71 * 512, filled(9));
    rig.target.flush();
    rig.target.write(71 * 512, filled(10));
    rig.target.flush();
    images.setState('clean');
    expect(refused(await images.attach())).toEqual([]);
  });

  it('corrupt-P5: what matches neither brother is told as the newer one has it, and is none the wiser', async () => {
    const images = new Images({ layout });
    const lost = filled(4);
    images.halfUpdate([70], bitwiseCrc(lost));
    images.setState('in-use');
    images.data(70).set(filled(6));
    const rig = await images.attach();
    rig.target.write(71 * 512, filled(9));
    rig.target.flush();
    expect(images.crc(70, images.newer(1))).toBe(bitwiseCrc(lost));
    expect(refused(rig)).toEqual([70]);
    images.data(70).set(lost);
    expect(refused(await images.attach())).toEqual([]);
  });

  it('corrupt-P5: tuples of sectors that are not there say nothing', async () => {
    const images = new Images({ layout });
    images.halfUpdate([149, 150, 185]);
    images.setState('in-use');
    const rig = await images.attach();
    rig.target.write(148 * 512, filled(9));
    expect(codeOf(() => rig.target.flush())).toBe('none');
    expect(refused(await images.attach())).toEqual([]);
  });

  it('corrupt-P4: a group that could not be trusted is looked at again each time', async () => {
    const images = new Images({ layout });
    const good = images.copy();
    for (const brother of [0, 1] as const) images.table(1, brother).fill(0x77 + brother, 9);
    const rig = await images.attach();
    const lane = rig.openView();
    for (const view of [rig.target, lane]) {
      expect(codeOf(() => view.write(70 * 512, filled(1)))).toBe('EIO');
      expect(codeOf(() => readBytes(view, 70 * 512, 512))).toBe('EIO');
    }
    // It was the cable, not the medium.
    for (const brother of [0, 1] as const) images.table(1, brother).set(good.table(1, brother));
    rig.target.write(70 * 512, filled(1));
    expectSameBytes(readBytes(lane, 71 * 512, 512), images.content.subarray(71 * 512, 72 * 512), 'read');
    lane.write(71 * 512, filled(2));
    lane.flush();
    expect(refused(await images.attach())).toEqual([]);
  });

  it('corrupt-P5: a flipped bit in the older brother does not make it count', async () => {
    const images = await written({ layout });
    images.data(70).set(filled(2));
    images.table(1, images.older(1))[8 + 8 * 30]! ^= 1;
    expect(refused(await images.attach())).toEqual([70]);
  });

  it('corrupt-P5: what was settled is settled for every view', async () => {
    const images = await written({ layout });
    images.setState('in-use');
    const rig = await images.attach();
    const lane = rig.openView();
    readBytes(lane, 70 * 512, 512);
    rig.write('scrub', 'start');
    expect(rig.read('scrub')).toContain('state done');
    images.data(70).set(filled(2));
    expect(codeOf(() => readBytes(lane, 70 * 512, 512))).toBe('EIO');
  });

  it('corrupt-P5: lost writes of both kinds of sectors in a request', async () => {
    const images = await written({ layout });
    images.setState('in-use');
    // Half an update: the table of it has landed, of its data one sector of two.
    images.halfUpdate([100, 101], bitwiseCrc(filled(4)));
    images.setCrc(101, images.newer(1), bitwiseCrc(filled(5)));
    images.data(101).set(filled(5));
    const rig = await images.attach();
    expect(refused(rig)).toEqual([]);
    rig.target.write(100 * 512 + 5, filled(6).subarray(10));
    rig.target.flush();
    const expected = images.content.slice(100 * 512, 102 * 512);
    expected.set(filled(6).subarray(10), 5);
    expected.set(filled(5), 512);
    expectSameBytes(readBytes(rig.target, 100 * 512, 1024), expected, 'one old, one new');
    rig.target.close();
    expect(images.state).toBe('in-use');
  });

  it.each(['be', 'le'] as const)('corrupt-P6: flags, tags, unused bytes, order %s', async (order) => {
    const images = new Images({ layout, order });
    const rng = new Prng(8);
    for (const brother of [0, 1] as const) {
      const table = images.table(1, brother);
      for (let k = 0; k < 62; k++) table.set(Uint8Array.from([1, 2, 3, 4, 5, k]), 8 + 8 * k + 2);
      table.set([0xaa], 1);
      table.set(rng.bytes(4), 4);
      images.seal(table);
    }
    const rig = await images.attach();
    expect(refused(rig)).toEqual([]);
    for (const value of [1, 2, 3]) {
      rig.target.write(61 * 512, filled(value, 64));
      rig.target.flush();
    }
    expect(rig.events).toEqual([]);
    for (const brother of [0, 1] as const) {
      const table = images.table(1, brother);
      expect(images.isSound(1, brother), `order ${order}`).toBe(true);
      for (let k = 0; k < 62; k++) {
        const at = 8 + 8 * k;
        expect([...table.subarray(at + 2, at + 8)]).toEqual([1, 2, 3, 4, 5, k]);
        const value = brother === images.newer(1) ? 3 : 2;
        expect(images.crc(62 + k, brother)).toBe(bitwiseCrc(filled(value)));
      }
      expect([table[1], ...table.subarray(4, 8), ...table.subarray(504)]).toEqual(Array(13).fill(0));
    }
    const again = await images.attach();
    expect(again.descriptor.volume.order).toBe(order);
    expectSameBytes(contentOf(again.target).subarray(61 * 512, 125 * 512), filled(3, 64), 'after a start');
  });

  it.each(['be', 'le'] as const)(
    'corrupt-P6: without a superblock, order %s is found and kept',
    async (order) => {
      const images = new Images({ layout, order, superblock: false });
      const rig = await images.attach();
      expect(rig.descriptor.volume.order).toBe(order);
      rig.target.write(5 * 512, filled(1));
      rig.target.flush();
      const again = await images.attach();
      expect([again.descriptor.volume.order, refused(again)]).toEqual([order, []]);
    },
  );
});
