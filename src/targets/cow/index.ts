/**
 * cow: a stack of copy-on-write layers over a base that never changes. As the dm-cow of 2006.
 *
 *     cow <base> <offset> {<bitmap> <dev> <offset>}…          0 to 64 layers, bottom first; offsets in sectors
 *
 * A layer is a data device, as big as the whole stack, and a bitmap with one bit a sector: this layer holds it. Sector s is
 * at `offset + s` of the topmost layer that holds it, of the base where none does. Only the last layer is written (the
 * base, where there is no layer); the others are opened for reading and may be shared with other stacks.
 *
 *   bit of s in the top     read                      write, zeros, trim
 *   0                       the layers below          whole sectors go to the top, nothing is copied; the bit becomes 1. Of a
 *                                                     sector written in part the rest is copied up first
 *   1                       the top                   in place
 *
 * A bit never goes back to 0: a trim leaves zeros and a 1, or it would uncover what is below.
 *
 *   cow-I1  Nothing but the top layer is ever written; on its bitmap device only the bits, and the magic block of a new one.
 *   cow-I2  A bit is set after its data is complete, and a reader looks at the bits before it reads: what it reads of a member
 *           was there when the bit said so.
 *   cow-I3  A bit is durable after its data is: a commit copies bits, then flushes the data, then writes the copy. So a crash
 *           leaves of each sector what the layers below have or what was written, never what the data device held before.
 *   cow-I4  Bits in memory that are not durable are on a page that is marked, or about to be (shared/marks.ts). A failed commit
 *           marks its pages again.
 *   cow-I5  A sector that is completed from below has no other writer meanwhile: that takes the lock alone.
 *   cow-I6  A device is refused unless its magic block and length are right, or all of it is zero and it is the top's. Refusing
 *           writes nothing.
 *   cow-I7  Of a bitmap only the bits of the stack's sectors count; the others of its last bytes stay as they are.
 *
 * A flush is a commit, also one a second while bits are not durable. A kill loses no data device's writes but the bits since the
 * last commit: as a power cut, it leaves older contents in what was not flushed.
 *
 * Left out: a data device whose failed flush lost data (it is reported, and its bits become durable with the next flush that
 * works). The reference takes nine layers at most.
 *
 * Where to read: target.ts what changes the top, read.ts reads, top.ts its bits and the commit, bits.ts words of bits,
 * bitmap-device.ts the judging of a bitmap, formats/cow-bitmap.ts the layout; create.ts, merge.ts, flatten.ts, import.ts and
 * map.ts what is done while nothing is attached. Rules: the dm-cow stack format.
 */
import { DmError } from '../../errors.js';
import { type BitmapLayout, bitmapLayout } from '../../formats/cow-bitmap.js';
import { parseCount } from '../../table.js';
import { SECTOR_BYTES } from '../../units.js';
import type { Backing, CreateContext, TargetType } from '../target.js';
import { initialiseBitmap, inspectBitmap } from './bitmap-device.js';
import { createBits, loadBits } from './bits.js';
import { cowFiles } from './controls.js';
import { growStack } from './grow.js';
import { type CowDescriptor, createShared, type Layer, type Member } from './state.js';
import { CowTarget } from './target.js';

const MAX_LAYERS = 64;

interface MemberArgs {
  readonly device: string;
  /** Bytes. */
  readonly offset: number;
}

interface LayerArgs extends MemberArgs {
  readonly bitmap: string;
}

