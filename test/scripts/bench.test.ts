import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { fioArguments, parseFio, type Section } from '../../scripts/benchmark/fio.js';
import { Image, MIB, overwrite } from '../../scripts/benchmark/image.js';
import { Interrupted, Lab } from '../../scripts/benchmark/lab.js';
import { formatRatio, formatReport, formatTable, formatValue, wrap } from '../../scripts/benchmark/report.js';
import {
  type FreshSample,
  firstTouchRatio,
  freshRatio,
  type Results,
  ratioToPeer,
  ratioToReference,
  referenceValues,
  type Sample,
} from '../../scripts/benchmark/results.js';
import { summarize } from '../../scripts/benchmark/statistics.js';
import { judge, verdict, wordOf } from '../../scripts/benchmark/verdicts.js';
import { inOrderOfMeasurement, WORKLOADS } from '../../scripts/benchmark/workloads.js';

const NOTHING: Results = {
  missing: [],
  samples: [],
  firstTouch: [],
  overlays: [],
  freshSnapshot: [],
  crc: undefined,
  memory: undefined,
  snapshotMemory: undefined,
  hydration: [],
  cloneOpening: undefined,
  failures: [],
  notes: [],
};

function sample(subject: string, round: number, value: number, reference: number | undefined): Sample {
  return { subject, placement: 'loop', workload: 'randread-4', unit: 'iops', round, value, reference };
}

/** A sequential write, in MB/s. */
function fresh(subject: string, placement: 'file' | 'loop', round: number, value: number): FreshSample {
  return { subject, placement, workload: 'write', unit: 'bytesPerSecond', round, value: value * 1e6 };
}

describe('statistics', () => {
  test('the median is the middle value, or between the two in the middle', () => {
    expect(summarize([3, 1, 2])).toEqual({ median: 2, min: 1, max: 3 });
    expect(summarize([10, 2, 4, 100])).toEqual({ median: 7, min: 2, max: 100 });
    expect(() => summarize([])).toThrow(RangeError);
  });

  const key = { subject: 'linear-lanes', placement: 'loop', workload: 'randread-4' } as const;
  const samples = [
    sample('linear-lanes', 2, 90, 100),
    sample('linear-lanes', 1, 50, 100),
    sample('linear-lanes', 3, 300, 200),
    sample('linear-lanes', 4, 7, undefined),
    sample('qemu-raw', 1, 20, 80),
    sample('qemu-raw', 3, 100, 200),
  ];

  test('a ratio to the reference is made inside its round', () => {
    expect(ratioToReference(samples, key)).toEqual({ median: 0.9, min: 0.5, max: 1.5 });
    expect(ratioToReference(samples, { ...key, placement: 'file' })).toBeUndefined();
  });

  test('a ratio to a peer is made of the rounds that both were measured in, by their references', () => {
    expect(ratioToPeer(samples, key, 'qemu-raw')).toEqual({ median: 2.5, min: 2, max: 3 });
    expect(ratioToPeer(samples, key, 'nbdfuse')).toBeUndefined();
  });

  test('a reference that two placements share counts once', () => {
    const twice = [...samples, { ...sample('linear-lanes', 1, 1, 100), placement: 'file' as const }];
    expect(referenceValues(twice, 'randread-4')).toEqual({ median: 100, min: 80, max: 200 });
  });

  test('first touches are compared inside a round and a placement', () => {
    const touch = (placement: 'file' | 'loop', jobs: number, round: number, iops: number) => ({
      placement,
      jobs,
      round,
      iops,
      touchedShare: 0.1,
    });
    const touches = [touch('file', 1, 1, 100), touch('file', 8, 1, 400), touch('file', 8, 2, 900)];
    expect(firstTouchRatio([...touches, touch('loop', 8, 1, 5)], 'file', 8)?.median).toBe(4);
    expect(firstTouchRatio(touches, 'loop', 8)).toBeUndefined();
  });

  test('fresh subjects are compared inside a round and a placement', () => {
    const samples = [
      fresh('snapshot-fresh', 'file', 1, 300),
      fresh('linear-lanes', 'file', 1, 1000),
      fresh('snapshot-fresh', 'file', 2, 100),
      fresh('linear-lanes', 'file', 2, 200),
      fresh('snapshot-fresh', 'file', 3, 100),
      fresh('linear-lanes', 'loop', 3, 1),
    ];
    const key = { subject: 'snapshot-fresh', placement: 'file', workload: 'write' } as const;
    expect(freshRatio(samples, key, 'linear-lanes')).toEqual({ median: 0.4, min: 0.3, max: 0.5 });
    expect(freshRatio(samples, { ...key, placement: 'loop' }, 'linear-lanes')).toBeUndefined();
  });
});

