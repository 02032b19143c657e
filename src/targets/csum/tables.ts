/**
 * The CRCs that a sector may have, as one thread has them cached: decoded tables, by group, in one array that is there from the
 * start. An entry is good while the version of its stripe is the one that it was read at; the group's lock is held for both.
 */
import { LRUCache } from 'lru-cache';
import { GROUP_SECTORS, groupsOf, type Table } from '../../formats/csum.js';
import { type Brothers, Pair } from './pair.js';
import type { CsumState } from './state.js';

/** Groups: 500 MiB of data. Two tables of 124 bytes each, of which the second is rarely touched. */
const CACHED = 16_384;

/** What an entry has to say. */
const NOTHING = 0;
const NEWER = 1;
const EITHER = 2;

export class Tables {
  /** Group to entry. */
  private readonly cache: LRUCache<number, number>;
  private readonly freeEntries: number[] = [];
  private readonly versions: Int32Array;
  private readonly says: Uint8Array;
  private readonly newer: Uint16Array;
  private readonly older: Uint16Array;
  private readonly pair: Pair;

  constructor(private readonly state: CsumState) {
    const max = Math.min(CACHED, groupsOf(state.volume));
    this.cache = new LRUCache({ max, dispose: (entry) => this.freeEntries.push(entry) });
    // One more: an entry is taken before another is given back.
    for (let entry = max; entry >= 0; entry--) this.freeEntries.push(entry);
    this.versions = new Int32Array(max + 1);
    this.says = new Uint8Array(max + 1);
    this.newer = new Uint16Array((max + 1) * GROUP_SECTORS);
    this.older = new Uint16Array((max + 1) * GROUP_SECTORS);
    this.pair = new Pair(state.volume, state.imd);
  }

  /** The entry of a group, for `matches` and `stored`, until the next call. Its lock is held. Throws what the device throws. */
  of(group: number): number {
    const { state, cache } = this;
    const version = state.versionOf(group);
    const cached = cache.get(group);
    // What could not be trusted is looked at again: else threads that saw it at different times would not agree.
    const isTrusted = cached !== undefined && this.says[cached] !== NOTHING;
    if (isTrusted && this.versions[cached] === version) return cached;
    this.pair.read(group);
    reportDamage(state, group, this.pair);
    const entry = cached ?? this.freeEntries.pop()!;
    this.versions[entry] = version;
    this.decode(entry, state.isSettled(group));
    if (cached === undefined) cache.set(group, entry);
    return entry;
  }

  /** Whether a sector with this CRC may be what was written as the k-th of the group. */
  matches(entry: number, k: number, crc: number): boolean {
    const says = this.says[entry]!;
    if (says === NOTHING) return false;
    const at = entry * GROUP_SECTORS + k;
    return crc === this.newer[at] || (says === EITHER && crc === this.older[at]);
  }

  /** The CRCs that it may have; none where no table can be trusted. */
  stored(entry: number, k: number): number[] {
    const at = entry * GROUP_SECTORS + k;
    return [this.newer[at]!, this.older[at]!].slice(0, this.says[entry]);
  }

  /** Whether a group may be written: whether it had a table in order when it was last looked at. Its lock is held. */
  isWritable(group: number): boolean {
    const cached = this.cache.get(group);
    if (cached !== undefined && this.says[cached] !== NOTHING) return true;
    return this.says[this.of(group)] !== NOTHING;
  }

  /** The next look at the group is one at the medium. */
  forget(group: number): void {
    this.cache.delete(group);
  }

  private decode(entry: number, isSettled: boolean): void {
    const { newer, older, olderIndex, corrected } = this.pair;
    // What a corrected bit was is inferred, so the other brother's word counts as well.
    const isInferred = (corrected & ~(1 << olderIndex)) !== 0;
    const eitherMayBeRight = older !== undefined && (!isSettled || isInferred);
    this.says[entry] = newer === undefined ? NOTHING : eitherMayBeRight ? EITHER : NEWER;
    if (newer !== undefined) copyCrcs(newer, this.newer, entry);
    if (eitherMayBeRight) copyCrcs(older, this.older, entry);
  }
}

function copyCrcs(table: Table, crcs: Uint16Array, entry: number): void {
  const at = entry * GROUP_SECTORS;
  for (let k = 0; k < GROUP_SECTORS; k++) crcs[at + k] = table.crc(k);
}

/** Lists a group whose tables are not as they were written. */
export function reportDamage({ bad }: CsumState, group: number, pair: Pair): void {
  const { corrected, lost } = pair;
  if (pair.isUnordered) bad.addGroup(group, `imd_damaged group=${group} unordered=M1,M2`);
  else if (lost !== 0) bad.addGroup(group, `imd_damaged group=${group} lost=${names(lost)}`);
  else if (corrected !== 0) bad.addGroup(group, `imd_damaged group=${group} corrected=${names(corrected)}`);
}

function names(brothers: Brothers): string {
  return ['', 'M1', 'M2', 'M1,M2'][brothers]!;
}
