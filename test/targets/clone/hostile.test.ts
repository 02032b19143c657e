/**
 * Metadata that nobody wrote: sound images with every byte changed, and with random fields.
 *
 *   hostile-P1  Whatever the metadata holds, `create` and every request after it ends well or with a DmError, and touches
 *               nothing outside the device.
 *   hostile-P2  A create that refuses has written nothing.
 *   hostile-P3  One that does not refuse writes over no block that the metadata names, and what was flushed is there after
 *               a new create.
 *   hostile-P4  A check ends, too, and finds nothing where the strict reader of naive-metadata.ts finds nothing.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Prng } from '../../../src/device/prng.js';
import { DmError } from '../../../src/errors.js';
import { sealBlock } from '../../../src/formats/persistent-data.js';
import { readImage } from '../../../src/targets/clone/image.js';
import { clone } from '../../../src/targets/clone/index.js';
import { get32, get64, type NaiveKind, put32, put64 } from '../../formats/naive-clone.js';
import { codeOf, expectSameBytes, Guarded, makeRig, readBytes, underSeed } from '../harness.js';
import { type Built, build, PER_ARRAY, readStrictly, SparseDevice } from './naive-metadata.js';

// Most images are refused with an error, and where those come from nobody looks at.
const { stackTraceLimit } = Error;
beforeAll(() => {
  Error.stackTraceLimit = 0;
});
afterAll(() => {
  Error.stackTraceLimit = stackTraceLimit;
});

const REGION = 8 * 512;
const outcomes = { refused: 0, lived: 0, sound: 0, flawed: 0 };

/** The live blocks of an image that was taken, by what they name. */
function liveBlocks(device: SparseDevice): Set<number> {
  const live = new Set<number>();
  const get = (block: number) => {
    live.add(block);
    return readBytes(device, block * 4096, 4096);
  };
  const superblock = get(0);
  const index = get(get64(superblock, 60));
  for (let i = 0; i * 16_320 < get64(superblock, 44); i++) live.add(get64(index, 16 + 16 * i));
  const walk = (block: number, hasArrays: boolean) => {
    const node = get(block);
    const isLeaf = get32(node, 4) === 2;
    for (let i = 0; i < get32(node, 16); i++) {
      if (!isLeaf) walk(get64(node, 2048 + 8 * i), hasArrays);
      else if (hasArrays) live.add(get64(node, 2048 + 8 * i));
    }
  };
  walk(get64(superblock, 68), false);
  walk(get64(superblock, 188), true);
  return live;
}

/** hostile-P4. */
function check(device: Guarded<SparseDevice>): void {
  const flaws: string[] = [];
  const code = codeOf(() =>
    readImage(device, ({ block, message }) => {
      if (!Number.isSafeInteger(block) || block < 0) expect.fail(`hostile-P4: block ${block}`);
      flaws.push(message);
    }),
  );
  outcomes[flaws.length === 0 && code === 'none' ? 'sound' : 'flawed']++;
  if (flaws.length === 0) return;
  // Something is wrong, so the strict reader finds it, too.
  let isSound = true;
  try {
    readStrictly(device.device);
  } catch {
    isSound = false;
  }
  if (isSound) expect.fail(`hostile-P4: ${flaws[0]}`);
}

/** hostile-P1 to P3. */
async function live(device: Guarded<SparseDevice>, length: number | undefined, rng: Prng): Promise<void> {
  const sectors = length ?? 8 * 3 * PER_ARRAY;
  const [dest, source] = [new SparseDevice(sectors * 512), new SparseDevice(sectors * 512)];
  const open = () =>
    makeRig(
      clone,
      'meta dest source 8 1 no_hydration',
      { dest, source, meta: device },
      length === undefined ? {} : { length },
    );
  let rig: Awaited<ReturnType<typeof open>>;
  try {
    rig = await open();
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    outcomes.refused++;
    if (device.device.log.length > 0) expect.fail('hostile-P2');
    return;
  }
  const named = [...liveBlocks(device.device)].filter((block) => block > 0);
  const before = new Map(named.map((block) => [block, readBytes(device, block * 4096, 4096)]));
  const { target } = rig;
  const regions = Math.floor(target.size / REGION);
  const written: number[] = [];
  for (let i = 0; i < 3; i++) {
    const region = rng.below(regions);
    target.write(region * REGION, new Uint8Array(REGION).fill(1 + region));
    written.push(region);
  }
  target.read(0, new Uint8Array(Math.min(target.size, 3 * REGION)));
  target.statusArgs();
  const code = codeOf(() => target.flush());
  for (const [block, bytes] of before) {
    // Whatever else happens: until a superblock says otherwise they are the state.
    expectSameBytes(readBytes(device, block * 4096, 4096), bytes, `hostile-P3: block ${block}`);
  }
  target.close();
  if (code !== 'none') {
    outcomes.refused++;
    return;
  }
  outcomes.lived++;
  if (!rng.chance(0.15)) return;
  const again = (await open()).target;
  for (const region of written) {
    expectSameBytes(
      readBytes(again, region * REGION, REGION),
      new Uint8Array(REGION).fill(1 + region),
      'hostile-P3',
    );
  }
  again.write(0, new Uint8Array(REGION));
  again.flush();
}

