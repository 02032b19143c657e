/**
 * A clone across power cuts, its metadata and its destination on disks that lose power together.
 *
 *   cut-P1  Reopened, it is an ordinary disk: what was flushed is there, each later sector is old or new, whatever was
 *           hydrated, committed in the background, or killed and begun anew meanwhile.
 *   cut-P2  The metadata is whole: no block is used twice, none is lost, and nothing else is wrong with it.
 *   cut-P3  What is read is the destination where the metadata says that a region is hydrated, the source elsewhere: never
 *           what the destination held before. Nothing is written behind the end of the clone.
 *   cut-P4  After a kill without a power cut it is an ordinary disk as well, and goes on as one.
 */
import { expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import type { Prng } from '../../../src/device/prng.js';
import { type PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import { contentOf, expectSameBytes, withHoles } from '../harness.js';
import { type Subject, testPowerCuts, type Workload } from '../power-cuts.js';
import { durableOf, GARBAGE, garbage, hydratedOf, hydratorOf, makeClone, sourceOf } from './rig.js';

const seen = {
  lostBits: 0,
  allBits: 0,
  hydratedSome: 0,
  hydratedAll: 0,
  copiedInPart: 0,
  backgroundCommits: 0,
  killsThatLost: 0,
  killsThatDidNot: 0,
};

it('cut-P1, cut-P2, cut-P3, cut-P4: a power cut at every operation', () =>
  testPowerCuts({ name: 'clone', cuts: 12_000, seen, make: makeSubject }));

/** Sectors of the destination behind the clone. */
const BEHIND = 5;

async function makeSubject(rng: Prng, power: PowerSupply): Promise<Subject> {
  const region = rng.pick([8, 8, 16, 64]);
  const sectors = 1 + rng.below(rng.pick([30, 150, 400]));
  const bytes = rng.bytes(sectors * 512);
  if (rng.chance(0.5)) bytes.fill(0, bytes.length >> 2, bytes.length >> 1);
  const source = withHoles(sourceOf(new MemoryDevice(bytes.slice())));
  // Room for one commit and a few blocks, so that blocks are used again and again.
  const metadata = new SimulatedDisk((10 + rng.below(8)) * 4096, { power });
  const destination = new SimulatedDisk(garbage(sectors + BEHIND), { power });
  const options = rng.pick([
    '',
    '',
    '1 no_discard_passdown',
    '0 4 hydration_threshold 9 hydration_batch_size 4',
  ]);
  const shape = { region, sectors, options };
  const make = () => makeClone({ metadata, destination, source }, shape);
  const { regions } = (await make()).descriptor;

  let rig = await make();
  let hydrator = hydratorOf(rig, 4096);
  const kills: { readonly at: number; readonly content: Uint8Array }[] = [];
  return {
    get target() {
      return rig.target;
    },
    unit: 4096,
    discardUnit: region * 512,
    operations: {
      hydrate(work: Workload) {
        work.begin('hydration');
        for (let steps = 1 + rng.below(4); steps > 0; steps--) hydrator.step();
      },
      hydratePart(work: Workload) {
        work.begin('hydration of a part');
        const before = hydratedOf(rig).length;
        hydrator = hydratorOf(rig, rng.pick([512, 1500, 2048]));
        const start = power.operations;
        hydrator.step();
        if (power.operations > start && hydratedOf(rig).length === before) seen.copiedInPart++;
      },
      commit(work: Workload) {
        const before = work.begin('a commit in the background');
        rig.target.close();
        if (power.operations > before) seen.backgroundCommits++;
      },
      async kill(work: Workload) {
        const at = work.begin('a kill, and a new start');
        const before = hydratedOf(rig).length;
        rig = await make();
        hydrator = hydratorOf(rig, 4096);
        if (hydratedOf(rig).length < before) seen.killsThatLost++;
        else seen.killsThatDidNot++;
        const content = contentOf(rig.target);
        kills.push({ at, content });
        // From now on it is what it reads as.
        work.ordinary.write(power.operations, 0, content);
      },
    },
    async check(images, cut, { ordinary }) {
      const image = { metadata: new MemoryDevice(images[0]!), destination: new MemoryDevice(images[1]!) };
      for (; kills.length > 0 && kills[0]!.at <= cut; kills.shift()) {
        const { at, content } = kills[0]!;
        ordinary.check(content.slice(), at);
      }
      const durable = durableOf(image.metadata, regions);
      const naive = bytes.slice();
      for (const each of durable) {
        const from = each * region * 512;
        naive.set(images[1]!.subarray(from, Math.min(from + region * 512, naive.length)), from);
      }
      const { target } = await makeClone({ ...image, source }, shape);
      expectSameBytes(contentOf(target), naive, 'cut-P3: the metadata says where each region is');
      const behind = images[1]!.subarray(sectors * 512);
      expect(
        behind.every((byte) => byte === GARBAGE),
        'cut-P3: behind the clone',
      ).toBe(true);
      if (durable.length === hydratedOf(rig).length) seen.allBits++;
      else seen.lostBits++;
      if (durable.length === regions) seen.hydratedAll++;
      else if (durable.length > 0) seen.hydratedSome++;
      ordinary.check(naive, cut);
    },
  };
}
