/**
 * Stacks for tests. Layer n of a rig (1 is the first) has the devices `bm<n>` and `data<n>`, the base is `base`; their
 * offsets differ, and what of a device is not the stack's is filled with 0xee, which nobody may ever read or change.
 */
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import type { Prng } from '../../../src/device/prng.js';
import { bitmapLayout } from '../../../src/formats/cow-bitmap.js';
import { cow } from '../../../src/targets/cow/index.js';
import type { CowDescriptor } from '../../../src/targets/cow/state.js';
import type { CowTarget } from '../../../src/targets/cow/target.js';
import { makeRig, type Rig } from '../harness.js';

export type CowRig = Rig<CowTarget, CowDescriptor>;
export type Devices = Record<string, BlockDevice>;

/** What of a data device lies outside the stack. */
const OUTSIDE = 0xee;

/** Sectors before the stack on the data device of a member; 0 is the base. */
export function offsetOf(member: number): number {
  return (member * 5) % 13;
}

/** The table's arguments for `layers` layers. */
export function argsOf(layers: number): string {
  const words = [`base ${offsetOf(0)}`];
  for (let layer = 1; layer <= layers; layer++) words.push(`bm${layer} data${layer} ${offsetOf(layer)}`);
  return words.join(' ');
}

/** Bytes for a data device that holds `sectors` random sectors of a stack. */
export function dataBytes(member: number, sectors: number, rng: Prng): Uint8Array {
  const start = offsetOf(member) * 512;
  const bytes = new Uint8Array(start + sectors * 512 + 700).fill(OUTSIDE);
  bytes.set(rng.bytes(sectors * 512), start);
  return bytes;
}

/** Bytes of a bitmap device as it begins. */
export function bitmapSize(sectors: number): number {
  return bitmapLayout(sectors).minimumBytes + 100;
}

/** Memory for a stack: random data everywhere, also where no bit promises any, and new bitmaps. */
export function memoryFor(layers: number, sectors: number, rng: Prng): Record<string, MemoryDevice> {
  const devices: Record<string, MemoryDevice> = { base: new MemoryDevice(dataBytes(0, sectors, rng)) };
  for (let layer = 1; layer <= layers; layer++) {
    devices[`bm${layer}`] = new MemoryDevice(bitmapSize(sectors));
    devices[`data${layer}`] = new MemoryDevice(dataBytes(layer, sectors, rng));
  }
  return devices;
}

/** The stack of the first `layers` layers. */
export function makeCow(layers: number, sectors: number, devices: Devices): Promise<CowRig> {
  return makeRig(cow, argsOf(layers), devices, { length: sectors });
}

/** Fills layers 1 to `layers`, each as the top of the stack up to it, and flushes them. `fill` writes to it. */
export async function fillLayers(
  layers: number,
  sectors: number,
  devices: Devices,
  fill: (rig: CowRig, layer: number) => void,
): Promise<void> {
  for (let layer = 1; layer <= layers; layer++) {
    const rig = await makeCow(layer, sectors, devices);
    fill(rig, layer);
    rig.target.flush();
  }
}

/** Some runs of sectors, of very different shapes: `write(first, count)`. */
export function fragments(sectors: number, rng: Prng, write: (first: number, count: number) => void): void {
  const step = rng.pick([2, 3, 40, 70, 200]);
  const longest = rng.pick([1, 1, 3, 30, 100]);
  const end = rng.pick([sectors >> 1, sectors, sectors]);
  for (let at = rng.below(step); at < end; at += 1 + rng.below(2 * step)) {
    const count = Math.min(sectors - at, 1 + rng.below(longest));
    write(at, count);
    at += count;
  }
}

/** Whether a bit of a bitmap device is set, by the document's words. */
export function bitOf(bitmap: Uint8Array, sector: number): boolean {
  return (bitmap[Math.floor(sector / 8)]! & (1 << (sector % 8))) !== 0;
}

/** The sectors whose bits are set. */
export function bitsOf(bitmap: Uint8Array, sectors: number): number[] {
  return Array.from({ length: sectors }, (_, sector) => sector).filter((sector) => bitOf(bitmap, sector));
}

/** What a stack reads as, sector by sector from the devices' bytes, by the document's section 2. */
export function naiveContent(
  layers: number,
  sectors: number,
  bytesOf: (name: string) => Uint8Array,
): Uint8Array {
  const content = new Uint8Array(sectors * 512);
  for (let sector = 0; sector < sectors; sector++) {
    let member = layers;
    while (member > 0 && !bitOf(bytesOf(`bm${member}`), sector)) member--;
    const at = (offsetOf(member) + sector) * 512;
    const bytes = bytesOf(member === 0 ? 'base' : `data${member}`);
    content.set(bytes.subarray(at, at + 512), sector * 512);
  }
  return content;
}
