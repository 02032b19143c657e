/** The battery over csum: with tables among the data, with either device as the medium that fails, and with a short LENGTH. */
import { MemoryDevice } from '../../../src/device/memory.js';
import { csum } from '../../../src/targets/csum/index.js';
import { testPromises } from '../battery.js';
import { formatted } from './rig.js';

const bytes = 190 * 512;

testPromises({
  name: 'csum, interleaved',
  type: csum,
  args: (device) => `${device} 0`,
  bytes,
  content: (random) => formatted('interleaved', random)[0]!,
});

testPromises({
  name: 'csum, interleaved, LENGTH short of the volume',
  type: csum,
  args: (device) => `${device} 0`,
  length: 130,
  bytes,
  content: (random) => formatted('interleaved', random)[0]!,
});

let other: Uint8Array = new Uint8Array(0);

testPromises({
  name: 'csum, separate, the data device',
  type: csum,
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
  args: (device) => `other 0 ${device} 0`,
  bytes,
  content: (random) => {
    const [data, imd] = formatted('separate', random);
    other = data!;
    return imd!;
  },
  devices: () => ({ other: new MemoryDevice(other) }),
});
