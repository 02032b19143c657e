/** Latencies and what is made of them: buckets and quantiles against sorted lists, rates against a naive model, status lines. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseListen } from '../../mount/cli/commands/stats.js';
import { difference, ratesBetween } from '../../mount/cli/rates.js';
import type { TargetSample } from '../../mount/cli/sample.js';
import { parseStatusLine } from '../../mount/cli/status-line.js';
import { frame } from '../../mount/cli/top.js';
import { BUCKETS, bucketOf, quantile, upperMicroseconds } from '../../mount/lanes/histogram.js';
import {
  createStats,
  LaneStats,
  latencyText,
  parseLatencyText,
  STAT_NAMES,
  sumLatencies,
  sumStats,
  TIMED_OPS,
} from '../../mount/lanes/stats.js';

/** Milliseconds, of all magnitudes. */
const duration = fc.oneof(
  fc.double({ min: 0, max: 0.01, noNaN: true }),
  fc.double({ min: 0, max: 100, noNaN: true }),
  fc.double({ min: 0, max: 200_000, noNaN: true }),
  // Bounds, and what is beside them.
  fc
    .tuple(fc.nat(BUCKETS - 2), fc.constantFrom(-1e-6, 0, 1e-6))
    .map(([bucket, off]) => upperMicroseconds(bucket) / 1000 + off),
);
const durations = fc.array(duration, { maxLength: 100 });
const op = fc.constantFrom(...TIMED_OPS);

/** The bucket of a duration, by trying one after the other. */
function naiveBucket(milliseconds: number): number {
  let bucket = 0;
  while (milliseconds * 1000 > upperMicroseconds(bucket)) bucket++;
  return bucket;
}

function counted(all: readonly number[]): number[] {
  const counts = Array(BUCKETS).fill(0);
  for (const each of all) counts[naiveBucket(each)]++;
  return counts;
}

describe('the buckets of a histogram', () => {
  it('are two an octave, from 1 µs to 2^26 µs, ascending', () => {
    const bounds = Array.from({ length: BUCKETS }, (_, bucket) => upperMicroseconds(bucket));
    expect(bounds.slice(0, 9)).toEqual([1, 1.5, 2, 3, 4, 6, 8, 12, 16]);
    expect(bounds.slice(-3)).toEqual([50_331_648, 67_108_864, Infinity]);
    for (let bucket = 0; bucket + 2 < BUCKETS - 1; bucket++)
      expect(bounds[bucket + 2]).toBe(2 * bounds[bucket]!);
  });

  it('hold every duration once: in the first whose bound is not below it', () => {
    fc.assert(
      fc.property(duration, (ms) => {
        expect(bucketOf(ms)).toBe(naiveBucket(ms));
      }),
    );
    for (let bucket = 0; bucket < BUCKETS - 1; bucket++) {
      expect(bucketOf(upperMicroseconds(bucket) / 1000)).toBe(bucket);
    }
    for (const long of [1e6, 1e9, 1e300, Infinity, Number.NaN]) expect(bucketOf(long)).toBe(BUCKETS - 1);
  });

  it('give as a quantile the bound of the bucket in which a sorted list has it', () => {
    const q = fc.constantFrom(0.01, 0.5, 0.9, 0.99, 1);
    fc.assert(
      fc.property(durations, q, (all, share) => {
        const sorted = [...all].sort((a, b) => a - b);
        const value = sorted[Math.ceil(share * all.length) - 1];
        const expected = value === undefined ? undefined : upperMicroseconds(naiveBucket(value));
        expect(quantile(counted(all), share)).toBe(expected);
      }),
    );
  });
});

