/** Work in the background that gives way to requests. */
import { setTimeout as sleep } from 'node:timers/promises';

const REST_MIN_MS = 2;

export class GiveWay {
  private seen: number;
  private began = performance.now();

  constructor(
    /** A number that goes up with each request. */
    private readonly requests: () => number,
    /** While there are requests, it rests so many times as long as it has worked. */
    private readonly rest: number,
  ) {
    this.seen = requests();
  }

  /** Between two steps of the work: returns when it may go on. */
  async pause(): Promise<void> {
    const requests = this.requests();
    const isIdle = requests === this.seen;
    this.seen = requests;
    await sleep(isIdle ? 0 : Math.max(REST_MIN_MS, this.rest * (performance.now() - this.began)));
    this.began = performance.now();
  }
}
