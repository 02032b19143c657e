/**
 * The power is cut at every operation of random workloads, and what is left must keep bow's promise:
 *
 *   cut-P1  Before the checkpoint is complete, and after a commit: an ordinary disk. Every flushed write is there, of the
 *           later ones each sector is old or new.
 *   cut-P2  In state 1: the log is sound, and restore brings back every block that was not FREE at the checkpoint, block 0
 *           included, as the device read it then. vold's way of restoring gives the same bytes.
 *   cut-P3  During 1→2: the one or the other.
 *
 * A run is a swarm: its seed switches operations and aims off at random. `DMFUSE_CUTS=N` asks for N cuts a block size
 * (default 12000), `DMFUSE_SEED=N` repeats one run. Blocks trimmed are promised to nobody, and compared nowhere.
 */
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk, type Survivors } from '../../../src/device/simulated.js';
import { readsAsZeroes } from '../../../src/targets/bow/backup.js';
import { State, BlockType as T } from '../../../src/targets/bow/state.js';
import { inspectLog, restore } from '../../../src/targets/bow/undo.js';
import { codeOf, contentOf, expectSameBytes, seeds, underSeed } from '../harness.js';
import { voldRestorePart } from './log-writer.js';
import { type BowRig, blocksOf, expectAtRest, logBlockProblem, makeBow, typesOf } from './rig.js';

const DEFAULT_CUTS = 12_000;
const CUTS = Number(process.env.DMFUSE_CUTS ?? DEFAULT_CUTS);

/** What the runs of a block size have come across: a workload that never does a thing tests nothing. */
const NOTHING_SEEN = {
  runs: 0,
  cuts: 0,
  overflows: 0,
  noSpace: 0,
  sector0Moves: 0,
  undoneCommits: 0,
  doneCommits: 0,
  restoredAsVold: 0,
};
let seen = { ...NOTHING_SEEN };

describe('cut-P1, cut-P2, cut-P3: a power cut at every operation', () => {
  it.each([512, 1024, 2048, 4096])('block %i', async (blockSize) => {
    seen = { ...NOTHING_SEEN };
    for (const seed of seeds(() => seen.cuts >= CUTS)) await underSeed(seed, () => run(seed, blockSize));
    if (process.env.DMFUSE_SEED !== undefined || CUTS < DEFAULT_CUTS) return;
    for (const [what, times] of Object.entries(seen)) expect(times, what).toBeGreaterThan(0);
  });
});

/** Sector versions that an ordinary disk may hold; a change that nobody promises anything about is `undefined`. */
type Version = Uint8Array | undefined;

/** A request or change of state, and the operations of the disk it took: [start, end). */
interface Step {
  readonly start: number;
  readonly end: number;
  readonly does:
    | { readonly kind: 'flush' | 'other' }
    | { readonly kind: 'change'; readonly sectors: ReadonlyMap<number, Version> }
    /** All that was there is durable, as `content`. */
    | { readonly kind: 'settle'; readonly content: Uint8Array };
}

/** cut-P1: what a disk may hold at a cut; `advance` goes through the steps in order. */
class OrdinaryDisk {
  private readonly durable: Uint8Array;
  /** Since the last flush, oldest first; also those sectors that may hold anything. */
  private readonly open = new Map<number, Version[]>();
  private next = 0;

  constructor(
    content: Uint8Array,
    private readonly steps: readonly Step[],
  ) {
    this.durable = content.slice();
  }

  /** Up to a cut in operation `cut`. */
  advance(cut: number): void {
    for (; this.next < this.steps.length; this.next++) {
      const { start, end, does } = this.steps[this.next]!;
      // A change counts from its first operation on, a flush from its last.
      if (start > cut || (does.kind !== 'change' && end > cut)) return;
      if (does.kind === 'flush') this.flush();
      if (does.kind === 'change') this.change(does.sectors);
      if (does.kind === 'settle') {
        this.open.clear();
        this.durable.set(does.content);
      }
    }
  }

  check(image: Uint8Array, where: string): void {
    const expected = this.durable.slice();
    for (const [sector, versions] of this.open) {
      const at = sector * 512;
      const found = image.subarray(at, at + 512);
      const possible = [this.durable.subarray(at, at + 512), ...versions];
      if (possible.some((version) => version === undefined || Buffer.compare(version, found) === 0)) {
        expected.set(found, at);
      }
    }
    expectSameBytes(image, expected, where);
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
        this.durable.set(last, sector * 512);
        this.open.delete(sector);
      }
    }
  }
}

