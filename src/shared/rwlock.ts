/**
 * RwLock: many readers or one writer, for the threads of one process, in three words of shared memory.
 *
 *   STATE    -1: a writer is inside; n >= 0: n readers are
 *   WRITERS  writers that wait
 *   GATE     what everybody who waits sleeps on: a number that every release that could let somebody in makes another
 *
 * It prefers writers: while one waits no new reader goes in, so readers cannot starve a writer, but writers without a
 * pause between them starve readers. Nothing is recursive: a thread that asks for the lock while it holds it may wait
 * for itself, two shared locks included. Nobody is known by name, so a thread that dies inside leaves the lock held.
 *
 * No wakeup is lost. Atomics are sequentially consistent: there is one order of them all, "before" below. A thread
 * goes to sleep only by this pattern: (a) load GATE, (b) find the way barred by STATE or WRITERS, (c) Atomics.wait on
 * GATE for the value of (a). The wait compares and enters the queue in one step, so a change of GATE after (a) either
 * fails the comparison or finds the sleeper in the queue and notifies it. It remains to show that after each (b)
 * comes a change of GATE once the bar is lifted:
 *
 *   lock-L1  Barred by STATE = -1: the writer inside writes STATE when it leaves and then changes GATE, always. (b) still
 *            saw -1, so the write and the change come after it.
 *   lock-L2  A writer barred by STATE = n > 0: it had raised WRITERS before (b). The reader that takes STATE to 0 does so
 *            after (b) and looks at WRITERS after that, so it sees the writer and changes GATE.
 *   lock-L3  A reader barred by WRITERS > 0: it saw some writer that had not yet lowered WRITERS. A writer does that when
 *            it is in, hence before it leaves, and leaving changes GATE. That it comes in at all is L1 and L2.
 *   lock-L4  Unless that writer gives up (tryLockExclusive): it lowers WRITERS and then changes GATE, always, which both come
 *            after (b). Giving up bars nobody anew, and a change of GATE that the writer slept through woke all others too.
 *
 * Everybody who sleeps is woken, for readers and writers sleep on the same word, and one wakeup given to a reader that
 * has to wait on would be lost to the writer next to it. GATE wraps after 2^32 changes; the proof takes it that a
 * thread does not miss that many between (a) and (c).
 */

const STATE = 0;
const WRITERS = 1;
const GATE = 2;

const WRITER_INSIDE = -1;

export class RwLock {
  /** 32-bit words that a lock takes, all 0 at first. */
  static readonly WORDS = 3;

  private readonly words: Int32Array;

  /** This thread's view of the lock in the first WORDS words of `words`, which must lie in a SharedArrayBuffer. */
  constructor(words: Int32Array) {
    if (words.length < RwLock.WORDS || !(words.buffer instanceof SharedArrayBuffer)) {
      throw new RangeError(`lock: needs ${RwLock.WORDS} words of shared memory`);
    }
    this.words = words;
  }

  /** Waits until no writer is inside or waiting. */
  lockShared(): void {
    const { words } = this;
    for (;;) {
      // (a) before (b): a bar that is lifted after we saw it must change the value we sleep on.
      const gate = Atomics.load(words, GATE);
      if (Atomics.load(words, WRITERS) === 0) {
        const readers = Atomics.load(words, STATE);
        if (readers !== WRITER_INSIDE) {
          if (Atomics.compareExchange(words, STATE, readers, readers + 1) === readers) return;
          // Another reader came or went, or a writer went in: look again.
          continue;
        }
      }
      Atomics.wait(words, GATE, gate);
    }
  }

  unlockShared(): void {
    const { words } = this;
    const readers = Atomics.sub(words, STATE, 1);
    if (readers <= 0) throw new Error('lock: unlockShared without lockShared');
    // STATE before WRITERS (lock-L2): a writer that saw our STATE had raised WRITERS before.
    if (readers === 1 && Atomics.load(words, WRITERS) > 0) this.openGate();
  }

  /** Waits until nobody is inside. */
  lockExclusive(): void {
    const { words } = this;
    if (Atomics.compareExchange(words, STATE, 0, WRITER_INSIDE) === 0) return;
    // Before the next look at STATE (lock-L2): the reader that leaves after it must see that somebody waits.
    Atomics.add(words, WRITERS, 1);
    for (;;) {
      // (a) before (b), as in lockShared.
      const gate = Atomics.load(words, GATE);
      if (Atomics.compareExchange(words, STATE, 0, WRITER_INSIDE) === 0) break;
      Atomics.wait(words, GATE, gate);
    }
    // When inside, not before: or readers could come in ahead of us. And not after leaving (lock-L3).
    Atomics.sub(words, WRITERS, 1);
  }

  /**
   * The same, for at most so many milliseconds: whether it has the lock. While it waits no new reader goes in; when it gives
   * up, those that waited because of it go on.
   */
  tryLockExclusive(milliseconds: number): boolean {
    const { words } = this;
    if (Atomics.compareExchange(words, STATE, 0, WRITER_INSIDE) === 0) return true;
    const deadline = performance.now() + milliseconds;
    // As in lockExclusive.
    Atomics.add(words, WRITERS, 1);
    for (;;) {
      const gate = Atomics.load(words, GATE);
      if (Atomics.compareExchange(words, STATE, 0, WRITER_INSIDE) === 0) {
        Atomics.sub(words, WRITERS, 1);
        return true;
      }
      const left = deadline - performance.now();
      if (left <= 0) break;
      Atomics.wait(words, GATE, gate, left);
    }
    Atomics.sub(words, WRITERS, 1);
    // After WRITERS (lock-L4): who looks because of the gate must find the bar lifted.
    this.openGate();
    return false;
  }

  unlockExclusive(): void {
    if (Atomics.compareExchange(this.words, STATE, WRITER_INSIDE, 0) !== WRITER_INSIDE) {
      throw new Error('lock: unlockExclusive without lockExclusive');
    }
    // After STATE (lock-L1): who looks because of the gate must find the bar lifted.
    this.openGate();
  }

  /** Runs `work` while nobody else is inside. */
  exclusively<T>(work: () => T): T {
    this.lockExclusive();
    try {
      return work();
    } finally {
      this.unlockExclusive();
    }
  }

  private openGate(): void {
    // The value before the wake: who is about to sleep must see it change, who sleeps is in the queue by then.
    Atomics.add(this.words, GATE, 1);
    Atomics.notify(this.words, GATE);
  }
}
