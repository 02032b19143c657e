/**
 * The two brothers of a group, read from the medium and judged [dm-csum format, sections 5 and 6]. Everything that trusts a
 * table comes through here: requests, scrub, check and the detection of a volume.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { newerOf, PAIR_BYTES, pairOffset, Table, type Volume } from '../../formats/csum.js';
import { SECTOR_BYTES } from '../../units.js';

/** Which brothers are not as they were written: 1 for M1, 2 for M2, 3 for both. */
export type Brothers = 0 | 1 | 2 | 3;

export class Pair {
  /** The brother with the latest tuples; undefined when there is no telling, and nothing of the group can be verified. */
  newer: Table | undefined;
  /** The one before; undefined when it is damaged. */
  older: Table | undefined;
  /** Where the next update goes: over the older brother. */
  olderIndex: 0 | 1 = 0;
  /** Had one flipped bit, which is put right here and not on the medium. */
  corrected: Brothers = 0;
  /** Are lost. */
  lost: Brothers = 0;

  private readonly bytes = new Uint8Array(PAIR_BYTES);
  private readonly tables: readonly [Table, Table];

  /** `imd`: the device with the tables; the data device where they are interleaved. */
  constructor(
    private readonly volume: Volume,
    private readonly imd: BlockDevice,
  ) {
    const half = (index: number) => this.bytes.subarray(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES);
    this.tables = [new Table(volume.order, half(0)), new Table(volume.order, half(1))];
  }

  /** Reads the brothers of a group. Throws what the device throws. */
  read(group: number): void {
    this.imd.read(pairOffset(this.volume, group), this.bytes);
    this.judge(0);
  }

  /** Takes brothers that were read with something else: PAIR_BYTES. `unreadable` ones are lost, whatever they hold. */
  take(bytes: Uint8Array, unreadable: Brothers = 0): void {
    this.bytes.set(bytes);
    this.judge(unreadable);
  }

  /** True for what was never formatted, or whose counters are damaged. */
  get isUnordered(): boolean {
    return this.newer === undefined && this.lost === 0;
  }

  private judge(unreadable: Brothers): void {
    this.corrected = 0;
    this.lost = unreadable;
    for (const index of [0, 1] as const) {
      if (unreadable & (1 << index)) continue;
      const table = this.tables[index];
      if (table.isSound) continue;
      if (table.correctBit()) this.corrected |= 1 << index;
      else this.lost |= 1 << index;
    }
    const [m1, m2] = this.tables;
    const newer = newerOf(m1.counter, m2.counter);
    if (this.lost === 0 && newer === undefined && (this.corrected === 1 || this.corrected === 2)) {
      // One sector of garbage in sixteen looks as if one bit of it were wrong. Beside a sound brother that does not fit it is one.
      this.lost = this.corrected;
      this.corrected = 0;
    }
    if (this.lost === 0) this.set(newer, true);
    else this.set(this.lost === 1 ? 1 : this.lost === 2 ? 0 : undefined, false);
  }

  private set(newer: 0 | 1 | undefined, both: boolean): void {
    this.olderIndex = newer === 0 ? 1 : 0;
    this.newer = newer === undefined ? undefined : this.tables[newer];
    this.older = newer !== undefined && both ? this.tables[this.olderIndex] : undefined;
  }
}