export const cow: TargetType<CowDescriptor, CowTarget> = {
  name: 'cow',
  usage: '<base> <offset> {<bitmap> <dev> <offset>}…',
  files: cowFiles,

  async create(args, context) {
    const { base, layers } = parseArgs(args);
    const bottom = await openMember(base, layers.length === 0 ? 'write' : 'read', context);
    const sectors = context.length ?? sectorsOf(bottom);
    if (sectors < 1) throw tooSmall(bottom, 'at least 1');
    requireRoom(bottom, sectors);

    const opened: { member: Member; bitmap: Backing }[] = [];
    for (const [index, layer] of layers.entries()) {
      const access = index === layers.length - 1 ? 'write' : 'read';
      const bitmap = await context.openBacking(layer.bitmap, access);
      const member = await openMember(layer, access, context);
      requireRoom(member, sectors);
      opened.push({ member, bitmap });
    }

    const layout = bitmapLayout(sectors);
    const isNew = opened.map(({ bitmap }) => isNewBitmap(bitmap, layout, context));
    const missing = isNew.slice(0, -1).indexOf(true);
    if (missing >= 0) throw notInitialised(layers[missing]!.bitmap, layout);
    const owned: number[] = [];
    const loaded = opened.map(({ member, bitmap }, index): Layer => {
      const bits = createBits(layout);
      owned.push(isNew[index] ? 0 : loadBits(context.device(bitmap), layout, bits));
      return { ...member, bitmap, bits };
    });
    // Last, so that whatever is refused was not written to (cow-I6).
    if (isNew.at(-1)) initialiseBitmap(context.device(opened.at(-1)!.bitmap), layout);
    return { size: sectors * SECTOR_BYTES, base: bottom, layers: loaded, ...createShared(layout, owned) };
  },

  grow: growStack,

  open(descriptor, context) {
    return new CowTarget(descriptor, context);
  },
};

/** Takes the table's arguments apart. Throws EINVAL for a wrong number of them, and offsets that are none. */
export function parseArgs(args: readonly string[]): { base: MemberArgs; layers: LayerArgs[] } {
  const count = (args.length - 2) / 3;
  if (args.length < 2 || !Number.isInteger(count)) {
    throw new DmError(
      'EINVAL',
      `cow needs a base with its offset and three words a layer, so 2, 5, 8… words, found ${args.length}: cow ${cow.usage}`,
    );
  }
  if (count > MAX_LAYERS)
    throw new DmError('EINVAL', `cow takes ${MAX_LAYERS} layers at most, found ${count}`);
  const layers = Array.from({ length: count }, (_, layer) => {
    const [bitmap, device, offset] = args.slice(2 + 3 * layer, 5 + 3 * layer);
    return { bitmap: bitmap!, ...memberArgs(device!, offset!) };
  });
  return { base: memberArgs(args[0]!, args[1]!), layers };
}

function memberArgs(device: string, offset: string): MemberArgs {
  return { device, offset: parseCount(offset, `the offset (sectors) on ${device}`) * SECTOR_BYTES };
}

async function openMember(
  { device, offset }: MemberArgs,
  access: 'read' | 'write',
  context: CreateContext,
): Promise<Member> {
  return { backing: await context.openBacking(device, access), offset };
}

/** Sectors that a data device has from its offset on. */
function sectorsOf({ backing, offset }: Member): number {
  return Math.max(0, Math.floor((backing.size - offset) / SECTOR_BYTES));
}

function requireRoom(member: Member, sectors: number): void {
  if (sectorsOf(member) < sectors) throw tooSmall(member, `${sectors}`);
}

function tooSmall(member: Member, needed: string): DmError {
  const { backing, offset } = member;
  const from = offset / SECTOR_BYTES;
  return new DmError(
    'EINVAL',
    `${backing.path} has ${sectorsOf(member)} sectors from sector ${from} on, the stack needs ${needed}`,
  );
}

function isNewBitmap(bitmap: Backing, { sectors }: BitmapLayout, context: CreateContext): boolean {
  return inspectBitmap(context.device(bitmap), bitmap.path, sectors) === 'new';
}

/** A frozen layer holds something, so its bitmap has a magic block (rule 9). */
function notInitialised(path: string, { magicOffset }: BitmapLayout): DmError {
  return new DmError(
    'EINVAL',
    `${path}: all zero, without a magic block at byte ${magicOffset}: only the last layer's bitmap may be new`,
  );
}