/** One workload on a simulated disk, and what was promised when. */
class Workload {
  readonly steps: Step[] = [];
  /** Set by 0→1 and 1→2: the operations they took and the content that the device read as. */
  checkpoint: { start: number; end: number; content: Uint8Array; free: number[] } | undefined;
  commit: { start: number; end: number; content: Uint8Array; trimmed: number[] } | undefined;
  private readonly kinds: readonly string[];
  private readonly aims: readonly string[];
  /** What the user knows to be on the device in states 0 and 2; `unknown` sectors hold anything. */
  private readonly model: Uint8Array;
  private readonly unknown = new Set<number>();
  private readonly longest: number;
  /** Operations of the disk after which the workload ends soon. Some runs are long: a log of 4096 bytes is big. */
  private readonly enough: number;

  constructor(
    readonly rng: Prng,
    readonly blockSize: number,
    readonly disk: SimulatedDisk,
    readonly rig: BowRig,
  ) {
    this.model = disk.content();
    const some = (names: string[]) => names.filter(() => rng.chance(0.7));
    const kinds = ['write', 'write', 'zeroes', 'unmap', 'discard', 'flush', 'burst', 'churn'];
    this.kinds = ['write', ...some(kinds)];
    this.aims = [
      'anywhere',
      ...some(['block0', 'free', 'backup', 'current', 'unchanged', 'changed', 'tail']),
    ];
    this.longest = rng.pick([1, 3, 12, 80]) * blockSize;
    this.enough = rng.pick([100, 300, 300, 1400]);
  }

  /** All the states; `steps` requests in state 1. */
  run(steps: number): void {
    const { rng, rig } = this;
    const likely = rng.pick([0.03, 0.3, 0.6, 0.9]);
    for (let block = 1; block < rig.target.size / this.blockSize - 1; block++) {
      if (rng.chance(likely)) this.request('discard', block * this.blockSize, this.blockSize);
    }
    for (let step = rng.below(25); step > 0; step--) this.randomRequest();
    if (!this.changeState(State.CHECKPOINT)) return;
    for (let step = rng.below(steps); step > 0 && !this.isLong; step--) this.randomRequest();
    if (rng.chance(0.25) || !this.changeState(State.COMMITTED)) return;
    for (let step = rng.below(25); step > 0; step--) this.randomRequest();
  }

  get isLong(): boolean {
    return this.disk.operations > this.enough;
  }

  private randomRequest(): void {
    const { rng, blockSize } = this;
    const { size } = this.rig.target;
    const kind = rng.pick(this.kinds);
    const start = this.aim(rng.pick(this.aims));
    const unit = rng.pick([1, 512, blockSize]);
    const offset = Math.min(size - 1, start + (unit < blockSize ? rng.below(blockSize / unit) * unit : 0));
    const length = Math.min(size - offset, (1 + rng.below(Math.ceil(this.longest / unit))) * unit);
    if (kind === 'burst') this.burst(start);
    else if (kind === 'churn') this.churn();
    else this.request(kind, offset, length);
  }

  /** Many small first touches: what fills a log and the device. */
  private burst(start: number): void {
    const { rng, blockSize } = this;
    for (let times = rng.below(40), at = start; times > 0 && !this.isLong; times--) {
      if (at + blockSize > this.rig.target.size) return;
      this.request('write', at, rng.pick([100, blockSize]));
      at += blockSize * (1 + rng.below(3));
    }
  }

  /** Moves backups and the live block 0 about and gives their places back: what fills a log and takes no space. */
  private churn(): void {
    const { rng, blockSize } = this;
    const trim = rng.pick(['discard', 'unmap']);
    for (let times = rng.below(120); times > 0 && !this.isLong; times--) {
      const at = this.aim(rng.pick(['backup', 'current']));
      this.request('write', at, blockSize);
      this.request(trim, at, blockSize);
    }
  }

