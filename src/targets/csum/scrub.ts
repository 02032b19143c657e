/** The scrub: reads and verifies every group on the main thread, in small steps, and gives way to requests. */
import { DmError } from '../../errors.js';
import { GiveWay } from '../../give-way.js';

/** Groups verified at a time: half a mebibyte, less than a millisecond when it is cached. */
const STEP = 16;
/** While there are requests, it sleeps so many times as long as it has worked. */
const REST = 3;

export interface ScrubWork {
  /** What is wrong with a group, if something is. */
  readonly verify: (group: number) => string | undefined;
  /** A number that goes up with each request. */
  readonly requests: () => number;
  readonly raise: (event: string) => void;
}

type ScrubState = 'idle' | 'running' | 'stopped' | 'done';

export class Scrub {
  private state: ScrubState = 'idle';
  private groupsDone = 0;
  private groupsBad = 0;
  /** Which start it was: a run that sleeps while it is stopped and started again is over. */
  private runs = 0;

  constructor(
    private readonly groups: number,
    private readonly work: ScrubWork,
  ) {}

  /** `start` or `stop`. A stopped one starts from the beginning. Throws EBUSY, EINVAL. */
  command(text: string): void {
    if (text === 'start') {
      if (this.state === 'running') throw new DmError('EBUSY', 'scrub: one is running; `stop` ends it');
      this.state = 'running';
      this.groupsDone = 0;
      this.groupsBad = 0;
      void this.run(++this.runs);
    } else if (text === 'stop') {
      this.stop();
    } else {
      throw new DmError('EINVAL', `scrub: takes \`start\` or \`stop\`, not \`${text}\``);
    }
  }

  stop(): void {
    if (this.state === 'running') this.state = 'stopped';
  }

  /** `key value` lines. */
  report(): string {
    const { state, groups, groupsDone, groupsBad } = this;
    const percent = Math.floor((100 * groupsDone) / groups);
    return `state ${state}\npercent ${percent}\ngroups ${groups}\ngroups_done ${groupsDone}\ngroups_bad ${groupsBad}\n`;
  }

  private async run(number: number): Promise<void> {
    const { work } = this;
    const giveWay = new GiveWay(work.requests, REST);
    while (this.state === 'running' && this.runs === number) {
      const began = performance.now();
      const end = Math.min(this.groups, this.groupsDone + STEP);
      for (; this.groupsDone < end; this.groupsDone++) {
        if (work.verify(this.groupsDone) !== undefined) this.groupsBad++;
      }
      if (this.groupsDone === this.groups) {
        this.state = 'done';
        work.raise(`scrub_done groups=${this.groups} bad=${this.groupsBad}`);
        return;
      }
      await giveWay.pause(performance.now() - began);
    }
  }
}
