/** The results as JSON: every single measurement, units in the names. */
import type { Machine } from './machine.js';
import { PLACEMENTS, type Results, ratioToReference, samplesOf } from './results.js';
import { summarize } from './statistics.js';
import { type Verdict, wordOf } from './verdicts.js';
import type { Workload } from './workloads.js';

const OUTPUT_VERSION = 1;

export interface RunDescription {
  readonly startedAt: string;
  readonly durationSeconds: number;
  readonly machine: Machine;
  readonly options: Readonly<Record<string, unknown>>;
  readonly imageBytes: number;
  readonly regionBytes: number;
}

/** What --json writes. */
export function resultsToJson(
  run: RunDescription,
  results: Results,
  workloads: readonly Workload[],
  verdicts: readonly Verdict[],
): object {
  const subjects = [...new Set(results.samples.map(({ subject }) => subject))];
  const cells = subjects.flatMap((subject) =>
    PLACEMENTS.flatMap((placement) =>
      workloads.flatMap(({ name, unit }) => {
        const key = { subject, placement, workload: name };
        const samples = samplesOf(results.samples, key);
        if (samples.length === 0) return [];
        return [
          {
            ...key,
            [unit]: summarize(samples.map(({ value }) => value)),
            ratio: ratioToReference(results.samples, key) ?? null,
            samples: samples.map(({ round, value, reference }) => ({
              round,
              [unit]: value,
              reference: { [unit]: reference ?? null },
            })),
          },
        ];
      }),
    ),
  );
  return {
    output_version: OUTPUT_VERSION,
    ...run,
    workloads: workloads.map(({ inQuick: _, ...workload }) => workload),
    cells,
    firstTouch: results.firstTouch,
    overlays: results.overlays,
    freshSnapshot: results.freshSnapshot,
    crcBytesPerSecond: results.crc ?? null,
    memory: results.memory ?? null,
    snapshotMemory: results.snapshotMemory ?? null,
    hydration: results.hydration,
    cloneOpening: results.cloneOpening ?? null,
    missing: results.missing,
    failures: results.failures,
    notes: results.notes,
    verdicts: verdicts.map(({ title, word, figures }) => ({
      title,
      word,
      figures: figures.map((figure) => ({
        ...figure,
        summary: figure.summary ?? null,
        word: wordOf(figure),
      })),
    })),
  };
}