  /** First byte of a block of the type that is aimed at, if there is one. */
  private aim(aim: string): number {
    const { rng, rig, blockSize } = this;
    const { size } = rig.target;
    if (aim === 'block0') return 0;
    if (aim === 'tail') return Math.max(0, size - blockSize - 1000);
    const type = { free: T.FREE, backup: T.BACKUP, current: T.SECTOR0_CURRENT, unchanged: T.UNCHANGED }[aim];
    const blocks = aim === 'anywhere' ? [] : blocksOf(rig, type ?? T.CHANGED);
    return (blocks.length > 0 ? rng.pick(blocks) : rng.below(Math.floor(size / blockSize))) * blockSize;
  }

  private request(kind: string, offset: number, length: number): void {
    const { rig, disk, rng } = this;
    const { target } = rig;
    const start = disk.operations;
    const state = target.state.state;
    // So that the model need not know what a discard leaves of a sector.
    const discarded = state === State.COMMITTED ? 512 : this.blockSize;
    const [from, to] = [Math.ceil(offset / discarded), Math.floor((offset + length) / discarded)];
    const data = kind === 'write' ? rng.bytes(length) : new Uint8Array(length);
    const current = target.state.sector0Block;
    const code = codeOf(() => {
      if (kind === 'write') target.write(offset, data);
      else if (kind === 'discard') {
        if (to > from) target.discard(from * discarded, (to - from) * discarded);
      } else if (kind === 'flush') target.flush();
      else target.writeZeroes(offset, length, { unmap: kind === 'unmap' });
    });
    if (code !== 'none') {
      // No space, or the short tail that is read-only.
      expect(state, `${kind} of ${length} at ${offset}: ${code}`).toBe(State.CHECKPOINT);
      expect(['ENOSPC', 'EIO']).toContain(code);
      if (code === 'ENOSPC') seen.noSpace++;
    }
    if (state === State.CHECKPOINT) {
      if (target.state.sector0Block !== current) seen.sector0Moves++;
      return;
    }
    if (kind === 'flush') this.note(start, { kind });
    else if (kind !== 'discard') this.note(start, this.modelWrite(offset, data));
    else if (to > from) this.note(start, this.modelDiscard(from * discarded, to * discarded, state));
  }

  private modelWrite(offset: number, data: Uint8Array): Step['does'] {
    const sectors = new Map<number, Version>();
    this.model.set(data, offset);
    const end = offset + data.length;
    for (let sector = Math.floor(offset / 512); sector * 512 < end; sector++) {
      const whole = offset <= sector * 512 && end >= (sector + 1) * 512;
      if (whole) this.unknown.delete(sector);
      const version = this.unknown.has(sector)
        ? undefined
        : this.model.slice(sector * 512, (sector + 1) * 512);
      sectors.set(sector, version);
    }
    return { kind: 'change', sectors };
  }

  /** Whole blocks or sectors; in state 0 neither block 0 nor a short tail. */
  private modelDiscard(from: number, to: number, state: State): Step['does'] {
    const sectors = new Map<number, Version>();
    const first = state === State.TRIM ? Math.max(from, this.blockSize) : from;
    for (let at = first; at < to; at += 512) {
      this.unknown.add(at / 512);
      sectors.set(at / 512, undefined);
    }
    return { kind: 'change', sectors };
  }

  private note(start: number, does: Step['does']): void {
    this.steps.push({ start, end: this.disk.operations, does });
  }

  private changeState(to: State): boolean {
    const { rig, disk, blockSize } = this;
    const start = disk.operations;
    const content = contentOf(rig.target);
    const types = typesOf(rig);
    const free = blocksOf(rig, T.FREE);
    const code = codeOf(() => rig.write('state', `${to}`));
    expectAtRest(rig);
    if (code !== 'none') {
      // bow-I7: a commit always finds its space.
      expect([to, code, free.length < 2]).toEqual([State.CHECKPOINT, 'ENOSPC', true]);
      expect(disk.operations).toBe(start);
      return false;
    }
    const end = disk.operations;
    if (to === State.CHECKPOINT) {
      this.checkpoint = { start, end, content, free };
      const first = free.map((block) => block * blockSize);
      for (const at of first) this.note(start, this.modelDiscard(at, at + blockSize, State.TRIM));
    } else {
      const trimmed = [...types.keys()].filter((block) => readsAsZeroes(types[block]!));
      this.commit = { start, end, content, trimmed };
      this.model.set(content);
      this.unknown.clear();
      this.note(start, { kind: 'settle', content });
    }
    return true;
  }
}

