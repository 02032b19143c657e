/** fio: one process runs several sections, one after the other, and says in JSON how each went. */
import { getSystemErrorName } from 'node:util';
import type { Lab } from './lab.js';
import type { Unit, Workload } from './workloads.js';

const LIMIT_SECONDS = 30;

export interface Section {
  readonly name: string;
  readonly path: string;
  /** O_DIRECT. */
  readonly direct: boolean;
  readonly workload: Pick<Workload, 'rw' | 'blockBytes' | 'jobs'>;
  readonly regionBytes: number;
  /** Where the region begins. Default 0. */
  readonly regionOffset?: number;
  readonly seconds: number;
  /** Not measured; before the seconds that are. */
  readonly rampSeconds: number;
  /** True: each job has a part of the region and touches each block once at most; false: all have all of it. */
  readonly once: boolean;
  /** True: one write and a flush, so that nothing is dirty when the next section begins. */
  readonly settles?: boolean;
}

export type SectionResult =
  | ({ readonly ok: true; readonly operations: number } & Readonly<Record<Unit, number>>)
  | { readonly ok: false; readonly reason: string };

/** Runs the sections in order. A section that fails does not keep the others from running. */
export async function runFio(lab: Lab, sections: readonly Section[]): Promise<Map<string, SectionResult>> {
  const duration = sections.reduce((sum, section) => sum + section.seconds + section.rampSeconds + 1, 0);
  const { stdout, stderr } = await lab.outcome('fio', fioArguments(sections), {
    limitSeconds: LIMIT_SECONDS + duration,
    interruptible: true,
  });
  const results = parseFio(stdout);
  // What it says before any section runs; of a section the report tells more.
  const complaint = /fio: (.*)/.exec(stderr)?.[1];
  const silent: SectionResult = { ok: false, reason: complaint ?? 'fio says nothing of it' };
  return new Map(sections.map(({ name }) => [name, results.get(name) ?? silent]));
}

export function fioArguments(sections: readonly Section[]): string[] {
  const common = [
    '--output-format=json',
    '--ioengine=psync',
    '--thread',
    '--group_reporting',
    '--allow_file_create=0',
    '--fallocate=none',
    // The page cache of the image is part of the set-up: fio may neither drop it nor advise on it.
    '--invalidate=0',
    '--fadvise_hint=0',
    // The other clock is calibrated at each start.
    '--clocksource=clock_gettime',
  ];
  return [...common, ...sections.flatMap(sectionArguments)];
}

function sectionArguments({
  name,
  path,
  workload,
  regionBytes,
  regionOffset = 0,
  ...section
}: Section): string[] {
  const { rw, blockBytes, jobs } = workload;
  const partBytes = Math.floor(regionBytes / jobs / blockBytes) * blockBytes;
  return [
    `--name=${name}`,
    '--stonewall',
    // fio splits names at colons.
    `--filename=${path.replaceAll(':', '\\:')}`,
    `--direct=${section.direct ? 1 : 0}`,
    `--rw=${rw}`,
    `--bs=${blockBytes}`,
    `--numjobs=${jobs}`,
    `--size=${section.once ? partBytes : regionBytes}`,
    `--offset=${regionOffset}`,
    `--offset_increment=${section.once ? partBytes : 0}`,
    ...(section.settles ? ['--number_ios=1', '--end_fsync=1'] : section.once ? [] : ['--time_based']),
    `--runtime=${Math.round(section.seconds * 1000)}ms`,
    `--ramp_time=${Math.round(section.rampSeconds * 1000)}ms`,
  ];
}

interface FioDirection {
  readonly iops: number;
  readonly bw_bytes: number;
  readonly total_ios: number;
}

interface FioReport {
  readonly jobs: readonly {
    readonly jobname: string;
    readonly error: number;
    readonly read: FioDirection;
    readonly write: FioDirection;
  }[];
}

/** The sections of fio's JSON report by name; warnings before it are skipped. Empty when there is no report. */
export function parseFio(text: string): Map<string, SectionResult> {
  const start = text.search(/^\{/m);
  if (start < 0) return new Map();
  const { jobs } = JSON.parse(text.slice(start)) as FioReport;
  return new Map(jobs.map((job) => [job.jobname, sectionResult(job)]));
}

function sectionResult({ error, read, write }: FioReport['jobs'][number]): SectionResult {
  const operations = read.total_ios + write.total_ios;
  if (error !== 0) return { ok: false, reason: getSystemErrorName(-error) };
  if (operations === 0) return { ok: false, reason: 'not one request was done' };
  return {
    ok: true,
    operations,
    iops: read.iops + write.iops,
    bytesPerSecond: read.bw_bytes + write.bw_bytes,
  };
}
