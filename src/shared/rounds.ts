/**
 * Rounds: work that costs the same for one thread as for many, such as a flush, done for all that want it at the time.
 *
 * A thread hands in a span of blocks and waits. The first to come leads: it takes the spans of all that wait, does the
 * work for them together, and tells them. Who comes meanwhile waits for the next round, which one of them leads. Where
 * the work fails for several together, the leader does it for itself, and so does the next: nobody fails for what another
 * asked.
 *
 *   MUTEX   1: a round is under way, or somebody has asked for quiet (`alone`)
 *   tickets one word and one span each:
 *           EMPTY → FILLING → WAITING or QUIET_WAITING → DONE or LEAD → EMPTY
 *
 * The mutex is handed on, not let go, while anybody waits: the next leader is woken first, so that its round begins
 * before those who were served take the processors. A leader that is one of several lingers for the others, who are likely
 * to be back at once: without that, half of them wait while the other half is served, and rounds are half full.
 *
 *   rounds-I1  A ticket is WAITING only with its span written, and then only the holder of the mutex changes it.
 *   rounds-I2  Only the holder of the mutex reads spans. It makes a ticket DONE after the work, and LEAD to pass the
 *              mutex on. Nobody who has been told anything is WAITING when somebody gathers.
 *   rounds-I3  No wakeup is lost. A thread makes its ticket WAITING and then tries the mutex; who lets the mutex go looks
 *              at the tickets after that. Atomics are sequentially consistent, so one of the two sees the other. A thread
 *              sleeps on its own ticket's word, and every change of that word is followed by a wake.
 *
 * Nothing is recursive. A thread has one ticket at most, so there are never more than threads.
 */

const MUTEX = 0;
/** Where the holder looks first for the next one: all get their turn. */
const TURN = 1;
/** How many took part in the last round or came while it ran. */
const EXPECTED = 2;
/** Goes up with each ticket that is handed in. */
const ARRIVALS = 3;
const FIRST_TICKET = 4;

const EMPTY = 0;
const FILLING = 1;
const WAITING = 2;
/** Wants the mutex, and no round. */
const QUIET_WAITING = 3;
const DONE = 4;
const LEAD = 5;

/** More than a daemon has threads. */
const TICKETS = 128;

/** The double in which the last round's time stands, milliseconds. */
const LAST_ROUND = 2 * TICKETS;

/** Blocks [first, end). */
export interface Span {
  readonly first: number;
  readonly end: number;
}

export class Rounds {
  /** 32-bit words in shared memory, all 0 at first. */
  static readonly WORDS = FIRST_TICKET + TICKETS;
  /** 64-bit words in shared memory. */
  static readonly DOUBLES = 2 * TICKETS + 1;

  private readonly words: Int32Array;
  private readonly spans: Float64Array;
  private readonly limit: number;

  /** This thread's view. `limit`: blocks after which a round takes no further span. */
  constructor(words: Int32Array, spans: Float64Array, { limit }: { limit: number }) {
    if (words.length < Rounds.WORDS || spans.length < Rounds.DOUBLES) {
      throw new RangeError(`rounds: need ${Rounds.WORDS} words and ${Rounds.DOUBLES} doubles`);
    }
    this.words = words;
    this.spans = spans;
    this.limit = limit;
  }

  /**
   * Returns when `work` has been done for the span, by this thread or another. Throws what `work` throws for this span
   * alone. `work` gets spans that are ascending and disjoint; what it has done before it throws may be done again.
   */
  submit(span: Span, work: (spans: readonly Span[]) => void): void {
    const own = this.enter(WAITING, span);
    const told = this.waitFor(own);
    if (told === DONE) {
      Atomics.store(this.words, own, EMPTY);
      return;
    }
    let served: number[] = [];
    try {
      served = this.lead(span, work);
    } finally {
      this.passOn(own, served);
    }
  }

  /** Runs `work` while no round is under way. */
  alone<T>(work: () => T): T {
    const own = this.enter(QUIET_WAITING, { first: 0, end: 0 });
    this.waitFor(own);
    try {
      return work();
    } finally {
      this.passOn(own, []);
    }
  }

  /** Writes the span into a free ticket; returns the ticket's word. */
  private enter(wants: typeof WAITING | typeof QUIET_WAITING, { first, end }: Span): number {
    const { words, spans } = this;
    for (let ticket = 0; ticket < TICKETS; ticket++) {
      const word = FIRST_TICKET + ticket;
      if (Atomics.compareExchange(words, word, EMPTY, FILLING) !== EMPTY) continue;
      spans[2 * ticket] = first;
      spans[2 * ticket + 1] = end;
      Atomics.store(words, word, wants);
      Atomics.add(words, ARRIVALS, 1);
      Atomics.notify(words, ARRIVALS);
      return word;
    }
    throw new Error(`rounds: more than ${TICKETS} threads`);
  }

