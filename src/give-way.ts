/** Work in the background that gives way to requests. */
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';

const REST_MIN_MS = 1;

export class GiveWay {
  private seen: number;

  constructor(
    /** A number that goes up with each request. */
    private readonly requests: () => number,
    /** While there are requests, it rests so many times as long as it has worked. */
    private readonly rest: number,
  ) {
    this.seen = requests();
  }

  /** After a step of the work that took so long: returns when it may go on. */
  async pause(workedMs: number): Promise<void> {
    const requests = this.requests();
    const isIdle = requests === this.seen;
    this.seen = requests;
    if (isIdle) await nextTurn();
    else await sleep(Math.max(REST_MIN_MS, this.rest * workedMs));
  }
}
