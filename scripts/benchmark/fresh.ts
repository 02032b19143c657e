/** Subjects that are fresh in each measurement, which touches each block once at most. */
import { runFio, type Section } from './fio.js';
import { type Image, touchMemory } from './image.js';
import type { Lab } from './lab.js';
import { attachLoop } from './loop-device.js';
import type { Findings } from './measure.js';
import { type FreshSample, PLACEMENTS, type Placement } from './results.js';
import type { Subject } from './subject.js';
import { isWrite, random, type Workload } from './workloads.js';

export interface FreshPlan {
  /** What the subjects are, for people. */
  readonly what: string;
  readonly subjects: readonly Subject[];
  readonly workloads: readonly Workload[];
  readonly rounds: number;
  /** Of each measurement, at most: it ends when every block has been touched. */
  readonly seconds: number;
  readonly progress: (line: string) => void;
}

/** In the part of the image that is not measured: what a server that has just started still compiles and maps. */
const WARM_UPS = [random('randread', 4), random('randwrite', 4)];
const WARM_UP_SECONDS = 0.3;

/** All rounds; in each measurement the subject comes up anew. */
export async function measureFresh(
  lab: Lab,
  image: Image,
  { what, subjects, workloads, rounds, seconds, progress }: FreshPlan,
  findings: Findings,
): Promise<FreshSample[]> {
  const samples: FreshSample[] = [];
  await image.warm(image.sizeBytes);
  for (let round = 1; round <= rounds; round++) {
    for (const workload of workloads) {
      for (const placement of PLACEMENTS) {
        progress(`${what}, ${placement}, ${workload.name}: round ${round} of ${rounds}`);
        for (const subject of subjects) {
          const failing = `fresh ${subject.name}, ${placement}, ${workload.name}`;
          const value = await findings.attempt(failing, round, () =>
            measureOne(lab, image, { subject, placement, workload, seconds }),
          );
          const { name, unit } = workload;
          if (value !== undefined) {
            samples.push({ subject: subject.name, placement, workload: name, unit, round, value });
          }
        }
      }
    }
  }
  return samples;
}

/** In the workload's unit. */
async function measureOne(
  lab: Lab,
  image: Image,
  what: { subject: Subject; placement: Placement; workload: Workload; seconds: number },
): Promise<number> {
  const { subject, placement, workload, seconds } = what;
  const { regionBytes, sizeBytes } = image;
  await image.settle();
  return await lab.scope(async () => {
    const served = await subject.start(lab, image);
    const path = placement === 'loop' ? (await attachLoop(lab, served.path, true)).path : served.path;
    const section: Section = {
      name: 'measured',
      path,
      direct: true,
      workload,
      regionBytes,
      seconds,
      rampSeconds: 0,
      once: true,
    };
    const warmUps = WARM_UPS.map((warmUp) => ({
      ...section,
      name: `warm-up.${warmUp.name}`,
      workload: warmUp,
      regionOffset: regionBytes,
      regionBytes: sizeBytes - regionBytes,
      seconds: WARM_UP_SECONDS,
      once: false,
    }));
    await runFio(lab, warmUps);
    if (isWrite(workload.rw)) await touchMemory(lab, regionBytes);
    const result = (await runFio(lab, [section])).get(section.name)!;
    if (!result.ok) throw new Error(result.reason);
    return result[workload.unit];
  });
}
