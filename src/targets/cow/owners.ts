/**
 * Which members show how much of each part of a stack: what the control file `owners` reads as, for pictures. For each cell of
 * the device (shared/cells.ts), and for each member, base first, the sectors that it shows there, 32 bits little-endian.
 *
 * So its length is bounded, however scattered the layers are, and it is worked out as it is read: one read gives no more than is
 * quickly done, for the main thread does it. Nothing is locked: sectors that are written meanwhile may be counted in either way.
 */
import { maskOf, popCount, WORD_BITS } from '../../shared/bitmap.js';
import { cellSectorsOf } from '../../shared/cells.js';
import type { ByteSource } from '../target.js';
import { isZero } from './bitmap-device.js';

/** Bits that one read looks at, about: some milliseconds. */
const READ_BITS = 1 << 27;
const COUNT_BYTES = 4;

export class Owners implements ByteSource {
  readonly length: number;
  private readonly cellSectors: number;
  private readonly recordBytes: number;
  private readonly recordsPerRead: number;

  /** `layers`: the bits of each, bottom first; `holds`: whether a layer has any set at all. */
  constructor(
    private readonly sectors: number,
    private readonly layers: readonly Int32Array[],
    private readonly holds: (layer: number) => boolean,
  ) {
    this.cellSectors = cellSectorsOf(sectors);
    this.recordBytes = COUNT_BYTES * (layers.length + 1);
    this.length = Math.ceil(sectors / this.cellSectors) * this.recordBytes;
    this.recordsPerRead = Math.max(
      1,
      Math.floor(READ_BITS / (this.cellSectors * Math.max(1, layers.length))),
    );
  }

  /** Bytes from `start` on, before `end`: some at least, not all where that would take long. */
  slice(start: number, end: number): Uint8Array {
    const { recordBytes, recordsPerRead } = this;
    if (start >= Math.min(end, this.length)) return new Uint8Array(0);
    const first = Math.floor(start / recordBytes);
    const last = Math.min(Math.ceil(Math.min(end, this.length) / recordBytes), first + recordsPerRead);
    const counts = new DataView(new ArrayBuffer((last - first) * recordBytes));
    for (let record = first; record < last; record++)
      this.count(record, counts, (record - first) * recordBytes);
    const origin = first * recordBytes;
    return new Uint8Array(counts.buffer).subarray(start - origin, end - origin);
  }

  /** Writes the record of a cell at byte `at`. */
  private count(cell: number, into: DataView, at: number): void {
    const { layers, sectors, cellSectors } = this;
    const from = cell * cellSectors;
    const end = Math.min(sectors, from + cellSectors);
    const firstWord = Math.floor(from / WORD_BITS);
    const endWord = Math.ceil(end / WORD_BITS);
    const there = layers.map((bits, layer) => this.holds(layer) && hasOnes(bits, firstWord, endWord));
    const held = layers.map(() => 0);
    const highest = there.lastIndexOf(true);
    const lowest = there.indexOf(true);
    for (let word = firstWord; highest >= 0 && word < endWord; word++) {
      let left = maskOf(word, from, end);
      for (let layer = highest; layer >= lowest && left !== 0; layer--) {
        if (!there[layer]) continue;
        const here = left & layers[layer]![word]!;
        if (here === 0) continue;
        held[layer]! += popCount(here);
        left &= ~here;
      }
    }
    const base = held.reduce((rest, count) => rest - count, end - from);
    [base, ...held].forEach((count, member) => {
      into.setUint32(at + COUNT_BYTES * member, count, true);
    });
  }
}

/** Whether some bit of words [from, end) is set; as fast as memory, for most of a large stack is not. */
function hasOnes(words: Int32Array, from: number, end: number): boolean {
  return !isZero(new Uint8Array(words.buffer, words.byteOffset + 4 * from, 4 * (end - from)));
}
