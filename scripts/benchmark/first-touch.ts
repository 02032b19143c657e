/** bow right after the checkpoint, when each write is the first to its block: by one job and by several. */
import { quoteWord } from '../../src/table.js';
import { runFio } from './fio.js';
import type { Image } from './image.js';
import type { Lab } from './lab.js';
import { attachLoop } from './loop-device.js';
import type { Findings } from './measure.js';
import { type FirstTouchSample, PLACEMENTS, type Placement } from './results.js';
import { DmfuseMount } from './subjects/dmfuse.js';
import { random } from './workloads.js';

export interface FirstTouchPlan {
  readonly jobs: readonly number[];
  readonly rounds: number;
  /** Of each measurement, at most: it ends when every block has been touched. */
  readonly seconds: number;
  readonly progress: (line: string) => void;
}

/** All rounds, each measurement with a checkpoint of its own. */
export async function measureFirstTouch(
  lab: Lab,
  image: Image,
  plan: FirstTouchPlan,
  findings: Findings,
): Promise<FirstTouchSample[]> {
  const samples: FirstTouchSample[] = [];
  await lab.scope(async () => {
    await image.warm(image.sizeBytes);
    const mount = await DmfuseMount.start(lab);
    // One for all measurements: the first one of a new daemon would be slower than the others. It warms up unrecorded.
    await measureOne(lab, image, mount, 'file', Math.max(...plan.jobs), plan.seconds);
    for (let round = 1; round <= plan.rounds; round++) {
      for (const jobs of plan.jobs) {
        for (const placement of PLACEMENTS) {
          const what = `first touches, ${placement}, ${jobs} ${jobs === 1 ? 'job' : 'jobs'}`;
          plan.progress(`${what}: round ${round} of ${plan.rounds}`);
          const found = await findings.attempt(what, round, () =>
            measureOne(lab, image, mount, placement, jobs, plan.seconds),
          );
          if (found) samples.push({ placement, jobs, round, ...found });
        }
      }
    }
  });
  return samples;
}

async function measureOne(
  lab: Lab,
  image: Image,
  mount: DmfuseMount,
  placement: Placement,
  jobs: number,
  seconds: number,
): Promise<Pick<FirstTouchSample, 'iops' | 'touchedShare'>> {
  await image.reset();
  return await lab.scope(async () => {
    lab.defer(() => mount.remove('device'));
    await mount.create('device', `bow ${quoteWord(image.path)}`);
    await mount.checkpoint('device', image.regionBytes, image.sizeBytes);
    const device = mount.path('device', 'device');
    const path = placement === 'loop' ? (await attachLoop(lab, device, true)).path : device;
    const workload = random('randwrite', jobs);
    const { regionBytes } = image;
    const section = {
      name: 'first-touch',
      path,
      direct: true,
      workload,
      regionBytes,
      seconds,
      rampSeconds: 0,
    };
    const result = (await runFio(lab, [{ ...section, once: true }])).get(section.name)!;
    if (!result.ok) throw new Error(result.reason);
    return {
      iops: result.iops,
      touchedShare: (result.operations * workload.blockBytes) / regionBytes,
    };
  });
}
