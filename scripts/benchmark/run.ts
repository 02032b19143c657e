/** A whole run: what is measured, in which order, and what comes out. */
import { accessSync, constants, existsSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { cpus, loadavg } from 'node:os';
import { dirname, resolve } from 'node:path';
import { measureCrc } from './crc.js';
import { measureFirstTouch } from './first-touch.js';
import { measureFresh } from './fresh.js';
import { measureCloneOpening, measureHydration } from './hydration.js';
import { Image, MIB, memoryFileSystem } from './image.js';
import { resultsToJson } from './json.js';
import { Lab } from './lab.js';
import { describeMachine } from './machine.js';
import { Findings, measureSubjects } from './measure.js';
import { measureMemory, measureSnapshotMemory } from './memory.js';
import { formatReport } from './report.js';
import type {
  CloneOpening,
  FirstTouchSample,
  FreshSample,
  HydrationSample,
  MemoryResult,
  Results,
  SnapshotMemory,
} from './results.js';
import type { Subject } from './subject.js';
import { FRESH_SNAPSHOT, OVERLAYS, SUBJECTS } from './subjects/index.js';
import { judge } from './verdicts.js';
import { WORKLOADS, type Workload } from './workloads.js';

/** As the command line has them. */
export interface Options {
  readonly quick: boolean;
  readonly json: string;
  readonly only?: RegExp;
  readonly workloads?: RegExp;
  readonly dir?: string;
  readonly size?: number;
  readonly rounds?: number;
  readonly seconds?: number;
}

/** The options with all defaults in. */
interface Settings {
  readonly folder: string;
  readonly imageBytes: number;
  readonly rounds: number;
  readonly seconds: number;
  readonly firstTouchSeconds: number;
  readonly firstTouchJobs: readonly number[];
  readonly subjects: readonly Subject[];
  readonly workloads: readonly Workload[];
  readonly withFirstTouch: boolean;
  readonly withMemory: boolean;
  readonly withSnapshotMemory: boolean;
  readonly overlays: readonly Subject[];
  readonly withCrc: boolean;
  readonly withHydration: boolean;
  readonly withFreshSnapshot: boolean;
}

const named = (names: readonly string[]) => WORKLOADS.filter(({ name }) => names.includes(name));
/** On fresh overlays, and on a fresh snapshot. */
const OVERLAY_WORKLOADS = named(['randwrite-4', 'read', 'write']);
const FRESH_SNAPSHOT_WORKLOADS = named(['write']);

const CONTROL_NOTE =
  'The row `file` is the control: the loop device over it is the reference once more, and shows the noise.';

const NOTES = [
  'Each figure is measured on the file, on a loop device over it and on the reference, one right after the other.',
  'Where the kernel itself serves the page cache (file, linear-passthrough, bow-2), fio opens the file, and the loop ' +
    'device over it, without direct I/O: with it they would go past the cache to the disk. All else is direct.',
  'csum, cow, clone and snapshot-image have files of their own, which are not measured cold; a clone that is not hydrated and ' +
    'the image of a snapshot are only read.',
  'Each round starts with fresh overlays: what is written to them is mostly written there for the first time.',
];

/** Measures; `opened` gets the lab as soon as there is one, for signals. */
export async function runBenchmark(
  options: Options,
  progress: (line: string) => void,
  opened: (lab: Lab) => void,
): Promise<{ report: string; json: object }> {
  const started = new Date();
  const load = loadavg()[0]!;
  const settings = await settle(options);
  const lab = Lab.open(settings.folder);
  opened(lab);
  try {
    const machine = await describeMachine(lab);
    if (machine.versions.fio === null) throw new Error('fio is not installed (Debian package fio)');
    const results = await measure(lab, settings, progress, load > cpus().length / 4 ? [busyNote(load)] : []);
    const { workloads, imageBytes, rounds, seconds } = settings;
    const verdicts = judge(
      results,
      workloads.map(({ name }) => name),
    );
    const durationSeconds = Math.round((Date.now() - started.getTime()) / 1000);
    const json = resultsToJson(
      {
        startedAt: started.toISOString(),
        durationSeconds,
        machine,
        options: {
          quick: options.quick,
          only: options.only?.source ?? null,
          workloads: options.workloads?.source ?? null,
          rounds,
          seconds,
        },
        imageBytes,
        regionBytes: Image.regionBytes(imageBytes),
      },
      results,
      workloads,
      verdicts,
    );
    const { dmfuse, kernel, cpuCount, cpu, node } = machine;
    const heading =
      `dmfuse ${dmfuse}, Linux ${kernel}, ${cpuCount} x ${cpu}, Node ${node}: ` +
      `${rounds} ${rounds === 1 ? 'round' : 'rounds'} of ${seconds} s, ` +
      `image of ${imageBytes / MIB} MiB, ${durationSeconds} s in all\n`;
    return { report: `${heading}\n${formatReport(results, workloads, verdicts)}`, json };
  } finally {
    progress('');
    await lab.close();
  }
}

function busyNote(load: number): string {
  return `The machine was at work when the run began (load ${load.toFixed(1)}): do not trust the figures.`;
}

async function settle(options: Options): Promise<Settings> {
  const { quick, only, workloads } = options;
  // Before minutes of measuring: whether the results can be written.
  const json = resolve(options.json);
  accessSync(existsSync(json) ? json : dirname(json), constants.W_OK);
  const seconds = options.seconds ?? (quick ? 0.08 : 0.15);
  const imageBytes = (options.size ?? (quick ? 256 : 1024)) * MIB;
  return {
    folder: await folderOnDisk(options.dir, imageBytes),
    imageBytes,
    rounds: options.rounds ?? (quick ? 2 : 3),
    seconds,
    // Each waits for the disk several times: a few hundred of them should be counted.
    firstTouchSeconds: 4 * Math.max(seconds, 0.15),
    firstTouchJobs: quick ? [1, 8] : [1, 4, 8],
    // A name that is asked for is not left out.
    subjects: SUBJECTS.filter(({ name, judged }) => (only ? only.test(name) : judged || !quick)),
    workloads: WORKLOADS.filter(({ name, inQuick }) =>
      workloads ? workloads.test(name) : inQuick || !quick,
    ),
    withFirstTouch: (only?.test('bow-1') ?? true) && (workloads?.test('first-touch') ?? true),
    withMemory: (only?.test('bow-0') ?? true) && (workloads?.test('memory') ?? true),
    overlays:
      (workloads?.test('overlays') ?? true) ? OVERLAYS.filter(({ name }) => only?.test(name) ?? true) : [],
    withHydration: (only?.test('clone') ?? true) && (workloads?.test('hydration') ?? true),
    withFreshSnapshot: (only?.test('snapshot-fresh') ?? true) && (workloads?.test('snapshot-fresh') ?? true),
    withSnapshotMemory: (only?.test('tracked') ?? true) && (workloads?.test('memory') ?? true),
    withCrc: (only?.test('csum') ?? true) && (workloads?.test('crc') ?? true),
  };
}

async function folderOnDisk(asked: string | undefined, imageBytes: number): Promise<string> {
  const candidates = asked !== undefined ? [asked] : [process.env.TMPDIR || '/var/tmp', '/var/tmp'];
  for (const candidate of candidates) {
    const folder = resolve(candidate);
    accessSync(folder, constants.W_OK);
    const memory = await memoryFileSystem(folder);
    if (memory !== undefined && candidate !== candidates.at(-1)) continue;
    if (memory !== undefined) {
      throw new Error(`${folder} is on ${memory}, in memory: name a folder on a disk with --dir`);
    }
    // The image, overlays of it, and room.
    const { bavail, bsize } = await statfs(folder);
    if (bavail * bsize >= 4 * imageBytes) return folder;
    throw new Error(`${folder}: ${(4 * imageBytes) / MIB} MiB free are needed; --dir and --size change that`);
  }
  throw new Error('no folder for the image');
}

async function measure(
  lab: Lab,
  settings: Settings,
  progress: (line: string) => void,
  extraNotes: readonly string[],
): Promise<Results> {
  const { rounds, seconds, workloads, imageBytes } = settings;
  const { withFirstTouch, withMemory, withCrc, withHydration, withFreshSnapshot, withSnapshotMemory } =
    settings;
  const findings = new Findings();
  const missing: { subject: string; reason: string }[] = [];
  const present = async (wanted: readonly Subject[]) => {
    const found: Subject[] = [];
    for (const subject of wanted) {
      const reason = await subject.missing(lab);
      if (reason === undefined) found.push(subject);
      else if (!missing.some(({ subject: name }) => name === subject.name)) {
        missing.push({ subject: subject.name, reason });
      }
    }
    return found;
  };
  const subjects = await present(workloads.length > 0 ? settings.subjects : []);
  const overlaySubjects = await present(settings.overlays);
  for (const note of [...NOTES, ...extraNotes]) findings.notes.add(note);
  let memory: MemoryResult | undefined;
  if (withMemory) {
    progress('memory of a large device');
    memory = await findings.attempt('memory', 1, () => measureMemory(lab));
  }
  let snapshotMemory: SnapshotMemory | undefined;
  if (withSnapshotMemory) {
    progress('memory of a large device in a snapshot');
    snapshotMemory = await findings.attempt('snapshot memory', 1, () => measureSnapshotMemory(lab));
  }
  const crc = withCrc ? measureCrc() : undefined;
  let cloneOpening: CloneOpening | undefined;
  if (withHydration) {
    progress('a clone in many regions');
    cloneOpening = await findings.attempt('clone in many regions', 1, () => measureCloneOpening(lab));
  }
  let hydration: HydrationSample[] = [];
  let firstTouch: FirstTouchSample[] = [];
  let overlays: FreshSample[] = [];
  let freshSnapshot: FreshSample[] = [];
  if (subjects.some(({ name }) => name === 'file')) findings.notes.add(CONTROL_NOTE);
  const withSubjects = subjects.length > 0 && workloads.length > 0;
  const withOverlays = overlaySubjects.length > 0;
  const needsImage = withSubjects || withFirstTouch || withOverlays || withHydration || withFreshSnapshot;
  if (!needsImage && !withMemory && !withSnapshotMemory && !withCrc) {
    throw new Error('there is nothing of that to measure');
  }
  if (needsImage) {
    progress('making the image');
    const image = await Image.create(lab, imageBytes);
    if (withSubjects) {
      await measureSubjects(lab, image, { subjects, workloads, rounds, seconds, progress }, findings);
    }
    if (withFirstTouch) {
      const { firstTouchJobs: jobs, firstTouchSeconds } = settings;
      const plan = { jobs, rounds, seconds: firstTouchSeconds, progress };
      const found = await findings.attempt('first touches', 1, () =>
        measureFirstTouch(lab, image, plan, findings),
      );
      firstTouch = found ?? [];
    }
    const fresh = async (what: string, subjects: readonly Subject[], on: readonly Workload[]) => {
      const plan = { what, subjects, workloads: on, rounds, seconds: settings.firstTouchSeconds, progress };
      return (await findings.attempt(what, 1, () => measureFresh(lab, image, plan, findings))) ?? [];
    };
    if (withOverlays) overlays = await fresh('fresh overlays', overlaySubjects, OVERLAY_WORKLOADS);
    if (withFreshSnapshot) {
      freshSnapshot = await fresh('fresh snapshot', FRESH_SNAPSHOT, FRESH_SNAPSHOT_WORKLOADS);
    }
    if (withHydration) {
      const plan = { rounds, seconds, progress };
      hydration =
        (await findings.attempt('hydration', 1, () => measureHydration(lab, image, plan, findings))) ?? [];
    }
  }
  const { samples, failures } = findings;
  const notes = [...findings.notes];
  return {
    missing,
    samples,
    firstTouch,
    overlays,
    freshSnapshot,
    crc,
    memory,
    snapshotMemory,
    hydration,
    cloneOpening,
    failures,
    notes,
  };
}