  /** Waits until the ticket is DONE, or this thread has the mutex (LEAD). */
  private waitFor(own: number): number {
    const { words } = this;
    if (Atomics.compareExchange(words, MUTEX, 0, 1) === 0) {
      // Before anybody gathers: nobody can, while we have the mutex.
      Atomics.store(words, own, LEAD);
      return LEAD;
    }
    for (;;) {
      const state = Atomics.load(words, own);
      if (state !== WAITING && state !== QUIET_WAITING) return state;
      Atomics.wait(words, own, state);
    }
  }

  /** A round for all that wait. Returns the words of the others that were served; they are yet to be told. */
  private lead(span: Span, work: (spans: readonly Span[]) => void): number[] {
    this.linger();
    const began = performance.now();
    const { others, spans } = this.gather(span);
    try {
      if (others.length > 0) {
        try {
          work(spans);
          return others;
        } catch {
          // Each by itself finds out whose fault it was: we now, the others when they lead.
        }
      }
      work([span]);
      return [];
    } finally {
      this.words[EXPECTED] = this.waiting() + 1;
      this.spans[LAST_ROUND] = performance.now() - began;
    }
  }

  /** Waits for as many as took part in the last round or came while it ran, at most half as long as it took. */
  private linger(): void {
    const { words } = this;
    const expected = words[EXPECTED]!;
    if (expected < 2) return;
    const end = performance.now() + this.spans[LAST_ROUND]! / 2;
    for (;;) {
      const arrivals = Atomics.load(words, ARRIVALS);
      const left = end - performance.now();
      if (this.waiting() + 1 >= expected || left <= 0) return;
      Atomics.wait(words, ARRIVALS, arrivals, left);
    }
  }

  /** How many wait for a round; while one runs, those it serves among them. */
  private waiting(): number {
    let count = 0;
    for (let word = FIRST_TICKET; word < FIRST_TICKET + TICKETS; word++) {
      if (Atomics.load(this.words, word) === WAITING) count++;
    }
    return count;
  }

  /** The tickets that wait, and all their spans and our own. */
  private gather(own: Span): { others: number[]; spans: Span[] } {
    const others: number[] = [];
    const all = [own];
    let blocks = own.end - own.first;
    for (let ticket = 0; ticket < TICKETS && blocks < this.limit; ticket++) {
      const word = FIRST_TICKET + ticket;
      if (Atomics.load(this.words, word) !== WAITING) continue;
      const other = { first: this.spans[2 * ticket]!, end: this.spans[2 * ticket + 1]! };
      others.push(word);
      all.push(other);
      blocks += other.end - other.first;
    }
    return { others, spans: union(all) };
  }

  /** Takes the own ticket back, hands the mutex on, and then tells those that were served. */
  private passOn(own: number, served: readonly number[]): void {
    const { words } = this;
    // Before somebody else gathers.
    Atomics.store(words, own, EMPTY);
    for (const word of served) Atomics.store(words, word, DONE);
    while (!this.wakeNext()) {
      Atomics.store(words, MUTEX, 0);
      // Who began to wait after we looked had tried the mutex before we let it go (rounds-I3).
      if (this.nextInTurn() === undefined || Atomics.compareExchange(words, MUTEX, 0, 1) !== 0) break;
    }
    for (const word of served) Atomics.notify(words, word);
  }

  /** Hands the mutex to somebody who waits; false where nobody does. */
  private wakeNext(): boolean {
    const { words } = this;
    const next = this.nextInTurn();
    if (next === undefined) return false;
    words[TURN] = next - FIRST_TICKET + 1;
    Atomics.store(words, next, LEAD);
    Atomics.notify(words, next);
    return true;
  }

  private nextInTurn(): number | undefined {
    const { words } = this;
    const turn = words[TURN]!;
    for (let i = 0; i < TICKETS; i++) {
      const word = FIRST_TICKET + ((turn + i) % TICKETS);
      const state = Atomics.load(words, word);
      if (state === WAITING || state === QUIET_WAITING) return word;
    }
    return undefined;
  }
}

/** Ascending, disjoint spans that cover the same blocks. */
function union(spans: Span[]): Span[] {
  const merged: Span[] = [];
  for (const span of spans.sort((a, b) => a.first - b.first)) {
    const last = merged.at(-1);
    if (last !== undefined && span.first <= last.end) {
      merged[merged.length - 1] = { first: last.first, end: Math.max(last.end, span.end) };
    } else {
      merged.push(span);
    }
  }
  return merged;
}
