/**
 * bow plugged into the power cuts of `../power-cuts.ts`; what is left must keep its promise:
 *
 *   cut-P1  Before the checkpoint is complete, and after a commit: an ordinary disk.
 *   cut-P2  In state 1: the log is sound, and restore brings back every block that was not FREE at the checkpoint, block 0
 *           included, as the device read it then. vold's way of restoring gives the same bytes.
 *   cut-P3  During 1→2: the one or the other.
 *   cut-P4  In state 1 the header's sector0 tells where block 0 lives: with that put back and without a restore, as when vold
 *           rolls forward over a damaged log, the writes of state 1 are there as on an ordinary disk. (Every fourth cut.)
 *
 * Blocks trimmed are promised to nobody, and compared nowhere.
 */
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import type { Prng } from '../../../src/device/prng.js';
import { type PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import { readsAsZeroes } from '../../../src/targets/bow/backup.js';
import { State, BlockType as T } from '../../../src/targets/bow/state.js';
import type { BowTarget } from '../../../src/targets/bow/target.js';
import { inspectLog, restore } from '../../../src/targets/bow/undo.js';
import { codeOf, contentOf, expectSameBytes } from '../harness.js';
import { type Request, type Subject, testPowerCuts, type Workload } from '../power-cuts.js';
import { voldRestorePart } from './log-writer.js';
import {
  type BowRig,
  blocksOf,
  expectAtRest,
  logBlockProblem,
  makeBow,
  readLogBlock,
  typesOf,
} from './rig.js';

const seen = {
  overflows: 0,
  noSpace: 0,
  sector0Moves: 0,
  undoneCommits: 0,
  doneCommits: 0,
  restored: 0,
  rolledForward: 0,
  restoredAsVold: 0,
};

describe('cut-P1, cut-P2, cut-P3: a power cut at every operation', () => {
  it.each([512, 1024, 2048, 4096])('block %i', (blockSize) =>
    testPowerCuts({
      name: `bow, block ${blockSize}`,
      cuts: 6_000,
      seen,
      make: (rng, power) => makeSubject(rng, power, blockSize),
    }),
  );
});

async function makeSubject(rng: Prng, power: PowerSupply, blockSize: number): Promise<Subject> {
  const tail = rng.chance(0.4) ? 512 * rng.below(blockSize / 512) : 0;
  const blocks = 20 + rng.below(rng.pick([20, 100, (256 << 10) / blockSize + 200]));
  const content = rng.bytes(blocks * blockSize + tail);
  content[0] = 0;
  return new BowSubject(await makeBow(new SimulatedDisk(content, { power }), blockSize), blockSize, rng);
}

class BowSubject implements Subject {
  readonly target: BowTarget;
  readonly operations = {
    burst: (work: Workload) => this.burst(work),
    churn: (work: Workload) => this.churn(work),
  };
  readonly aims = {
    free: () => this.blockOf(T.FREE),
    backup: () => this.blockOf(T.BACKUP),
    current: () => this.blockOf(T.SECTOR0_CURRENT),
    unchanged: () => this.blockOf(T.UNCHANGED),
    changed: () => this.blockOf(T.CHANGED),
  };
  /** Set by 0→1 and 1→2: the operations they took and the content that the device read as. */
  private checkpoint: { end: number; content: Uint8Array; free: number[] } | undefined;
  private commit: { start: number; end: number; content: Uint8Array; trimmed: number[] } | undefined;
  /** As of the last request in state 1. */
  private sector0Block = 0;
  private logSequence = 0;

  constructor(
    private readonly rig: BowRig,
    readonly unit: number,
    private readonly rng: Prng,
  ) {
    this.target = rig.target;
  }

  /** Before the commit trims are of whole blocks: the parts of others stay. */
  get discardUnit(): number {
    return this.target.state.state === State.COMMITTED ? 512 : this.unit;
  }

  /** All the states. */
  async run(work: Workload): Promise<void> {
    const { rng, unit } = this;
    const steps = rng.pick([20, 60, 150]);
    const fillsLog = rng.chance(0.25);
    const likely = fillsLog ? 0.6 : rng.pick([0.03, 0.3, 0.6, 0.9]);
    for (let block = 1; block < this.target.size / unit - 1; block++) {
      if (rng.chance(likely)) work.request('discard', block * unit, unit);
    }
    for (let step = rng.below(25); step > 0; step--) await work.randomStep();
    if (!this.changeState(State.CHECKPOINT, work)) return;
    if (fillsLog) this.fillLog(work);
    for (let step = rng.below(steps); step > 0 && !work.isLong; step--) await work.randomStep();
    if (rng.chance(0.25) || !this.changeState(State.COMMITTED, work)) return;
    for (let step = rng.below(25); step > 0; step--) await work.randomStep();
  }

  note(request: Request, work: Workload): void {
    const { ordinary } = work;
    const { kind, offset, data, start, code } = request;
    const { state, sector0Block, logSequence } = this.target.state;
    if (code !== 'none') {
      // No space, or the short tail that is read-only.
      expect(state, `${kind} of ${data.length} at ${offset}: ${code}`).toBe(State.CHECKPOINT);
      expect(['ENOSPC', 'EIO']).toContain(code);
      if (code === 'ENOSPC') seen.noSpace++;
    }
    if (state === State.CHECKPOINT) {
      this.noteInCheckpoint(request, work);
      if (sector0Block !== this.sector0Block) seen.sector0Moves++;
      seen.overflows += logSequence - this.logSequence;
      this.sector0Block = sector0Block;
      this.logSequence = logSequence;
    } else if (kind === 'discard' && state === State.TRIM) {
      // Block 0 is never free.
      const first = Math.max(offset, this.unit);
      ordinary.drop(start, first, offset + data.length - first);
    } else {
      ordinary.note(request);
    }
  }

  check([image]: readonly Uint8Array[], cut: number, { ordinary }: Workload): void {
    const { checkpoint, commit, unit } = this;
    const hasLog = inspectHeader(image!, unit);
    if (checkpoint === undefined || cut < checkpoint.end) {
      if (hasLog) rollBack(image!);
      ordinary.check(image!, cut);
      return;
    }
    if (commit !== undefined && cut >= commit.end) {
      expect(hasLog, 'cut-P1: a log after the commit').toBe(false);
      ordinary.check(image!, cut);
      return;
    }
    const committing = commit !== undefined && cut >= commit.start;
    if (!hasLog) {
      expect(committing, 'cut-P2: the log is there').toBe(true);
      seen.doneCommits++;
      expectBlocks(image!, commit!.content, commit!.trimmed, unit, 'cut-P3: committed');
      return;
    }
    if (committing) seen.undoneCommits++;
    if (seen.restored % 4 === 0) {
      seen.rolledForward++;
      ordinary.check(rolledForward(image!, unit), cut);
    }
    rollBack(image!);
    expectBlocks(image!, checkpoint.content, checkpoint.free, unit, 'cut-P2: restored');
  }

  /** cut-P4: what is trimmed may hold backups from now on; what failed is old, new, or zeros. */
  private noteInCheckpoint(request: Request, { ordinary }: Workload): void {
    const { kind, offset, data, start, code } = request;
    if (code !== 'none' || kind === 'unmap') ordinary.drop(start, offset, data.length);
    else ordinary.note(request);
  }

  /** Many small first touches: what fills a log and the device. */
  private burst(work: Workload): void {
    const { rng, unit, target } = this;
    let at = work.somewhere();
    for (let times = rng.below(40); times > 0 && !work.isLong; times--) {
      if (at + unit > target.size) return;
      work.request('write', at, rng.pick([100, unit]));
      at += unit * (1 + rng.below(3));
    }
  }

  /** Moves backups and the live block 0 about and gives their places back: what fills a log and takes no space. */
  private churn(work: Workload): void {
    if (this.target.state.state !== State.CHECKPOINT) return;
    for (let times = this.rng.below(120); times > 0 && !work.isLong; times--) this.move(work, 1);
  }

  /** The same until the log overflows and a little longer, with many at once: a log of 4096 bytes is big. */
  private fillLog(work: Workload): void {
    for (let times = 0; times < 300 && this.logSequence === 0; times++)
      this.move(work, this.rng.pick([1, 4, 10]));
    for (let times = this.rng.below(8); times > 0; times--) this.move(work, 2);
  }

  private move(work: Workload, blocks: number): void {
    const { rng, unit, target } = this;
    const at = work.aim(rng.pick(['backup', 'current']));
    const length = Math.min(blocks * unit, target.size - at);
    work.request('write', at, length);
    work.request(rng.pick(['discard', 'unmap']), at, length);
  }

  /** First byte of a block of the type, if there is one. */
  private blockOf(type: number): number | undefined {
    const blocks = blocksOf(this.rig, type);
    return blocks.length > 0 ? this.rng.pick(blocks) * this.unit : undefined;
  }

  private changeState(to: State, work: Workload): boolean {
    const { rig, unit } = this;
    const { power, ordinary } = work;
    const start = work.begin(`to state ${to}`);
    const content = contentOf(rig.target);
    const types = typesOf(rig);
    const free = blocksOf(rig, T.FREE);
    const code = codeOf(() => rig.write('state', `${to}`));
    expectAtRest(rig);
    if (code !== 'none') {
      // bow-I7: a commit always finds its space.
      expect([to, code, free.length < 2]).toEqual([State.CHECKPOINT, 'ENOSPC', true]);
      expect(power.operations).toBe(start);
      return false;
    }
    const end = power.operations;
    if (to === State.CHECKPOINT) {
      this.checkpoint = { end, content, free };
      this.sector0Block = rig.target.state.sector0Block;
      for (const block of free) ordinary.drop(start, block * unit, unit);
    } else {
      const trimmed = [...types.keys()].filter((block) => readsAsZeroes(types[block]!));
      this.commit = { start, end, content, trimmed };
      ordinary.settle(start, content);
    }
    return true;
  }
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

/** A copy with block 0 where the user sees it. */
function rolledForward(image: Uint8Array, blockSize: number): Uint8Array {
  const forward = image.slice();
  const at = readLogBlock(image.subarray(0, blockSize)).sector0 * 512;
  forward.copyWithin(0, at, at + blockSize);
  return forward;
}

/** Restores in place; now and then also as vold does. */
function rollBack(image: Uint8Array): void {
  const forVold = seen.restored++ % 16 === 0 ? image.slice() : undefined;
  expect(restore(new MemoryDevice(image)).state).toBe('restored');
  expect(inspectLog(new MemoryDevice(image))).toBeUndefined();
  if (forVold === undefined) return;
  seen.restoredAsVold++;
  expect(voldRestorePart(new MemoryDevice(forVold))).toBe('done');
  expectSameBytes(forVold, image, 'as vold restores it');
}

/** All blocks but some are as they were. Changes the image. */
function expectBlocks(
  image: Uint8Array,
  content: Uint8Array,
  except: readonly number[],
  blockSize: number,
  what: string,
): void {
  for (const block of except) {
    const at = block * blockSize;
    image.set(content.subarray(at, at + blockSize), at);
  }
  expectSameBytes(image, content, what);
}
