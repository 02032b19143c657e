/** What the threads of a target tell who works in the background: that there are requests, and that there is something to do. */
const REQUESTS = 0;
const WAKES = 1;

export class Activity {
  /** 32-bit words in shared memory, all 0 at first. */
  static readonly WORDS = 2;

  /** This thread's view. */
  constructor(private readonly words: Int32Array) {}

  /** Goes up with every request for data: background work makes room when it does. */
  get requests(): number {
    return Atomics.load(this.words, REQUESTS);
  }

  countRequest(): void {
    Atomics.add(this.words, REQUESTS, 1);
  }

  /** Goes up when there may be something new to do in the background. */
  get wakes(): number {
    return Atomics.load(this.words, WAKES);
  }

  wake(): void {
    Atomics.add(this.words, WAKES, 1);
    Atomics.notify(this.words, WAKES);
  }

  /** Resolves when `wakes` is no longer `seen`, or after so many milliseconds. */
  async awaitWake(seen: number, milliseconds: number): Promise<void> {
    await Atomics.waitAsync(this.words, WAKES, seen, milliseconds).value;
  }
}