async function survive(image: SparseDevice, length: number | undefined, rng: Prng): Promise<void> {
  const sparse = new SparseDevice(image.size);
  const device = new Guarded(sparse);
  for (const [block, bytes] of image.blocks) sparse.blocks.set(block, bytes);
  if (rng.chance(0.5)) check(device);
  // Writes change blocks in place: what is live is the image's.
  for (const [block, bytes] of image.blocks) sparse.blocks.set(block, bytes.slice());
  await live(device, length, rng);
  if (device.outside !== undefined) throw device.outside;
}

/** What each live block is. */
function kindsOf({ places }: Built): [number, NaiveKind][] {
  return [
    [0, 'superblock'],
    [places.index, 'index'],
    [places.overflow, 'node'],
    ...places.bitmaps.map((block): [number, NaiveKind] => [block, 'bitmap']),
    ...places.nodes.flat().map((block): [number, NaiveKind] => [block, 'node']),
    ...places.arrays.map((block): [number, NaiveKind] => [block, 'array']),
  ];
}

const TARGET = 8 * 700;

describe('every byte of a small image', () => {
  const small = () =>
    build({ regionSectors: 8, targetSectors: TARGET, deviceBytes: 14 * 4096, hydrated: [1, 2, 77] });

  it.each([
    ['as it is', false],
    ['with the checksum of its block', true],
  ])('%s', async (_name, isSealed) => {
    const built = small();
    for (const [block, kind] of kindsOf(built)) {
      const bytes = built.device.blocks.get(block)!;
      const original = bytes.slice();
      for (let at = 0; at < 4096; at++) {
        // Of what is all alike, one value does; with a good checksum most of it means nothing, and some bytes do.
        const isHead = at < 200 || (at >= 2048 && at < 2064) || (at >= 2720 && at < 2728);
        if (isSealed && !isHead && (at + block) % 8 > 0) continue;
        const flips = isHead ? [0x01, 0x80, 1 + ((at * 37) % 255)] : [1 + ((at * 37) % 255)];
        for (const flip of flips) {
          bytes[at] = original[at]! ^ flip;
          if (isSealed) sealBlock(kind, bytes, block);
          await underSeed(at, () => survive(built.device, at % 2 === 0 ? TARGET : undefined, new Prng(at)));
          bytes.set(original);
        }
      }
    }
  });
});

describe('random fields', () => {
  const shapes = [
    () => build({ regionSectors: 8, targetSectors: TARGET, deviceBytes: 14 * 4096, hydrated: [1, 2, 77] }),
    () =>
      build({
        regionSectors: 8,
        targetSectors: 8 * (2 * PER_ARRAY + 5),
        deviceBytes: 30 * 4096,
        nodes: [[2, 1], [2]],
        hydrated: [5, PER_ARRAY, 2 * PER_ARRAY + 4],
      }),
    () =>
      build({
        regionSectors: 8,
        targetSectors: 8 * (2 * PER_ARRAY + 5),
        deviceBytes: 16_400 * 4096,
        nodes: [[1, 1, 1], [2, 1], [2]],
        places: (count) => Array.from({ length: count }, (_, i) => 16_315 + i),
      }),
  ];

  /** A number that may matter. */
  const value = (rng: Prng, managed: number): bigint => {
    const small = BigInt(rng.below(20));
    const near = BigInt(Math.max(0, managed - 2 + rng.below(4)));
    return rng.pick([
      small,
      small,
      near,
      252n,
      253n,
      336n,
      509n,
      16_320n,
      2n ** 31n,
      2n ** 32n - 1n,
      2n ** 53n,
      2n ** 64n - 1n,
    ]);
  };
  const FIELDS = [
    4, 8, 12, 16, 20, 24, 28, 32, 40, 44, 48, 52, 60, 68, 172, 180, 188, 2048, 2056, 2064, 2720,
  ];

  it('10,000 images', async () => {
    const built = shapes.map((make) => make());
    for (let seed = 1; seed <= 10_000; seed++) {
      await underSeed(seed, async () => {
        const rng = new Prng(seed);
        // Reading two bitmaps takes its time.
        const base = built[rng.chance(0.1) ? 2 : rng.below(2)]!;
        const device = base.device.copy();
        const kinds = kindsOf(base);
        for (let changes = 1 + rng.below(rng.pick([1, 3])); changes > 0; changes--) {
          const [block, kind] = rng.pick(kinds);
          const bytes = device.blocks.get(block)!;
          switch (rng.below(5)) {
            case 0:
              bytes[rng.below(4096)] = rng.below(256);
              break;
            case 1:
              bytes.set(rng.bytes(1 + rng.below(40)), rng.below(4000));
              break;
            case 2:
              put32(bytes, rng.pick(FIELDS), Number(value(rng, base.managed) & 0xffffffffn));
              break;
            case 3:
              put64(bytes, rng.pick(FIELDS), value(rng, base.managed));
              break;
            default:
              // A block that another one is.
              bytes.set(device.blocks.get(rng.pick(kinds)[0])!);
          }
          if (rng.chance(0.97)) sealBlock(rng.chance(0.97) ? kind : rng.pick(kinds)[1], bytes, block);
        }
        const length = get64(base.device.blocks.get(0)!, 180);
        await survive(device, rng.chance(0.7) ? length : undefined, rng);
      });
    }
  });

  it('all of it came to pass', () => {
    if (process.env.DMFUSE_SEED !== undefined) return;
    for (const [outcome, times] of Object.entries(outcomes)) expect(times, outcome).toBeGreaterThan(5);
  });
});
