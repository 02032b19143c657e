/**
 * The CRCs that a sector may have, as one thread has them cached: decoded tables, by group. An entry is good while the
 * version of its stripe is the one that it was read at; the group's lock is held for both.
 */
import { LRUCache } from 'lru-cache';
import { GROUP_SECTORS, groupsOf } from '../../formats/csum.js';
import { type Brothers, Pair } from './pair.js';
import type { CsumState } from './state.js';

/** Groups: 250 MiB of data. An entry takes about 300 bytes. */
const CACHED = 8192;

export interface Tuples {
  /** Undefined where no table can be trusted. */
  readonly newer: Uint16Array | undefined;
  /** Only where it may be right as well. */
  readonly older: Uint16Array | undefined;
}

interface Cached extends Tuples {
  readonly version: number;
}

export class Tables {
  private readonly cache: LRUCache<number, Cached>;
  private readonly pair: Pair;

  constructor(private readonly state: CsumState) {
    this.cache = new LRUCache({ max: Math.min(CACHED, groupsOf(state.volume)) });
    this.pair = new Pair(state.volume, state.imd);
  }

  /** What the sectors of a group may be. Its lock is held. Throws what the device throws. */
  of(group: number): Tuples {
    const { state, pair } = this;
    const version = state.versionOf(group);
    const cached = this.cache.get(group);
    if (cached !== undefined && cached.version === version) return cached;
    pair.read(group);
    reportDamage(state, group, pair);
    const { newer, older } = tuplesOf(pair, state.isSettled(group));
    const entry = { version, newer, older };
    this.cache.set(group, entry);
    return entry;
  }

  /** The next look at the group is one at the medium. */
  forget(group: number): void {
    this.cache.delete(group);
  }
}

/** Decodes what a pair says; `isSettled`: no update of the group can be half done. */
export function tuplesOf(pair: Pair, isSettled: boolean): Tuples {
  const crcs = ({ newer, older }: Pair, which: 'newer' | 'older') => {
    const table = which === 'newer' ? newer : older;
    return table && Uint16Array.from({ length: GROUP_SECTORS }, (_, k) => table.crc(k));
  };
  // What a corrected bit was is inferred, so the other brother's word counts as well.
  const eitherMayBeRight = !isSettled || pair.corrected !== 0;
  return { newer: crcs(pair, 'newer'), older: eitherMayBeRight ? crcs(pair, 'older') : undefined };
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
