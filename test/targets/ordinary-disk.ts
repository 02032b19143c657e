/**
 * What any disk promises across a power cut: every flushed write is there, of the later ones each sector is old or new
 * (cuts-P5). A workload tells it what was asked, in order; then it is asked about the cuts, in rising order.
 *
 * A request takes the operations [start, end) of the power supply. A change counts from its first one on, for any part
 * of it may have landed; a flush from its end. A sector that was discarded holds anything until it is written in full.
 */
import type { PowerSupply } from '../../src/device/simulated.js';
import { SECTOR_BYTES } from '../../src/units.js';
import { expectSameBytes } from './harness.js';
import type { Request } from './power-cuts.js';

/** What a sector may hold; undefined: anything. */
type Version = Uint8Array | undefined;

interface Step {
  readonly start: number;
  readonly end: number;
  readonly does:
    | { readonly kind: 'flush' }
    | { readonly kind: 'change'; readonly sectors: ReadonlyMap<number, Version> }
    | { readonly kind: 'settle'; readonly content: Uint8Array };
}

export class OrdinaryDisk {
  private readonly steps: Step[] = [];
  /** What the user knows to be on it after the last step; `unknown` sectors hold anything. */
  private readonly model: Uint8Array;
  private readonly unknown = new Set<number>();

  /** As of the cut that was asked about last: what is durable, the versions since, and the next step. */
  private readonly durable: Uint8Array;
  private readonly open = new Map<number, Version[]>();
  private next = 0;

  constructor(
    content: Uint8Array,
    private readonly power: PowerSupply,
  ) {
    this.model = content.slice();
    this.durable = content.slice();
  }

  /** A request that worked and has just ended. */
  note({ kind, offset, data, start }: Request): void {
    if (kind === 'flush') this.add(start, { kind });
    else if (kind === 'discard') this.drop(start, offset, data.length);
    else this.write(start, offset, data);
  }

  write(start: number, offset: number, data: Uint8Array): void {
    const { model, unknown } = this;
    const sectors = new Map<number, Version>();
    model.set(data, offset);
    const end = offset + data.length;
    for (let at = offset - (offset % SECTOR_BYTES); at < end; at += SECTOR_BYTES) {
      const sector = at / SECTOR_BYTES;
      if (offset <= at && end >= Math.min(at + SECTOR_BYTES, model.length)) unknown.delete(sector);
      sectors.set(sector, unknown.has(sector) ? undefined : model.slice(at, at + SECTOR_BYTES));
    }
    this.add(start, { kind: 'change', sectors });
  }

  /** Nothing is promised any more about these bytes, nor about the others of their sectors. */
  drop(start: number, offset: number, length: number): void {
    const sectors = new Map<number, Version>();
    for (let at = offset - (offset % SECTOR_BYTES); at < offset + length; at += SECTOR_BYTES) {
      this.unknown.add(at / SECTOR_BYTES);
      sectors.set(at / SECTOR_BYTES, undefined);
    }
    this.add(start, { kind: 'change', sectors });
  }

  /** What began at `start` has made `content`, all of it, durable. */
  settle(start: number, content: Uint8Array): void {
    this.model.set(content);
    this.unknown.clear();
    this.add(start, { kind: 'settle', content });
  }

  /** Throws where `content`, which it changes, cannot be the disk's after the power failed in operation `cut`. */
  check(content: Uint8Array, cut: number): void {
    this.advance(cut);
    for (const [sector, versions] of this.open) {
      const at = sector * SECTOR_BYTES;
      const found = content.subarray(at, at + SECTOR_BYTES);
      if (versions.some((version) => version === undefined || Buffer.compare(version, found) === 0)) {
        found.set(this.durable.subarray(at, at + SECTOR_BYTES));
      }
    }
    expectSameBytes(
      content,
      this.durable,
      'cuts-P5: flushed writes are there, each later sector is old or new',
    );
  }

  private add(start: number, does: Step['does']): void {
    this.steps.push({ start, end: this.power.operations, does });
  }

  private advance(cut: number): void {
    for (; this.next < this.steps.length; this.next++) {
      const { start, end, does } = this.steps[this.next]!;
      if (start > cut || (does.kind !== 'change' && end > cut)) return;
      if (does.kind === 'flush') this.flush();
      else if (does.kind === 'change') this.change(does.sectors);
      else {
        this.open.clear();
        this.durable.set(does.content);
      }
    }
  }

  private change(sectors: ReadonlyMap<number, Version>): void {
    for (const [sector, version] of sectors) {
      const versions = this.open.get(sector);
      if (versions) versions.push(version);
      else this.open.set(sector, [version]);
    }
  }

  private flush(): void {
    for (const [sector, versions] of this.open) {
      const last = versions.at(-1);
      if (last === undefined) {
        this.open.set(sector, [undefined]);
      } else {
        this.durable.set(last, sector * SECTOR_BYTES);
        this.open.delete(sector);
      }
    }
  }
}
