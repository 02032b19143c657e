/**
 * Requests of a cow device. Reads are read.ts; here is what changes the top layer: data first, then its bits (cow-I2), and
 * sectors that a request covers in part are completed from the stack before (cow-I5).
 */
import { type Extent, extentOf, zeroOut } from '../../device/block-device.js';
import { nextOne, nextZero } from '../../shared/bitmap.js';
import { quoteWord } from '../../table.js';
import { SECTOR_BYTES } from '../../units.js';
import type { OpenContext, Target } from '../target.js';
import { Owners } from './owners.js';
import { StackReader } from './read.js';
import { type CowDescriptor, CowState, type MemberView } from './state.js';
import { TopBitmap } from './top.js';

/** Milliseconds between two looks for bits that a kill would lose. */
const COMMIT_INTERVAL_MS = 1000;
/** Bytes that are zeroed at a time: who waits for the lock gets it in between. */
const ZEROES_STEP = 64 << 20;
/** Bytes of a write from which on it pays to ask for their space at once: a sparse file finds it page by page otherwise. */
const ALLOCATE_BYTES = 128 << 10;
/** Sectors that one `extentAt` looks at in the bits. */
const EXTENT_SECTORS = 1 << 17;

export class CowTarget implements Target {
  readonly size: number;
  /** Any sector can be trimmed; blocks of a file give their space back only as a whole. */
  readonly trimGranularity = 4096;
  private readonly state: CowState;
  private readonly reader: StackReader;
  /** The device that is written: the top layer's, the base where there is none. */
  private readonly written: MemberView;
  /** Undefined: there is only the base. */
  private readonly top: TopBitmap | undefined;
  /** What each member shows of each part of the stack. */
  readonly owners: Owners;
  private readonly edge = new Uint8Array(SECTOR_BYTES);
  private readonly raise: (event: string) => void;

  constructor(
    private readonly descriptor: CowDescriptor,
    context: OpenContext,
  ) {
    this.size = descriptor.size;
    this.state = new CowState(descriptor, context);
    this.reader = new StackReader(this.state);
    this.written = this.state.layers.at(-1) ?? this.state.base;
    this.top = descriptor.layers.length > 0 ? new TopBitmap(descriptor, this.state, context) : undefined;
    this.raise = context.raise;
    const { layers } = this.state;
    this.owners = new Owners(
      this.size / SECTOR_BYTES,
      layers.map(({ bits }) => bits),
      (layer) => this.state.owned(layer) > 0,
    );
  }

  read(offset: number, into: Uint8Array): void {
    this.reader.read(offset, into);
  }

  write(offset: number, from: Uint8Array): void {
    const { device } = this.written;
    this.change(offset, from.length, (at) => {
      if (from.length >= ALLOCATE_BYTES && this.isFresh(offset, from.length))
        device.allocate?.(at, from.length);
      device.write(at, from);
    });
  }

  flush(): void {
    if (this.top) this.top.flushForUser();
    else this.written.device.flush();
  }

  discard(offset: number, length: number): void {
    if (!this.top) {
      this.written.device.discard(this.written.offset + offset, length);
      return;
    }
    // To take the bits away would uncover the layers below: a trim is zeros, too (rule 12).
    this.changeInSteps(offset, length, (to, bytes) => zeroOut(this.written.device, to, bytes));
  }

  writeZeroes(offset: number, length: number, options?: { unmap?: boolean }): void {
    this.changeInSteps(offset, length, (to, bytes) => this.written.device.writeZeroes(to, bytes, options));
  }

  extentAt(offset: number): Extent {
    const { base, layers } = this.state;
    const sector = Math.floor(offset / SECTOR_BYTES);
    let end = Math.min(sector + EXTENT_SECTORS, this.size / SECTOR_BYTES);
    let holder = layers.length;
    for (; holder > 0; holder--) {
      const next = nextOne(layers[holder - 1]!.bits, sector, end);
      if (next === sector) break;
      end = next;
    }
    if (holder > 0) end = nextZero(layers[holder - 1]!.bits, sector, end);
    const member = holder > 0 ? layers[holder - 1]! : base;
    const extent = extentOf(member.device, member.offset + offset);
    return { data: extent.data, end: Math.min(extent.end - member.offset, end * SECTOR_BYTES) };
  }

