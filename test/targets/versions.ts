/**
 * What several threads write to one target, such that whoever reads it knows whose it is: each half sector is filled with one
 * word. At first that is what `originContent` puts there; then the version of who wrote last, or 0 for zeros.
 *
 * The first `shared` sectors are written as a whole and by everybody; in the others a half sector has one writer. What was
 * written before a flush that has returned is noted, and after a power cut it must be there.
 */
import type { BlockDevice } from '../../src/device/block-device.js';
import type { Prng } from '../../src/device/prng.js';

const HALF_BYTES = 256;
/** Words of a half sector, as a shift. */
const HALF_SHIFT = 6;

/** Sector s is filled with the words -1 - s. */
export function originContent(sectors: number): Uint8Array {
  const words = new Int32Array((2 * sectors) << HALF_SHIFT);
  for (let at = 0; at < words.length; at++) words[at] = originOf(at >> HALF_SHIFT);
  return new Uint8Array(words.buffer);
}

function originOf(half: number): number {
  return -1 - (half >> 1);
}

/** What a thread has of all that. */
export interface WriterOptions {
  /** From 0 on, less than 16. */
  readonly id: number;
  readonly rng: Prng;
  /** Sectors. */
  readonly shared: number;
  /** Takes [entries of the trace, half sector, version] of what was flushed, and how many before them. */
  readonly notes: SharedArrayBuffer;
  /** Entries of the trace so far. */
  readonly entries: () => number;
}

/** One thread, in a worker. */
export class Writer {
  private readonly noteWords: Int32Array;
  private readonly mine = new Map<number, number>();
  private pending = new Map<number, number>();
  private version = 0;

  constructor(
    private readonly target: BlockDevice,
    private readonly options: WriterOptions,
  ) {
    this.noteWords = new Int32Array(options.notes);
  }

  /** Writes `count` half sectors, or zeros them. */
  put(half: number, count: number, isZero: boolean): void {
    const { target, mine, pending } = this;
    const { id, rng, shared } = this.options;
    const value = isZero ? 0 : ++this.version * 16 + id + 1;
    const [offset, length] = [half * HALF_BYTES, count * HALF_BYTES];
    if (isZero) target.writeZeroes(offset, length, { unmap: rng.chance(0.5) });
    else target.write(offset, new Uint8Array(new Int32Array(length / 4).fill(value).buffer));
    for (let at = half; at < half + count; at++) {
      const isMine = at >= 2 * shared;
      if (isMine) mine.set(at, value);
      pending.set(at, isMine ? this.version : 0);
    }
  }

  /** Reads sectors: its own are as it wrote them, others as anybody did. */
  check(first: number, count: number): void {
    const found = new Uint8Array(2 * HALF_BYTES * count);
    this.target.read(2 * HALF_BYTES * first, found);
    const words = new Int32Array(found.buffer);
    for (let at = 0; at < words.length; at++) {
      const half = 2 * first + (at >> HALF_SHIFT);
      const word = words[at]!;
      const expected = this.mine.get(half);
      const isOrigin = word === originOf(half);
      if (expected === undefined ? word < 0 && !isOrigin : word !== expected) {
        throw new Error(`sector ${half / 2} reads as ${word}, expected ${expected}`);
      }
      if (half < 2 * this.options.shared && word !== words[at & ~((2 << HALF_SHIFT) - 1)]) {
        throw new Error(`sector ${half / 2} is torn`);
      }
    }
  }

  /** Flushes the target, and notes what that has promised. */
  flush(): void {
    const { noteWords, pending } = this;
    this.pending = new Map();
    this.target.flush();
    const done = this.options.entries();
    for (const [half, version] of pending) {
      const row = 1 + 3 * noteWords[0]!++;
      noteWords.set([done, half, version], row);
    }
  }
}

export interface PromisedOptions {
  readonly sectors: number;
  /** Sectors. */
  readonly shared: number;
  /** Whether sectors behind the shared ones are zeroed, too: a zero there may be of any version. */
  readonly zeroes: boolean;
}

/** What the threads were promised, by how far the trace had come. */
export class Promised {
  private readonly rows: number[][];
  private next = 0;
  /** The least version of each half sector; -1: it may be the origin's. */
  private readonly least: Int32Array;

  constructor(
    notes: readonly SharedArrayBuffer[],
    private readonly options: PromisedOptions,
  ) {
    this.least = new Int32Array(2 * options.sectors).fill(-1);
    this.rows = notes
      .flatMap((buffer) => {
        const words = new Int32Array(buffer);
        return Array.from({ length: words[0]! }, (_, row) => [...words.subarray(1 + 3 * row, 4 + 3 * row)]);
      })
      .sort((a, b) => a[0]! - b[0]!);
  }

  get count(): number {
    return this.rows.length;
  }

  /** Throws where the content of a target after a cut is not what it may be. Cuts only go up. */
  expectKept(content: Uint8Array, cut: number): void {
    const { rows, least, options } = this;
    for (; this.next < rows.length && rows[this.next]![0]! <= cut; this.next++) {
      const [, half, version] = rows[this.next]!;
      least[half!] = Math.max(least[half!]!, version!);
    }
    const words = new Int32Array(content.buffer);
    for (let at = 0; at < words.length; at++) {
      const half = at >> HALF_SHIFT;
      const word = words[at]!;
      const isOrigin = word === originOf(half) && least[half]! < 0;
      const isAnybodys = half < 2 * options.shared || (word === 0 && options.zeroes);
      const isNew = word >= 0 && (isAnybodys || word >> 4 >= least[half]!);
      if (!isOrigin && !isNew) {
        throw new Error(`cut ${cut}: sector ${half / 2} is ${word}, version ${least[half]} at least`);
      }
    }
  }
}