describe('fio', () => {
  const section: Section = {
    name: 'cold-8.file',
    path: '/tmp/a:b',
    direct: true,
    workload: WORKLOADS.find(({ name }) => name === 'cold-8')!,
    regionBytes: 8 * MIB,
    seconds: 0.15,
    rampSeconds: 0.03,
    once: true,
  };

  test('jobs that may touch a block only once get a part of the region each', () => {
    const words = fioArguments([section]);
    expect(words).toContain(`--size=${MIB}`);
    expect(words).toContain(`--offset_increment=${MIB}`);
    expect(words).not.toContain('--time_based');
    expect(words).toContain('--filename=/tmp/a\\:b');
    expect(words).toContain('--runtime=150ms');
    expect(words).toContain('--ramp_time=30ms');
  });

  test('all other jobs have all of it, for as long as they are asked to', () => {
    const words = fioArguments([{ ...section, once: false }]);
    expect(words).toContain(`--size=${8 * MIB}`);
    expect(words).toContain('--offset_increment=0');
    expect(words).toContain('--time_based');
  });

  test('the report is read, whatever is before it; a section without a request has failed', () => {
    const none = { iops: 0, bw_bytes: 0, total_ios: 0 };
    const some = { iops: 1234.5, bw_bytes: 5056512, total_ios: 370 };
    const jobs = [
      { jobname: 'a', error: 0, read: some, write: none },
      { jobname: 'b', error: 28, read: none, write: some },
      { jobname: 'c', error: 0, read: none, write: none },
    ];
    const results = parseFio(`note: something {odd}\n${JSON.stringify({ 'fio version': 'fio-3.33', jobs })}`);
    expect(results.get('a')).toEqual({ ok: true, operations: 370, iops: 1234.5, bytesPerSecond: 5056512 });
    expect(results.get('b')).toEqual({ ok: false, reason: 'ENOSPC' });
    expect(results.get('c')).toEqual({ ok: false, reason: 'not one request was done' });
    expect(parseFio('fio: no such option').size).toBe(0);
  });

  test('reads are measured before writes; the region leaves more free space than it has itself', () => {
    const order = inOrderOfMeasurement(WORKLOADS).map(({ name }) => name);
    expect(order.indexOf('read')).toBeLessThan(order.indexOf('randwrite-1'));
    expect(order).toHaveLength(WORKLOADS.length);
    expect(Image.regionBytes(1024 * MIB)).toBe(448 * MIB);
    expect(Image.regionBytes(65 * MIB) % MIB).toBe(0);
  });
});

