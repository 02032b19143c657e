/**
 * What a real kernel did, done again: the operations of each fixture on a new clone leave what they left there, region by region
 * and byte by byte; and the kernel's own metadata shows the same device.
 */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { hydratedRuns, readImage } from '../../../src/targets/clone/image.js';
import { clone } from '../../../src/targets/clone/index.js';
import { contentOf, makeRig } from '../harness.js';

const FOLDER = new URL('../../fixtures/dm-clone/', import.meta.url);
const SOURCE = 0x53;
const DESTINATION = 0x44;
const WRITTEN = 0x57;

interface Truth {
  readonly target_sectors: number;
  readonly region_sectors: number;
  readonly metadata_device_bytes: number;
  readonly hydrated_ranges: readonly (readonly [number, number])[];
  readonly operations: readonly (readonly ['write' | 'discard' | 'flush', number, number])[];
  readonly dmsetup_status: string;
  readonly device_sha256: string;
}

/** Sectors as the fixtures have them: 64 times the sector's number with a tag on top. */
function sectors(tag: number, first: number, count: number): Uint8Array {
  const words = new BigUint64Array(64 * count);
  for (let i = 0; i < count; i++) {
    words.fill((BigInt(tag) << 56n) | BigInt(first + i), 64 * i, 64 * (i + 1));
  }
  return new Uint8Array(words.buffer);
}

for (const name of readdirSync(FOLDER).filter((file) => file.endsWith('.json'))) {
  const truth = JSON.parse(readFileSync(new URL(name, FOLDER), 'utf8')) as Truth;
  const { target_sectors: length, region_sectors: regionSectors } = truth;
  const open = (metadata: MemoryDevice, destination: MemoryDevice) => {
    const source = new MemoryDevice(sectors(SOURCE, 0, length));
    return makeRig(
      clone,
      `m d s ${regionSectors} 1 no_hydration`,
      { m: metadata, d: destination, s: source },
      { length },
    );
  };
  const expectTruth = (
    metadata: MemoryDevice,
    device: { readonly target: Awaited<ReturnType<typeof open>>['target'] },
  ) => {
    const runs = [...hydratedRuns(readImage(metadata)!)].map(({ start, count }) => [start, count]);
    expect(runs).toEqual(truth.hydrated_ranges);
    expect(`0 ${length} clone ${device.target.statusArgs()}`).toBe(truth.dmsetup_status);
    expect(createHash('sha256').update(contentOf(device.target)).digest('hex')).toBe(truth.device_sha256);
  };

  it(`${name}: its operations on a new clone, and the kernel's metadata`, async () => {
    const metadata = new MemoryDevice(truth.metadata_device_bytes);
    const destination = new MemoryDevice(sectors(DESTINATION, 0, length));
    const ours = await open(metadata, destination);
    for (const [kind, first, count] of truth.operations) {
      if (kind === 'write') ours.target.write(first * 512, sectors(WRITTEN, first, count));
      else if (kind === 'discard') ours.target.discard(first * 512, count * 512);
      else ours.target.flush();
    }
    ours.target.flush();
    expectTruth(metadata, ours);

    // The destination has what the kernel's has.
    const kernels = new MemoryDevice(
      gunzipSync(readFileSync(new URL(name.replace('.json', '.meta.gz'), FOLDER))),
    );
    expectTruth(kernels, await open(kernels, destination));
  });
}
