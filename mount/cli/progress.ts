/**
 * How far a long piece of work is: a bar on a terminal, a line on SIGUSR1 (as dd prints one) for everybody. The work calls
 * `update` often; signals are heard while that waits.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { WorkDone } from '../../src/progress.js';
import { showProgress } from './output.js';
import { Interrupted } from './signals.js';

const INTERVAL_MS = 100;
const BAR_WIDTH = 24;

/**
 * Runs work that reports how far it is. With `interruptible` SIGINT and SIGTERM make the next report throw Interrupted;
 * without, they end the process as always.
 */
export async function withProgress<T>(
  what: string,
  { interruptible }: { interruptible: boolean },
  work: (update: (done: WorkDone) => Promise<void>) => Promise<T>,
): Promise<T> {
  const began = performance.now();
  let shownAt = began;
  let before: number | undefined;
  let last: WorkDone = { bytes: 0, bytesTotal: 0 };
  let signal: 'SIGINT' | 'SIGTERM' | undefined;
  // The rate counts only what this run has done: a work that goes on starts in the middle.
  const text = () => describe(what, last, last.bytes - (before ?? 0), (performance.now() - began) / 1000);
  const tell = () => process.stderr.write(`${process.stderr.isTTY ? '\r\x1b[K' : ''}${text()}\n`);
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
      if (now - shownAt < INTERVAL_MS) return;
      shownAt = now;
      showProgress(`${bar(done)} ${text()}`);
      await nextTurn();
      if (signal) throw new Interrupted(signal);
    });
  } finally {
    showProgress('');
    process.off('SIGUSR1', tell).off('SIGINT', interrupt).off('SIGTERM', interrupt);
  }
}

function bar({ bytes, bytesTotal }: WorkDone): string {
  const filled = Math.floor((BAR_WIDTH * bytes) / bytesTotal);
  return `[${'#'.repeat(filled)}${'-'.repeat(BAR_WIDTH - filled)}]`;
}

/** `format: 42%, 1.3 of 3.1 GiB, 410 MiB/s, 0:04 left` */
function describe(
  what: string,
  { bytes, bytesTotal }: WorkDone,
  bytesOfThisRun: number,
  seconds: number,
): string {
  const percent = bytesTotal > 0 ? Math.floor((100 * bytes) / bytesTotal) : 0;
  const rate = bytesOfThisRun / Math.max(seconds, 0.001);
  const left = rate > 0 ? `, ${duration((bytesTotal - bytes) / rate)} left` : '';
  return `${what}: ${percent}%, ${size(bytes)} of ${size(bytesTotal)}, ${size(rate)}/s${left}`;
}

function size(bytes: number): string {
  const unit = ['B', 'KiB', 'MiB', 'GiB', 'TiB'][scale(bytes)];
  const value = bytes / 1024 ** scale(bytes);
  return `${value < 10 && scale(bytes) > 0 ? value.toFixed(1) : Math.floor(value)} ${unit}`;
}

function scale(bytes: number): number {
  return bytes < 1 ? 0 : Math.min(4, Math.floor(Math.log2(bytes) / 10));
}

/** h:mm:ss, m:ss */
function duration(seconds: number): string {
  const whole = Math.ceil(seconds);
  const two = (n: number) => String(n).padStart(2, '0');
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours > 0 ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}
