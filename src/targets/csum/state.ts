/**
 * What all threads share of one csum target: one SharedArrayBuffer with the locks, the versions of the tables and the list
 * of what is bad, one with a bit a group, and the two stages.
 *
 * Locks, in the order in which they may be taken: the commit mutex (Commits), the gate, one stripe, the list.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { groupsOf, type Volume } from '../../formats/csum.js';
import { Activity } from '../../shared/activity.js';
import { Commits } from '../../shared/commits.js';
import { RwLock } from '../../shared/rwlock.js';
import type { Backing, OpenContext } from '../target.js';
import { BadList } from './bad-list.js';
import { Stage, type StageLimits } from './stage.js';

/** A group's stripe is its number modulo this. */
const STRIPES = 1024;

/** Most of what is pending in one stage: 32 MiB, and 500 MiB of zeros. */
const STAGE_SLOTS = 65_536;
const STAGE_GROUPS = 16_384;

/** 64 TiB of data: in a stage a group's number plus 1 is a 32-bit word. */
export const MAX_GROUPS = 2 ** 31 - 2;

export interface CsumDescriptor {
  readonly data: Backing;
  /** The device with the tables; undefined when they are interleaved with the data. */
  readonly imd: Backing | undefined;
  readonly volume: Volume;
  /** Of the output device, bytes. */
  readonly size: number;
  /** 16 bytes; what the superblock says. */
  readonly id: Uint8Array;
  /** True when the volume was closed in good order: no update can be half done. */
  readonly wasClean: boolean;
  readonly limits: StageLimits;
  readonly shared: SharedArrayBuffer;
  readonly unlike: SharedArrayBuffer;
  readonly stages: readonly [SharedArrayBuffer, SharedArrayBuffer];
}

const GATE = 0;
const COMMITS = RwLock.WORDS;
const ACTIVE = COMMITS + Commits.WORDS;
const FAILED = ACTIVE + 1;
const LOSSES = ACTIVE + 2;
const LOSSES_TOLD = ACTIVE + 3;
const ACTIVITY = ACTIVE + 4;
const LOCKS = ACTIVITY + Activity.WORDS;
const VERSIONS = LOCKS + STRIPES * RwLock.WORDS;
const LIST = VERSIONS + STRIPES;
const WORDS_BYTES = Math.ceil(((LIST + BadList.WORDS) * 4) / 8) * 8;

export function stageLimits({ sectors }: Volume): StageLimits {
  return {
    slots: Math.min(STAGE_SLOTS, Math.max(sectors, 1)),
    groups: Math.min(STAGE_GROUPS, groupsOf({ sectors })),
  };
}

/** The shared buffers of a new target. */
export function createShared(
  volume: Volume,
  limits: StageLimits,
): Pick<CsumDescriptor, 'shared' | 'unlike' | 'stages' | 'limits'> {
  const stage = () => new SharedArrayBuffer(Stage.bytesFor(limits));
  return {
    limits,
    shared: new SharedArrayBuffer(WORDS_BYTES + 8 * BadList.DOUBLES),
    unlike: new SharedArrayBuffer(4 * Math.ceil(groupsOf(volume) / 32)),
    stages: [stage(), stage()],
  };
}

/** One thread's view. */
export class CsumState {
  readonly volume: Volume;
  readonly data: BlockDevice;
  /** The device with the tables: `data` itself when they are interleaved. */
  readonly imd: BlockDevice;
  readonly commits: Commits;
  readonly activity: Activity;
  /** Held shared while a request fills the active stage, exclusively to make the other one active. */
  readonly gate: RwLock;
  readonly bad: BadList;
  readonly raise: (event: string) => void;
  private readonly words: Int32Array;
  /** Made when they are asked for. */
  private readonly stripes: RwLock[] = [];
  /** A bit a group: 1 where it is no longer as settled, or as little, as all were at the start. */
  private readonly unlike: Int32Array;
  private readonly stages: readonly [Stage, Stage];

