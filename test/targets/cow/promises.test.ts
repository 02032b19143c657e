/** The battery, with its disk in every place where a stack writes: the base alone, and the data of the top layer. */
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { cow } from '../../../src/targets/cow/index.js';
import { linear } from '../../../src/targets/linear/index.js';
import { testPromises } from '../battery.js';
import { makeRig } from '../harness.js';
import { bitmapSize, type CowRig, fillLayers, fragments, makeCow, memoryFor, offsetOf } from './rig.js';

const SECTORS = 300;

/** The start of the top of a stack as a medium. */
async function overStack(content: Uint8Array) {
  const length = content.length / 512;
  const { target } = await makeCow(1, length + 9, memoryFor(1, length + 9, new Prng(length)));
  target.write(0, content);
  return (await makeRig(linear, '@stack 0', { '@stack': target }, { length })).target;
}

const media = { 'a cow target': overStack };

testPromises({ name: 'cow, no layer', type: cow, args: (disk) => `${disk} 3`, bytes: SECTORS * 512 }, media);

// Layers below the top, made once: they are only read.
const lower = memoryFor(2, SECTORS, new Prng(1));
await fillLayers(2, SECTORS, lower, ({ target }, layer) =>
  fragments(SECTORS, new Prng(layer), (at, count) =>
    target.write(at * 512, new Uint8Array(count * 512).fill(layer)),
  ),
);
const words = (count: number) =>
  Array.from({ length: count }, (_, index) => `bm${index + 1} data${index + 1} ${offsetOf(index + 1)}`).join(
    ' ',
  );

for (const layers of [1, 3]) {
  testPromises(
    {
      name: `cow, the top of ${layers}`,
      type: cow,
      args: (disk) => `base ${offsetOf(0)} ${words(layers - 1)} top ${disk} 7`,
      length: SECTORS - 9,
      bytes: SECTORS * 512,
      devices: () => ({ ...lower, top: new MemoryDevice(bitmapSize(SECTORS)) }),
      prepare: ({ target }: CowRig, rng) =>
        fragments(SECTORS - 9, rng, (at, count) => target.write(at * 512, rng.bytes(count * 512))),
    },
    media,
  );
}
