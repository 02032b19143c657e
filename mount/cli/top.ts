/**
 * `dmfuse top`: what every target of a mount does, each interval anew. A frame is made of two samples of the control files; on a
 * terminal it replaces the one before in place, elsewhere one follows the other.
 */
import { exitNow } from '../exit-now.js';
import { columns, shortTime } from './columns.js';
import { requireMount } from './find-mount.js';
import { jsonLine } from './output.js';
import { duration, size } from './progress.js';
import { type Rates, ratesBetween } from './rates.js';
import { readSample, type Sample, type SnapshotSample, type TargetSample } from './sample.js';
import { Lines, Screen } from './screen.js';

export interface TopOptions {
  /** Seconds. */
  readonly interval: number;
  /** Frames after which it ends. */
  readonly count?: number;
  readonly once?: boolean;
  readonly json: boolean;
}

const TITLES = 'NAME TYPE r/s w/s rMiB/s wMiB/s QD NOW r-P50 r-P99 w-P50 w-P99 STATE'.split(' ');
const ALIGNMENT = `ll${'r'.repeat(10)}l`;
const MEBIBYTE = 2 ** 20;

export async function top(mountArgument: string, options: TopOptions): Promise<void> {
  const mountPoint = requireMount(mountArgument);
  const count = options.once ? 1 : (options.count ?? Infinity);
  const isLive = process.stdout.isTTY && !options.json && count === Infinity;
  const output = isLive ? new Screen() : new Lines();
  let isAnswered = true;
  try {
    let before: Sample | undefined;
    for (let shown = 0; shown < count && !output.isEnded; ) {
      const sample = await output.orEnd(readSample(mountPoint, undefined));
      isAnswered = sample !== undefined;
      if (!sample) break;
      // A terminal shows something at once, and rates when there are any.
      if (before || isLive) {
        const width = isLive ? process.stdout.columns || Infinity : Infinity;
        output.show(options.json ? [json(sample, before)] : frame(sample, before, width));
      }
      if (before) shown++;
      before = sample;
      if (shown < count) await output.rest(options.interval * 1000);
    }
  } finally {
    output.close();
  }
  // Else the read that nobody waits for would keep the process.
  if (!isAnswered) exitNow(0);
}

/**
 * The lines of a table, below a line that says when and what. Without `before` there are no rates. Where lines of `width` cannot hold
 * it, what a target tells of itself has a line of its own, below the target's.
 */
export function frame(sample: Sample, before: Sample | undefined, width = Infinity): string[] {
  const rows = sample.targets.map((target) => {
    const rates = ratesOf(target, before);
    return [
      target.name,
      target.status.type,
      ...rateCells(target, rates),
      stateOf(target, rates, sample.snapshots),
    ];
  });
  const errors = sample.targets.flatMap((target) => {
    const failed = ratesOf(target, before)?.errors ?? 0;
    return failed > 0 ? [`${target.name}: ${failed} requests failed`] : [];
  });
  const time = new Date().toTimeString().slice(0, 8);
  return [`${time}  ${sample.mountPoint}`, ...table([TITLES, ...rows], width), ...errors];
}

function table(rows: readonly (readonly string[])[], width: number): string[] {
  const lines = columns(rows, ALIGNMENT);
  if (lines.every(({ length }) => length <= width)) return lines;
  const states = columns(
    rows.map((row) => [row.at(-1)!]),
    'l',
  );
  const narrow = columns(
    rows.map((row) => row.slice(0, -1)),
    ALIGNMENT.slice(0, -1),
  );
  // The first of them are the titles.
  return narrow.flatMap((line, i) => (i === 0 || states[i] === '' ? [line] : [line, `  ${states[i]}`]));
}

function ratesOf(target: TargetSample, before: Sample | undefined): Rates | undefined {
  return ratesBetween(
    before?.targets.find(({ inode }) => inode === target.inode),
    target,
  );
}

/** `-` where nothing is known: of a new target, or where the kernel does the I/O itself. */
function rateCells({ inFlight, isPassedThrough }: TargetSample, rates: Rates | undefined): string[] {
  if (!rates || (isPassedThrough && rates.requestsPerSecond === 0)) return Array(10).fill('-');
  const { readLatency, writeLatency } = rates;
  return [
    short(rates.readsPerSecond),
    short(rates.writesPerSecond),
    short(rates.readBytesPerSecond / MEBIBYTE),
    short(rates.writtenBytesPerSecond / MEBIBYTE),
    short(rates.meanInFlight),
    String(inFlight),
    ...[readLatency.p50, readLatency.p99, writeLatency.p50, writeLatency.p99].map(shortTime),
  ];
}

/** What the target itself tells, and what is left for its snapshot. */
function stateOf(
  target: TargetSample,
  rates: Rates | undefined,
  snapshots: readonly SnapshotSample[],
): string {
  const { bow, csum, cow } = target.status;
  const parts = [
    ...(target.isPassedThrough ? ['passed through'] : []),
    ...(bow ? [`state ${bow.state}, ${size(bow.freeBytes)} free${bow.isSuspect ? ', SUSPECT' : ''}`] : []),
    ...(csum ? [`${csum.corruptFound} corrupt`] : []),
    ...(cow ? [`${size(cow.topBytes)} in the top layer`] : []),
    ...hydrationOf(target, rates),
    ...snapshots.flatMap((snapshot) => snapshotOf(snapshot, target.name)),
  ];
  return parts.join('; ');
}

function hydrationOf({ status: { clone } }: TargetSample, rates: Rates | undefined): string[] {
  if (!clone) return [];
  const { mode, regions, hydratedRegions, regionBytes } = clone;
  const failure = mode === 'rw' ? '' : `, metadata ${mode}`;
  if (mode === 'Fail') return ['metadata Fail'];
  if (hydratedRegions === regions) return [`hydrated${failure}`];
  const percent = `${((100 * hydratedRegions) / regions).toFixed(1)}% hydrated${failure}`;
  const rate = rates?.hydratedBytesPerSecond ?? 0;
  if (rate === 0) return [percent];
  const seconds = Math.ceil(((regions - hydratedRegions) * regionBytes) / rate);
  return [`${percent}, ${size(rate)}/s, ${duration(seconds)} left`];
}

function snapshotOf(
  { name, state, storageBytes, filledBytes, devices }: SnapshotSample,
  target: string,
): string[] {
  const device = devices.find((each) => each.name === target);
  if (!device) return [];
  if (device.errorCode !== 0) return [`snapshot ${name} LOST`];
  return [`snapshot ${name} ${state}, ${size(storageBytes - filledBytes)} of ${size(storageBytes)} left`];
}

function json(sample: Sample, before: Sample | undefined): string {
  return jsonLine({
    time: new Date().toISOString(),
    targets: sample.targets.map((target) => {
      const { name, status, open, inFlight, isPassedThrough } = target;
      const rates = ratesOf(target, before);
      return { name, ...status, open, inFlight, isPassedThrough, ...(rates ? { rates: named(rates) } : {}) };
    }),
    snapshots: sample.snapshots,
  });
}

/** With units in the names. */
function named({ readLatency, writeLatency, ...rates }: Rates) {
  return {
    ...rates,
    ...{ readP50Us: readLatency.p50, readP99Us: readLatency.p99 },
    ...{ writeP50Us: writeLatency.p50, writeP99Us: writeLatency.p99 },
  };
}

/** Three digits or so. */
function short(value: number): string {
  if (value >= 99_950) return `${(value / 1000).toFixed(0)}k`;
  return value >= 100 || value === 0 ? value.toFixed(0) : value.toFixed(1);
}
