/**
 * A commit: what is staged goes to the medium, in the order of section 7 of the dm-csum format document, for all groups
 * together. Everything of it is durable when it ends, so that between two commits the newer brothers tell all.
 *
 *   0  Of groups that may hold a half-done update, the newer brother is made right where the data says that it is wrong.
 *   1  The tables of all groups, each over its older brother. Flush.
 *   2  The data. Flush.
 *   3  The stage is emptied.
 *
 * csum-I2  A table is written only when everything before it is durable, the data that the brother under it promises too.
 * csum-I3  Requests read what is staged until all of it is durable: a failed commit loses nothing, and the next one does
 *          again what may not have landed.
 */
import { zeroOut } from '../../device/block-device.js';
import { crcOfSector } from '../../formats/crc16.js';
import { dataOffset, GROUP_SECTORS, pairOffset, sectorsIn, type Table } from '../../formats/csum.js';
import { SECTOR_BYTES } from '../../units.js';
import { Pair } from './pair.js';
import type { Stage } from './stage.js';
import type { CsumState } from './state.js';
import { reportDamage } from './tables.js';

export class Committer {
  private readonly pair: Pair;
  private readonly sector = new Uint8Array(SECTOR_BYTES);
  private readonly sectorWords = new Int32Array(this.sector.buffer);

  constructor(private readonly state: CsumState) {
    this.pair = new Pair(state.volume, state.imd);
  }

  /**
   * Makes all that was staged before the call durable, but for what `losses` counts. Throws what the devices throw; then all
   * is staged still.
   */
  commit(): void {
    this.state.commits.join(() => this.run());
  }

  /** Settles a group that no commit has touched yet. Throws what the devices throw. */
  settleAlone(group: number): void {
    if (this.state.isSettled(group)) return;
    this.state.commits.alone(() => {
      // After a failure only a commit may, which begins with a flush.
      if (!this.state.hasFailed) this.orFail(() => this.settle([group]));
    });
  }

  private run(): void {
    const { state } = this;
    this.orFail(() => {
      if (state.hasFailed) this.flushBoth();
      if (!state.sealed.isEmpty) this.empty(state.sealed);
      if (!state.active.isEmpty) {
        state.seal();
        this.empty(state.sealed);
      }
      state.hasFailed = false;
    });
  }

  /** Who fails leaves word: what it has written may not be durable, and the next commit has to see to it (csum-I2). */
  private orFail(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.state.hasFailed = true;
      throw error;
    }
  }

  private flushBoth(): void {
    const { data, imd } = this.state;
    imd.flush();
    if (data !== imd) data.flush();
  }

  private empty(stage: Stage): void {
    const { state } = this;
    const groups = stage.groups();
    this.settle([...groups]);
    const writable = groups.filter((group) => this.writeTable(stage, group));
    state.imd.flush();
    for (const group of writable) this.writeData(stage, group);
    state.data.flush();
    for (const group of groups) this.withLock(group, () => stage.clear(stage.find(group)));
    stage.reset();
  }

  /** Step 0, [7.2]: an update of its own, for the new table of a group overwrites the only other record of its data. */
  private settle(groups: readonly number[]): void {
    const { state } = this;
    const unsettled = groups.filter((group) => !state.isSettled(group));
    if (unsettled.length === 0) return;
    if (state.hasFailed) {
      // A flush that failed may have given up a table that reads show still, and the repair goes over the other one.
      for (const group of unsettled) this.withLock(group, () => this.writeNewerAgain(group));
      state.imd.flush();
    }
    const repaired = unsettled.filter((group) => this.withLock(group, () => this.repair(group)));
    if (repaired.length === 0) return;
    state.imd.flush();
    for (const group of repaired) this.withLock(group, () => this.setSettled(group));
  }

  /** From now on only the newer brother counts, also for who has both cached. */
  private setSettled(group: number): void {
    this.state.setSettled(group, true);
    this.state.tableChanged(group);
  }

  /** True when a repair was written, and is to be flushed. */
  private repair(group: number): boolean {
    const { state, pair, sector, sectorWords } = this;
    pair.read(group);
    const { newer, older } = pair;
    const wrong: number[] = [];
    for (let k = 0; newer && older && k < sectorsIn(state.volume, group); k++) {
      if (newer.crc(k) === older.crc(k)) continue;
      try {
        state.data.read(dataOffset(state.volume, group) + k * SECTOR_BYTES, sector);
      } catch (error) {
        // One bad sector must not keep all others from being committed for ever.
        if (!state.hasFailed) throw error;
        continue;
      }
      // What matches neither is damage, and stays so.
      if (crcOfSector(sectorWords, 0) === older.crc(k)) wrong.push(k);
    }
    if (wrong.length === 0) {
      this.setSettled(group);
      return false;
    }
    this.update(group, newer!, (table) => {
      for (const k of wrong) table.setCrc(k, older!.crc(k));
    });
    return true;
  }

  /** Step 1. False where the tables were damaged since the data was taken. */
  private writeTable(stage: Stage, group: number): boolean {
    const { state, pair } = this;
    const entry = stage.find(group);
    if (stage.runFrom(entry, 0) === undefined) return true;
    return this.withLock(group, () => {
      pair.read(group);
      reportDamage(state, group, pair);
      if (pair.newer === undefined) {
        state.countLoss();
        state.raise(`write_lost group=${group}`);
        return false;
      }
      const written = stage.writtenCounter(entry);
      if (written === pair.newer.counter) {
        // A commit that failed wrote it, and the flush may have lost it.
        this.writeNewer(group);
        return true;
      }
      // Should the write fail, it may have landed.
      state.setSettled(group, false);
      const counter = this.update(group, pair.newer, (table) => {
        for (let k = 0; k < GROUP_SECTORS; k++) if (stage.has(entry, k)) table.setCrc(k, stage.crc(entry, k));
      });
      state.setSettled(group, true);
      stage.setWrittenCounter(entry, counter);
      return true;
    });
  }

  private writeNewerAgain(group: number): void {
    this.pair.read(group);
    if (this.pair.newer !== undefined) this.writeNewer(group);
  }

  /** Writes the newer brother of the group that was read where it is. */
  private writeNewer(group: number): void {
    const { state, pair } = this;
    const at = pairOffset(state.volume, group) + (1 - pair.olderIndex) * SECTOR_BYTES;
    state.imd.write(at, pair.newer!.bytes);
  }

  /** Writes the next table of the group that was read, over its older brother; gives its counter. */
  private update(group: number, table: Table, change: (table: Table) => void): number {
    const { state, pair } = this;
    const { olderIndex } = pair;
    table.counter += 1;
    change(table);
    table.clearUnused();
    table.seal();
    state.tableChanged(group);
    state.imd.write(pairOffset(state.volume, group) + olderIndex * SECTOR_BYTES, table.bytes);
    if ((pair.corrected & ~(1 << olderIndex)) === 0) state.bad.healGroup(group);
    return table.counter;
  }

  /** Step 2. No lock: requests read these sectors from the stage. */
  private writeData(stage: Stage, group: number): void {
    const { state } = this;
    const entry = stage.find(group);
    const offset = dataOffset(state.volume, group);
    for (let run = stage.runFrom(entry, 0); run; run = stage.runFrom(entry, run.k + run.count)) {
      const at = offset + run.k * SECTOR_BYTES;
      if (run.data === undefined) zeroOut(state.data, at, run.count * SECTOR_BYTES);
      else state.data.write(at, run.data);
    }
  }

  private withLock<T>(group: number, work: () => T): T {
    return this.state.lockOf(group).exclusively(work);
  }
}
