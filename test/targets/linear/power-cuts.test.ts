/** linear keeps nothing: across a power cut it is an ordinary disk, and its backing is untouched outside the range. */
import { it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { SimulatedDisk } from '../../../src/device/simulated.js';
import { linear } from '../../../src/targets/linear/index.js';
import { contentOf, expectSameBytes, makeRig } from '../harness.js';
import { testPowerCuts } from '../power-cuts.js';

const OFFSET = 7;
const LENGTH = 100;

it('an ordinary disk across a power cut', () =>
  testPowerCuts({
    name: 'linear',
    cuts: 2000,
    async make(rng, power) {
      const content = rng.bytes((OFFSET + LENGTH + 9) * 512);
      const open = async (disk: SimulatedDisk | MemoryDevice) =>
        (await makeRig(linear, `disk ${OFFSET}`, { disk }, { length: LENGTH })).target;
      return {
        target: await open(new SimulatedDisk(content, { power })),
        unit: 4096,
        async check([image], cut, { ordinary }) {
          ordinary.check(contentOf(await open(new MemoryDevice(image!))), cut);
          for (const [from, to] of [
            [0, OFFSET],
            [OFFSET + LENGTH, undefined],
          ] as const) {
            const outside = (bytes: Uint8Array) => bytes.subarray(from * 512, to && to * 512);
            expectSameBytes(outside(image!), outside(content), 'outside the range');
          }
        },
      };
    },
  }));
