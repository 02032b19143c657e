/** The bars that dmfuse is held to, and whether it passes them. */
import {
  firstTouchRatio,
  freshRatio,
  hydrationRatios,
  PLACEMENTS,
  type Placement,
  type Results,
  ratioToPeer,
  ratioToReference,
} from './results.js';
import type { Summary } from './statistics.js';

/** A figure that must be `atLeast` or `below` its bar. `summary` is undefined where it was not measured. */
export interface VerdictFigure {
  readonly name: string;
  readonly bar: number;
  readonly rule: 'atLeast' | 'below';
  readonly summary: Summary | undefined;
}

export type Word = 'PASS' | 'SHORT' | 'UNKNOWN';

export interface Verdict {
  readonly title: string;
  /** SHORT when one figure is, else UNKNOWN when one is missing. */
  readonly word: Word;
  readonly figures: readonly VerdictFigure[];
}

const PASSTHROUGH_BAR = 0.95;
const PASSTHROUGH_SUBJECTS = ['linear-passthrough', 'bow-2'];
/** On files of its own, and so not measured cold. */
const HYDRATED = 'clone-hydrated';
const LANES_SUBJECTS = ['linear-lanes', 'bow-1'];
const PEER = 'qemu-raw';
/** Of the peer's figure. */
const PEER_BARS: Readonly<Record<string, number>> = {
  'randread-4': 2,
  'randwrite-4': 2,
  read: 2,
  write: 1,
  'cold-8': 1.1,
};
/** Of what linear does through the lanes. */
const LINEAR = 'linear-lanes';
/** What a filter costs, by subject and workload. */
const FILTER_BARS: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  tracked: { 'randwrite-4': 0.95, write: 0.95 },
  'snapshot-steady': { 'randwrite-4': 0.9, write: 0.9 },
  'snapshot-image': { 'randread-4': 0.8, read: 0.8 },
};
const FRESH_SNAPSHOT_BAR = 0.3;
const SNAPSHOT_MEMORY_BAR_MIB = 32;
const CSUM_SUBJECTS = ['csum', 'csum-imd'];
const CSUM_BARS: Readonly<Record<string, number>> = {
  'randread-4': 0.7,
  'randwrite-4': 0.4,
  read: 0.3,
  write: 0.2,
};
const CRC_BAR_GB = 1.2;
const COW_STEADY_BAR = 0.9;
const CLONE_BARS: Readonly<Record<string, number>> = { 'randread-4': 0.8, read: 0.8 };
const HYDRATION_BAR = 0.7;
const HYDRATION_READS_BAR = 0.5;
const CLONE_OPENING_BAR_SECONDS = 2;
const CLONE_MAPS_BAR_MIB = 64;
/** Of what other overlays do that are fresh as well. */
const OVERLAY_PEERS = ['qemu-qcow2', 'nbdfuse-cow'];
const OVERLAY_BARS: Readonly<Record<string, number>> = { 'randwrite-4': 3, read: 2, write: 2 };
export const FIRST_TOUCH_MANY_JOBS = 8;
const FIRST_TOUCH_BAR = 3;
const MEMORY_BAR_MIB = 200;
const MIB = 1 << 20;

