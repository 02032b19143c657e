import { MemoryDevice } from '../../../src/device/memory.js';
import type { Prng } from '../../../src/device/prng.js';
import { bow } from '../../../src/targets/bow/index.js';
import { linear } from '../../../src/targets/linear/index.js';
import { testPromises } from '../battery.js';
import { makeRig } from '../harness.js';
import { type BowRig, expectAtRest, makeBow, trimAtRandom } from './rig.js';

const SHAPES = [
  { blockSize: 512, bytes: 300 * 512 },
  { blockSize: 1024, bytes: 150 * 1024 + 512 },
  { blockSize: 4096, bytes: 60 * 4096 + 1536 },
];

/** The start of a bow target that is itself in state 1 and has room for two backups of it all. */
async function overCheckpoint(content: Uint8Array) {
  const bytes = new Uint8Array(content.length * 4);
  bytes.set(content);
  const rig = await makeBow(new MemoryDevice(bytes), 1024);
  rig.target.discard(content.length, content.length * 3);
  rig.write('state', '1');
  const length = content.length / 512;
  return (await makeRig(linear, '@checkpoint 0', { '@checkpoint': rig.target }, { length })).target;
}

for (const { blockSize, bytes } of SHAPES) {
  const hasTail = bytes % blockSize > 0;
  const prepare = (state: number) => (rig: BowRig, rng: Prng) => {
    if (state > 0) trimAtRandom(rig, blockSize, 0.6, rng);
    for (let next = 1; next <= state; next++) rig.write('state', `${next}`);
  };
  for (const state of [0, 1, 2]) {
    testPromises(
      {
        name: `bow, block ${blockSize}, state ${state}`,
        type: bow,
        args: (device) => `${device} 1 block_size:${blockSize}`,
        bytes,
        prepare: prepare(state),
        // A short tail can be read only.
        refusals: state !== 1 ? [] : hasTail ? ['ENOSPC', 'EIO'] : ['ENOSPC'],
        atRest: expectAtRest,
      },
      { 'a bow target in state 1': overCheckpoint },
    );
  }
}