  tableArgs(): string {
    const { base, layers } = this.descriptor;
    const word = ({ backing, offset }: typeof base) => `${quoteWord(backing.path)} ${offset / SECTOR_BYTES}`;
    return [word(base), ...layers.map((layer) => `${quoteWord(layer.bitmap.path)} ${word(layer)}`)].join(' ');
  }

  /** `<layers> <sectors that the top member holds>/<sectors>`. */
  statusArgs(): string {
    const { layers } = this.descriptor;
    const sectors = this.size / SECTOR_BYTES;
    return `${layers.length} ${this.top ? this.state.owned(layers.length - 1) : sectors}/${sectors}`;
  }

  /** A kill loses bits that were never flushed, with the data behind them: they are committed about once a second. */
  commitRegularly(): () => void {
    const { top } = this;
    if (!top) return () => {};
    const timer = setInterval(() => top.commitInBackground(this.raise), COMMIT_INTERVAL_MS);
    timer.unref();
    return () => clearInterval(timer);
  }

  /** One line a member, base first: index, sectors it holds, bitmap (`-` for the base), device, offset (sectors). */
  describeLayers(): string {
    const { base, layers } = this.descriptor;
    const line = (index: number, sectors: number, bitmap: string, { backing, offset }: typeof base) =>
      `${index} ${sectors} ${bitmap} ${quoteWord(backing.path)} ${offset / SECTOR_BYTES}\n`;
    const upper = layers.map((layer, index) =>
      line(index + 1, this.state.owned(index), quoteWord(layer.bitmap.path), layer),
    );
    return line(0, this.size / SECTOR_BYTES, '-', base) + upper.join('');
  }

  /** As `change`, for ranges so long that others must get the lock in between: `apply(byte, length)`. */
  private changeInSteps(offset: number, length: number, apply: (at: number, length: number) => void): void {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const stop = Math.min(end, (Math.floor(at / ZEROES_STEP) + 1) * ZEROES_STEP);
      this.change(at, stop - at, (to) => apply(to, stop - at));
      at = stop;
    }
  }

  /** Changes a range with one request, `apply(byte of the written device)`, and makes it the top layer's. */
  private change(offset: number, length: number, apply: (at: number) => void): void {
    const { top, written } = this;
    if (!top) {
      apply(written.offset + offset);
      return;
    }
    if (length === 0) return;
    const { lock } = this.state;
    const first = Math.floor(offset / SECTOR_BYTES);
    const end = Math.ceil((offset + length) / SECTOR_BYTES);
    lock.lockShared();
    try {
      if (!this.needsEdges(top, offset, offset + length)) {
        apply(written.offset + offset);
        top.set(first, end);
        return;
      }
    } finally {
      lock.unlockShared();
    }
    lock.lockExclusive();
    try {
      this.fillEdge(top, first, offset - first * SECTOR_BYTES, 'before');
      this.fillEdge(top, end - 1, end * SECTOR_BYTES - (offset + length), 'after');
      apply(written.offset + offset);
      top.set(first, end);
    } finally {
      lock.unlockExclusive();
    }
  }

  /** Whether the top layer does not hold all of a range yet. */
  private isFresh(offset: number, length: number): boolean {
    const first = Math.floor(offset / SECTOR_BYTES);
    return this.top !== undefined && !this.top.holdsAll(first, Math.floor((offset + length) / SECTOR_BYTES));
  }

  /** Whether [from, to) covers a sector in part that the top layer does not hold. */
  private needsEdges(top: TopBitmap, from: number, to: number): boolean {
    for (const at of [from, to]) {
      const sector = Math.floor(at / SECTOR_BYTES);
      if (at % SECTOR_BYTES > 0 && !top.holdsAll(sector, sector + 1)) return true;
    }
    return false;
  }

  /** Puts the `length` bytes of a sector that a change leaves, its first or its last, where the sector is about to be. */
  private fillEdge(top: TopBitmap, sector: number, length: number, side: 'before' | 'after'): void {
    if (length === 0 || top.holdsAll(sector, sector + 1)) return;
    const at = side === 'before' ? sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES - length;
    const part = this.edge.subarray(0, length);
    this.reader.read(at, part);
    this.written.device.write(this.written.offset + at, part);
  }
}
