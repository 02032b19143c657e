/**
 * csum plugged into the power cuts of `../power-cuts.ts`; what is left must keep its promise:
 *
 *   cut-P1  It is an ordinary disk, and no sector is called corrupt: no false alarm.
 *   cut-P2  It goes on after the cut: what is written then is there after a further start.
 *   cut-P3  No missed corruption: a flipped bit of data is EIO for its sector and for no other; a flipped bit of a table is
 *           told, and no sector is refused for it.
 *
 * A run begins with what several cuts have left, one after the other, so that half-done updates lie on half-done updates.
 */
import { describe, expect, it } from 'vitest';
import type { Prng } from '../../../src/device/prng.js';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import { codeOf, contentOf, expectSameBytes, readBytes } from '../harness.js';
import { type Subject, testPowerCuts, type Workload } from '../power-cuts.js';
import { attach, attachImages, type CsumRig, formatted, type Layout, placeOf } from './rig.js';

const seen = { unsettledStarts: 0, flippedData: 0, flippedTables: 0, wentOn: 0 };

describe('cut-P1, cut-P2, cut-P3: a power cut at every operation', () => {
  it.each(['interleaved', 'separate'] as const)('%s', (layout) =>
    testPowerCuts({
      name: `csum, ${layout}`,
      cuts: 6_000,
      seen,
      make: (rng, power) => makeSubject(rng, power, layout),
    }),
  );
});

async function makeSubject(rng: Prng, power: PowerSupply, layout: Layout): Promise<Subject> {
  const sectors = 1 + rng.below(rng.pick([20, 130, 300]));
  let images = formatted(layout, rng.bytes(512 * sectors));
  for (let starts = rng.below(4); starts > 0; starts--) {
    images = await leftByCut(images, rng);
    seen.unsettledStarts++;
  }
  const disks = images.map((image) => new SimulatedDisk(image, { power }));
  return new CsumSubject(await attach(disks, someLimits(rng, sectors)), layout, rng);
}

/** A small stage is full often. */
function someLimits(rng: Prng, sectors: number) {
  if (rng.chance(0.5)) return undefined;
  return { slots: 62 + rng.below(sectors), groups: 1 + rng.below(4) };
}

/** What is on the disks when the power fails somewhere in a few random writes. */
async function leftByCut(images: readonly Uint8Array[], rng: Prng): Promise<Uint8Array[]> {
  const power = new PowerSupply();
  const disks = images.map((image) => new SimulatedDisk(image, { power }));
  const { target } = await attach(disks);
  for (let step = rng.below(8); step >= 0; step--) {
    const at = rng.below(target.size / 512);
    target.write(at * 512, rng.bytes(512 * (1 + rng.below(Math.min(70, target.size / 512 - at)))));
    if (rng.chance(0.7)) target.flush();
  }
  const cut = rng.below(power.operations + 1);
  return disks.map((disk) => disk.imageAt(cut, rng));
}

class CsumSubject implements Subject {
  readonly target;
  readonly unit;
  readonly aims;

  constructor(
    rig: CsumRig,
    private readonly layout: Layout,
    private readonly rng: Prng,
  ) {
    this.target = rig.target;
    this.unit = Math.min(this.target.size, 4096);
    const size = this.target.size;
    this.aims = {
      // So that many requests span it.
      groupEnd: () => (size > 62 * 512 ? (62 - 1 - rng.below(5)) * 512 : undefined),
      few: () => rng.below(Math.min(5, size / 512)) * 512,
    };
  }

  async check(images: readonly Uint8Array[], cut: number, { ordinary }: Workload): Promise<void> {
    const { rng } = this;
    const rig = await attachImages(images.map((image) => image.slice()));
    const content = contentOf(rig.target);
    ordinary.check(content.slice(), cut);
    expect(rig.read('errors'), 'cut-P1').toBe('count 0\n');
    if (rng.chance(0.3)) await this.flip(images, content);
    if (rng.chance(0.3)) await this.goOn(images, content);
  }

  /** cut-P2. */
  private async goOn(images: readonly Uint8Array[], content: Uint8Array): Promise<void> {
    const { rng } = this;
    seen.wentOn++;
    const left = images.map((image) => image.slice());
    const { target } = await attachImages(left);
    for (let step = rng.below(6); step >= 0; step--) {
      const at = rng.below(content.length);
      const data = rng.bytes(1 + rng.below(Math.min(5000, content.length - at)));
      target.write(at, data);
      content.set(data, at);
      if (rng.chance(0.5)) target.flush();
    }
    target.flush();
    if (rng.chance(0.5)) target.close();
    const after = await attachImages(left);
    expectSameBytes(contentOf(after.target), content, 'cut-P2');
    expect(after.read('errors'), 'cut-P2').toBe('count 0\n');
  }

  /** cut-P3. */
  private async flip(images: readonly Uint8Array[], content: Uint8Array): Promise<void> {
    const { rng, layout } = this;
    const left = images.map((image) => image.slice());
    const rel = rng.below(content.length / 512);
    const { dataAt, m1At } = placeOf(layout, rel);
    if (rng.chance(0.5)) {
      seen.flippedData++;
      left[0]![dataAt + rng.below(512)]! ^= 1 << rng.below(8);
      const { target } = await attachImages(left);
      for (let sector = 0; sector < content.length / 512; sector++) {
        const code = codeOf(() => readBytes(target, sector * 512, 512));
        expect([sector, code], 'cut-P3').toEqual([sector, sector === rel ? 'EIO' : 'none']);
      }
      return;
    }
    seen.flippedTables++;
    // Not the counter, nor the bytes that mean nothing.
    const at = m1At + 512 * rng.below(2) + rng.pick([2, 3, 8 + rng.below(504)]);
    left.at(-1)![at]! ^= 1 << rng.below(8);
    const rig = await attachImages(left);
    expectSameBytes(contentOf(rig.target), content, 'cut-P3');
    expect(rig.read('errors'), 'cut-P3').toBe(`count 1\ngroup ${Math.floor(rel / 62)}\n`);
  }
}