async function run(seed: number, blockSize: number): Promise<void> {
  const rng = new Prng(seed ^ (blockSize << 16));
  const tail = rng.chance(0.4) ? 512 * rng.below(blockSize / 512) : 0;
  const blocks = 20 + rng.below(rng.pick([20, 100, (256 << 10) / blockSize + 200]));
  const content = rng.bytes(blocks * blockSize + tail);
  content[0] = 0;
  const disk = new SimulatedDisk(content);
  const rig = await makeBow(disk, blockSize);
  const work = new Workload(rng, blockSize, disk, rig);
  work.run(rng.pick([20, 60, 150]));
  seen.runs++;
  seen.overflows += rig.target.state.logSequence;

  const ordinary = new OrdinaryDisk(content, work.steps);
  for (let cut = 0; cut <= disk.operations; cut++) {
    ordinary.advance(cut);
    for (const survivors of imagesOf(disk, cut, rng)) {
      seen.cuts++;
      const named = survivors instanceof Prng ? 'a random choice' : JSON.stringify(survivors);
      const where = `block ${blockSize}, cut ${cut} of ${disk.operations}, landed: ${named}`;
      checkImage(work, ordinary, cut, disk.imageAt(cut, survivors), where);
    }
  }
}

function imagesOf(disk: SimulatedDisk, cut: number, rng: Prng): Survivors[] {
  const pending = disk.unflushedAt(cut);
  if (pending === 0) return ['none'];
  if (pending === 1) return ['none', 'all', rng];
  const some: Survivors[] = ['none', 'all', rng, rng, { only: rng.below(pending) }];
  // Of a long run fewer, so that there are more runs.
  return disk.operations < 1000 ? some : [rng, rng.pick(some)];
}

function checkImage(
  work: Workload,
  ordinary: OrdinaryDisk,
  cut: number,
  image: Uint8Array,
  where: string,
): void {
  const { checkpoint, commit, blockSize } = work;
  const hasLog = inspectHeader(image, blockSize);
  if (checkpoint === undefined || cut < checkpoint.end) {
    if (hasLog) rollBack(image, where);
    ordinary.check(image, `cut-P1: ${where}`);
    return;
  }
  if (commit !== undefined && cut >= commit.end) {
    expect(hasLog, `cut-P1: ${where}`).toBe(false);
    ordinary.check(image, `cut-P1: ${where}`);
    return;
  }
  const committing = commit !== undefined && cut >= commit.start;
  if (!hasLog) {
    expect(committing, `cut-P2: no log, ${where}`).toBe(true);
    seen.doneCommits++;
    expectBlocks(image, commit!.content, commit!.trimmed, blockSize, `cut-P3: ${where}`);
    return;
  }
  if (committing) seen.undoneCommits++;
  rollBack(image, where);
  expectBlocks(image, checkpoint.content, checkpoint.free, blockSize, `cut-P2: ${where}`);
}

/** Whether there is a log; it must be right by the specification's words. */
function inspectHeader(image: Uint8Array, blockSize: number): boolean {
  if (Buffer.from(image.buffer, 0, 3).toString('latin1') !== 'BOW' || image[3] !== 0) return false;
  const problem = logBlockProblem(
    image.subarray(0, blockSize),
    blockSize,
    Math.floor(image.length / blockSize),
  );
  expect(problem, 'the log block on the medium').toBeUndefined();
  return true;
}

/** Restores in place; now and then also as vold does. */
function rollBack(image: Uint8Array, where: string): void {
  const forVold = seen.cuts % 16 === 0 ? image.slice() : undefined;
  expect(restore(new MemoryDevice(image)).state, where).toBe('restored');
  expect(inspectLog(new MemoryDevice(image)), where).toBeUndefined();
  if (forVold === undefined) return;
  seen.restoredAsVold++;
  expect(voldRestorePart(new MemoryDevice(forVold))).toBe('done');
  expectSameBytes(forVold, image, `${where}, as vold restores it`);
}

/** All blocks but some are as they were. */
function expectBlocks(
  image: Uint8Array,
  content: Uint8Array,
  except: readonly number[],
  blockSize: number,
  where: string,
): void {
  const expected = content.slice();
  for (const block of except) {
    const at = block * blockSize;
    expected.set(image.subarray(at, at + blockSize), at);
  }
  expectSameBytes(image, expected, where);
}
