/**
 * The `events` of one target: a bounded stream that any number of readers follow, each at its own place, as
 * /dev/kmsg. A reader starts at the oldest event kept; one that falls behind is told how many it lost.
 *
 * A line is `name key=value… monotonic_ns=N`.
 */

/** Events kept for readers that come late. */
const KEPT = 1024;

export class EventLog {
  private readonly lines: string[] = [];
  /** Sequence number of `lines[0]`. */
  private first = 0;
  private readonly wakers = new Set<() => void>();
  private closed = false;

  /** Events that there have been. */
  get count(): number {
    return this.first + this.lines.length;
  }

  /** Appends an event and wakes everybody who waits for one. */
  raise(event: string): void {
    this.lines.push(`${event} monotonic_ns=${process.hrtime.bigint()}\n`);
    if (this.lines.length > KEPT) {
      this.lines.shift();
      this.first++;
    }
    this.wake();
  }

  /** The target is gone: readers come to the end of the file. */
  close(): void {
    this.closed = true;
    this.wake();
  }

  /** True when a read with `cursor` would not wait. */
  hasNews(cursor: EventCursor): boolean {
    return this.closed || cursor.rest.length > 0 || this.holds(cursor.next);
  }

  /**
   * At most `limit` bytes from `cursor` on, and moves it: whole lines, or what fits of one line and its rest at the next
   * read, for a shell's `read` takes a byte at a time.
   */
  take(cursor: EventCursor, limit: number): Buffer {
    let text = cursor.rest;
    if (text.length === 0 && cursor.next < this.first) {
      text = Buffer.from(`lost count=${this.first - cursor.next}\n`);
      cursor.next = this.first;
    }
    while (cursor.next >= this.first && this.holds(cursor.next)) {
      const line = Buffer.from(this.lines[cursor.next - this.first]!);
      if (text.length > 0 && text.length + line.length > limit) break;
      text = Buffer.concat([text, line]);
      cursor.next++;
    }
    cursor.rest = text.subarray(limit);
    return text.subarray(0, limit);
  }

  /** Calls `wake` once, at the next event. Returns what takes that back. */
  onNews(wake: () => void): () => void {
    this.wakers.add(wake);
    return () => this.wakers.delete(wake);
  }

  private holds(sequence: number): boolean {
    return sequence < this.first + this.lines.length;
  }

  private wake(): void {
    const wakers = [...this.wakers];
    this.wakers.clear();
    for (const wake of wakers) wake();
  }
}

/** Where one reader is. */
export interface EventCursor {
  next: number;
  /** Of a line that was too long for the last read. */
  rest: Buffer;
}
