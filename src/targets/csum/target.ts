/**
 * Requests of a csum device, group by group under the group's lock: reads verify, writes are staged for the next commit.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { DmError, errnoOf, messageOf } from '../../errors.js';
import { crcOfSector } from '../../formats/crc16.js';
import { dataOffset, GROUP_BYTES, GROUP_SECTORS, groupsOf, sectorsIn } from '../../formats/csum.js';
import { quoteWord } from '../../table.js';
import { SECTOR_BYTES } from '../../units.js';
import type { OpenContext, Target } from '../target.js';
import { Committer } from './commit.js';
import { Scrub } from './scrub.js';
import { type CsumDescriptor, CsumState } from './state.js';
import { Tables } from './tables.js';
import { writeSuperblock } from './volume.js';

/** How long what is staged may wait for a commit when nobody flushes. */
const COMMIT_EVERY_MS = 1000;

/** Sectors of one group: `count` from the k-th on. Byte `skip` of them is byte `done` of the request, for `length` bytes. */
interface Part {
  readonly group: number;
  readonly k: number;
  readonly count: number;
  readonly skip: number;
  readonly done: number;
  readonly length: number;
}

export class CsumTarget implements Target {
  readonly size: number;
  readonly trimGranularity = SECTOR_BYTES;
  readonly state: CsumState;
  readonly scrub: Scrub;
  private readonly tables: Tables;
  private readonly committer: Committer;
  /** Whole sectors of a request that has parts of some. */
  private readonly bounce = new Uint8Array(GROUP_BYTES);

  constructor(
    private readonly descriptor: CsumDescriptor,
    context: Pick<OpenContext, 'device' | 'raise'>,
  ) {
    this.size = descriptor.size;
    this.state = new CsumState(descriptor, context);
    this.tables = new Tables(this.state);
    this.committer = new Committer(this.state);
    this.scrub = new Scrub(groupsOf(this.state.volume), {
      verify: (group) => this.verify(group),
      requests: () => this.state.activity.requests,
      raise: context.raise,
    });
  }

  read(offset: number, into: Uint8Array): void {
    this.state.activity.countRequest();
    forEachPart(offset, into.length, (part) => {
      const { count, skip, done, length } = part;
      const target = into.subarray(done, done + length);
      const isWhole = skip === 0 && length === count * SECTOR_BYTES && target.byteOffset % 4 === 0;
      const sectors = isWhole ? target : this.bounce.subarray(0, count * SECTOR_BYTES);
      const lock = this.state.lockOf(part.group);
      lock.lockShared();
      try {
        this.readSectors(part.group, part.k, sectors);
      } finally {
        lock.unlockShared();
      }
      if (!isWhole) target.set(sectors.subarray(skip, skip + length));
    });
  }

  write(offset: number, from: Uint8Array): void {
    this.change(offset, from.length, (part) => {
      const { group, k, count, skip, done, length } = part;
      const data = from.subarray(done, done + length);
      if (length === count * SECTOR_BYTES) return this.state.active.put(group, k, count, data);
      const sectors = this.readEdges(part);
      sectors.set(data, skip);
      return this.state.active.put(group, k, count, sectors);
    });
  }

  flush(): void {
    const { state } = this;
    // Before the commit: of two flushes that wait for the same one, both have to tell.
    const told = state.lossesTold;
    this.committer.commit();
    const { losses } = state;
    if (losses === told) return;
    state.lossesTold = losses;
    throw new DmError(
      'EIO',
      'csum: both tables of a group are damaged: what was written to it is lost; `errors` names it',
    );
  }

  /** Reads as zeros from now on: the table has to say what the data is. */
  discard(offset: number, length: number): void {
    this.writeZeroes(offset, length);
  }

