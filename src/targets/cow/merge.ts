/**
 * Merging a stack's top layer into the member below it, another layer or the base, while nothing else uses either.
 *
 *   1  copy the data of all sectors that the top holds, flush       still hidden: the top holds these sectors
 *   2  set their bits in the layer below, flush                     not for the base, which has none
 *   3  take their bits from the top, flush                          each bit may go at its own time: both hold the same
 *   4  trim the top's data                                          nobody looks at it any more
 *
 * Nothing is noted down: what the top still holds is what is left to do. Cut anywhere and run again, it does the same again
 * to the same bytes.
 *
 *   cow-M1  The stack shows the same bytes at every instant, in the caches as on the media: a sector's bit leaves the top when
 *           its data and its bit below are durable.
 *   cow-M2  Without its top the stack shows of each sector what it showed before or what is merged into it, never what the data
 *           device below held otherwise: its bits are set when the data is durable.
 *   cow-M3  The top's data stays until its bits are durably gone. So step 3 flushes also where it finds no bit: the one before,
 *           which was killed, may have taken them in the cache only.
 *   cow-M4  Nothing else is written: no other member, no sector that the top does not hold, no bit behind the stack's end, no
 *           magic block. A top whose bitmap is new holds nothing, and is left alone altogether.
 *
 * What stands on the member below without the top sees the merge: other stacks on it change. And once it has begun, only going
 * on is right: to throw the top away would leave a part of it below.
 */
import { type BlockDevice, zeroOut } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { bitmapLayout } from '../../formats/cow-bitmap.js';
import type { ProgressOptions } from '../../progress.js';
import { maskOf, nextOne, nextZero, popCount } from '../../shared/bitmap.js';
import { SECTOR_BYTES } from '../../units.js';
import type { OpenContext } from '../target.js';
import { inspectBitmap } from './bitmap-device.js';
import { bitmapBytes, PAGE_BYTES, PAGE_WORDS } from './bits.js';
import { Holes } from './holes.js';
import type { CowDescriptor, Layer, Member, MemberView } from './state.js';

export interface Merged {
  /** Sectors that went from the top to the member below. */
  readonly sectors: number;
  /** Of these, sectors that were holes in the top and are zeros below. */
  readonly holeSectors: number;
}

/** Sectors between two calls of `onProgress`; also the largest request. */
const CHUNK_SECTORS = 2048;

/**
 * Merges. The devices of the two members must be this process's alone, and `stack` as `cow.create` read it. Throws EINVAL for
 * a stack without layers and what the devices throw; the stack shows what it showed, and the same call goes on.
 */
export async function mergeTop(
  stack: CowDescriptor,
  context: Pick<OpenContext, 'device'>,
  options: ProgressOptions = {},
): Promise<Merged> {
  const top = stack.layers.at(-1);
  if (top === undefined) throw new DmError('EINVAL', 'a stack of a base alone has no layer to merge');
  const sectors = stack.size / SECTOR_BYTES;
  const bitmap = context.device(top.bitmap);
  if (inspectBitmap(bitmap, top.bitmap.path, sectors) === 'new') return { sectors: 0, holeSectors: 0 };

  const below = stack.layers.at(-2);
  const view = ({ backing, offset }: Member): MemberView => ({ device: context.device(backing), offset });
  const from = view(top);
  const to = view(below ?? stack.base);
  const held = new Int32Array(top.bits);
  const copied = await new Copy(held, sectors, from, to, options).run();
  to.device.flush();
  if (below) addBits(context.device(below.bitmap), below, held, sectors);
  removeBits(bitmap, top, sectors);
  from.device.discard(from.offset, stack.size);
  return copied;
}

/** Step 1 but for the flush. */
class Copy {
  private readonly buffer: Uint8Array;
  private readonly holes: Holes;
  private holeSectors = 0;

