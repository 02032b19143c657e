/**
 * bow against a naive model: a byte for each byte, a type for each block. Random requests in states 0, 1 and 2; after each of
 * them reads, `ranges` and `free` must be the model's. Which free block a backup goes to is the target's choice: the
 * model takes over the choice and checks that it was one (free, outside the write, and no more of them than owed).
 */
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { BlockType as T } from '../../../src/targets/bow/state.js';
import { restore } from '../../../src/targets/bow/undo.js';
import { codeOf, contentOf, expectSameBytes, seeds, underSeed, withoutUnmap } from '../harness.js';
import { type BowRig, blocksOf, expectAtRest, makeBow, typesOf } from './rig.js';

const NAMES = ['Unchanged', 'Free', 'Changed', 'Backup', 'Sector0_current', 'Sector0', 'Unchanged'];
const OWES_BACKUP: readonly number[] = [T.UNCHANGED, T.TRIMMED, T.BACKUP, T.SECTOR0_CURRENT];
const READS_ZERO: readonly number[] = [T.FREE, T.TRIMMED, T.BACKUP, T.SECTOR0_CURRENT];
/** Entries in the first 512 bytes of a log: with more of them a commit needs a free block (bow-I7). */
const FIRST_SECTOR_ENTRIES = 20;

describe('bow against a model', () => {
  it.each([512, 1024, 2048, 4096])('block %i', async (blockSize) => {
    const seen = { checkpoints: 0, commits: 0, refused: 0, overflows: 0 };
    for (const seed of seeds((done) => done >= 30)) {
      await underSeed(seed, async () => {
        const run = await ModelRun.make(seed, blockSize);
        run.run();
        seen.checkpoints += run.state > 0 ? 1 : 0;
        seen.commits += run.state > 1 ? 1 : 0;
        seen.refused += run.refused;
        seen.overflows += run.overflows;
      });
    }
    if (process.env.DMFUSE_SEED !== undefined) return;
    for (const [what, times] of Object.entries(seen)) expect(times, what).toBeGreaterThan(0);
  });
});

class ModelRun {
  state = 0;
  refused = 0;
  overflows = 0;
  private readonly types: number[];
  private readonly bytes: Uint8Array;
  private readonly wholeBlocks: number;
  /** What the roll back must bring back, and the blocks it need not. */
  private checkpoint: { content: Uint8Array; free: number[] } | undefined;
  private lastInState1: Uint8Array | undefined;

  static async make(seed: number, blockSize: number): Promise<ModelRun> {
    const rng = new Prng(seed ^ (blockSize << 10));
    const blocks = 20 + rng.below(60);
    const tail = rng.chance(0.4) ? rng.below(blockSize / 512) * 512 : 0;
    const memory = new MemoryDevice(rng.bytes(blocks * blockSize + tail));
    const device = rng.chance(0.3) ? withoutUnmap(memory) : memory;
    return new ModelRun(rng, blockSize, memory, device, await makeBow(device, blockSize));
  }

  private constructor(
    private readonly rng: Prng,
    private readonly blockSize: number,
    private readonly memory: MemoryDevice,
    device: BlockDevice,
    private readonly rig: BowRig,
  ) {
    this.wholeBlocks = Math.floor(device.size / blockSize);
    this.types = new Array(Math.ceil(device.size / blockSize)).fill(T.UNCHANGED);
    this.bytes = memory.bytes.slice();
  }

  run(): void {
    const { rng } = this;
    const likely = rng.pick([0.1, 0.5, 0.9]);
    for (let block = 1; block < this.wholeBlocks; block++) {
      if (rng.chance(likely)) this.step('discard', block * this.blockSize, this.blockSize);
    }
    const kinds = ['write', 'write', 'zeroes', 'unmap', 'discard', 'churn'].filter(() => rng.chance(0.8));
    for (const steps of [rng.below(20), rng.below(120), rng.below(20)]) {
      for (let step = 0; step < steps && kinds.length > 0; step++) this.randomStep(rng.pick(kinds));
      if (!this.changeState()) break;
    }
  }

  private randomStep(kind: string): void {
    const { rng, blockSize, rig } = this;
    if (kind === 'churn') {
      // A backup is moved and its place given back: the log grows and no space is lost.
      const blocks = [...blocksOf(rig, T.SECTOR0_CURRENT), ...blocksOf(rig, T.BACKUP)];
      for (let times = rng.below(30); times > 0 && blocks.length > 0; times--) {
        const at = rng.pick(blocks) * blockSize;
        this.step('write', at, blockSize);
        this.step('discard', at, blockSize);
      }
      return;
    }
    const unit = rng.pick([1, 512, blockSize]);
    const units = Math.floor(rig.target.size / unit);
    const offset = rng.chance(0.1) ? 0 : rng.below(units) * unit;
    const length = Math.min(
      rig.target.size - offset,
      rng.below(rng.pick([1, 3, 12, 60]) * (blockSize / unit) + 1) * unit,
    );
    this.step(kind, offset, length);
  }

