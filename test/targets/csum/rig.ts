/** Csum targets for tests, over naive volumes. */
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { encodeSuperblock } from '../../../src/formats/csum.js';
import { csum } from '../../../src/targets/csum/index.js';
import type { StageLimits } from '../../../src/targets/csum/stage.js';
import { type CsumDescriptor, createShared } from '../../../src/targets/csum/state.js';
import type { CsumTarget } from '../../../src/targets/csum/target.js';
import { makeRig, type Rig } from '../harness.js';
import { superblockOf } from './areas.js';
import { type NaivePlacement, NaiveVolume, naiveDataSector, naiveTableSector } from './naive-volume.js';

export type CsumRig = Rig<CsumTarget, CsumDescriptor>;

export type Layout = 'interleaved' | 'separate';

/** What the devices of a formatted volume hold: one, or data and imd. */
export function formatted(
  layout: Layout,
  content: Uint8Array,
  { superblock = true, order = 'be' as 'be' | 'le' } = {},
): Uint8Array[] {
  const volume = new NaiveVolume({ placement: placementOf(layout), order, sectors: content.length / 512 });
  for (let rel = 0; rel < volume.shape.sectors; rel++) {
    volume.sector(rel).set(content.subarray(512 * rel, 512 * rel + 512));
  }
  const { data, imd } = volume.format();
  const areas = layout === 'interleaved' ? [data] : [data, imd];
  const fields = superblockOf(volume.shape);
  if (superblock)
    for (const [i, area] of areas.entries()) area.set(encodeSuperblock(i ? 'imd' : 'data', fields));
  return areas;
}

/** Bytes at which things are. */
export function placeOf(layout: Layout, rel: number): { dataAt: number; m1At: number; tupleAt: number } {
  const shape = { placement: placementOf(layout), order: 'be', sectors: 0 } as const;
  return {
    dataAt: 512 * naiveDataSector(shape, rel),
    m1At: 512 * naiveTableSector(shape, Math.floor(rel / 62)),
    tupleAt: 8 + 8 * (rel % 62),
  };
}

function placementOf(layout: Layout): NaivePlacement {
  return layout === 'interleaved' ? 'interleaved' : 'separate-r';
}

/** Attaches the devices of a volume, with a stage of another size if need be. Throws what `create` throws. */
export async function attach(devices: readonly BlockDevice[], limits?: StageLimits): Promise<CsumRig> {
  const [data, imd] = devices;
  const args = imd === undefined ? 'data 0' : 'data 0 imd 0';
  const type = {
    ...csum,
    async create(...[words, context]: Parameters<typeof csum.create>) {
      const descriptor = await csum.create(words, context);
      return limits === undefined
        ? descriptor
        : { ...descriptor, ...createShared(descriptor.volume, limits) };
    },
  };
  return await makeRig(type, args, imd === undefined ? { data: data! } : { data: data!, imd });
}

/** The same over images, which it changes. */
export function attachImages(images: readonly Uint8Array[]): Promise<CsumRig> {
  return attach(images.map((image) => new MemoryDevice(image)));
}
