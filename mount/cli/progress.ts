/**
 * How far a long piece of work is: a bar on a terminal; with --json a line of JSON a second on stderr, so that stdout stays one
 * object; a line on SIGUSR1 (as dd prints one) for everybody. --quiet silences all of it, and no result. The work calls
 * `update` often; signals are heard while that waits.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { WorkDone } from '../../src/progress.js';
import { jsonLine, showProgress } from './output.js';
import { Interrupted } from './signals.js';

const INTERVAL_MS = 100;
const JSON_INTERVAL_MS = 1000;
const BAR_WIDTH = 24;

/** The options that every long command takes; `options.ts` declares them. */
export interface ProgressFlags {
  readonly quiet: boolean;
  readonly json: boolean;
}

export interface LongWork extends ProgressFlags {
  /** SIGINT and SIGTERM make the next report throw Interrupted; false: they end the process as always. */
  readonly interruptible: boolean;
}

/** A report, as `--json` tells it. */
interface Report {
  readonly what: string;
  readonly bytes: number;
  readonly bytes_total: number;
  /** Of this run alone: a work that goes on starts in the middle. */
  readonly bytes_per_second: number;
  /** Undefined where the rate does not tell. */
  readonly seconds_left: number | undefined;
}

/** Runs work that reports how far it is. */
export async function withProgress<T>(
  what: string,
  { quiet, json, interruptible }: LongWork,
  work: (update: (done: WorkDone) => Promise<void>) => Promise<T>,
): Promise<T> {
  const began = performance.now();
  let lookedAt = began;
  let toldAt = began;
  let before: number | undefined;
  let last: WorkDone = { bytes: 0, bytesTotal: 0 };
  let signal: 'SIGINT' | 'SIGTERM' | undefined;
  const report = () => reportOf(what, last, last.bytes - (before ?? 0), performance.now() - began);
  const tell = () => {
    if (!quiet) process.stderr.write(json ? jsonReport(report()) : lineReport(report()));
  };
  const show = (now: number) => {
    if (!json) showProgress(`${bar(last)} ${describe(report())}`);
    else if (now - toldAt >= JSON_INTERVAL_MS) {
      toldAt = now;
      tell();
    }
  };
  const interrupt = (name: 'SIGINT' | 'SIGTERM') => {
    signal = name;
  };
  process.on('SIGUSR1', tell);
  if (interruptible) process.on('SIGINT', interrupt).on('SIGTERM', interrupt);
  try {
    return await work(async (done) => {
      before ??= done.bytes;
      last = done;
      const now = performance.now();
      if (now - lookedAt < INTERVAL_MS) return;
      lookedAt = now;
      if (!quiet) show(now);
      await nextTurn();
      if (signal) throw new Interrupted(signal);
    });
  } finally {
    if (!quiet && !json) showProgress('');
    process.off('SIGUSR1', tell).off('SIGINT', interrupt).off('SIGTERM', interrupt);
  }
}

/**
 * Does work that is a generator of reports, a step at a time, and hears signals in between.
 *
 * @returns what the generator does.
 */
export async function inSteps<Step, T>(
  steps: Generator<Step, T>,
  update: (step: Step) => Promise<void>,
): Promise<T> {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
    await update(value);
  }
}

function reportOf(what: string, { bytes, bytesTotal }: WorkDone, bytesOfThisRun: number, ms: number): Report {
  const rate = bytesOfThisRun / Math.max(ms / 1000, 0.001);
  return {
    what,
    bytes,
    bytes_total: bytesTotal,
    bytes_per_second: Math.round(rate),
    seconds_left: rate > 0 ? Math.ceil((bytesTotal - bytes) / rate) : undefined,
  };
}

function jsonReport(report: Report): string {
  return `${jsonLine({ kind: 'progress', ...report })}\n`;
}

function lineReport(report: Report): string {
  return `${process.stderr.isTTY ? '\r\x1b[K' : ''}${describe(report)}\n`;
}

function bar({ bytes, bytesTotal }: WorkDone): string {
  const filled = bytesTotal > 0 ? Math.min(BAR_WIDTH, Math.floor((BAR_WIDTH * bytes) / bytesTotal)) : 0;
  return `[${'#'.repeat(filled)}${'-'.repeat(BAR_WIDTH - filled)}]`;
}

/** `format: 42%, 1.3 GiB of 3.1 GiB, 410 MiB/s, 0:04 left` */
function describe({ what, bytes, bytes_total, bytes_per_second, seconds_left }: Report): string {
  const percent = bytes_total > 0 ? Math.floor((100 * bytes) / bytes_total) : 0;
  const left = seconds_left === undefined ? '' : `, ${duration(seconds_left)} left`;
  return `${what}: ${percent}%, ${size(bytes)} of ${size(bytes_total)}, ${size(bytes_per_second)}/s${left}`;
}

/** `1.3 GiB` */
export function size(bytes: number): string {
  const unit = ['B', 'KiB', 'MiB', 'GiB', 'TiB'][scale(bytes)];
  const value = bytes / 1024 ** scale(bytes);
  return `${value < 10 && scale(bytes) > 0 ? value.toFixed(1) : Math.floor(value)} ${unit}`;
}

function scale(bytes: number): number {
  return bytes < 1 ? 0 : Math.min(4, Math.floor(Math.log2(bytes) / 10));
}

/** Whole seconds as h:mm:ss, m:ss. */
export function duration(seconds: number): string {
  const two = (n: number) => String(n).padStart(2, '0');
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours > 0 ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
}
