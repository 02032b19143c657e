/**
 * Requests against a model: an array of bytes.
 *
 *   model-P1  Any requests through any views read as the last write did, whether it is staged, held by a commit that failed,
 *             or on the medium; the stage is tiny, so that it is full all the time.
 *   model-P2  What a flush has covered is on the medium by the document's words: data in place, the newer table right about
 *             all of it, both with right CRCs and in order.
 *   model-P3  Closed in good order it is clean and trusted so; a further start finds all of it.
 *   model-P4  LENGTH: the device ends there, the volume keeps its size.
 */
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk } from '../../../src/device/simulated.js';
import { csum } from '../../../src/targets/csum/index.js';
import {
  codeOf,
  contentOf,
  expectSameBytes,
  FaultyDisk,
  makeRig,
  readBytes,
  seeds,
  underSeed,
} from '../harness.js';
import { Images, LAYOUTS } from './images.js';
import { bitwiseCrc } from './naive-volume.js';
import { attach, attachImages, type CsumRig, type Layout } from './rig.js';

describe.each(LAYOUTS)('%s', (layout) => {
  it('model-P1, model-P2, model-P3: random requests through several views', async () => {
    for (const seed of seeds((done) => done >= 40)) {
      await underSeed(seed, () => randomRequests(layout, seed));
    }
  });

  it('model-P1: every alignment of a short request at a group border', async () => {
    const images = new Images({ layout });
    const { target } = await images.attach();
    const model = images.content.slice();
    const rng = new Prng(2);
    for (const border of [62 * 512, 124 * 512]) {
      for (const start of [-1024, -513, -512, -511, -1, 0, 1, 511, 512, 513]) {
        for (const length of [0, 1, 2, 511, 512, 513, 1023, 1024, 1025, 2049]) {
          const at = border + start;
          const data = rng.bytes(length);
          const zeros = rng.chance(0.3);
          if (zeros) target.writeZeroes(at, length);
          else target.write(at, data);
          if (zeros) model.fill(0, at, at + length);
          else model.set(data, at);
          if (rng.chance(0.2)) target.flush();
          const from = border - 2048;
          // Into a buffer that begins at any byte.
          const skew = rng.below(5);
          const found = new Uint8Array(5000 + skew).subarray(skew);
          target.read(from, found);
          expectSameBytes(found, model.subarray(from, from + 5000), `${length} at ${start}`);
        }
      }
    }
    target.flush();
    expectOnMedium(images, model);
  });

  it('model-P1: over what is staged, what a failed commit holds, and what is committed', async () => {
    const images = new Images({ layout });
    const disks = images.bytes.map((image) => new FaultyDisk(new SimulatedDisk(image)));
    const { target } = await attach(disks);
    const model = images.content.slice();
    const rng = new Prng(3);
    const write = (rel: number, sectors: number, zeros: boolean) => {
      const data = zeros ? new Uint8Array(512 * sectors) : rng.bytes(512 * sectors);
      if (zeros) target.writeZeroes(rel * 512, data.length);
      else target.write(rel * 512, data);
      model.set(data, rel * 512);
      expectSameBytes(contentOf(target), model, `${rel}+${sectors}`);
    };
    for (let round = 0; round < 12; round++) {
      for (let i = 0; i < 6; i++) write(58 + rng.below(8), 1 + rng.below(4), rng.chance(0.3));
      for (const disk of disks) disk.fail({ at: 1 + (round % 5), landed: round % 2 === 0, lasting: true });
      expect(codeOf(() => target.flush())).toBe('EIO');
      for (const disk of disks) disk.repair();
      for (let i = 0; i < 6; i++) write(58 + rng.below(8), 1 + rng.below(4), rng.chance(0.3));
      target.write(60 * 512 + 9, Uint8Array.of(1, 2, 3));
      model.set([1, 2, 3], 60 * 512 + 9);
      expectSameBytes(contentOf(target), model, 'a part of what a commit holds');
      target.flush();
      expectSameBytes(contentOf(target), model, 'committed');
      expect(target.statusArgs()).toBe('errors:0 pending:0');
    }
    const again = await attachImages(disks.map((disk) => disk.disk.crashImage('none')));
    expectSameBytes(contentOf(again.target), model, 'flushed');
  });

  it('model-P1: a trim over everything takes no room', async () => {
    const images = new Images({ layout });
    const { target } = await images.attach({ groups: 2, slots: 62 });
    target.discard(0, target.size);
    expect(target.statusArgs()).toBe('errors:0 pending:0');
    target.discard(511, 62 * 512);
    target.flush();
    const zeros = new Uint8Array(target.size);
    expectSameBytes(contentOf(target), zeros, 'trimmed');
    expectOnMedium(images, zeros);
  });

  it.each([1, 61, 62, 63, 125])('model-P4: LENGTH %i of 150', async (length) => {
    const images = new Images({ layout });
    const start = () => withLength(images, length);
    const { target } = await start();
    expect(target.size).toBe(length * 512);
    const model = images.content.slice();
    model.fill(7, 0, length * 512);
    target.write(0, model.subarray(0, length * 512));
    target.flush();
    target.close();
    expect(images.state).toBe('clean');
    expectSameBytes(contentOf((await start()).target), model.subarray(0, length * 512), 'again');
    const whole = await images.attach();
    expectSameBytes(contentOf(whole.target), model, 'the whole volume');
    await expect(withLength(images, 151)).rejects.toThrow('the volume has 150 sectors, the table wants 151');
  });
});