  writeZeroes(offset: number, length: number): void {
    this.change(offset, length, (part) => {
      const { group, k, count, skip } = part;
      if (part.length === count * SECTOR_BYTES) return this.state.active.putZeros(group, k, count);
      const sectors = this.readEdges(part);
      sectors.fill(0, skip, skip + part.length);
      return this.state.active.put(group, k, count, sectors);
    });
  }

  tableArgs(): string {
    const { data, imd, volume } = this.descriptor;
    const tables = imd && ` ${quoteWord(imd.path)} ${volume.imdStart / SECTOR_BYTES}`;
    return `${quoteWord(data.path)} ${volume.dataStart / SECTOR_BYTES}${tables ?? ''}`;
  }

  statusArgs(): string {
    const { bad, active, sealed } = this.state;
    return `errors:${bad.count} pending:${active.sectors + sealed.sectors}`;
  }

  /** Commits what nobody flushes, and early what fills a stage: then requests need not wait for it. */
  commitRegularly(): () => void {
    const { state } = this;
    let attends = true;
    const attendTo = async () => {
      let done = state.commits.done;
      let failure = '';
      while (attends) {
        const { wakes } = state.activity;
        if (failure !== '' || !state.active.isHalfFull)
          await state.activity.awaitWake(wakes, COMMIT_EVERY_MS);
        else await nextTurn();
        const isIdle = state.active.isEmpty && state.sealed.isEmpty && !state.hasFailed;
        const isRecent = state.commits.done !== done && !state.active.isHalfFull;
        done = state.commits.done;
        if (!attends || isIdle || isRecent) continue;
        try {
          this.committer.commit();
          failure = '';
        } catch (error) {
          const reason = messageOf(error);
          if (reason !== failure) {
            state.raise(`commit_failed errno=${errnoOf(error)} reason=${JSON.stringify(reason)}`);
          }
          failure = reason;
        }
        done = state.commits.done;
      }
    };
    void attendTo();
    return () => {
      attends = false;
      state.activity.wake();
    };
  }

  /** Where no update is half done, the next start may trust the newer brothers alone. */
  close(): void {
    const { state, descriptor } = this;
    this.scrub.stop();
    const isPending = !state.active.isEmpty || !state.sealed.isEmpty;
    if (isPending || !state.areAllSettled) return;
    const { volume, id } = descriptor;
    const { data } = state;
    writeSuperblock({ data }, volume, { ...volume, state: 'clean', groupsFormatted: 0, id });
    data.flush();
  }

  /** Stages the parts of a request; `stage` does one, and says whether there was room. */
  private change(offset: number, length: number, stage: (part: Part) => boolean): void {
    const { state } = this;
    state.activity.countRequest();
    forEachPart(offset, length, (part) => {
      while (!this.stageOne(part, stage)) this.committer.commit();
    });
    if (state.active.isHalfFull) state.activity.wake();
  }

  private stageOne(part: Part, stage: (part: Part) => boolean): boolean {
    const { state } = this;
    const { group, k, count } = part;
    const lock = state.lockOf(group);
    state.gate.lockShared();
    lock.lockExclusive();
    try {
      if (!this.tables.isWritable(group)) {
        throw new DmError('EIO', `csum: both tables of group ${group} are damaged: it cannot be written`);
      }
      if (!stage(part)) return false;
      state.bad.healSectors(group * GROUP_SECTORS + k, count);
      return true;
    } finally {
      lock.unlockExclusive();
      state.gate.unlockShared();
    }
  }

  /** The sectors of a part that is to be changed, with what they hold now in those that are changed in part. */
  private readEdges({ group, k, count, skip, length }: Part): Uint8Array {
    const sectors = this.bounce.subarray(0, count * SECTOR_BYTES);
    const last = count - 1;
    const end = skip + length;
    if (skip > 0) this.readSectors(group, k, sectors.subarray(0, SECTOR_BYTES));
    if (end < sectors.length && (last > 0 || skip === 0)) {
      this.readSectors(group, k + last, sectors.subarray(last * SECTOR_BYTES));
    }
    return sectors;
  }