  private step(kind: string, offset: number, length: number): void {
    const { rig, rng, bytes } = this;
    const { target } = rig;
    const where = `state ${this.state}: ${kind} of ${length} at ${offset}`;
    const before = this.memory.bytes.slice();
    const log = this.logLength();
    const data = kind === 'write' ? rng.bytes(length) : new Uint8Array(length);
    const code = codeOf(() => {
      if (kind === 'write') target.write(offset, data);
      else if (kind === 'zeroes') target.writeZeroes(offset, length);
      else if (kind === 'unmap') target.writeZeroes(offset, length, { unmap: true });
      else target.discard(offset, length);
    });
    expectAtRest(rig);
    if (kind === 'unmap') this.unmapped(offset, length, code, where);
    else if (kind === 'discard') this.discarded(offset, length, code, where);
    else if (code !== 'none') this.wasRefused(offset, length, code, before, where);
    else {
      if (length > 0) this.written(offset, length, log, where);
      bytes.set(data, offset);
    }
    this.compare(where);
  }

  /** Blocks but 0 that a byte range touches. */
  private touched(offset: number, length: number): number[] {
    const blocks: number[] = [];
    if (length === 0) return blocks;
    for (
      let block = Math.max(1, Math.floor(offset / this.blockSize));
      block * this.blockSize < offset + length;
      block++
    ) {
      blocks.push(block);
    }
    return blocks;
  }

  private written(
    offset: number,
    length: number,
    log: { sequence: number; entries: number },
    where: string,
  ): void {
    const { types, rig } = this;
    const touched = this.touched(offset, length);
    if (this.state === 0) for (const block of touched) types[block] = T.UNCHANGED;
    if (this.state !== 1) return;
    const now = typesOf(rig);
    const { sequence, entries } = this.logLength();
    const overflows = sequence - log.sequence;
    const owed = touched.filter((block) => OWES_BACKUP.includes(types[block]!));
    const taken = [...now.keys()].filter((block) => !touched.includes(block) && now[block] !== types[block]);
    const moved = owed.some((block) => types[block] === T.SECTOR0_CURRENT);
    expect(taken.length, `${where}: free blocks taken`).toBe(owed.length + overflows);
    for (const block of taken) expect(types[block], `${where}: block ${block} was taken`).toBe(T.FREE);
    const becameCurrent = taken.filter((block) => now[block] === T.SECTOR0_CURRENT);
    expect(becameCurrent.length, where).toBe(moved ? 1 : 0);
    for (const block of touched) types[block] = T.CHANGED;
    for (const block of taken) types[block] = becameCurrent.includes(block) ? T.SECTOR0_CURRENT : T.BACKUP;
    if (owed.length === 0) expect({ sequence, entries }, where).toEqual(log);
    this.overflows += overflows;
    const free = types.filter((type) => type === T.FREE).length;
    if (entries > FIRST_SECTOR_ENTRIES) expect(free, `bow-I7: ${where}`).toBeGreaterThan(0);
  }

  /** bow-I5: only where space may lack, or of the short tail, and nothing has changed. */
  private wasRefused(offset: number, length: number, code: string, before: Uint8Array, where: string): void {
    this.refused++;
    const touched = this.touched(offset, length);
    expect(this.state, `${where}: ${code}`).toBe(1);
    expectSameBytes(this.memory.bytes, before, `bow-I5: ${where}`);
    if (code === 'EIO') {
      expect(touched.at(-1), where).toBe(this.wholeBlocks);
      return;
    }
    expect(code, where).toBe('ENOSPC');
    const owed = touched.filter((block) => OWES_BACKUP.includes(this.types[block]!)).length;
    const free = [...this.types.entries()].filter(
      ([block, type]) => type === T.FREE && !touched.includes(block),
    );
    const overhead = 2 + Math.ceil(owed / (FIRST_SECTOR_ENTRIES - 1));
    expect(free.length, `${where}: ENOSPC with ${free.length} blocks for ${owed} backups`).toBeLessThan(
      owed + overhead,
    );
  }

  private discarded(offset: number, length: number, code: string, where: string): void {
    expect(code, where).toBe('none');
    if (this.state === 2) this.takeOver(offset, length);
    else this.trimmed(offset, length);
  }