  constructor(
    private readonly held: Int32Array,
    private readonly sectors: number,
    private readonly from: MemberView,
    private readonly to: MemberView,
    private readonly options: ProgressOptions,
  ) {
    this.buffer = new Uint8Array(Math.min(CHUNK_SECTORS, sectors) * SECTOR_BYTES);
    this.holes = new Holes(from);
  }

  async run(): Promise<Merged> {
    const { held, sectors, options } = this;
    const total = countHeld(held, sectors);
    let done = 0;
    for (let first = nextOne(held, 0, sectors); first < sectors; ) {
      const end = Math.min(sectors, first + CHUNK_SECTORS);
      done += this.copyChunk(first, end);
      await options.onProgress?.({ bytes: done * SECTOR_BYTES, bytesTotal: total * SECTOR_BYTES });
      first = nextOne(held, end, sectors);
    }
    return { sectors: done, holeSectors: this.holeSectors };
  }

  /** Copies what is held of sectors [first, end); how many. */
  private copyChunk(first: number, end: number): number {
    const { held, holes } = this;
    let copied = 0;
    for (let at = nextOne(held, first, end); at < end; at = nextOne(held, at, end)) {
      for (const stop = nextZero(held, at, end); at < stop; ) {
        const piece = holes.pieceAt(at, stop);
        this.copyPiece(at, piece.end, piece.isHole);
        copied += piece.end - at;
        at = piece.end;
      }
    }
    return copied;
  }

  private copyPiece(start: number, end: number, isHole: boolean): void {
    const { from, to } = this;
    const at = start * SECTOR_BYTES;
    const length = (end - start) * SECTOR_BYTES;
    if (isHole) {
      zeroOut(to.device, to.offset + at, length);
      this.holeSectors += end - start;
      return;
    }
    const bytes = this.buffer.subarray(0, length);
    from.device.read(from.offset + at, bytes);
    to.device.write(to.offset + at, bytes);
  }
}

/** Step 2: sets the bits that are set in `held`. */
function addBits(device: BlockDevice, layer: Layer, held: Int32Array, sectors: number): void {
  changeBits(device, layer, sectors, (before, index, mask) => before | (held[index]! & mask));
}

/** Step 3: clears all bits of the stack. */
function removeBits(device: BlockDevice, layer: Layer, sectors: number): void {
  changeBits(device, layer, sectors, (before, _index, mask) => before & ~mask);
}

/**
 * Changes words of a layer's bits, and writes the pages that this changed. `mask`: the bits of the word that are sectors of the
 * stack. Flushes in any case (cow-M3).
 */
function changeBits(
  device: BlockDevice,
  layer: Layer,
  sectors: number,
  change: (before: number, index: number, mask: number) => number,
): void {
  const words = new Int32Array(layer.bits);
  const bytes = bitmapBytes(bitmapLayout(sectors));
  const page = new Uint8Array(PAGE_BYTES);
  const end = Math.ceil(sectors / 32);
  for (let start = 0; start < end; start += PAGE_WORDS) {
    let isChanged = false;
    for (let index = start; index < Math.min(end, start + PAGE_WORDS); index++) {
      const before = words[index]!;
      const after = change(before, index, maskOf(index, 0, sectors));
      if (after === before) continue;
      words[index] = after;
      isChanged = true;
    }
    if (!isChanged) continue;
    // Not from shared memory. The last page may end past the bits: behind them the magic block may follow at once.
    page.set(new Uint8Array(layer.bits, start * 4, PAGE_BYTES));
    device.write(start * 4, page.subarray(0, Math.min(PAGE_BYTES, bytes - start * 4)));
  }
  device.flush();
}

function countHeld(held: Int32Array, sectors: number): number {
  let count = 0;
  for (let index = 0; index < Math.ceil(sectors / 32); index++) {
    if (held[index] !== 0) count += popCount(held[index]! & maskOf(index, 0, sectors));
  }
  return count;
}
