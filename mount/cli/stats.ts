/** `dmfuse stats`: counters and latencies of targets, for people, for programs, and for Prometheus. */
import { upperMicroseconds } from '../lanes/histogram.js';
import { TIMED_OPS, type TimedOp } from '../lanes/stats.js';
import { columns, shortTime } from './columns.js';
import { requireMount } from './find-mount.js';
import type { ListenAddress } from './metrics-server.js';
import { printJson } from './output.js';
import { size } from './progress.js';
import { quantiles } from './rates.js';
import { replaceFile } from './replace-file.js';
import { readSample, type TargetSample } from './sample.js';

export interface StatsOptions {
  readonly json: boolean;
  readonly prometheus?: boolean;
  readonly output?: string;
  readonly listen?: ListenAddress;
}

export async function stats(
  mountArgument: string,
  name: string | undefined,
  { json, prometheus, output, listen }: StatsOptions,
): Promise<void> {
  const mountPoint = requireMount(mountArgument);
  const sample = await readSample(mountPoint, name);
  if (listen) {
    await (await import('./metrics-server.js')).serveMetrics(mountPoint, name, listen);
  } else if (prometheus) {
    const { prometheusText } = await import('./prometheus.js');
    const text = await prometheusText(sample);
    if (output === undefined) process.stdout.write(text);
    else await replaceFile(output, text);
  } else if (json) {
    printJson({ targets: sample.targets.map(jsonOf) });
  } else {
    process.stdout.write(table(sample.targets));
  }
}

function table(targets: readonly TargetSample[]): string {
  const titles =
    'NAME TYPE READS READ WRITES WRITTEN FLUSHES DISCARDS ZEROES ERRORS OPEN NOW R-P50 R-P99 W-P50 W-P99';
  const rows = targets.map(({ name, status, counters, open, inFlight, latencies }) => {
    const [read, write] = [quantiles(latencies.read), quantiles(latencies.write)];
    const { reads, read_bytes, writes, written_bytes, flushes, discards, zeroes, errors } = counters;
    return [
      name,
      status.type,
      ...[reads, size(read_bytes), writes, size(written_bytes), flushes, discards, zeroes, errors],
      ...[open, inFlight],
      ...[read.p50, read.p99, write.p50, write.p99].map(shortTime),
    ].map(String);
  });
  const lines = columns([titles.split(' '), ...rows], `ll${'r'.repeat(14)}`);
  return lines.map((line) => `${line}\n`).join('');
}

function jsonOf({ name, status, counters, open, inFlight, isPassedThrough, latencies }: TargetSample) {
  const latencyOf = (op: TimedOp) => {
    const { count, microseconds, buckets } = latencies[op];
    const held = buckets.flatMap((n, bucket) => (n > 0 ? [[upperMicroseconds(bucket), n]] : []));
    const { p50, p99 } = quantiles({ buckets });
    return { count, sumUs: microseconds, p50Us: p50, p99Us: p99, bucketsUs: held };
  };
  return {
    ...{ name, ...status, open, inFlight, isPassedThrough, stats: counters },
    latency: Object.fromEntries(TIMED_OPS.map((op) => [op, latencyOf(op)])),
  };
}
