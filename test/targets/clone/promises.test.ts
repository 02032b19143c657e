/**
 * The battery, with its disk as the destination: nothing, a part, and all of it hydrated. As the source it is only read and
 * as the metadata a failure is for good, which is not what the battery knows: faults.test.ts has those.
 */
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { clone } from '../../../src/targets/clone/index.js';
import { testPromises } from '../battery.js';
import { makeRig, withHoles } from '../harness.js';
import { argsOf, type CloneRig, hydratorOf, memoryFor, sourceOf, stepsOf } from './rig.js';

const nothing = () => {};
const some = (rig: CloneRig, rng: Prng) => {
  const hydrator = hydratorOf(rig, 4096);
  for (let steps = rng.below(20); steps > 0; steps--) hydrator.step();
  rig.target.write(rig.target.size >> 1, rng.bytes(5000));
};
const all = (rig: CloneRig) => void stepsOf(hydratorOf(rig));

const subjects = [
  { name: 'nothing hydrated', region: 8, sectors: 300, prepare: nothing },
  { name: 'half of it hydrated, regions of 4 KiB, a short one last', region: 8, sectors: 301, prepare: some },
  { name: 'regions of 64 KiB, a short one last', region: 128, sectors: 517, prepare: nothing },
  { name: 'half of it hydrated, regions of 64 KiB', region: 128, sectors: 512, prepare: some },
  { name: 'one region, larger than the clone', region: 2048, sectors: 333, prepare: nothing },
  { name: 'all hydrated', region: 8, sectors: 299, prepare: all },
  { name: 'no passdown', region: 16, sectors: 401, prepare: some, options: '1 no_discard_passdown' },
];

for (const { name, sectors, prepare, ...shape } of subjects) {
  testPromises(
    {
      name: `clone, ${name}`,
      type: clone,
      args: (disk) => argsOf(shape).replace('destination', disk),
      length: sectors,
      bytes: (sectors + 3) * 512,
      devices: () => {
        const { metadata, source } = memoryFor(sectors, new Prng(5));
        return { metadata: metadata!, source: withHoles(sourceOf(source!)) };
      },
      prepare,
      atRest: ({ target, descriptor }) => {
        if (new Int32Array(descriptor.busy).some((word) => word !== 0))
          throw new Error('a region is still locked');
        target.state.lock.lockExclusive();
        target.state.lock.unlockExclusive();
      },
    },
    { 'a clone target': overClone },
  );
}

/** A clone as a medium. */
async function overClone(content: Uint8Array) {
  const sectors = content.length / 512;
  const devices = { ...memoryFor(sectors, new Prng(5)), source: new MemoryDevice(content) };
  const { target } = await makeRig(clone, argsOf({ region: 16 }), devices, { length: sectors });
  return target;
}
