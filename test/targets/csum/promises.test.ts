/** The battery over csum: with tables among the data, with either device as the medium that fails, and with a short LENGTH. */
import { expect } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { csum } from '../../../src/targets/csum/index.js';
import { testPromises } from '../battery.js';
import { type CsumRig, formatted } from './rig.js';

const bytes = 190 * 512;

/** No lock is held between two requests: a thread that asked for it would wait for ever. */
function atRest({ target }: CsumRig): void {
  const { state } = target;
  const locks = [state.gate, ...[0, 1, 2, 3].map((group) => state.lockOf(group))];
  const held = locks.map((lock) => (lock as unknown as { words: Int32Array }).words[0]);
  expect(held, 'a lock is held').toEqual(held.map(() => 0));
}

testPromises({
  name: 'csum, interleaved',
  type: csum,
  atRest,
  args: (device) => `${device} 0`,
  bytes,
  content: (random) => formatted('interleaved', random)[0]!,
});

testPromises({
  name: 'csum, interleaved, LENGTH short of the volume',
  type: csum,
  atRest,
  args: (device) => `${device} 0`,
  length: 130,
  bytes,
  content: (random) => formatted('interleaved', random)[0]!,
});

let other: Uint8Array = new Uint8Array(0);

testPromises({
  name: 'csum, separate, the data device',
  type: csum,
  atRest,
  args: (device) => `${device} 0 other 0`,
  bytes,
  content: (random) => {
    const [data, imd] = formatted('separate', random);
    other = imd!;
    return data!;
  },
  devices: () => ({ other: new MemoryDevice(other) }),
});

testPromises({
  name: 'csum, separate, the imd device',
  type: csum,
  atRest,
  args: (device) => `other 0 ${device} 0`,
  bytes,
  content: (random) => {
    const [data, imd] = formatted('separate', random);
    other = data!;
    return imd!;
  },
  devices: () => ({ other: new MemoryDevice(other) }),
});
