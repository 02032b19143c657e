/**
 * A stack that becomes longer, because its base has: up to where the base and the data device of its layer both reach.
 *
 * The bitmap keeps its length in the magic block, which moves with it (cow-L1). First all is zeroed that will be bits, or lies between
 * the old magic block and the last new one; flush. Then growth is done in steps, each so short that the old magic block stays behind
 * the bits of the new length:
 *
 *   1  write the new magic block; flush
 *   2  zero the old one; flush
 *
 * So at every instant the bitmap is one of the old length of a step or of the new (cow-I6): a stack that the power leaves between two
 * steps is refused at its new length, and opens with the LENGTH of its bitmap, which the refusal names. With its base cut to that
 * length it ends where the base does, and can grow on.
 *
 * Frozen layers have bitmaps of the old length, and are never written (cow-I1): a stack with some cannot grow.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { extendFile, FileDevice } from '../../device/file.js';
import { DmError } from '../../errors.js';
import {
  type BitmapLayout,
  bitmapLayout,
  encodeMagicBlock,
  MAGIC_BLOCK_BYTES,
  stackLengths,
} from '../../formats/cow-bitmap.js';
import { SECTOR_BYTES } from '../../units.js';
import type { Backing, GrowContext } from '../target.js';
import { findMagicBlock } from './bitmap-device.js';
import { createBits, loadBits } from './bits.js';
import { type CowDescriptor, createShared, type Member } from './state.js';

/** As TargetType.grow. Throws EINVAL where frozen layers or a short data device are in the way. */
export function growStack(descriptor: CowDescriptor, context: GrowContext): CowDescriptor | undefined {
  const { base, layers } = descriptor;
  const from = descriptor.size / SECTOR_BYTES;
  if (sectorsOf(base, base.backing.size) !== from) return undefined;
  const to = sectorsOf(base, context.sizeOf(base.backing));
  if (to <= from) return undefined;
  const [layer, ...frozen] = [...layers].reverse();
  if (!layer) return { ...descriptor, size: to * SECTOR_BYTES };
  if (frozen.length > 0) {
    throw new DmError(
      'EINVAL',
      `cow cannot grow over ${frozen.length} frozen layers, whose bitmaps are of ${from} sectors: merge them first (dmfuse cow commit)`,
    );
  }
  const room = sectorsOf(layer, context.sizeOf(layer.backing));
  if (room < to) {
    const bytes = layer.offset + to * SECTOR_BYTES;
    throw new DmError(
      'EINVAL',
      `${layer.backing.path} has ${room} sectors, the stack is to have ${to}: make it ${bytes} bytes long (truncate -s) and resume again`,
    );
  }
  const layout = bitmapLayout(to);
  const bitmap = withRoom(layer.bitmap, layout, context);
  growBitmap(bitmap, from, to);
  const bits = createBits(layout);
  const owned = loadBits(bitmap, layout, bits);
  return {
    size: to * SECTOR_BYTES,
    base,
    layers: [{ ...layer, bits }],
    ...createShared(layout, [owned]),
  };
}

/** Makes the bitmap of a stack of `from` sectors that of one of `to`. The device has room for it. */
export function growBitmap(device: BlockDevice, from: number, to: number): void {
  const start = lengthOf(device, from, to);
  const { magicOffset } = bitmapLayout(start);
  clearLastByte(device, from);
  zero(device, bitmapLayout(from).bitsBytes, magicOffset);
  zero(device, magicOffset + MAGIC_BLOCK_BYTES, bitmapLayout(to).magicOffset);
  device.flush();
  for (let at = start; at < to; ) {
    const next = Math.min(to, furthest(bitmapLayout(at)));
    step(device, bitmapLayout(at), bitmapLayout(next));
    at = next;
  }
}

/** The length that the bitmap has: `from`, or more where an error has ended an earlier attempt between two steps. */
function lengthOf(device: BlockDevice, from: number, to: number): number {
  const { storedLength } = findMagicBlock(device) ?? bitmapLayout(from);
  const { least, most } = stackLengths(storedLength);
  return least <= from && from <= most ? from : Math.min(most, to);
}

function step(device: BlockDevice, old: BitmapLayout, next: BitmapLayout): void {
  device.write(next.magicOffset, encodeMagicBlock(next));
  device.flush();
  if (old.magicOffset === next.magicOffset) return;
  zero(device, old.magicOffset, old.magicOffset + MAGIC_BLOCK_BYTES);
  device.flush();
}

/** The longest stack, sectors, whose bits end before the magic block of this one. */
function furthest({ magicOffset }: BitmapLayout): number {
  return (magicOffset / SECTOR_BYTES) * 8 * SECTOR_BYTES - 1;
}

/** Bits behind the stack's end have counted for nothing (cow-I7), and now they will. */
function clearLastByte(device: BlockDevice, sectors: number): void {
  if (sectors % 8 === 0) return;
  const byte = new Uint8Array(1);
  device.read(Math.floor(sectors / 8), byte);
  byte[0]! &= ~(-1 << (sectors % 8));
  device.write(Math.floor(sectors / 8), byte);
}

function zero(device: BlockDevice, from: number, to: number): void {
  if (to > from) device.writeZeroes(from, to - from);
}

/** The bitmap device, long enough: a file is made so. */
function withRoom(
  backing: Backing,
  { sectors, minimumBytes }: BitmapLayout,
  context: GrowContext,
): BlockDevice {
  if (
    context.sizeOf(backing) < minimumBytes &&
    !(backing.kind === 'file' && extendFile(backing.fd, minimumBytes))
  ) {
    throw new DmError(
      'EINVAL',
      `${backing.path} has ${context.sizeOf(backing)} bytes, the bitmap of ${sectors} sectors needs ${minimumBytes}`,
    );
  }
  return backing.kind === 'file'
    ? new FileDevice({ ...backing, size: context.sizeOf(backing) })
    : context.device(backing);
}

function sectorsOf({ offset }: Member, bytes: number): number {
  return Math.max(0, Math.floor((bytes - offset) / SECTOR_BYTES));
}
