/**
 * Whether a device is the bitmap of a stack of a given length, and the start of a new one. Reads what a stranger wrote:
 * whatever does not fit exactly is refused, and nothing is written by looking.
 */
import { type BlockDevice, extentOf } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import {
  type BitmapLayout,
  bitmapLayout,
  decodeMagicBlock,
  encodeMagicBlock,
  FIRST_MAGIC_BYTE,
  MAGIC_BLOCK_BYTES,
  MAGIC_STEP_BYTES,
  stackLengths,
} from '../../formats/cow-bitmap.js';

/** Bytes read at a time. */
const READ_BYTES = 1 << 20;
const ZEROES = new Uint8Array(4096);

/**
 * Whether the device holds the bitmap of a stack of `sectors`, or is zeros and may become it. `path` is for messages.
 * Throws EINVAL saying what was found and what was expected: a device too small, a magic block that is none, or one of a
 * stack of another length, wherever it is.
 */
export function inspectBitmap(device: BlockDevice, path: string, sectors: number): 'new' | 'existing' {
  const layout = bitmapLayout(sectors);
  const { magicOffset, minimumBytes, storedLength } = layout;
  if (device.size < minimumBytes) {
    throw refusal(
      path,
      `has ${device.size} bytes, the bitmap of a stack of ${sectors} sectors needs ${minimumBytes}`,
    );
  }
  const found = decodeMagicBlock(read(device, magicOffset, MAGIC_BLOCK_BYTES));
  if (found.kind === 'unknown') {
    throw refusal(path, `byte ${magicOffset} has no magic block of a cow bitmap: ${found.problem}`);
  }
  if (found.kind === 'stored') {
    if (found.storedLength === storedLength) return 'existing';
    throw mismatch(path, layout, magicOffset, found.storedLength);
  }
  // Before the bits: the magic block of a shorter stack lies where a longer one has bits.
  const elsewhere = findMagicBlock(device);
  if (elsewhere !== undefined) throw mismatch(path, layout, elsewhere.at, elsewhere.storedLength);
  const set = firstSetByte(device, magicOffset);
  if (set !== undefined) {
    throw refusal(
      path,
      `length mismatch: byte ${magicOffset} has no magic block, as for a new bitmap of a stack of ${sectors} sectors, but ` +
        `byte ${set} is not zero: it belongs to a stack of another length, or was not zero-filled before its first use`,
    );
  }
  return 'new';
}

/** Makes a device that `inspectBitmap` calls new an existing one, durably. */
export function initialiseBitmap(device: BlockDevice, layout: BitmapLayout): void {
  device.write(layout.magicOffset, encodeMagicBlock(layout));
  device.flush();
}

/** Visits what of the bytes [from, to) is not known to be a hole: `visit(start, end)`, until it returns true. */
export function forEachDataExtent(
  device: BlockDevice,
  from: number,
  to: number,
  visit: (start: number, end: number) => boolean | undefined,
): void {
  for (let at = from; at < to; ) {
    const { data, end } = extentOf(device, at);
    const stop = Math.min(end, to);
    if (data && visit(at, stop)) return;
    at = stop;
  }
}

/** Visits the bytes [from, to) but for holes, in pieces: `visit(bytes, at)`, until it returns true. */
export function forEachPiece(
  device: BlockDevice,
  from: number,
  to: number,
  visit: (bytes: Uint8Array, at: number) => boolean | undefined,
): void {
  const buffer = new Uint8Array(Math.min(READ_BYTES, to - from));
  forEachDataExtent(device, from, to, (start, end) => {
    for (let at = start; at < end; at += buffer.length) {
      const piece = buffer.subarray(0, Math.min(buffer.length, end - at));
      device.read(at, piece);
      if (visit(piece, at)) return true;
    }
    return false;
  });
}

/** True where all bytes are zero; as fast as memory. */
export function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += ZEROES.length) {
    const part = bytes.subarray(at, at + ZEROES.length);
    if (Buffer.compare(part, ZEROES.subarray(0, part.length)) !== 0) return false;
  }
  return true;
}

/** The first magic block at any of the places where one may be. */
export function findMagicBlock(device: BlockDevice): { at: number; storedLength: number } | undefined {
  let result: { at: number; storedLength: number } | undefined;
  const end = device.size - MAGIC_BLOCK_BYTES;
  const block = new Uint8Array(MAGIC_BLOCK_BYTES);
  forEachDataExtent(device, FIRST_MAGIC_BYTE, device.size, (start, stop) => {
    // Rounded down: a block that begins in the hole before begins with zeros, and so is none; no more is read than need be.
    for (let at = roundDown(start); at < stop && at <= end; at += MAGIC_STEP_BYTES) {
      device.read(at, block);
      const found = decodeMagicBlock(block);
      if (found.kind !== 'stored') continue;
      result = { at, storedLength: found.storedLength };
      return true;
    }
    return false;
  });
  return result;
}

function roundDown(at: number): number {
  return at - (at % MAGIC_STEP_BYTES);
}

/** The first byte before `end` that is not zero. */
function firstSetByte(device: BlockDevice, end: number): number | undefined {
  let result: number | undefined;
  forEachPiece(device, 0, end, (bytes, at) => {
    if (isZero(bytes)) return false;
    result = at + bytes.findIndex((byte) => byte !== 0);
    return true;
  });
  return result;
}

function read(device: BlockDevice, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  device.read(offset, bytes);
  return bytes;
}

function mismatch(path: string, layout: BitmapLayout, at: number, storedLength: number): DmError {
  const { least, most } = stackLengths(storedLength);
  return refusal(
    path,
    `length mismatch: the magic block at byte ${at} has the stored length ${storedLength}, that of a stack of ${least} to ` +
      `${most} sectors; one of ${layout.sectors} sectors has ${layout.storedLength}, at byte ${layout.magicOffset}`,
  );
}

function refusal(path: string, problem: string): DmError {
  return new DmError('EINVAL', `${path}: ${problem}`);
}
