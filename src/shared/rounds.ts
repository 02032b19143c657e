/**
 * Rounds: work that costs the same for one thread as for many, such as a flush, done for all that want it at the time.
 *
 * A thread hands in a span of blocks and waits. The first to come leads: it takes the spans of all that wait, does the
 * work for them together, and tells them. Who comes meanwhile waits for the next round, which one of them leads. Where
 * the work fails for several together, each leads a round of its own: nobody fails for what another asked.
 *
 *   MUTEX   1: a round is under way, or somebody has asked for quiet (`alone`)
 *   GATE    what everybody who waits sleeps on: a number that each release of the mutex makes another
 *   tickets one word and one span each: EMPTY → FILLING → WAITING → DONE or RETRY_ALONE → EMPTY
 *
 *   rounds-I1  A ticket is WAITING only with its span written. Its owner takes it back when it was told, or with the mutex.
 *   rounds-I2  Only the holder of the mutex reads spans and tells owners; DONE comes after the work.
 *   rounds-I3  No wakeup is lost: a thread sleeps by (a) load GATE, (b) find its ticket not DONE and the mutex held,
 *              (c) wait on GATE for the value of (a). The holder seen in (b) changes GATE after it lets the mutex go, so
 *              (c) either fails or is woken. Atomics are sequentially consistent.
 *
 * Nothing is recursive. A thread has one ticket at most, so there are never more than threads.
 */

const MUTEX = 0;
const GATE = 1;
const FIRST_TICKET = 2;

const EMPTY = 0;
const FILLING = 1;
const WAITING = 2;
const DONE = 3;
const RETRY_ALONE = 4;

/** More than a daemon has threads. */
const TICKETS = 128;

/** Blocks [first, end). */
export interface Span {
  readonly first: number;
  readonly end: number;
}

export class Rounds {
  /** 32-bit words in shared memory, all 0 at first. */
  static readonly WORDS = FIRST_TICKET + TICKETS;
  /** 64-bit words in shared memory. */
  static readonly DOUBLES = 2 * TICKETS;

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
    const own = this.enter(span);
    const leads = this.acquire(own);
    try {
      if (leads) this.lead(own, span, work);
    } finally {
      // Before the mutex is let go: the next leader would take it for one that waits.
      Atomics.store(this.words, own, EMPTY);
      if (leads) this.release();
    }
  }

  /** Runs `work` while no round is under way. */
  alone<T>(work: () => T): T {
    this.acquire();
    try {
      return work();
    } finally {
      this.release();
    }
  }

  /** Writes the span into a free ticket; returns the ticket's word. */
  private enter({ first, end }: Span): number {
    const { words, spans } = this;
    for (let ticket = 0; ticket < TICKETS; ticket++) {
      const word = FIRST_TICKET + ticket;
      if (Atomics.compareExchange(words, word, EMPTY, FILLING) !== EMPTY) continue;
      spans[2 * ticket] = first;
      spans[2 * ticket + 1] = end;
      Atomics.store(words, word, WAITING);
      return word;
    }
    throw new Error(`rounds: more than ${TICKETS} threads`);
  }

  /** Waits for the mutex; true when it has it. False, without it, once the ticket `own` is DONE. */
  private acquire(own?: number): boolean {
    const { words } = this;
    for (;;) {
      // (a) before (b): see rounds-I3.
      const gate = Atomics.load(words, GATE);
      if (own !== undefined && Atomics.load(words, own) === DONE) return false;
      if (Atomics.compareExchange(words, MUTEX, 0, 1) === 0) return true;
      Atomics.wait(words, GATE, gate);
    }
  }

  private release(): void {
    Atomics.store(this.words, MUTEX, 0);
    // After the mutex: who looks because of the gate must find it free.
    Atomics.add(this.words, GATE, 1);
    Atomics.notify(this.words, GATE);
  }

  /** A round, unless the last one has dealt with the ticket meanwhile. The mutex is held. */
  private lead(own: number, span: Span, work: (spans: readonly Span[]) => void): void {
    const { words } = this;
    if (Atomics.load(words, own) === DONE) return;
    if (Atomics.load(words, own) === WAITING) {
      const { others, spans } = this.gather(own, span);
      if (others.length > 0) {
        try {
          work(spans);
          for (const word of others) Atomics.store(words, word, DONE);
          return;
        } catch {
          // Each by itself finds out whose fault it was.
          for (const word of others) Atomics.store(words, word, RETRY_ALONE);
        }
      }
    }
    work([span]);
  }

  /** The tickets that go along with `own`, and the spans of all of them. */
  private gather(own: number, span: Span): { others: number[]; spans: Span[] } {
    const others: number[] = [];
    const all = [span];
    let blocks = span.end - span.first;
    for (let ticket = 0; ticket < TICKETS && blocks < this.limit; ticket++) {
      const word = FIRST_TICKET + ticket;
      if (word === own || Atomics.load(this.words, word) !== WAITING) continue;
      const other = { first: this.spans[2 * ticket]!, end: this.spans[2 * ticket + 1]! };
      others.push(word);
      all.push(other);
      blocks += other.end - other.first;
    }
    return { others, spans: union(all) };
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
