/**
 * Images that nobody formatted: 10,000 of them, and devices whose size does not fit what they say.
 *
 *   hostile-P1  Whatever the devices hold, `create` and every request after it ends well or with a DmError, and touches
 *               nothing outside the devices (one that is asked to is found out here, also where the target catches it).
 *   hostile-P2  A create that refuses has changed nothing.
 *   hostile-P3  A volume too large for this dmfuse's shared memory is refused, in words.
 */

import crc32 from 'crc-32';
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { DmError } from '../../../src/errors.js';
import { encodeSuperblock } from '../../../src/formats/csum.js';
import { csum } from '../../../src/targets/csum/index.js';
import { codeOf, expectSameBytes, Guarded, makeRig, underSeed } from '../harness.js';
import { Images } from './images.js';
import type { CsumRig } from './rig.js';

const outcomes = { refused: 0, read: 0, wrote: 0, flushed: 0, failedRead: 0, failedWrite: 0 };

/** hostile-P1, hostile-P2. */
async function live(images: readonly Uint8Array[], args: string, rng: Prng, length?: number): Promise<void> {
  const before = images.map((image) => image.slice());
  const devices = images.map((image) => new Guarded(new MemoryDevice(image)));
  const byName = Object.fromEntries(devices.map((device, index) => [['data', 'imd'][index]!, device]));
  let rig: CsumRig;
  try {
    rig = await makeRig(csum, args, byName, length === undefined ? {} : { length });
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    outcomes.refused++;
    for (const [index, image] of images.entries()) expectSameBytes(image, before[index]!, 'hostile-P2');
    return;
  }
  const { target } = rig;
  const sectors = target.size / 512;
  for (let step = 0; step < 6; step++) {
    const rel = rng.below(sectors);
    const count = 1 + rng.below(Math.min(sectors - rel, rng.pick([1, 4, 70])));
    const bytes = rng.bytes(512 * count).subarray(rng.below(2) * rng.below(500));
    const kind = rng.below(5);
    const code = codeOf(() => {
      if (kind < 2) target.write(rel * 512, bytes);
      else if (kind === 2) target.writeZeroes(rel * 512, bytes.length);
      else if (kind === 3) target.read(rel * 512, bytes);
      else target.flush();
    });
    if (kind === 3) outcomes[code === 'none' ? 'read' : 'failedRead']++;
    else if (kind < 3) outcomes[code === 'none' ? 'wrote' : 'failedWrite']++;
  }
  rig.write('scrub', 'start');
  rig.write('scrub', 'stop');
  rig.read('errors');
  if (codeOf(() => target.flush()) === 'none') outcomes.flushed++;
  target.statusArgs();
  target.close();
  for (const device of devices) if (device.outside !== undefined) throw device.outside;
}

/** What is done to a sound volume. */
function spoil(images: Images, rng: Prng): Uint8Array[] {
  const bytes = images.bytes;
  const reserved = bytes[rng.below(bytes.length)]!.subarray(0, 512);
  const reseal = () => {
    if (rng.chance(0.9)) {
      new DataView(reserved.buffer, reserved.byteOffset).setInt32(
        508,
        crc32.buf(reserved.subarray(0, 508)),
        true,
      );
    }
  };
  switch (rng.below(8)) {
    case 0:
      for (const image of bytes) image.set(rng.bytes(image.length));
      break;
    case 1:
      reserved[rng.below(508)] = rng.below(256);
      reseal();
      break;
    case 2:
      new DataView(reserved.buffer, reserved.byteOffset).setBigUint64(
        rng.pick([16, 24]),
        rng.pick([0n, 1n, 61n, 63n, 2n ** 31n, 2n ** 43n, 2n ** 53n, 2n ** 63n, BigInt(rng.below(300))]),
        true,
      );
      reseal();
      break;
    case 3:
      for (let times = rng.below(40); times >= 0; times--) {
        const group = rng.below(Math.ceil(images.sectors / 62));
        images.table(group, rng.below(2) as 0 | 1)[rng.below(512)] = rng.below(256);
      }
      break;
    case 4:
      for (let group = 0; group < Math.ceil(images.sectors / 62); group++) {
        for (const brother of [0, 1] as const) {
          if (rng.chance(0.3)) images.table(group, brother).set(rng.bytes(512));
          if (rng.chance(0.3)) images.table(group, brother).fill(0);
          if (rng.chance(0.3)) images.seal(images.table(group, brother));
        }
      }
      break;
    case 5: {
      const cut = bytes[rng.below(bytes.length)]!;
      return bytes.map((image) => (image === cut ? image.slice(0, rng.below(image.length + 1)) : image));
    }
    case 6:
      return rng.chance(0.5) ? bytes.reverse() : bytes.slice(0, 1);
    default:
      for (let times = rng.below(200); times >= 0; times--) {
        const image = rng.pick(bytes);
        image[rng.below(image.length)] = rng.below(256);
      }
  }
  return bytes;
}

