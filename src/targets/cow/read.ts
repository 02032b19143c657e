/**
 * Reads through the stack: who holds which sectors, and few large requests for them.
 *
 * A request is taken in chunks. For each, the holders are found from the top down, a word of 32 sectors at a time, and
 * noted as one row of bits a member before anything is read: a bit that is set later speaks of data that this read may
 * not have seen (cow-I2). Then each member's runs are read, base first.
 *
 * Runs with small gaps between them are one request. The base's goes where it belongs, for the layers put theirs over the
 * gaps afterwards; a layer's goes to the buffer, and its sectors are copied out.
 */
import { maskOf, nextOne, nextZero, WORD_BITS } from '../../shared/bitmap.js';
import { SECTOR_BYTES } from '../../units.js';
import { BUFFER_BYTES, type CowState, type LayerView, type MemberView } from './state.js';

/** Gaps shorter than this, in sectors, are read too: 16 KiB cost less than a request. */
const GAP_SECTORS = 32;
/** A chunk has a whole buffer's sectors and parts of two, from any bit of the first word on. */
const CHUNK_WORDS = Math.ceil((BUFFER_BYTES / SECTOR_BYTES + 2 + 31) / WORD_BITS);

/** Where a chunk is: sectors count from `origin`, the first of a word. */
interface Chunk {
  origin: number;
  from: number;
  to: number;
  /** Byte of the stack where `into` begins. */
  at: number;
  into: Uint8Array;
}

export class StackReader {
  private readonly base: MemberView;
  private readonly layers: readonly LayerView[];
  private readonly buffer: Uint8Array;
  /** Row 0 is the base's; row k that of layer k - 1. */
  private readonly rows: readonly Int32Array[];

  constructor({ base, layers, buffer }: CowState) {
    this.base = base;
    this.layers = layers;
    this.buffer = buffer;
    const words = new Int32Array((layers.length + 1) * CHUNK_WORDS);
    this.rows = Array.from({ length: layers.length + 1 }, (_, row) =>
      words.subarray(row * CHUNK_WORDS, (row + 1) * CHUNK_WORDS),
    );
  }

  /** Fills `into` from byte `offset` of the stack on. */
  read(offset: number, into: Uint8Array): void {
    const { base, layers } = this;
    if (layers.length === 0) {
      base.device.read(base.offset + offset, into);
      return;
    }
    const end = offset + into.length;
    for (let at = offset; at < end; ) {
      // Whole sectors, but for the first and the last of the request.
      const stop = Math.min(end, Math.floor((at + BUFFER_BYTES) / SECTOR_BYTES) * SECTOR_BYTES);
      this.readChunk(at, into.subarray(at - offset, stop - offset));
      at = stop;
    }
  }

  private readChunk(at: number, into: Uint8Array): void {
    const { base, layers, rows } = this;
    const first = Math.floor(at / SECTOR_BYTES);
    const end = Math.ceil((at + into.length) / SECTOR_BYTES);
    const origin = first - (first % WORD_BITS);
    const chunk = { origin, from: first - origin, to: end - origin, at, into };
    for (let row = this.findHolders(first, end); row < rows.length; row++) {
      this.readRow(chunk, rows[row]!, row === 0 ? base : layers[row - 1]!, row > 0);
    }
  }

  /** Fills the rows for sectors [first, end): a sector is in that of its holder only. Returns the lowest row that counts. */
  private findHolders(first: number, end: number): number {
    const { layers, rows } = this;
    const firstWord = Math.floor(first / WORD_BITS);
    const count = Math.ceil(end / WORD_BITS) - firstWord;
    const wanted = rows[0]!;
    for (let i = 0; i < count; i++) wanted[i] = maskOf(firstWord + i, first, end);
    for (let row = layers.length; row > 0; row--) {
      const { bits } = layers[row - 1]!;
      const held = rows[row]!;
      let left = 0;
      for (let i = 0; i < count; i++) {
        const here = wanted[i]! & Atomics.load(bits, firstWord + i);
        held[i] = here;
        wanted[i]! &= ~here;
        left |= wanted[i]!;
      }
      if (left === 0) return row;
    }
    return 0;
  }

  private readRow(chunk: Chunk, row: Int32Array, member: MemberView, hasLower: boolean): void {
    const { to } = chunk;
    for (let start = nextOne(row, chunk.from, to); start < to; ) {
      let end = nextZero(row, start, to);
      let next = nextOne(row, end, to);
      const hasGaps = next < to && next - end < GAP_SECTORS;
      while (next < to && next - end < GAP_SECTORS) {
        end = nextZero(row, next, to);
        next = nextOne(row, end, to);
      }
      if (hasGaps) this.readWithGaps(chunk, row, start, end, member, hasLower);
      else readRun(chunk, start, end, member);
      start = next;
    }
  }

  private readWithGaps(
    chunk: Chunk,
    row: Int32Array,
    start: number,
    end: number,
    member: MemberView,
    hasLower: boolean,
  ): void {
    const from = Math.max((chunk.origin + start) * SECTOR_BYTES, chunk.at);
    const to = Math.min((chunk.origin + end) * SECTOR_BYTES, chunk.at + chunk.into.length);
    const hull = hasLower
      ? this.buffer.subarray(0, to - from)
      : chunk.into.subarray(from - chunk.at, to - chunk.at);
    let isRead = true;
    try {
      member.device.read(member.offset + from, hull);
    } catch {
      // It may be a gap, which nobody asked for, that cannot be read.
      isRead = false;
    }
    if (isRead && !hasLower) return;
    for (let run = start; run < end; ) {
      const stop = nextZero(row, run, end);
      if (isRead) {
        const low = Math.max((chunk.origin + run) * SECTOR_BYTES, from);
        const high = Math.min((chunk.origin + stop) * SECTOR_BYTES, to);
        chunk.into.set(hull.subarray(low - from, high - from), low - chunk.at);
      } else {
        readRun(chunk, run, stop, member);
      }
      run = nextOne(row, stop, end);
    }
  }
}

/** Sectors [start, end) of a chunk, to where they belong. */
function readRun({ origin, at, into }: Chunk, start: number, end: number, member: MemberView): void {
  const from = Math.max((origin + start) * SECTOR_BYTES, at);
  const to = Math.min((origin + end) * SECTOR_BYTES, at + into.length);
  member.device.read(member.offset + from, into.subarray(from - at, to - at));
}