/** All bars. `workloads`: the names of those that were to be measured. */
export function judge(results: Results, workloads: readonly string[]): Verdict[] {
  const { samples } = results;
  const compare = (
    title: string,
    names: readonly string[],
    barOf: (workload: string) => number,
    ratio: (workload: string) => Summary | undefined,
  ) =>
    verdict(
      title,
      names.map((name) => figure(name, barOf(name), ratio(name))),
    );

  const toKernel = everywhere([...PASSTHROUGH_SUBJECTS, HYDRATED], (subject, placement) =>
    compare(
      `${subject}, ${placement}: times the kernel's loop device`,
      workloads.filter((name) => subject !== HYDRATED || !name.startsWith('cold')),
      () => PASSTHROUGH_BAR,
      (workload) => ratioToReference(samples, { subject, placement, workload }),
    ),
  );
  const toPeer = everywhere(LANES_SUBJECTS, (subject, placement) =>
    compare(
      `${subject}, ${placement}: times ${PEER}, ${placement}`,
      Object.keys(PEER_BARS),
      (workload) => PEER_BARS[workload]!,
      (workload) => ratioToPeer(samples, { subject, placement, workload }, PEER),
    ),
  );
  const firstTouch = PLACEMENTS.map((placement) => {
    const ratio = firstTouchRatio(results.firstTouch, placement, FIRST_TOUCH_MANY_JOBS);
    return verdict(`bow-1, ${placement}: first touches by ${FIRST_TOUCH_MANY_JOBS} jobs, times those by 1`, [
      figure('randwrite', FIRST_TOUCH_BAR, ratio),
    ]);
  });
  const toLinear = (subjects: readonly string[], names: readonly string[], barOf: (name: string) => number) =>
    everywhere(subjects, (subject, placement) =>
      compare(`${subject}, ${placement}: times ${LINEAR}, ${placement}`, names, barOf, (workload) =>
        ratioToPeer(samples, { subject, placement, workload }, LINEAR),
      ),
    );
  const overlays = OVERLAY_PEERS.flatMap((peer) =>
    everywhere(['cow-fresh'], (subject, placement) =>
      compare(
        `${subject}, ${placement}: times ${peer}, both fresh`,
        Object.keys(OVERLAY_BARS),
        (workload) => OVERLAY_BARS[workload]!,
        (workload) => freshRatio(results.overlays, { subject, placement, workload }, peer),
      ),
    ),
  );
  const filters = Object.entries(FILTER_BARS).flatMap(([subject, bars]) =>
    toLinear([subject], Object.keys(bars), (name) => bars[name]!),
  );
  const freshSnapshot = everywhere(['snapshot-fresh'], (subject, placement) =>
    compare(
      `${subject}, ${placement}: first writes after the take, times ${LINEAR}, ${placement}`,
      ['write'],
      () => FRESH_SNAPSHOT_BAR,
      (workload) => freshRatio(results.freshSnapshot, { subject, placement, workload }, LINEAR),
    ),
  );
  return [
    ...toKernel,
    ...toPeer,
    ...firstTouch,
    judgeMemory(results),
    ...toLinear(CSUM_SUBJECTS, Object.keys(CSUM_BARS), (name) => CSUM_BARS[name]!),
    judgeCrc(results),
    ...toLinear(['cow'], workloads, () => COW_STEADY_BAR),
    ...overlays,
    ...toLinear(['clone'], Object.keys(CLONE_BARS), (name) => CLONE_BARS[name]!),
    ...judgeHydration(results),
    ...filters,
    ...freshSnapshot,
    judgeSnapshotMemory(results),
  ];
}

function judgeHydration({ hydration, cloneOpening }: Results): Verdict[] {
  const { copy, reads } = hydrationRatios(hydration);
  const seconds = cloneOpening?.seconds;
  const mib = cloneOpening && cloneOpening.residentBytes / MIB;
  return [
    verdict('clone: hydration in the background, times cp of the same file', [
      figure('rate', HYDRATION_BAR, copy),
    ]),
    verdict('clone: 4 KiB random reads by 1 job during hydration, times those without', [
      figure('randread-1', HYDRATION_READS_BAR, reads),
    ]),
    verdict('clone: a sparse 64 GiB in 16 million regions is opened, seconds and MiB of memory', [
      { name: 'seconds', bar: CLONE_OPENING_BAR_SECONDS, rule: 'below', summary: single(seconds) },
      { name: 'VmRSS', bar: CLONE_MAPS_BAR_MIB, rule: 'below', summary: single(mib) },
    ]),
  ];
}

function judgeCrc({ crc }: Results): Verdict {
  const title = 'csum: GB/s of its checksum over 1 MiB, one core';
  return verdict(title, [figure('crc', CRC_BAR_GB, single(crc && crc / 1e9))]);
}

function judgeMemory({ memory }: Results): Verdict {
  const mib = memory && memory.residentBytes / MIB;
  return verdict("bow-0: MiB of the daemon's memory for a 1 TiB device in 100,000 ranges", [
    {
      name: 'VmRSS',
      bar: MEMORY_BAR_MIB,
      rule: 'below',
      summary: single(mib),
    },
  ]);
}

function judgeSnapshotMemory({ snapshotMemory }: Results): Verdict {
  const mib = snapshotMemory && snapshotMemory.residentBytes / MIB;
  return verdict('tracked: MiB of memory for the change tracker and an empty snapshot on 16 TiB', [
    { name: 'VmRSS', bar: SNAPSHOT_MEMORY_BAR_MIB, rule: 'below', summary: single(mib) },
  ]);
}

/** Of what is measured once. */
function single(value: number | undefined): Summary | undefined {
  return value === undefined ? undefined : { median: value, min: value, max: value };
}

function everywhere(
  subjects: readonly string[],
  make: (subject: string, placement: Placement) => Verdict,
): Verdict[] {
  return subjects.flatMap((subject) => PLACEMENTS.map((placement) => make(subject, placement)));
}

function figure(name: string, bar: number, summary: Summary | undefined): VerdictFigure {
  return { name, bar, rule: 'atLeast', summary };
}

export function verdict(title: string, figures: readonly VerdictFigure[]): Verdict {
  const words = figures.map(wordOf);
  const word = (['SHORT', 'UNKNOWN'] as const).find((w) => words.includes(w));
  return { title, word: word ?? (figures.length > 0 ? 'PASS' : 'UNKNOWN'), figures };
}

/** By the median. */
export function wordOf({ bar, rule, summary }: VerdictFigure): Word {
  if (!summary) return 'UNKNOWN';
  const passes = rule === 'atLeast' ? summary.median >= bar : summary.median < bar;
  return passes ? 'PASS' : 'SHORT';
}
