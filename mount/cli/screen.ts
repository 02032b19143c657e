/**
 * Where `dmfuse top` shows its frames: lines on stdout, or a terminal's alternate screen, redrawn in place with one write a frame and
 * given back as it was, however the command ends.
 */
import { setTimeout as sleep } from 'node:timers/promises';

/** Ends at a signal, or at a key where there is one. */
export class Lines {
  private readonly abort = new AbortController();
  private readonly signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  private frames = 0;

  constructor() {
    for (const signal of this.signals) process.on(signal, this.end);
    // Who reads us has gone: `top | head`.
    process.stdout.on('error', this.end);
  }

  get isEnded(): boolean {
    return this.abort.signal.aborted;
  }

  /** A line between two tables, none between lines that stand for themselves. */
  show(lines: readonly string[]): void {
    const gap = this.frames++ > 0 && lines.length > 1 ? '\n' : '';
    process.stdout.write(`${gap}${lines.join('\n')}\n`);
  }

  /** Milliseconds, or less where it is to end. */
  async rest(milliseconds: number): Promise<void> {
    await sleep(milliseconds, undefined, { signal: this.abort.signal }).catch(() => {});
  }

  /** Undefined where it is to end before that: a mount that does not answer holds nobody here. */
  async orEnd<T>(work: Promise<T>): Promise<T | undefined> {
    const { signal } = this.abort;
    return await new Promise((resolve, reject) => {
      const end = () => resolve(undefined);
      if (signal.aborted) end();
      signal.addEventListener('abort', end);
      // Or every frame would leave a listener, and with it what it was made of.
      work.then(resolve, reject).finally(() => signal.removeEventListener('abort', end));
    });
  }

  close(): void {
    for (const signal of this.signals) process.off(signal, this.end);
  }

  protected readonly end = (): void => {
    this.abort.abort();
  };
}

const ENTER = '\x1b[?1049h\x1b[?25l';
const LEAVE = '\x1b[?25h\x1b[?1049l';
const HOME = '\x1b[H';
const CLEAR_LINE = '\x1b[K';
const CLEAR_BELOW = '\x1b[J';
const CTRL_C = '\x03';

export class Screen extends Lines {
  private last: readonly string[] = [];

  constructor() {
    super();
    process.stdout.write(ENTER);
    process.stdout.on('resize', this.redraw);
    if (process.stdin.isTTY) {
      process.stdin.setRawMode(true);
      process.stdin.on('data', this.hear).resume();
    }
  }

  override show(lines: readonly string[]): void {
    this.last = lines;
    const { columns = 80, rows = 24 } = process.stdout;
    const hidden = lines.length - rows;
    const fitting = hidden > 0 ? [...lines.slice(0, rows - 1), `… ${hidden + 1} more`] : lines;
    // Characters as they are counted, so that none is cut in two.
    const cut = fitting.map((line) => [...line].slice(0, columns).join(''));
    process.stdout.write(`${HOME}${cut.map((line) => `${line}${CLEAR_LINE}`).join('\r\n')}${CLEAR_BELOW}`);
  }

  override close(): void {
    super.close();
    process.stdout.off('resize', this.redraw);
    if (process.stdin.isTTY) {
      process.stdin.off('data', this.hear).pause();
      process.stdin.setRawMode(false);
    }
    process.stdout.write(LEAVE);
  }

  private readonly redraw = (): void => this.show(this.last);

  private readonly hear = (keys: Buffer): void => {
    if (/[qQ]/.test(String(keys)) || String(keys).includes(CTRL_C)) this.end();
  };
}