describe('the statistics of lanes', () => {
  const added = fc.tuple(fc.nat(3), fc.constantFrom(...STAT_NAMES), fc.nat(1e6));
  const timed = fc.tuple(fc.nat(3), op, duration);

  it('add up over lanes, and none touches what another counts', () => {
    fc.assert(
      fc.property(fc.array(added), fc.array(timed), (adds, times) => {
        const buffer = createStats(4);
        const lanes = [0, 1, 2, 3].map((lane) => new LaneStats(buffer, lane));
        for (const [lane, name, amount] of adds) lanes[lane]!.add(name, amount);
        for (const [lane, of, ms] of times) lanes[lane]!.time(of, ms);
        for (const name of STAT_NAMES) {
          const sum = adds.filter(([, of]) => of === name).reduce((all, [, , amount]) => all + amount, 0);
          expect(sumStats(buffer)[name]).toBe(sum);
        }
        for (const each of TIMED_OPS) {
          const all = times.filter(([, of]) => of === each).map(([, , ms]) => ms);
          const { count, microseconds, buckets } = sumLatencies(buffer)[each];
          expect([count, buckets]).toEqual([all.length, counted(all)]);
          const sum = all.reduce((total, ms) => total + ms, 0) * 1000;
          expect(Math.abs(microseconds - sum)).toBeLessThanOrEqual(1 + sum * 1e-9);
        }
        expect(parseLatencyText(latencyText(sumLatencies(buffer)))).toEqual(sumLatencies(buffer));
      }),
    );
  });

  it('are text of `OP KEY VALUE` lines, of which a program may leave out what it does not know', () => {
    const buffer = createStats(1);
    const stats = new LaneStats(buffer, 0);
    for (const ms of [0.0012, 0.0014, 5, 1e6]) stats.time('write', ms);
    const text = latencyText(sumLatencies(buffer));
    expect(text).toMatch(/^read count 0\nread sum_us 0\nwrite count 4\nwrite sum_us 1000005003\n/);
    expect(text.match(/^write [\di].*$/gm)).toEqual(['write 1.5 2', 'write 6144 1', 'write inf 1']);
    expect(parseLatencyText(`scrub count 4\n${text}write p42 1\n`)).toEqual(sumLatencies(buffer));
  });
});

describe('rates', () => {
  /** A sample of a target that has done these requests, of each operation a list of milliseconds. */
  function sampleOf(requests: readonly (readonly number[])[], seconds: number, bytes = 0): TargetSample {
    const buffer = createStats(1);
    const stats = new LaneStats(buffer, 0);
    requests.forEach((all, i) => {
      for (const ms of all) stats.time(TIMED_OPS[i]!, ms);
    });
    stats.add('reads', requests[0]!.length);
    stats.add('writes', requests[1]!.length);
    stats.add('read_bytes', bytes);
    return {
      ...{ name: 'x', inode: 256, seconds, open: 0, inFlight: 0, isPassedThrough: false },
      status: { type: 'linear', sizeBytes: 4096 },
      counters: sumStats(buffer),
      latencies: sumLatencies(buffer),
    };
  }
  const requests = fc.tuple(durations, durations, durations);

  it('are those of what was done in between, whatever was done before', () => {
    const seconds = fc.integer({ min: 1, max: 100 }).map((tenths) => tenths / 10);
    fc.assert(
      fc.property(requests, requests, seconds, fc.nat(1e9), (old, fresh, interval, bytes) => {
        const before = sampleOf(old, 7);
        const both = old.map((all, i) => [...all, ...fresh[i]!]);
        const rates = ratesBetween(before, sampleOf(both, 7 + interval, bytes))!;
        const [reads, writes, flushes] = fresh;
        const all = [...reads, ...writes, ...flushes];
        expect(rates.readsPerSecond).toBeCloseTo(reads.length / interval);
        expect(rates.writesPerSecond).toBeCloseTo(writes.length / interval);
        expect(rates.requestsPerSecond).toBeCloseTo(all.length / interval);
        expect(rates.readBytesPerSecond).toBeCloseTo(bytes / interval, 1);
        expect(rates.errors).toBe(0);
        // Little's law, from the requests themselves: the mean number is the time of all over the time.
        const busy = all.reduce((sum, ms) => sum + ms / 1000, 0) / interval;
        expect(Math.abs(rates.meanInFlight - busy)).toBeLessThan(1e-4 + busy * 1e-6);
        for (const [list, { p50, p99 }] of [
          [reads, rates.readLatency],
          [writes, rates.writeLatency],
        ] as const) {
          expect([p50, p99]).toEqual([0.5, 0.99].map((q) => quantile(counted(list), q)));
        }
      }),
    );
  });

  it('are none where the sample before was of another target, or of the same counted anew', () => {
    const [old, now] = [sampleOf([[1], [1], []], 1), sampleOf([[1, 1], [1], []], 2)];
    expect(ratesBetween(old, now)?.readsPerSecond).toBe(1);
    expect(ratesBetween(undefined, now)).toBeUndefined();
    expect(ratesBetween({ ...old, inode: 512 }, now)).toBeUndefined();
    expect(ratesBetween(now, { ...old, seconds: 3 })).toBeUndefined();
    expect(ratesBetween(old, { ...now, seconds: 1 })).toBeUndefined();
    expect(difference(now.latencies.read, old.latencies.read).buckets.every((count) => count >= 0)).toBe(
      true,
    );
  });

  it('of a clone: what has come over', () => {
    const clone = (hydrated: number) =>
      parseStatusLine(`0 1048576 clone 8 5/1024 128 ${hydrated}/8192 0 0 0 rw`)!;
    const [old, now] = [sampleOf([[], [], []], 1), sampleOf([[], [], []], 3)];
    const [before, after] = [
      { ...old, status: clone(10) },
      { ...now, status: clone(30) },
    ];
    expect(ratesBetween(before, after)?.hydratedBytesPerSecond).toBe(10 * 65_536);
    // 816.2 seconds.
    const mount = { mountPoint: '/mnt', version: '', empty: [], snapshots: [] };
    const lines = frame({ ...mount, targets: [after] }, { ...mount, targets: [before] });
    expect(lines.at(-1)).toMatch(/ 0\.4% hydrated, 640 KiB\/s, 13:37 left$/);
  });
});

