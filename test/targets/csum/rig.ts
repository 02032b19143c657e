/** Csum targets for tests, over volumes that are formatted by the document's words: its own mapping, CRC and tables. */
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { encodeSuperblock } from '../../../src/formats/csum.js';
import { csum } from '../../../src/targets/csum/index.js';
import type { StageLimits } from '../../../src/targets/csum/stage.js';
import { type CsumDescriptor, createShared } from '../../../src/targets/csum/state.js';
import type { CsumTarget } from '../../../src/targets/csum/target.js';
import { makeRig, type Rig } from '../harness.js';

export type CsumRig = Rig<CsumTarget, CsumDescriptor>;

export type Layout = 'interleaved' | 'separate';

/** What the devices of a formatted volume hold: one, or data and imd. */
export function formatted(
  layout: Layout,
  content: Uint8Array,
  { superblock = true, order = 'be' as 'be' | 'le' } = {},
): Uint8Array[] {
  const sectors = content.length / 512;
  const groups = Math.ceil(sectors / 62);
  const data = new Uint8Array(512 * (layout === 'interleaved' ? 1 + sectors + 2 * groups : 1 + sectors));
  const imd = layout === 'interleaved' ? data : new Uint8Array(512 * (2 * groups + 3));
  for (let rel = 0; rel < sectors; rel++) {
    const { dataAt, m1At, tupleAt } = placeOf(layout, rel);
    const sector = content.subarray(rel * 512, rel * 512 + 512);
    data.set(sector, dataAt);
    for (const at of [m1At, m1At + 512]) putCrc(imd, at + tupleAt, crcBitwise(sector), order);
  }
  for (let group = 0; group < groups; group++) {
    const { m1At } = placeOf(layout, group * 62);
    for (const [counter, at] of [m1At, m1At + 512].entries()) {
      imd[at] = counter;
      putCrc(imd, at + 2, crcBitwise(imd.subarray(at + 8, at + 512)), order);
    }
  }
  if (superblock) {
    const fields = {
      order,
      placement: layout === 'interleaved' ? ('interleaved' as const) : ('separate-r' as const),
      state: 'clean' as const,
      sectors,
      groupsFormatted: groups,
      id: new Uint8Array(16).fill(7),
    };
    data.set(encodeSuperblock('data', fields));
    if (layout === 'separate') imd.set(encodeSuperblock('imd', fields));
  }
  return layout === 'interleaved' ? [data] : [data, imd];
}

/** Bytes at which things are, by section 4 of the document. */
export function placeOf(layout: Layout, rel: number): { dataAt: number; m1At: number; tupleAt: number } {
  const group = Math.floor(rel / 62);
  const k = rel % 62;
  const tupleAt = 8 + 8 * k;
  if (layout === 'interleaved') {
    return { dataAt: 512 * (64 * group + 3 + k), m1At: 512 * (64 * group + 1), tupleAt };
  }
  return { dataAt: 512 * (1 + rel), m1At: 512 * (2 * group + 3), tupleAt };
}

/** CRC-16/KERMIT, bit by bit. */
export function crcBitwise(bytes: Uint8Array): number {
  let crc = 0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x8408 : crc >>> 1;
  }
  return crc;
}

function putCrc(bytes: Uint8Array, at: number, crc: number, order: 'be' | 'le'): void {
  bytes[order === 'be' ? at : at + 1] = crc >>> 8;
  bytes[order === 'be' ? at + 1 : at] = crc & 255;
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
