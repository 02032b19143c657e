/**
 * A sample in the text format that Prometheus reads. prom-client writes and escapes it; here stands what each metric is. The base
 * units are Prometheus': seconds, bytes.
 *
 * Of the buckets of a latency every second one is shown, an octave each: half the series, and a quantile of a histogram is no more
 * exact than its user's choice of it.
 */
import { type Metric, Registry } from 'prom-client';
import { BUCKETS, upperMicroseconds } from '../lanes/histogram.js';
import { type Latency, type StatName, TIMED_OPS, type TimedOp } from '../lanes/stats.js';
import type { Sample, SnapshotSample, TargetSample } from './sample.js';

export const CONTENT_TYPE = Registry.PROMETHEUS_CONTENT_TYPE;

type Labels = Readonly<Record<string, string | number>>;

interface Value {
  readonly labels: Labels;
  readonly value: number;
  /** Where it is not the metric's own name. */
  readonly metricName?: string;
}

interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly values: readonly Value[];
}

/** The counters of each operation: requests, and bytes where it has any. */
const COUNTERS: Readonly<Record<TimedOp, readonly [StatName, StatName?]>> = {
  read: ['reads', 'read_bytes'],
  write: ['writes', 'written_bytes'],
  flush: ['flushes'],
  discard: ['discards', 'discarded_bytes'],
  zeroes: ['zeroes', 'zeroed_bytes'],
};

/** The exposition of a sample. */
export async function prometheusText(sample: Sample): Promise<string> {
  const registry = new Registry();
  const families = [...aboutMount(sample), ...aboutTargets(sample), ...aboutSnapshots(sample)];
  for (const { values, ...family } of families) {
    if (values.length === 0) continue;
    // A metric as the registry sees it: what its classes keep of values themselves, the daemon keeps here.
    registry.registerMetric({ ...family, get: async () => ({ ...family, values }) } as unknown as Metric);
  }
  return await registry.metrics();
}

function aboutMount({ mountPoint, version, targets, empty }: Sample): Family[] {
  const mount = mountPoint;
  return [
    gauge('dmfuse_build_info', 'The version of the daemon.', [{ labels: { mount, version }, value: 1 }]),
    gauge(
      'dmfuse_target_up',
      'Whether a directory of the mount has a target: 0 where its table was refused.',
      [
        ...targets.map(({ name }) => ({ labels: { mount, target: name }, value: 1 })),
        ...empty.map((name) => ({ labels: { mount, target: name }, value: 0 })),
      ],
    ),
  ];
}

function aboutTargets({ mountPoint, targets }: Sample): Family[] {
  const labelsOf = ({ name, status }: TargetSample) => ({
    mount: mountPoint,
    target: name,
    type: status.type,
  });
  /** A value for each target that has one. */
  const of = (value: (target: TargetSample) => number | undefined): Value[] =>
    targets.flatMap((target) => {
      const found = value(target);
      return found === undefined ? [] : [{ labels: labelsOf(target), value: found }];
    });
  const ofOps = (which: 0 | 1): Value[] =>
    targets.flatMap((target) =>
      TIMED_OPS.flatMap((op) => {
        const name = COUNTERS[op][which];
        return name ? [{ labels: { ...labelsOf(target), op }, value: target.counters[name] }] : [];
      }),
    );
  return [
    counter('dmfuse_requests_total', 'Requests that lanes have served.', ofOps(0)),
    counter('dmfuse_bytes_total', 'Bytes of these requests.', ofOps(1)),
    counter(
      'dmfuse_errors_total',
      'Requests that failed.',
      of(({ counters }) => counters.errors),
    ),
    {
      name: 'dmfuse_request_duration_seconds',
      help: 'Time from when a lane had a request until its reply was ready.',
      type: 'histogram',
      values: targets.flatMap((target) =>
        TIMED_OPS.flatMap((op) => histogram({ ...labelsOf(target), op }, target.latencies[op])),
      ),
    },
    gauge(
      'dmfuse_size_bytes',
      'Size of the output device.',
      of(({ status }) => status.sizeBytes),
    ),
    gauge(
      'dmfuse_open',
      'Opens of the output device.',
      of(({ open }) => open),
    ),
    gauge(
      'dmfuse_in_flight',
      'Requests that lanes serve now.',
      of(({ inFlight }) => inFlight),
    ),
    gauge(
      'dmfuse_passed_through',
      'Whether the kernel does I/O itself, which is not counted here.',
      of(({ isPassedThrough }) => Number(isPassedThrough)),
    ),
    ...aboutStates(of),
  ];
}