function withLength(images: Images, length: number): Promise<CsumRig> {
  const [data, imd] = images.bytes.map((image) => new MemoryDevice(image));
  const devices = imd === undefined ? { data: data! } : { data: data!, imd };
  return makeRig(csum, imd === undefined ? 'data 0' : 'data 0 imd 0', devices, { length });
}

/** model-P2. */
function expectOnMedium(images: Images, model: Uint8Array): void {
  for (let rel = 0; rel < images.sectors; rel++) {
    expectSameBytes(images.data(rel), model.subarray(rel * 512, rel * 512 + 512), `model-P2: data ${rel}`);
  }
  for (let group = 0; group * 62 < images.sectors; group++) {
    const ahead = (images.table(group, 0)[0]! - images.table(group, 1)[0]!) & 255;
    expect([1, 255], `model-P2: group ${group}`).toContain(ahead);
    expect([images.isSound(group, 0), images.isSound(group, 1)], 'model-P2').toEqual([true, true]);
  }
  for (let rel = 0; rel < images.sectors; rel++) {
    const crc = images.crc(rel, images.newer(Math.floor(rel / 62)));
    if (crc !== bitwiseCrc(images.data(rel))) expect.fail(`model-P2: the table of sector ${rel}`);
  }
}

async function randomRequests(layout: Layout, seed: number): Promise<void> {
  const rng = new Prng(seed);
  const images = new Images({ layout, sectors: rng.pick([1, 61, 62, 63, 150, 150]) });
  if (rng.chance(0.3)) images.setState('in-use');
  const limits = { groups: 1 + rng.below(3), slots: Math.min(images.sectors, 62) + rng.below(40) };
  const model = images.content.slice();
  for (let starts = 0; starts < 2; starts++) {
    const rig = await images.attach(limits);
    const views = [rig.target, rig.openView(), rig.openView()];
    const { size } = rig.target;
    for (let step = 0; step < 60; step++) {
      const target: BlockDevice = rng.pick(views);
      const unit = rng.pick([1, 512]);
      const offset = rng.below(size / unit) * unit;
      const most = Math.min(size - offset, rng.pick([600, 5000, 50_000]));
      const length = Math.max(1, Math.floor(rng.below(most + 1) / unit)) * unit;
      const kind = rng.below(10);
      const data = kind < 6 ? rng.bytes(length) : new Uint8Array(length);
      if (kind < 6) target.write(offset, data);
      else if (kind === 6) target.writeZeroes(offset, length, { unmap: rng.chance(0.5) });
      else if (kind === 7) target.discard(offset, length);
      else if (kind === 8) target.flush();
      if (kind < 8) model.set(data, offset);
      const reader = rng.pick(views);
      const around = readBytes(reader, offset, length);
      expectSameBytes(around, model.subarray(offset, offset + length), `step ${step}, kind ${kind}`);
      if (step % 10 === 0) expectSameBytes(contentOf(reader), model, `step ${step}`);
    }
    rng.pick(views).flush();
    expectOnMedium(images, model);
    expect(rig.events).toEqual([]);
    const wasClean = rig.descriptor.wasClean;
    if (!wasClean) rig.write('scrub', 'start');
    rig.target.close();
    expect(images.state, 'model-P3').toBe('clean');
  }
  const again = await images.attach();
  expect(again.descriptor.wasClean).toBe(true);
  expectSameBytes(contentOf(again.target), model, 'model-P3');
}