  constructor(
    readonly descriptor: CsumDescriptor,
    context: Pick<OpenContext, 'device' | 'raise'>,
  ) {
    const { volume, shared, limits, stages } = descriptor;
    this.volume = volume;
    this.data = context.device(descriptor.data);
    this.imd = descriptor.imd === undefined ? this.data : context.device(descriptor.imd);
    this.raise = context.raise;
    this.words = new Int32Array(shared, 0, WORDS_BYTES / 4);
    this.gate = this.lockAt(GATE);
    this.commits = new Commits(this.words.subarray(COMMITS, ACTIVE));
    this.activity = new Activity(this.words.subarray(ACTIVITY, LOCKS));
    this.bad = new BadList(
      this.words.subarray(LIST, LIST + BadList.WORDS),
      new Float64Array(shared, WORDS_BYTES, BadList.DOUBLES),
      this.raise,
    );
    this.unlike = new Int32Array(descriptor.unlike);
    this.stages = [new Stage(stages[0], limits), new Stage(stages[1], limits)];
  }

  /** The lock of a group. */
  lockOf(group: number): RwLock {
    const stripe = group % STRIPES;
    const lock = this.stripes[stripe];
    if (lock !== undefined) return lock;
    this.stripes[stripe] = this.lockAt(LOCKS + stripe * RwLock.WORDS);
    return this.stripes[stripe];
  }

  /** Another one after each change of a table of the group's stripe; its lock is held. */
  versionOf(group: number): number {
    return Atomics.load(this.words, VERSIONS + (group % STRIPES));
  }

  /** A table of the group was written: what threads have cached of it is old. Its lock is held exclusively. */
  tableChanged(group: number): void {
    Atomics.add(this.words, VERSIONS + (group % STRIPES), 1);
  }

  /** The stage that requests fill. Whoever puts something in holds the gate. */
  get active(): Stage {
    return this.stages[Atomics.load(this.words, ACTIVE)]!;
  }

  /** The other one: what a commit is at work on, or has failed to commit. */
  get sealed(): Stage {
    return this.stages[1 - Atomics.load(this.words, ACTIVE)]!;
  }

  /** Lets requests fill the other stage, which is empty. */
  seal(): void {
    this.gate.exclusively(() => Atomics.xor(this.words, ACTIVE, 1));
  }

  /** Whether the newer brother of a group is known to be right; if not, an update may be half done: either may be. */
  isSettled(group: number): boolean {
    const bit = Atomics.load(this.unlike, group >>> 5) & (1 << (group & 31));
    return (bit !== 0) !== this.descriptor.wasClean;
  }

  /** The group's lock is held exclusively. */
  setSettled(group: number, settled: boolean): void {
    const bit = 1 << (group & 31);
    if (settled !== this.descriptor.wasClean) Atomics.or(this.unlike, group >>> 5, bit);
    else Atomics.and(this.unlike, group >>> 5, ~bit);
  }

  /** Whether all groups are. While nobody commits. */
  get areAllSettled(): boolean {
    const { unlike, descriptor } = this;
    if (descriptor.wasClean) return unlike.every((word) => word === 0);
    const groups = groupsOf(this.volume);
    const full = unlike.subarray(0, groups >>> 5).every((word) => word === -1);
    return full && (groups % 32 === 0 || unlike[groups >>> 5] === 2 ** (groups % 32) - 1);
  }

  /** True from a failed commit to the next one that works. */
  get hasFailed(): boolean {
    return Atomics.load(this.words, FAILED) === 1;
  }

  set hasFailed(failed: boolean) {
    Atomics.store(this.words, FAILED, failed ? 1 : 0);
  }

  /** Goes up when a commit gives up what was written to a group, for its tables are damaged. */
  get losses(): number {
    return Atomics.load(this.words, LOSSES);
  }

  countLoss(): void {
    Atomics.add(this.words, LOSSES, 1);
  }

  /** `losses` as of the last flush that told of one. */
  get lossesTold(): number {
    return Atomics.load(this.words, LOSSES_TOLD);
  }

  set lossesTold(losses: number) {
    Atomics.store(this.words, LOSSES_TOLD, losses);
  }

  private lockAt(word: number): RwLock {
    return new RwLock(this.words.subarray(word, word + RwLock.WORDS));
  }
}