describe('hostile-P1, hostile-P2', () => {
  it('8,000 spoiled volumes', async () => {
    for (let seed = 1; seed <= 8000; seed++) {
      await underSeed(seed, async () => {
        const rng = new Prng(seed);
        const images = new Images({
          layout: rng.pick(['interleaved', 'separate']),
          sectors: rng.pick([1, 3, 62, 63, 130]),
          superblock: rng.chance(0.8),
          order: rng.pick(['be', 'le']),
        });
        if (rng.chance(0.3)) images.halfUpdate([0], rng.below(65536));
        const left = spoil(images, rng);
        const offset = rng.chance(0.1) ? rng.pick([1, 5, 300, 2 ** 40]) : 0;
        const args = left.length === 1 ? `data ${offset}` : `data ${offset} imd ${rng.chance(0.05) ? 1 : 0}`;
        await live(left, args, rng, rng.chance(0.1) ? 1 + rng.below(200) : undefined);
      });
    }
    for (const [outcome, times] of Object.entries(outcomes)) expect(times, outcome).toBeGreaterThan(100);
  });

  it('every byte of a superblock, with its checksum and without', async () => {
    for (const layout of ['interleaved', 'separate'] as const) {
      for (let at = 0; at < 512; at++) {
        for (const sealed of [true, false]) {
          const images = new Images({ layout, sectors: 3 });
          const rng = new Prng(at);
          const reserved = images.bytes[0]!.subarray(0, 512);
          reserved[at]! ^= 1 + rng.below(255);
          if (sealed) {
            new DataView(reserved.buffer, reserved.byteOffset).setInt32(
              508,
              crc32.buf(reserved.subarray(0, 508)),
              true,
            );
          }
          await underSeed(at, () =>
            live(images.bytes, layout === 'separate' ? 'data 0 imd 0' : 'data 0', rng),
          );
        }
      }
    }
  });

  it('random bytes of any size', async () => {
    for (let seed = 1; seed <= 1000; seed++) {
      await underSeed(seed, () => {
        const rng = new Prng(seed);
        const sizes = Array.from({ length: 1 + rng.below(2) }, () =>
          rng.below(rng.pick([10, 600, 5000, 40_000])),
        );
        const fill = (size: number) => (rng.chance(0.5) ? rng.bytes(size) : new Uint8Array(size));
        return live(sizes.map(fill), sizes.length === 1 ? 'data 0' : 'data 0 imd 0', rng);
      });
    }
  });
});

/** A device of any size that is empty but for its first sector. */
function hugeDevice(size: number, first: Uint8Array): BlockDevice {
  return {
    size,
    read(offset, into) {
      into.fill(0);
      if (offset < 512) into.set(first.subarray(offset, offset + into.length));
    },
    write() {},
    flush() {},
    discard() {},
    writeZeroes() {},
  };
}

describe('hostile-P3', () => {
  const start = (sectors: number) => {
    const first = encodeSuperblock('data', {
      order: 'be',
      placement: 'interleaved',
      state: 'clean',
      sectors,
      groupsFormatted: 0,
      id: new Uint8Array(16),
    });
    return makeRig(csum, 'data 0', { data: hugeDevice((sectors + 2) * 600, first) });
  };

  it.each([2 ** 36, 62 * 2 ** 31, 2 ** 42])('%i sectors', async (sectors) => {
    try {
      const rig = await start(sectors);
      // The last group is as good as any: it reads as it was never formatted.
      expect(codeOf(() => rig.target.read(rig.target.size - 512, new Uint8Array(512)))).toBe('EIO');
      expect(rig.read('errors')).toBe(`count 1\ngroup ${Math.ceil(sectors / 62) - 1}\n`);
      expect(sectors).toBeLessThan(62 * 2 ** 31);
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      expect([error.code, error.message]).toEqual(['EINVAL', expect.stringContaining('too large')]);
      expect(sectors).toBeGreaterThanOrEqual(62 * 2 ** 31);
    }
  });
});