  /** Marks the whole blocks of a range. */
  private trimmed(offset: number, length: number): void {
    const { blockSize, types } = this;
    for (const block of this.touched(offset, length)) {
      const at = block * blockSize;
      if (at < offset || at + blockSize > Math.min(offset + length, this.wholeBlocks * blockSize)) continue;
      if (this.state === 0) {
        types[block] = T.FREE;
        continue;
      }
      this.bytes.fill(0, at, at + blockSize);
      if (types[block] === T.CHANGED) types[block] = T.FREE;
      if (types[block] === T.UNCHANGED) types[block] = T.TRIMMED;
    }
  }

  private unmapped(offset: number, length: number, code: string, where: string): void {
    const { bytes, types, rig } = this;
    if (code !== 'none') {
      // Several requests to the target: some of the bytes may be zeros. What changed in the map is checked by those later.
      expect(['ENOSPC', 'EIO', 'EOPNOTSUPP'], where).toContain(code);
      if (code === 'EOPNOTSUPP') expect(this.state, where).toBe(2);
      const found = contentOf(rig.target);
      for (let at = offset; at < offset + length; at++) if (found[at] === 0) bytes[at] = 0;
      types.splice(0, types.length, ...typesOf(rig));
      return;
    }
    bytes.fill(0, offset, offset + length);
    if (this.state === 2) return;
    this.trimmed(offset, length);
    if (this.state === 0) return;
    // The edges are writes; those of blocks that read as zeros are none.
    const now = typesOf(rig);
    for (const block of this.touched(offset, length)) {
      if (!READS_ZERO.includes(types[block]!) && now[block] === T.CHANGED) types[block] = T.CHANGED;
    }
    for (const block of now.keys()) {
      if (types[block] === T.FREE && now[block] === T.BACKUP) types[block] = T.BACKUP;
    }
  }

  /** About these bytes nothing is promised: they are what they are. */
  private takeOver(offset: number, length: number): void {
    this.rig.target.read(offset, this.bytes.subarray(offset, offset + length));
  }

  private changeState(): boolean {
    const { rig, types, bytes } = this;
    const free = blocksOf(rig, T.FREE);
    const content = bytes.slice();
    const code = codeOf(() => rig.write('state', `${this.state + 1}`));
    if (this.state === 0) {
      expect(code).toBe(free.length < 2 ? 'ENOSPC' : 'none');
      if (code !== 'none') {
        this.compare('a refused checkpoint');
        return false;
      }
      const now = typesOf(rig);
      types[0] = T.SECTOR0;
      for (const type of [T.SECTOR0_CURRENT, T.BACKUP]) {
        const [block, ...more] = [...now.keys()].filter((candidate) => now[candidate] === type);
        expect(more).toEqual([]);
        expect(types[block!]).toBe(T.FREE);
        types[block!] = type;
      }
      for (const block of free) bytes.fill(0, block * this.blockSize, (block + 1) * this.blockSize);
      this.checkpoint = { content, free };
    } else if (this.state === 1) {
      this.checkRollBack();
      expect(code, 'bow-I7').toBe('none');
      types.fill(T.UNCHANGED);
      expectSameBytes(this.memory.bytes, bytes, 'the medium after the commit');
    } else {
      expect(code).toBe('EINVAL');
      return false;
    }
    this.state++;
    this.compare(`after the change to ${this.state}`);
    return true;
  }

  private checkRollBack(): void {
    const { content, free } = this.checkpoint!;
    // The log is gone from the medium by now; `compare` kept the last image that had it.
    const device = new MemoryDevice(this.lastInState1!);
    expect(restore(device).state).toBe('restored');
    const expected = content.slice();
    for (const block of free) {
      const at = block * this.blockSize;
      expected.set(device.bytes.subarray(at, at + this.blockSize), at);
    }
    expectSameBytes(device.bytes, expected, 'bow-I1: the roll back');
  }

  private compare(where: string): void {
    const { rig, types, blockSize } = this;
    expectSameBytes(contentOf(rig.target), this.bytes, where);
    const free = types.filter((type) => type === T.FREE).length * blockSize;
    expect(rig.read('free'), where).toBe(`${free}\n`);
    let text = '';
    for (const [block, type] of types.entries()) {
      if (block > 0 && NAMES[type] === NAMES[types[block - 1]!]) continue;
      text += `${NAMES[type]}: ${(block * blockSize) / 512}\n`;
    }
    expect(rig.read('ranges'), where).toBe(`${text}Top: ${rig.target.size / 512}\n`);
    if (this.state === 1) this.lastInState1 = this.memory.bytes.slice();
  }

  private logLength(): { sequence: number; entries: number } {
    const match = /sequence:(\d+) entries:(\d+)/.exec(this.rig.target.statusArgs());
    return { sequence: Number(match?.[1] ?? 0), entries: Number(match?.[2] ?? 0) };
  }
}
