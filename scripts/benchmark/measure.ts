/**
 * The rounds. In each, every subject comes up once; under each workload its file, the loop device over that and the
 * reference are measured one right after the other, so that a ratio compares what happened within a second or two.
 */
import { messageOf } from '../../src/errors.js';
import { runFio, type Section, type SectionResult } from './fio.js';
import type { Image } from './image.js';
import { Interrupted, type Lab } from './lab.js';
import { attachLoop } from './loop-device.js';
import type { Failure, Placement, Sample } from './results.js';
import type { Served, Subject } from './subject.js';
import { inOrderOfMeasurement, isWrite, random, type Workload } from './workloads.js';

export interface Plan {
  readonly subjects: readonly Subject[];
  readonly workloads: readonly Workload[];
  readonly rounds: number;
  /** Of each measurement. */
  readonly seconds: number;
  readonly progress: (line: string) => void;
}

/** Collects what the parts of a run find. */
export class Findings {
  readonly samples: Sample[] = [];
  readonly failures: Failure[] = [];
  readonly notes = new Set<string>();

  /** Runs `body`; an error in it is a failure of `what`, and the run goes on. */
  async attempt<T>(what: string, round: number, body: () => Promise<T>): Promise<T | undefined> {
    try {
      return await body();
    } catch (error) {
      if (error instanceof Interrupted) throw error;
      this.failures.push({ what, round, reason: messageOf(error) });
      return undefined;
    }
  }
}

/** Something that fio measures. */
interface Spot {
  readonly placement: Placement | 'reference';
  readonly path: string;
  readonly direct: boolean;
}

/** Seconds that are not measured, before `seconds` that are. Small: fio rounds the sum up to tenths. */
const rampSeconds = (seconds: number) => seconds / 5;

/** Not measured: what a server that has just started still compiles, maps and caches would else be measured with it. */
const WARM_UPS = [random('randread', 4), random('randwrite', 4)];
const WARM_UP_SECONDS = 0.3;
const SETTLE = random('randwrite', 1);

/** All rounds of all subjects; none of them missing. */
export async function measureSubjects(
  lab: Lab,
  image: Image,
  { subjects, workloads, rounds, seconds, progress }: Plan,
  findings: Findings,
): Promise<void> {
  await lab.scope(async () => {
    const reference = await attachLoop(lab, image.path, false);
    for (let round = 1; round <= rounds; round++) {
      const inRound = subjects.filter(({ judged }) => judged || round <= unjudgedRounds(rounds));
      for (const [i, subject] of inRound.entries()) {
        progress(`round ${round} of ${rounds}, subject ${i + 1} of ${inRound.length}: ${subject.name}`);
        await findings.attempt(subject.name, round, () =>
          lab.scope(async () => {
            await image.reset();
            const served = await subject.start(lab, image);
            if (served.note) findings.notes.add(`${subject.name}: ${served.note}`);
            const spots = await spotsOf(lab, subject, served, reference.path, round, findings);
            const measured = workloads.filter(
              ({ cold, rw }) => !(cold && served.ownFiles) && !(served.readOnly && isWrite(rw)),
            );
            const readOnly = served.readOnly ?? false;
            await new Session(lab, image, subject, spots, readOnly, round, seconds, findings).measure(
              measured,
            );
          }),
        );
        await image.settle();
      }
    }
  });
}

/** Of subjects that no verdict needs. */
function unjudgedRounds(rounds: number): number {
  return Math.ceil((rounds * 2) / 3);
}

async function spotsOf(
  lab: Lab,
  subject: Subject,
  { path, cache }: Served,
  referencePath: string,
  round: number,
  findings: Findings,
): Promise<Spot[]> {
  // Direct I/O would pass the cache by where it lies behind the path itself.
  const direct = cache === 'server';
  const loop = await findings.attempt(`${subject.name}, loop`, round, () => attachLoop(lab, path, direct));
  if (loop && direct && !loop.directIo) {
    findings.notes.add(`${subject.name}: the loop device over it takes no direct I/O`);
  }
  return [
    { placement: 'file', path, direct },
    ...(loop ? [{ placement: 'loop', path: loop.path, direct: true } as const] : []),
    { placement: 'reference', path: referencePath, direct: true },
  ];
}