describe('image', () => {
  test('a piece is written over at every step, the last one as far as the range goes', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'dmfuse-bench-test-'));
    const path = join(folder, 'image');
    try {
      writeFileSync(path, '..........');
      await overwrite(path, 9, { pieceBytes: 2, stepBytes: 4 });
      expect(readFileSync(path, 'latin1')).toBe('ZZ..ZZ..Z.');
      await overwrite(path, 3);
      expect(readFileSync(path, 'latin1')).toBe('ZZZ.ZZ..Z.');
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe('report', () => {
  test('columns line up, the first to the left', () => {
    expect(formatTable([['', 'one'], ['kernel loop', '114k/s'], ['x']])).toBe(
      '                one\nkernel loop  114k/s\nx\n',
    );
  });

  test('values and ratios', () => {
    expect(formatValue(114_400, 'iops')).toBe('114k/s');
    expect(formatValue(949.6, 'iops')).toBe('950/s');
    expect(formatValue(7.617e9, 'bytesPerSecond')).toBe('7.62 GB/s');
    expect(formatValue(350e6, 'bytesPerSecond')).toBe('350 MB/s');
    expect(formatRatio({ median: 1.019, min: 0.97, max: 12.34 })).toBe('1.02 0.97-12.3');
  });

  test('long lines are broken at blanks', () => {
    const lines = wrap('word '.repeat(60).trim(), '- ', '  ').trimEnd().split('\n');
    expect(lines.length).toBeGreaterThan(1);
    expect(lines.every((line) => line.length <= 130)).toBe(true);
    expect(lines.join(' ').match(/word/g)).toHaveLength(60);
  });

  test('a fresh snapshot and what large devices cost', () => {
    const results: Results = {
      ...NOTHING,
      freshSnapshot: [fresh('snapshot-fresh', 'loop', 1, 350), fresh('snapshot-fresh', 'loop', 2, 450)],
      snapshotMemory: { deviceBytes: 16 * 2 ** 40 - 4096, residentBytes: 7 * MIB },
    };
    const text = formatReport(results, WORKLOADS, []);
    expect(text).toMatch(/snapshot-fresh, loop +400 MB\/s 350 MB\/s-450 MB\/s/);
    expect(text).toContain('on a device of 16 TiB less 4096 bytes: 7 MiB');
  });

  test('a run without a figure says so, and what was missing or failed', () => {
    const results: Results = {
      ...NOTHING,
      missing: [{ subject: 'nbdfuse', reason: 'nbdkit is not installed (Debian package nbdkit)' }],
      failures: [
        { what: 'bow-1, loop', round: 1, reason: 'no' },
        { what: 'bow-1, loop', round: 3, reason: 'no' },
      ],
    };
    const text = formatReport(results, WORKLOADS, judge(results, ['read']));
    expect(text).toContain('nbdfuse: nbdkit is not installed (Debian package nbdkit)');
    expect(text).toContain('bow-1, loop: no (rounds 1, 3)');
    expect(text).toContain("UNKNOWN linear-passthrough, file: times the kernel's loop device: not measured");
    expect(text).not.toContain('PASS');
  });
});

describe('verdicts', () => {
  const summary = (median: number) => ({ median, min: median, max: median });

  test('a median on the bar passes, one below is short', () => {
    expect(wordOf({ name: 'read', bar: 2, rule: 'atLeast', summary: summary(2) })).toBe('PASS');
    expect(wordOf({ name: 'read', bar: 2, rule: 'atLeast', summary: summary(1.99) })).toBe('SHORT');
    expect(wordOf({ name: 'VmRSS', bar: 200, rule: 'below', summary: summary(200) })).toBe('SHORT');
  });

  test('one short figure decides, else one that is missing', () => {
    const pass = { name: 'a', bar: 1, rule: 'atLeast', summary: summary(1) } as const;
    const short = { ...pass, summary: summary(0.5) };
    const unknown = { ...pass, summary: undefined };
    expect(verdict('', [pass, pass]).word).toBe('PASS');
    expect(verdict('', [pass, unknown]).word).toBe('UNKNOWN');
    expect(verdict('', [unknown, short, pass]).word).toBe('SHORT');
    expect(verdict('', []).word).toBe('UNKNOWN');
  });

  test('each bar finds its figures', () => {
    const results: Results = {
      ...NOTHING,
      samples: [
        sample('bow-2', 1, 96, 100),
        sample('linear-lanes', 1, 70, 100),
        sample('qemu-raw', 1, 30, 100),
      ],
      memory: { deviceBytes: 2 ** 40, ranges: 100_001, residentBytesBefore: 0, residentBytes: 250 * MIB },
    };
    const verdicts = judge(results, ['randread-4']);
    const find = (start: string) => verdicts.find(({ title }) => title.startsWith(start))!;
    expect(find('bow-2, loop').word).toBe('PASS');
    expect(find('bow-2, file').word).toBe('UNKNOWN');
    expect(find('linear-lanes, loop').figures[0]!.summary?.median).toBeCloseTo(7 / 3);
    expect(find('bow-0').word).toBe('SHORT');
  });

  test('filters are held to linear through the lanes', () => {
    const write = (subject: string, value: number) => ({
      ...sample(subject, 1, value, 100),
      workload: 'write',
    });
    const results: Results = {
      ...NOTHING,
      samples: [
        ...[sample('linear-lanes', 1, 50, 100), write('linear-lanes', 100)],
        ...[write('tracked', 96), write('snapshot-steady', 89), sample('snapshot-image', 1, 45, 100)],
      ],
      freshSnapshot: [fresh('linear-lanes', 'file', 1, 1000), fresh('snapshot-fresh', 'file', 1, 290)],
      snapshotMemory: { deviceBytes: 16 * 2 ** 40, residentBytes: 31 * MIB },
    };
    const verdicts = judge(results, ['randread-4']);
    const figureOf = (start: string, name: string) => {
      const { figures } = verdicts.find(({ title }) => title.startsWith(start))!;
      return wordOf(figures.find((figure) => figure.name === name)!);
    };
    expect(figureOf('tracked, loop', 'write')).toBe('PASS');
    expect(figureOf('tracked, loop', 'randwrite-4')).toBe('UNKNOWN');
    expect(figureOf('snapshot-steady, loop', 'write')).toBe('SHORT');
    expect(figureOf('snapshot-image, loop', 'randread-4')).toBe('PASS');
    expect(figureOf('snapshot-fresh, file', 'write')).toBe('SHORT');
    expect(figureOf('tracked: ', 'VmRSS')).toBe('PASS');
  });
});

describe('lab', () => {
  test('a scope is undone in reverse order, also after an error; a failing step is told and does not stop it', async () => {
    const lab = Lab.open(tmpdir());
    const undone: string[] = [];
    const body = lab.scope(async () => {
      lab.defer(async () => void undone.push('first'));
      lab.defer(async () => {
        throw new Error('stuck');
      });
      lab.defer(async () => void undone.push('last'));
      throw new Error('of the body');
    });
    await expect(body).rejects.toThrow('of the body');
    expect(undone).toEqual(['last', 'first']);
    expect(lab.complaints.splice(0)).toEqual(['stuck']);
    await lab.close();
    expect(existsSync(lab.folder)).toBe(false);
  });

  test('a signal ends what runs; undo steps still can run commands, and servers are stopped', async () => {
    const lab = Lab.open(tmpdir());
    const server = lab.start('sleep', ['60']);
    let undone = '';
    lab.defer(async () => void (undone = await lab.run('echo', ['undone'])));
    const sleeping = lab.run('sleep', ['60'], { interruptible: true });
    lab.interrupt('SIGINT');
    await expect(sleeping).rejects.toThrow(Interrupted);
    await expect(lab.run('true', [])).rejects.toThrow(Interrupted);
    await lab.close();
    expect(undone).toBe('undone\n');
    expect(server.hasEnded()).toBe(true);
    expect(lab.complaints).toEqual([]);
  });

  test('a command that fails says why; one that takes too long is killed', async () => {
    const lab = Lab.open(tmpdir());
    await expect(lab.run('ls', ['/nowhere'])).rejects.toThrow('No such file');
    await expect(lab.run('sleep', ['60'], { limitSeconds: 0.1 })).rejects.toThrow('no end after 0.1 s');
    await lab.close();
  });
});
