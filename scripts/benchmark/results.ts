/** What a run found out, and the figures made of it. */
import { type Summary, summarize } from './statistics.js';
import type { Unit } from './workloads.js';

/** fio on the subject's file, or on a loop device over it. */
export const PLACEMENTS = ['file', 'loop'] as const;
export type Placement = (typeof PLACEMENTS)[number];

/** One measurement beside one of the reference, the kernel's loop device on the image, moments later. */
export interface Sample {
  readonly subject: string;
  readonly placement: Placement;
  readonly workload: string;
  readonly unit: Unit;
  /** From 1. */
  readonly round: number;
  /** In `unit`. */
  readonly value: number;
  /** In `unit`; undefined when the reference failed. */
  readonly reference: number | undefined;
}

/** First touches by so many jobs: each write of bow has to copy a block and to log it before. */
export interface FirstTouchSample {
  readonly placement: Placement;
  readonly jobs: number;
  readonly round: number;
  readonly iops: number;
  /** Of the blocks that there were to touch, 0 to 1. */
  readonly touchedShare: number;
}

/** A workload on a fresh overlay or snapshot, each block of which is touched once at most. */
export type FreshSample = Omit<Sample, 'reference'>;

/** A clone hydrated in the background. */
export interface HydrationSample {
  readonly round: number;
  /** cp of the same file. */
  readonly copyBytesPerSecond: number;
  readonly bytesPerSecond: number;
  /** 4 KiB random reads a second by one job: of an idle clone, and while it is hydrated. */
  readonly readsAlone: number;
  readonly readsMeanwhile: number;
}

/** A clone in very many regions. */
export interface CloneOpening {
  readonly regions: number;
  /** To open it. */
  readonly seconds: number;
  /** That VmRSS of the daemon grew by. */
  readonly residentBytes: number;
}

export interface MemoryResult {
  readonly deviceBytes: number;
  readonly ranges: number;
  /** VmRSS of the daemon, without a target and with it. */
  readonly residentBytesBefore: number;
  readonly residentBytes: number;
}

/** The change tracker and a snapshot that nothing was copied for, on a large device. */
export interface SnapshotMemory {
  readonly deviceBytes: number;
  /** That VmRSS of the daemon grew by. */
  readonly residentBytes: number;
}

export interface Failure {
  /** Of what: subject, placement and workload as far as it got. */
  readonly what: string;
  readonly round: number;
  readonly reason: string;
}

export interface Results {
  readonly missing: readonly { readonly subject: string; readonly reason: string }[];
  readonly samples: readonly Sample[];
  readonly firstTouch: readonly FirstTouchSample[];
  readonly overlays: readonly FreshSample[];
  /** A fresh snapshot, and what it is compared with. */
  readonly freshSnapshot: readonly FreshSample[];
  /** Bytes a second of csum's checksum of 1 MiB, by one core. */
  readonly crc: number | undefined;
  readonly memory: MemoryResult | undefined;
  readonly snapshotMemory: SnapshotMemory | undefined;
  readonly hydration: readonly HydrationSample[];
  readonly cloneOpening: CloneOpening | undefined;
  readonly failures: readonly Failure[];
  readonly notes: readonly string[];
}

export interface FigureKey {
  readonly subject: string;
  readonly placement: Placement;
  readonly workload: string;
}

/** The samples of one cell, by round. */
export function samplesOf(samples: readonly Sample[], key: FigureKey): Sample[] {
  return samples
    .filter(
      ({ subject, placement, workload }) =>
        subject === key.subject && placement === key.placement && workload === key.workload,
    )
    .sort((a, b) => a.round - b.round);
}

/** Ratios to the reference, each made inside one round; undefined without any. */
export function ratioToReference(samples: readonly Sample[], key: FigureKey): Summary | undefined {
  return summarizeAny([...ratiosByRound(samples, key).values()]);
}

/**
 * Ratios to another subject in the same place, each made inside one round, from the ratios of both to their references:
 * what slows the machine for a while slows these too.
 */
export function ratioToPeer(samples: readonly Sample[], key: FigureKey, peer: string): Summary | undefined {
  const peers = ratiosByRound(samples, { ...key, subject: peer });
  const ratios = [...ratiosByRound(samples, key)]
    .filter(([round]) => peers.has(round))
    .map(([round, ratio]) => ratio / peers.get(round)!);
  return summarizeAny(ratios);
}

/** First touches by `jobs` jobs to those by one, each made inside one round. */
export function firstTouchRatio(
  samples: readonly FirstTouchSample[],
  placement: Placement,
  jobs: number,
): Summary | undefined {
  const inPlace = samples.filter((sample) => sample.placement === placement);
  const single = new Map(inPlace.filter((s) => s.jobs === 1).map(({ round, iops }) => [round, iops]));
  const ratios = inPlace
    .filter((sample) => sample.jobs === jobs && single.has(sample.round))
    .map(({ round, iops }) => iops / single.get(round)!);
  return summarizeAny(ratios);
}

/** Fresh subjects under one workload: one to another, each ratio made inside one round. */
export function freshRatio(
  samples: readonly FreshSample[],
  { subject, placement, workload }: FigureKey,
  peer: string,
): Summary | undefined {
  const here = samples.filter((s) => s.placement === placement && s.workload === workload);
  const peers = new Map(here.filter((s) => s.subject === peer).map(({ round, value }) => [round, value]));
  const ratios = here
    .filter((s) => s.subject === subject && peers.has(s.round))
    .map(({ round, value }) => value / peers.get(round)!);
  return summarizeAny(ratios);
}

/** Of each round: hydration to cp of the same file, reads beside it to reads alone. */
export function hydrationRatios(samples: readonly HydrationSample[]): {
  copy: Summary | undefined;
  reads: Summary | undefined;
} {
  return {
    copy: summarizeAny(
      samples.map(({ bytesPerSecond, copyBytesPerSecond }) => bytesPerSecond / copyBytesPerSecond),
    ),
    reads: summarizeAny(samples.map(({ readsAlone, readsMeanwhile }) => readsMeanwhile / readsAlone)),
  };
}

/** All measurements of the reference under one workload. */
export function referenceValues(samples: readonly Sample[], workload: string): Summary | undefined {
  const values = new Map<string, number>();
  for (const { subject, round, reference, ...sample } of samples) {
    // Both placements share it.
    if (sample.workload === workload && reference !== undefined) values.set(`${subject} ${round}`, reference);
  }
  return summarizeAny([...values.values()]);
}

function ratiosByRound(samples: readonly Sample[], key: FigureKey): Map<number, number> {
  return new Map(
    samplesOf(samples, key)
      .filter(({ reference }) => reference !== undefined)
      .map(({ round, value, reference }) => [round, value / reference!]),
  );
}

function summarizeAny(values: readonly number[]): Summary | undefined {
  return values.length > 0 ? summarize(values) : undefined;
}