/** One subject that is up, in one round. */
class Session {
  constructor(
    private readonly lab: Lab,
    private readonly image: Image,
    private readonly subject: Subject,
    private readonly spots: readonly Spot[],
    private readonly readOnly: boolean,
    private readonly round: number,
    private readonly seconds: number,
    private readonly findings: Findings,
  ) {}

  async measure(workloads: readonly Workload[]): Promise<void> {
    for (const workload of workloads.filter(({ cold }) => cold)) await this.measureCold(workload);
    const warm = inOrderOfMeasurement(workloads.filter(({ cold }) => !cold));
    if (warm.length === 0) return;
    await this.image.settle();
    await this.image.warm(this.image.regionBytes);
    const sections = warm.flatMap((workload) =>
      this.spots.flatMap((spot) => {
        const section = this.section(workload, spot);
        // Some have still to write out what they took in before, and would be measured with that.
        const settle = { ...section, name: `settle.${section.name}`, workload: SETTLE, settles: true };
        return this.readOnly ? [section] : [settle, section];
      }),
    );
    const results = await runFio(this.lab, [
      ...WARM_UPS.filter(({ rw }) => !(this.readOnly && isWrite(rw))).flatMap((workload) =>
        this.warmUp(workload),
      ),
      ...sections,
    ]);
    for (const workload of warm) this.keep(workload, results);
  }

  /** None where the kernel serves by itself. */
  private warmUp(workload: Workload): Section[] {
    const spot = this.spots[0]!;
    if (!spot.direct) return [];
    return [{ ...this.section(workload, spot), name: `warm-up.${workload.name}`, seconds: WARM_UP_SECONDS }];
  }

  private async measureCold(workload: Workload): Promise<void> {
    const results = new Map<string, SectionResult>();
    const warmUps = this.warmUp(workload);
    if (warmUps.length > 0) {
      await this.image.evict();
      await runFio(this.lab, warmUps);
    }
    for (const spot of this.spots) {
      const what = `${this.subject.name}, ${spot.placement}, ${workload.name}`;
      await this.findings.attempt(what, this.round, async () => {
        await this.image.evict();
        const section = this.section(workload, spot);
        results.set(section.name, (await runFio(this.lab, [section])).get(section.name)!);
      });
    }
    this.keep(workload, results);
  }

  private section(workload: Workload, { placement, path, direct }: Spot): Section {
    return {
      name: sectionName(workload, placement),
      path,
      direct,
      workload,
      regionBytes: this.image.regionBytes,
      // What waits for the disk does less in a second.
      seconds: workload.cold ? 3 * this.seconds : this.seconds,
      rampSeconds: workload.cold ? 0 : rampSeconds(this.seconds),
      once: workload.cold,
    };
  }

  private keep(workload: Workload, results: ReadonlyMap<string, SectionResult>): void {
    const { name: subject } = this.subject;
    const { name, unit } = workload;
    const reference = results.get(sectionName(workload, 'reference'));
    for (const { placement } of this.spots) {
      const result = results.get(sectionName(workload, placement));
      if (result && !result.ok) {
        const what = `${subject}, ${placement}, ${name}`;
        this.findings.failures.push({ what, round: this.round, reason: result.reason });
      }
      if (!result?.ok || placement === 'reference') continue;
      this.findings.samples.push({
        subject,
        placement,
        workload: name,
        unit,
        round: this.round,
        value: result[unit],
        reference: reference?.ok ? reference[unit] : undefined,
      });
    }
  }
}

function sectionName({ name }: Workload, placement: Spot['placement']): string {
  return `${name}.${placement}`;
}
