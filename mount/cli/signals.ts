/** Signals that ask a command to end, for commands that have to put something right before they do. */
import { constants } from 'node:os';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
export type EndSignal = (typeof SIGNALS)[number];

/** A signal came while the work ran. */
export class Interrupted extends Error {
  constructor(readonly signal: EndSignal) {
    super(`interrupted by ${signal}`);
  }

  get exitCode(): number {
    return exitCodeOf(this.signal);
  }
}

/** As a shell reports a command that the signal ended. */
export function exitCodeOf(signal: NodeJS.Signals): number {
  return 128 + constants.signals[signal];
}

/** Holds the signals back until `release`. */
export class HeldSignals {
  /** Rejects with Interrupted at the first one. */
  readonly interrupted: Promise<never>;
  private first: EndSignal | undefined;
  private reject: (reason: Interrupted) => void = () => {};
  private pass: ((signal: EndSignal) => void) | undefined;

  constructor() {
    this.interrupted = new Promise((_, reject) => {
      this.reject = reject;
    });
    this.interrupted.catch(() => {});
    for (const signal of SIGNALS) process.on(signal, this.hear);
  }

  /** Throws Interrupted when there has been one. */
  check(): void {
    if (this.first) throw new Interrupted(this.first);
  }

  /** From now on they go to somebody else. */
  passTo(somebody: (signal: EndSignal) => void): void {
    this.pass = somebody;
  }

  release(): void {
    for (const signal of SIGNALS) process.off(signal, this.hear);
  }

  private readonly hear = (signal: NodeJS.Signals): void => {
    const heard = signal as EndSignal;
    if (this.pass) {
      this.pass(heard);
      return;
    }
    this.first ??= heard;
    this.reject(new Interrupted(heard));
  };
}

/** Runs a command's work with signals held back; an interrupted one exits as a shell reports it. */
export async function withSignalsHeld(work: (signals: HeldSignals) => Promise<void>): Promise<void> {
  const signals = new HeldSignals();
  try {
    await work(signals);
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error;
    process.exitCode = error.exitCode;
  } finally {
    signals.release();
  }
}
