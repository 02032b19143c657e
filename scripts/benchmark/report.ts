/** The results as text for people. */
import {
  type FreshSample,
  firstTouchRatio,
  hydrationRatios,
  PLACEMENTS,
  type Placement,
  type Results,
  ratioToReference,
  referenceValues,
} from './results.js';
import { type Summary, summarize } from './statistics.js';
import { type Verdict, type VerdictFigure, wordOf } from './verdicts.js';
import type { Unit, Workload } from './workloads.js';

const WIDTH = 130;
const LARGE_DEVICE_BYTES = 16 * 2 ** 40;
const NO_BREAK = '\u00a0';

const PLACEMENT_TITLES: Readonly<Record<Placement, string>> = {
  file: 'fio on the file of each subject',
  loop: 'fio on a loop device over the file of each subject',
};

/** Everything that was found, with a newline at the end. */
export function formatReport(
  results: Results,
  workloads: readonly Workload[],
  verdicts: readonly Verdict[],
): string {
  const parts = [
    ...PLACEMENTS.map((placement) => ratioTable(results, workloads, placement)),
    formatFirstTouch(results),
    freshTable('Fresh overlays on the image, each block touched once at most', results.overlays),
    freshTable('A fresh snapshot, each chunk touched for the first time', results.freshSnapshot),
    formatCrc(results),
    formatMemory(results),
    formatSnapshotMemory(results),
    formatHydration(results),
    list(
      'Workloads',
      workloads.map(({ name, description }) => `${name}: ${description}`),
    ),
    list(
      'Missing',
      results.missing.map(({ subject, reason }) => `${subject}: ${reason}`),
    ),
    list('Failed', failureLines(results)),
    list('Notes', results.notes),
    formatVerdicts(verdicts),
  ];
  return parts.filter((part) => part !== '').join('\n');
}

/** Rows of cells as columns: the first to the left, the others as `align` says. */
export function formatTable(rows: readonly (readonly string[])[], align: 'left' | 'right' = 'right'): string {
  const columns = Math.max(0, ...rows.map((row) => row.length));
  const widths = Array.from({ length: columns }, (_, column) =>
    Math.max(...rows.map((row) => (row[column] ?? '').length)),
  );
  const line = (row: readonly string[]) =>
    row
      .map((cell, i) => (i === 0 || align === 'left' ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)))
      .join('  ');
  return rows.map((row) => `${line(row).trimEnd()}\n`).join('');
}

/** `114k/s`, `950/s`, `7.62 GB/s`, `350 MB/s`. */
export function formatValue(value: number, unit: Unit): string {
  if (unit === 'iops') return value >= 10_000 ? `${Math.round(value / 1000)}k/s` : `${Math.round(value)}/s`;
  return value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB/s` : `${Math.round(value / 1e6)} MB/s`;
}

/** `1.02 0.97-1.05`: the median and the spread. */
export function formatRatio({ median, min, max }: Summary): string {
  return `${ratio(median)} ${ratio(min)}-${ratio(max)}`;
}

function ratio(value: number): string {
  return value.toFixed(value < 10 ? 2 : 1);
}

function ratioTable(results: Results, workloads: readonly Workload[], placement: Placement): string {
  const subjects = [...new Set(results.samples.map(({ subject }) => subject))];
  if (subjects.length === 0) return '';
  const reference = workloads.map(({ name, unit }) => {
    const summary = referenceValues(results.samples, name);
    return summary ? formatValue(summary.median, unit) : '-';
  });
  const rows = subjects.map((subject) => [
    subject,
    ...workloads.map(({ name }) => {
      const summary = ratioToReference(results.samples, { subject, placement, workload: name });
      return summary ? formatRatio(summary) : '-';
    }),
  ]);
  const header = ['', ...workloads.map(({ name }) => name)];
  const title = `${PLACEMENT_TITLES[placement]}: times the kernel's loop device on the image, median and spread`;
  return `${title}\n\n${formatTable([header, ['kernel loop', ...reference], ...rows])}`;
}

function formatFirstTouch({ firstTouch }: Results): string {
  if (firstTouch.length === 0) return '';
  const allJobs = [...new Set(firstTouch.map(({ jobs }) => jobs))];
  const rows = PLACEMENTS.map((placement) => [
    `bow-1, ${placement}`,
    ...allJobs.flatMap((jobs) => {
      const values = firstTouch.filter((s) => s.placement === placement && s.jobs === jobs);
      if (values.length === 0) return ['-', ''];
      const { median, min, max } = summarize(values.map(({ iops }) => iops));
      const times = jobs === 1 ? undefined : firstTouchRatio(firstTouch, placement, jobs);
      const spread = `${Math.round(min)}-${Math.round(max)}`;
      return [`${Math.round(median)}/s ${spread}`, times ? `x${formatRatio(times)}` : ''];
    }),
  ]);
  const header = ['', ...allJobs.flatMap((jobs) => [jobs === 1 ? '1 job' : `${jobs} jobs`, ''])];
  const title =
    'First touches after the checkpoint: 4 KiB random writes, median and spread; x: times those by 1 job';
  return `${title}\n\n${formatTable([header, ...rows])}`;
}