describe('status lines', () => {
  it('are taken apart', () => {
    const size = { sizeBytes: 8192 * 512 };
    expect(parseStatusLine('0 8192 linear')).toEqual({ type: 'linear', ...size });
    expect(parseStatusLine('0 8192 bow state:1 free:4096 sequence:3 entries:9 suspect short_tail')).toEqual({
      ...{ type: 'bow', ...size, bow: { state: 1, freeBytes: 4096, isSuspect: true } },
    });
    expect(parseStatusLine('0 8192 csum errors:3 pending:8')?.csum).toEqual({
      ...{ corruptFound: 3, pendingSectors: 8 },
    });
    expect(parseStatusLine('0 8192 cow 2 100/8192')?.cow).toEqual({ topBytes: 51_200 });
    const core = '4 hydration_threshold 1 hydration_batch_size 1';
    const clone = {
      ...{ regionBytes: 4096, regions: 1024, hydratedRegions: 7, hydratingRegions: 2 },
      ...{ metadataBlocks: 1024, metadataBlocksUsed: 6 },
    };
    expect(parseStatusLine(`0 8192 clone 8 6/1024 8 7/1024 2 1 no_hydration ${core} rw`)?.clone).toEqual({
      ...clone,
      mode: 'rw',
    });
    expect(parseStatusLine(`0 8192 clone 8 6/1024 8 7/1024 2 0 ${core} ro reason="no rw"`)?.clone).toEqual({
      ...clone,
      mode: 'ro',
    });
    expect(parseStatusLine('0 8192 clone Fail reason="x"')?.clone?.mode).toBe('Fail');
  });

  it('of a directory without a target, or with fields that nobody knows, say less', () => {
    expect(parseStatusLine('no table')).toBeUndefined();
    expect(parseStatusLine('failed: /img: no such file')).toBeUndefined();
    for (const type of ['bow', 'csum', 'cow', 'clone', 'new']) {
      expect(parseStatusLine(`0 8 ${type} what is this`)).toEqual({ type, sizeBytes: 4096 });
    }
  });
});

describe('--listen', () => {
  it('takes a port, on loopback where no host is named', () => {
    expect(parseListen('9100')).toEqual({ host: '127.0.0.1', port: 9100 });
    expect(parseListen('0.0.0.0:0')).toEqual({ host: '0.0.0.0', port: 0 });
    expect(parseListen('localhost:80')).toEqual({ host: 'localhost', port: 80 });
    expect(parseListen('[::1]:9100')).toEqual({ host: '::1', port: 9100 });
    for (const wrong of ['', ':9100', '::1:9100', '[]:1', 'host:', 'host', '65536', '-1', '1.5', 'h:1:2'])
      expect(() => parseListen(wrong), wrong).toThrow();
  });
});