/** What targets of one type tell. */
function aboutStates(of: (value: (target: TargetSample) => number | undefined) => Value[]): Family[] {
  return [
    gauge(
      'dmfuse_bow_state',
      '0 before the checkpoint, 1 after it, 2 committed.',
      of(({ status }) => status.bow?.state),
    ),
    gauge(
      'dmfuse_bow_free_bytes',
      'What backups may still use.',
      of(({ status }) => status.bow?.freeBytes),
    ),
    gauge(
      'dmfuse_bow_suspect',
      'Whether writes fail because the log could not be written.',
      of(({ status: { bow } }) => bow && Number(bow.isSuspect)),
    ),
    counter(
      'dmfuse_csum_corrupt_total',
      'Sectors and tables that were found bad.',
      of(({ status }) => status.csum?.corruptFound),
    ),
    gauge(
      'dmfuse_csum_pending_sectors',
      'Sectors that are written but not yet on the medium.',
      of(({ status }) => status.csum?.pendingSectors),
    ),
    gauge(
      'dmfuse_cow_top_bytes',
      'What the top layer holds.',
      of(({ status }) => status.cow?.topBytes),
    ),
    gauge(
      'dmfuse_clone_region_bytes',
      'Size of a region.',
      of(({ status }) => status.clone?.regionBytes),
    ),
    gauge(
      'dmfuse_clone_regions',
      'Regions of the clone.',
      of(({ status }) => status.clone?.regions),
    ),
    gauge(
      'dmfuse_clone_hydrated_regions',
      'Regions that have come over.',
      of(({ status }) => status.clone?.hydratedRegions),
    ),
    gauge(
      'dmfuse_clone_metadata_failed',
      'Whether the metadata is read-only or has failed.',
      of(({ status: { clone } }) => clone && Number(clone.mode !== 'rw')),
    ),
  ];
}

function aboutSnapshots({ mountPoint, snapshots }: Sample): Family[] {
  const labels = ({ name }: SnapshotSample) => ({ mount: mountPoint, snapshot: name });
  const of = (value: (snapshot: SnapshotSample) => number): Value[] =>
    snapshots.map((snapshot) => ({ labels: labels(snapshot), value: value(snapshot) }));
  return [
    gauge(
      'dmfuse_snapshot_storage_bytes',
      'Storage that the snapshot was given.',
      of(({ storageBytes }) => storageBytes),
    ),
    gauge(
      'dmfuse_snapshot_filled_bytes',
      'Storage that it has used.',
      of(({ filledBytes }) => filledBytes),
    ),
    gauge(
      'dmfuse_snapshot_free_bytes',
      'Storage that is left.',
      of(({ storageBytes, filledBytes }) => storageBytes - filledBytes),
    ),
    gauge('dmfuse_snapshot_image_corrupted', 'Whether the image of a target is lost.', [
      ...snapshots.flatMap((snapshot) =>
        snapshot.devices.map(({ name, errorCode }) => ({
          labels: { ...labels(snapshot), target: name },
          value: Number(errorCode !== 0),
        })),
      ),
    ]),
  ];
}

function histogram(labels: Labels, { microseconds, buckets }: Latency): Value[] {
  const metric = 'dmfuse_request_duration_seconds';
  const values: Value[] = [];
  let count = 0;
  for (let bucket = 0; bucket < BUCKETS; bucket++) {
    count += buckets[bucket]!;
    if (bucket % 2 !== 0 && bucket < BUCKETS - 1) continue;
    const bound = upperMicroseconds(bucket) / 1e6;
    const le = bound === Infinity ? '+Inf' : bound;
    values.push({ metricName: `${metric}_bucket`, labels: { ...labels, le }, value: count });
  }
  values.push({ metricName: `${metric}_sum`, labels, value: microseconds / 1e6 });
  values.push({ metricName: `${metric}_count`, labels, value: count });
  return values;
}

function counter(name: string, help: string, values: readonly Value[]): Family {
  return { name, help, type: 'counter', values };
}

function gauge(name: string, help: string, values: readonly Value[]): Family {
  return { name, help, type: 'gauge', values };
}
