/**
 * Clones for tests: `metadata`, `destination` and `source` are the devices of a rig. The destination holds garbage at first,
 * which nobody may ever read of a region that was not hydrated.
 */
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import type { Prng } from '../../../src/device/prng.js';
import { Committer } from '../../../src/targets/clone/commit.js';
import { Copier } from '../../../src/targets/clone/copy.js';
import { Hydrator } from '../../../src/targets/clone/hydrate.js';
import { type CloneImage, readImage } from '../../../src/targets/clone/image.js';
import { clone } from '../../../src/targets/clone/index.js';
import type { CloneDescriptor } from '../../../src/targets/clone/state.js';
import type { CloneTarget } from '../../../src/targets/clone/target.js';
import { makeRig, type Rig, readOnly } from '../harness.js';

export type CloneRig = Rig<CloneTarget, CloneDescriptor>;
export type Devices = Record<string, BlockDevice>;

/** What a destination holds where nothing was written. */
export const GARBAGE = 0xee;
/** Bytes of a metadata device with room for many commits of the small clones of tests. */
export const METADATA_BYTES = 40 * 4096;

export interface Shape {
  /** Sectors of a region. */
  readonly region?: number;
  /** Sectors of the clone; default: all of the source. */
  readonly sectors?: number;
  /** The table behind the region size. */
  readonly options?: string;
}

export function argsOf({ region = 8, options = '' }: Shape = {}): string {
  return `metadata destination source ${region} ${options}`;
}

export function makeClone(devices: Devices, shape: Shape = {}): Promise<CloneRig> {
  const { sectors } = shape;
  return makeRig(clone, argsOf(shape), devices, sectors === undefined ? {} : { length: sectors });
}

/** New devices in memory, the source random with zeros in the middle. */
export function memoryFor(sectors: number, rng: Prng): Record<keyof Devices, MemoryDevice> {
  const source = rng.bytes(sectors * 512);
  source.fill(0, source.length >> 1, (source.length * 5) >> 3);
  return {
    metadata: new MemoryDevice(METADATA_BYTES),
    destination: new MemoryDevice(garbage(sectors)),
    source: new MemoryDevice(source),
  };
}

export function garbage(sectors: number): Uint8Array {
  return new Uint8Array(sectors * 512).fill(GARBAGE);
}

/** Background hydration of a rig that goes on a step at a time, when the test says so. */
export function hydratorOf({ target }: Pick<CloneRig, 'target'>, stepBytes?: number): Hydrator {
  const { state } = target;
  const buffer = new Uint8Array(8192);
  const committer = new Committer(state, buffer);
  const copier = new Copier(state, buffer);
  return new Hydrator(state, copier, () => committer.commitInBackground(), stepBytes);
}

/** Steps until it would rest, at most so many; the milliseconds that it would rest. */
export function stepsOf(hydrator: Hydrator, most = 100_000): number {
  for (let step = 0; step < most; step++) {
    const rest = hydrator.step();
    if (rest > 0) return rest;
  }
  throw new Error(`${most} steps, and no end`);
}

export function hasRegion(bits: Uint8Array, region: number): boolean {
  return (bits[region >> 3]! & (1 << (region & 7))) !== 0;
}

/** The numbers of the regions that are hydrated. */
export function regionsIn(bits: Uint8Array, regions: number): number[] {
  return Array.from({ length: regions }, (_, region) => region).filter((region) => hasRegion(bits, region));
}

/** As its memory has it, through the control file. */
export function hydratedOf({ target, descriptor }: Pick<CloneRig, 'target' | 'descriptor'>): number[] {
  const file = clone.files.find(({ name }) => name === 'regions')!;
  const bytes = file.bytes!(target);
  return regionsIn(bytes.slice(0, bytes.length), descriptor.regions);
}

/** As the metadata device has it; throws where anything at all is wrong with the metadata. */
export function durableOf(metadata: BlockDevice, regions: number): number[] {
  return regionsIn(new Uint8Array(imageOf(metadata).hydrated), regions);
}

export function imageOf(metadata: BlockDevice): CloneImage {
  const flaws: string[] = [];
  const image = readImage(metadata, (damage) => flaws.push(damage.message));
  if (flaws.length > 0) throw new Error(`metadata: ${flaws.join('; ')}`);
  if (image === undefined) throw new Error('metadata: none');
  return image;
}

/** A source: it must not be changed, and not even be flushed. */
export function sourceOf(device: BlockDevice): BlockDevice {
  return readOnly(device, 'clone-I1: the source is written');
}
