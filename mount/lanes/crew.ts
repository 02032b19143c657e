/**
 * How many of the lanes serve. While requests are quick, more lanes than half of the processors only take each other's
 * turns: through a loop device on 2 processors one lane carries a quarter more than four. So the others, the spare
 * lanes, rest until requests are slow, because they wait for a disk, a flush or a lock, and rest again when they are not.
 *
 *   crew-P1  However long the lanes that serve are held up, the spare ones take over: one of them looks now and then
 *            whether they get on.
 *   crew-P2  When one lane ends, all do.
 */

/** Milliseconds. A request of 1 MiB is slow in any case: copying it on two processors at a time pays. */
const SLOW_MS = 0.1;
/** A request may be slow because its thread had no processor: only some in a row mean something. */
const SLOW_WEIGHT = 8;
const CALL_AT = 2 * SLOW_WEIGHT;
/** Quick requests after which a spare lane that was called rests. */
const STAY = 64;
/** How often lanes that rest look after the others, milliseconds. */
const LOOK_MS = 100;

// Words.
const CALLS = 0;
const RESTING = 1;
const ENDED = 2;
/** Two words for each lane: PROGRESS, odd while it serves, and the NODE that it serves. */
const LANES = 3;
const LANE_WORDS = 2;

/** Where a lane is in its work. */
export interface Whereabouts {
  /** Odd while it serves; another number with each request. */
  readonly progress: number;
  readonly node: number;
}

export class Crew {
  /** How slow the last requests were: SLOW_WEIGHT up for each slow one, 1 down for each quick one. */
  private heat = 0;
  private began = 0;
  private readonly seen: Int32Array;

  /** 32-bit words of shared memory for so many lanes. */
  static words(lanes: number): number {
    return LANES + LANE_WORDS * lanes;
  }

  /** The lanes from number `regulars` on are the spare ones. */
  constructor(
    private readonly words: Int32Array,
    private readonly lane: number,
    private readonly regulars: number,
  ) {
    this.seen = new Int32Array(regulars);
  }

  /** Where lane number `lane` is, for any thread. */
  static whereabouts(words: Int32Array, lane: number): Whereabouts {
    const own = LANES + LANE_WORDS * lane;
    // Progress first: a node read later belongs to this request or to one after it.
    const progress = Atomics.load(words, own);
    return { progress, node: Atomics.load(words, own + 1) };
  }

  /**
   * Before a lane asks for a request: a spare one rests here while it is not needed. `look` is called now and then meanwhile: for
   * what the lane would else hear of with its next request, which may come in weeks.
   */
  rest(look: () => void): void {
    if (this.lane < this.regulars || this.heat > 0) return;
    this.heat = STAY;
    if (this.areStuck()) return;
    const { words } = this;
    // The first to rest looks most often; who comes later, should that one be called and miss it, looks too.
    const patience = LOOK_MS * (1 + Atomics.add(words, RESTING, 1));
    const calls = Atomics.load(words, CALLS);
    // After CALLS was read: an end that comes later makes it another.
    while (Atomics.load(words, ENDED) === 0 && Atomics.wait(words, CALLS, calls, patience) === 'timed-out') {
      look();
      if (this.areStuck()) this.call();
    }
    Atomics.sub(words, RESTING, 1);
  }

  /**
   * A request for `node` begins. Before the lane looks whether anything has changed: who changes something and then looks at
   * the lanes either sees this one at work, or it sees the change.
   */
  begin(node: number): void {
    this.began = performance.now();
    const own = LANES + LANE_WORDS * this.lane;
    Atomics.store(this.words, own + 1, node);
    Atomics.add(this.words, own, 1);
  }

  /** It is done. Returns the milliseconds that it took. */
  end(): number {
    Atomics.add(this.words, LANES + LANE_WORDS * this.lane, 1);
    const took = performance.now() - this.began;
    const slow = took > SLOW_MS;
    this.heat = slow ? Math.min(STAY, this.heat + SLOW_WEIGHT) : Math.max(0, this.heat - 1);
    if (this.heat >= CALL_AT && slow) this.call();
    return took;
  }

  /** The lane ends, because the mount has. */
  leave(): void {
    Atomics.store(this.words, ENDED, 1);
    Atomics.add(this.words, CALLS, 1);
    Atomics.notify(this.words, CALLS);
  }

  /** Wakes the spare lanes. One that goes to rest at this instant may miss it, and hears the next call. */
  call(): void {
    if (Atomics.load(this.words, RESTING) === 0) return;
    Atomics.add(this.words, CALLS, 1);
    Atomics.notify(this.words, CALLS);
  }

  /** Whether every regular lane is at the same request as when this was last asked. */
  private areStuck(): boolean {
    let stuck = true;
    for (let lane = 0; lane < this.regulars; lane++) {
      const progress = Atomics.load(this.words, LANES + LANE_WORDS * lane);
      // Odd: between begin and end.
      if (progress % 2 === 0 || progress !== this.seen[lane]) stuck = false;
      this.seen[lane] = progress;
    }
    return stuck;
  }
}