function freshTable(title: string, samples: readonly FreshSample[]): string {
  if (samples.length === 0) return '';
  const distinct = <T>(values: readonly T[]) => [...new Set(values)];
  const names = distinct(samples.map(({ workload }) => workload));
  const rows = distinct(samples.map(({ subject }) => subject)).flatMap((subject) =>
    PLACEMENTS.map((placement) => [
      `${subject}, ${placement}`,
      ...names.map((name) => {
        const here = samples.filter(
          (s) => s.subject === subject && s.placement === placement && s.workload === name,
        );
        if (here.length === 0) return '-';
        const { median, min, max } = summarize(here.map(({ value }) => value));
        const { unit } = here[0]!;
        return `${formatValue(median, unit)} ${formatValue(min, unit)}-${formatValue(max, unit)}`;
      }),
    ]),
  );
  return `${title}: median and spread\n\n${formatTable([['', ...names], ...rows])}`;
}

function formatCrc({ crc }: Results): string {
  return crc === undefined
    ? ''
    : `Checksum of csum over 1 MiB, one core: ${formatValue(crc, 'bytesPerSecond')}\n`;
}

function formatMemory({ memory }: Results): string {
  if (!memory) return '';
  return (
    `Memory of the daemon (VmRSS): ${mib(memory.residentBytes)} with bow on a device of 1 TiB in ` +
    `${memory.ranges} ranges, ${mib(memory.residentBytesBefore)} without a target\n`
  );
}

function formatSnapshotMemory({ snapshotMemory }: Results): string {
  if (!snapshotMemory) return '';
  const { deviceBytes, residentBytes } = snapshotMemory;
  const size =
    deviceBytes === LARGE_DEVICE_BYTES ? '16 TiB' : `16 TiB less ${LARGE_DEVICE_BYTES - deviceBytes} bytes`;
  return `Memory of the change tracker and an empty snapshot on a device of ${size}: ${mib(residentBytes)}\n`;
}

function mib(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}

function formatHydration({ hydration, cloneOpening }: Results): string {
  const lines: string[] = [];
  if (hydration.length > 0) {
    const median = (values: readonly number[]) => summarize(values).median;
    const bytes = formatValue(
      median(hydration.map(({ bytesPerSecond }) => bytesPerSecond)),
      'bytesPerSecond',
    );
    const reads = formatValue(median(hydration.map(({ readsMeanwhile }) => readsMeanwhile)), 'iops');
    const { copy, reads: readsRatio } = hydrationRatios(hydration);
    lines.push(
      `Hydration of a clone: ${bytes}, ${formatRatio(copy!)} times cp of the same file; 4 KiB random reads by 1 job ` +
        `meanwhile: ${reads}, ${formatRatio(readsRatio!)} times those without`,
    );
  }
  if (cloneOpening) {
    const { regions, seconds, residentBytes } = cloneOpening;
    lines.push(
      `A clone in ${regions} regions: opened in ${seconds.toFixed(2)} s, ${mib(residentBytes)} of memory`,
    );
  }
  return lines.map((line) => `${line}\n`).join('');
}

function list(title: string, lines: readonly string[]): string {
  return lines.length === 0 ? '' : `${title}\n${lines.map((line) => wrap(line, '  ', '    ')).join('')}`;
}

/** Lines of WIDTH characters at most, broken at blanks, but not at NO_BREAK ones. */
export function wrap(text: string, firstIndent: string, indent: string): string {
  let lines = '';
  let line = firstIndent;
  for (const word of text.split(' ')) {
    if (line.length + word.length > WIDTH && line.trim() !== '') {
      lines += `${line.trimEnd()}\n`;
      line = indent;
    }
    line += `${word} `;
  }
  return `${lines}${line.trimEnd()}\n`.replaceAll(NO_BREAK, ' ');
}

/** One line for the rounds that failed in the same way. */
function failureLines({ failures }: Results): string[] {
  const rounds = new Map<string, number[]>();
  for (const { what, round, reason } of failures) {
    const key = `${what}: ${reason.replace(/\s+/g, ' ')}`;
    rounds.set(key, [...(rounds.get(key) ?? []), round]);
  }
  return [...rounds].map(([key, at]) => `${key} (${at.length === 1 ? 'round' : 'rounds'} ${at.join(', ')})`);
}

function formatVerdicts(verdicts: readonly Verdict[]): string {
  const lines = verdicts.map(({ word, title, figures }) => {
    const indent = ' '.repeat(10);
    const measured = figures.some(({ summary }) => summary !== undefined);
    if (!measured) return `  ${word.padEnd(8)}${title}: not measured\n`;
    const line = figures.map((figure) => formatFigure(figure).replaceAll(' ', NO_BREAK)).join(', ');
    return `  ${word.padEnd(8)}${title}\n${wrap(line, indent, indent)}`;
  });
  return `Verdicts, by the medians\n${lines.join('')}`;
}

/** `randread-4 2.61 >= 2`, `write 0.80 < 1 (!)`. */
function formatFigure(figure: VerdictFigure): string {
  const { name, bar, summary } = figure;
  if (!summary) return `${name} not measured`;
  const comparison = `${name} ${ratio(summary.median)} ${summary.median < bar ? '<' : '>='} ${bar}`;
  return wordOf(figure) === 'SHORT' ? `${comparison} (!)` : comparison;
}
