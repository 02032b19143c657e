/**
 * What all threads share of one cow target, and one thread's view of it. The bits of each layer are a buffer of their own;
 * those of all layers but the top never change. The rest belongs to the top layer.
 */
import type { BlockDevice } from '../../device/block-device.js';
import type { BitmapLayout } from '../../formats/cow-bitmap.js';
import { Commits } from '../../shared/commits.js';
import { Marks } from '../../shared/marks.js';
import { RwLock } from '../../shared/rwlock.js';
import type { Backing, OpenContext } from '../target.js';
import { bitmapBytes, PAGE_BYTES } from './bits.js';

/** A data device: of the base, or of a layer. */
export interface Member {
  readonly backing: Backing;
  /** Bytes; where sector 0 of the stack is on it. */
  readonly offset: number;
}

export interface Layer extends Member {
  readonly bitmap: Backing;
  readonly bits: SharedArrayBuffer;
}

export interface CowDescriptor {
  /** Bytes, a whole number of sectors. */
  readonly size: number;
  readonly base: Member;
  /** Bottom first. */
  readonly layers: readonly Layer[];
  /** One BigInt64 a layer: the sectors it holds. */
  readonly counts: SharedArrayBuffer;
  /** The words below. */
  readonly words: SharedArrayBuffer;
  /** Marks of the pages of the top's bitmap that have bits which are not durable. */
  readonly marks: SharedArrayBuffer;
  /** Pages that a commit copied and has yet to write. */
  readonly snapshot: SharedArrayBuffer;
}

/** Bytes of the largest single request that a view makes for itself, and of its buffer. */
export const BUFFER_BYTES = 1 << 20;
/** Most pages of a snapshot; whole words of marks. All of a stack of 32 GiB, so that one flush of its data will do. */
const SNAPSHOT_PAGES = 2048;

// Words of `words`.
const COMMITS = RwLock.WORDS;
const WORDS = COMMITS + Commits.WORDS;

type Shared = Pick<CowDescriptor, 'counts' | 'words' | 'marks' | 'snapshot'>;

/** The shared buffers of a new target but for the bits: nothing is dirty. `owned`: sectors that each layer holds. */
export function createShared(layout: BitmapLayout, owned: readonly number[]): Shared {
  const pages = Math.ceil(bitmapBytes(layout) / PAGE_BYTES);
  const counts = new SharedArrayBuffer(8 * owned.length);
  new BigInt64Array(counts).set(owned.map(BigInt));
  return {
    counts,
    words: new SharedArrayBuffer(4 * WORDS),
    marks: new SharedArrayBuffer(4 * Marks.words(pages)),
    snapshot: new SharedArrayBuffer(Math.min(Math.ceil(pages / 32) * 32, SNAPSHOT_PAGES) * PAGE_BYTES),
  };
}

/** A data device as one thread sees it. */
export interface MemberView {
  readonly device: BlockDevice;
  /** Bytes. */
  readonly offset: number;
}

export interface LayerView extends MemberView {
  readonly bits: Int32Array;
}

/** One thread's view. */
export class CowState {
  readonly base: MemberView;
  /** Bottom first. */
  readonly layers: readonly LayerView[];
  /** Shared by whole-sector writes, held alone by what reads a sector to write it (cow-I5). */
  readonly lock: RwLock;
  readonly commits: Commits;
  readonly marks: Marks;
  readonly snapshot: Uint8Array;
  /**
   * There before the first request: a write-back path must not wait for memory. For reads and commits of this thread, which
   * never come together.
   */
  readonly buffer: Uint8Array;
  private readonly counts: BigInt64Array;
  private readonly words: Int32Array;

  constructor(descriptor: CowDescriptor, context: Pick<OpenContext, 'device'>) {
    const { base, layers, counts, words, marks, snapshot } = descriptor;
    const view = ({ backing, offset }: Member) => ({ device: context.device(backing), offset });
    this.base = view(base);
    this.layers = layers.map((layer) => ({ ...view(layer), bits: new Int32Array(layer.bits) }));
    this.counts = new BigInt64Array(counts);
    this.words = new Int32Array(words);
    this.marks = new Marks(new Int32Array(marks));
    this.snapshot = new Uint8Array(snapshot);
    this.lock = new RwLock(this.words.subarray(0, COMMITS));
    this.commits = new Commits(this.words.subarray(COMMITS, WORDS));
    this.buffer = new Uint8Array(layers.length > 0 ? BUFFER_BYTES : 0);
  }

  /** Sectors that layer `index` holds. */
  owned(index: number): number {
    return Number(Atomics.load(this.counts, index));
  }

  addOwned(index: number, sectors: number): void {
    if (sectors > 0) Atomics.add(this.counts, index, BigInt(sectors));
  }
}
