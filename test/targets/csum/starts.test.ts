/**
 * The power fails while a volume is started, or closed.
 *
 *   start-P1  It can be started again, and holds what it held; nothing is called corrupt. Also a volume of the reference,
 *             whose reserved sectors hold anything.
 *   start-P2  A daemon that was killed leaves in the cache what no flush has covered. The next one builds on it, and a power
 *             cut at any instant after that leaves nothing corrupt.
 */
import { describe, expect, it } from 'vitest';
import { Prng } from '../../../src/device/prng.js';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import { codeOf, contentOf, expectSameBytes, FaultyDisk } from '../harness.js';
import { Images, LAYOUTS } from './images.js';
import { attach, attachImages } from './rig.js';

const KINDS = ['clean', 'in-use', 'reference', 'reference with garbage'] as const;

describe.each(LAYOUTS)('start-P1: %s', (layout) => {
  it.each(KINDS)('%s', async (kind) => {
    const rng = new Prng(1);
    const images = new Images({ layout, superblock: !kind.startsWith('reference') });
    if (kind === 'in-use') images.setState('in-use');
    if (kind.endsWith('garbage')) for (const image of images.bytes) image.set(rng.bytes(512));
    const power = new PowerSupply();
    const disks = images.bytes.map((image) => new SimulatedDisk(image, { power }));
    const { target } = await attach(disks);
    target.close();
    for (let cut = 0; cut <= power.operations; cut++) {
      for (let image = 0; image < 12; image++) {
        const left = disks.map((disk) => disk.imageAt(cut, rng.pick(['none', 'all', rng] as const)));
        const rig = await attachImages(left).catch((error) => {
          throw new Error(`cut ${cut} of ${power.operations}: ${error}`);
        });
        expectSameBytes(contentOf(rig.target), images.content, `cut ${cut}`);
        expect(rig.read('errors')).toBe('count 0\n');
      }
    }
  });
});

describe.each(LAYOUTS)('start-P2: %s', (layout) => {
  it('killed in any operation of a commit', async () => {
    const rng = new Prng(2);
    for (let at = 1; ; at++) {
      const images = new Images({ layout });
      images.halfUpdate([70, 71]);
      images.setState('in-use');
      const power = new PowerSupply();
      const disks = images.bytes.map((image) => new SimulatedDisk(image, { power }));
      const faulty = disks.map((disk) => new FaultyDisk(disk));
      const first = (await attach(faulty)).target;
      const sector = (value: number) => new Uint8Array(512).fill(value);
      for (const rel of [5, 70, 100]) first.write(rel * 512, sector(1));
      for (const disk of faulty) disk.fail({ at, landed: true, lasting: true });
      const code = codeOf(() => first.flush());
      if (code === 'none') break;
      for (const disk of faulty) disk.repair();
      // From here on the first one is gone.
      const start = power.operations;
      const { target } = await attach(disks);
      const versions = (rel: number) => {
        const old = images.content.slice(rel * 512, rel * 512 + 512);
        return [old, sector(1), sector(2)];
      };
      for (const rel of [5, 6, 71]) {
        target.write(rel * 512, sector(2));
        target.flush();
      }
      for (let cut = start; cut <= power.operations; cut++) {
        for (let image = 0; image < 4; image++) {
          const left = disks.map((disk) => disk.imageAt(cut, rng.pick(['none', 'all', rng, rng] as const)));
          const rig = await attachImages(left);
          const found = contentOf(rig.target);
          for (let rel = 0; rel < images.sectors; rel++) {
            const bytes = Buffer.from(found.subarray(rel * 512, rel * 512 + 512));
            if (!versions(rel).some((version) => bytes.equals(version)))
              expect.fail(`sector ${rel}, cut ${cut}`);
          }
          expect(rig.read('errors')).toBe('count 0\n');
        }
      }
      expect(contentOf(target)[6 * 512]).toBe(2);
    }
  });
});