  /** Reads whole sectors of a group, from the k-th on. Its lock is held. Throws EIO where one is corrupt. */
  private readSectors(group: number, k: number, into: Uint8Array): void {
    const problem = this.readAndVerify(group, k, into);
    if (problem !== undefined) throw new DmError('EIO', problem);
  }

  /** The same; lists every corrupt sector and says what is wrong with the first. */
  private readAndVerify(group: number, k: number, into: Uint8Array): string | undefined {
    const { state } = this;
    const count = into.length / SECTOR_BYTES;
    const { active, sealed } = state;
    const fresh = active.find(group);
    const before = sealed.find(group);
    const hasStaged = fresh >= 0 || before >= 0;
    const isStaged = (i: number) =>
      (fresh >= 0 && active.has(fresh, k + i)) || (before >= 0 && sealed.has(before, k + i));
    let missing = count;
    if (hasStaged) for (let i = 0; i < count; i++) if (isStaged(i)) missing--;
    let problem: string | undefined;
    if (missing > 0) {
      const entry = this.tables.of(group);
      state.data.read(dataOffset(state.volume, group) + k * SECTOR_BYTES, into);
      const words = new Int32Array(into.buffer, into.byteOffset, into.length / 4);
      for (let i = 0; i < count; i++) {
        const crc = crcOfSector(words, i * (SECTOR_BYTES / 4));
        if (this.tables.matches(entry, k + i, crc) || (hasStaged && isStaged(i))) continue;
        const found = this.corruption(group, k + i, crc, this.tables.stored(entry, k + i));
        problem ??= found;
      }
    }
    for (let i = 0; hasStaged && i < count; i++) {
      const sector = into.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
      if (fresh >= 0 && active.has(fresh, k + i)) active.get(fresh, k + i, sector);
      else if (before >= 0 && sealed.has(before, k + i)) sealed.get(before, k + i, sector);
    }
    return problem;
  }

  /** Lists a corrupt sector, and says what is wrong with it. */
  private corruption(group: number, k: number, crc: number, stored: readonly number[]): string {
    const sector = group * GROUP_SECTORS + k;
    if (stored.length === 0) return `csum: sector ${sector}: both tables of group ${group} are damaged`;
    const hex = (value: number) => `0x${value.toString(16).padStart(4, '0')}`;
    const found = `stored=${stored.map(hex).join(',')} computed=${hex(crc)}`;
    this.state.bad.addSector(sector, `corrupt sector=${sector} ${found}`);
    return `csum: sector ${sector} is corrupt: ${found}`;
  }

  /** What is wrong with a group on the medium; it is listed. Settles it as well. For the scrub. */
  private verify(group: number): string | undefined {
    const { state } = this;
    try {
      this.committer.settleAlone(group);
    } catch (error) {
      return messageOf(error);
    }
    const lock = state.lockOf(group);
    lock.lockShared();
    try {
      this.tables.forget(group);
      return this.readAndVerify(
        group,
        0,
        this.bounce.subarray(0, sectorsIn(state.volume, group) * SECTOR_BYTES),
      );
    } catch (error) {
      return messageOf(error);
    } finally {
      lock.unlockShared();
    }
  }
}

/** Cuts a range of bytes at the groups. */
function forEachPart(offset: number, length: number, visit: (part: Part) => void): void {
  for (let done = 0; done < length; ) {
    const at = offset + done;
    const group = Math.floor(at / GROUP_BYTES);
    const inGroup = at - group * GROUP_BYTES;
    const part = Math.min(length - done, GROUP_BYTES - inGroup);
    const k = Math.floor(inGroup / SECTOR_BYTES);
    const skip = inGroup - k * SECTOR_BYTES;
    const count = Math.ceil((skip + part) / SECTOR_BYTES);
    visit({ group, k, count, skip, done, length: part });
    done += part;
  }
}
