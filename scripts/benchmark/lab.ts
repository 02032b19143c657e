/**
 * What a run makes and must take away again: a folder, and a stack of undo steps. Whoever makes something puts its undo
 * on the stack before or right after; the stack is unwound at the end of each scope, also after an error or a signal.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from '../../src/errors.js';

const COMMAND_LIMIT_SECONDS = 30;
const STOP_LIMIT_SECONDS = 5;

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** After this the command is killed; default 30. */
  readonly limitSeconds?: number;
  /** True: it holds nothing that an undo step would have to know of, so a signal to us may kill it. */
  readonly interruptible?: boolean;
  readonly env?: Readonly<Record<string, string>>;
}

/** A signal ended the run. */
export class Interrupted extends Error {}

/** A process that serves until it is stopped. */
export interface Server {
  readonly pid: number;
  /** What it has said so far on stderr. */
  stderr(): string;
  hasEnded(): boolean;
  /** Resolves when it has ended. */
  readonly ended: Promise<void>;
}

export class Lab {
  /** What could not be undone as it should be. */
  readonly complaints: string[] = [];
  private readonly undos: (() => Promise<void>)[] = [];
  private readonly interruptible = new Set<ChildProcess>();
  private interruptedBy: string | undefined;
  private undoing = false;
  private names = 0;

  private constructor(readonly folder: string) {}

  /** A lab with a new folder in `parent`. */
  static open(parent: string): Lab {
    return new Lab(mkdtempSync(join(parent, 'dmfuse-bench-')));
  }

  /** Undoes everything and removes the folder. */
  async close(): Promise<void> {
    await this.undoTo(0);
    // Never into a mount that is still there.
    if (this.complaints.length === 0) rmSync(this.folder, { recursive: true, force: true });
    else this.complaints.push(`left behind: ${this.folder}`);
  }

  /** Ends what runs with Interrupted; undo steps still run. */
  interrupt(signal: string): void {
    this.interruptedBy ??= signal;
    for (const child of this.interruptible) killGroup(child, 'SIGKILL');
  }

  get isInterrupted(): boolean {
    return this.interruptedBy !== undefined;
  }

  /** A path of its own in the folder; nothing is there yet. */
  newPath(name: string): string {
    return join(this.folder, `${name}-${++this.names}`);
  }

  /** A new empty folder. */
  newFolder(name: string): string {
    const path = this.newPath(name);
    mkdirSync(path);
    return path;
  }

  /** Runs `undo` at the end of the scope, the latest first. */
  defer(undo: () => Promise<void>): void {
    this.undos.push(undo);
  }

  /** Runs `body`, then undoes what was made in it, in any case. */
  async scope<T>(body: () => Promise<T>): Promise<T> {
    const depth = this.undos.length;
    try {
      return await body();
    } finally {
      await this.undoTo(depth);
    }
  }

  /** Runs a command; its stdout. Throws what it says on stderr when it fails. */
  async run(command: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
    const { code, stdout, stderr } = await this.outcome(command, args, options);
    if (code === 0) return stdout;
    throw new Error(`${command}: ${stderr.trim() || `ended with ${code ?? 'a signal'}`}`);
  }

  /** Runs a command whose failure may be an answer. Throws only when it cannot be run or takes too long. */
  async outcome(command: string, args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
    const { limitSeconds = COMMAND_LIMIT_SECONDS, interruptible = false, env = {} } = options;
    this.throwIfInterrupted();
    const child = spawnDetached(command, args, env);
    if (interruptible) this.interruptible.add(child);
    const limit = new AbortController();
    try {
      const outcome = await Promise.race([
        collect(child),
        sleep(limitSeconds * 1000, undefined, { signal: limit.signal }),
      ]);
      this.throwIfInterrupted(interruptible);
      if (outcome) return outcome;
      killGroup(child, 'SIGKILL');
      throw new Error(`${command}: no end after ${limitSeconds} s`);
    } finally {
      limit.abort();
      this.interruptible.delete(child);
    }
  }

  /** Starts a server, stopped at the end of the scope. */
  start(command: string, args: readonly string[], env: Readonly<Record<string, string>> = {}): Server {
    this.throwIfInterrupted();
    const child = spawnDetached(command, args, env);
    let stderr = '';
    child.stderr!.on('data', (chunk) => (stderr += chunk));
    child.stdout!.resume();
    let hasEnded = false;
    const ended = new Promise<void>((resolve) => {
      const end = () => {
        hasEnded = true;
        resolve();
      };
      child.on('exit', end);
      child.on('error', (error) => {
        stderr += messageOf(error);
        end();
      });
    });
    const server: Server = { pid: child.pid ?? 0, ended, stderr: () => stderr, hasEnded: () => hasEnded };
    this.defer(async () => {
      for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
        if (hasEnded) return;
        killGroup(child, signal);
        await Promise.race([ended, sleep(STOP_LIMIT_SECONDS * 1000, undefined, { ref: false })]);
      }
      if (!hasEnded) throw new Error(`${command} (process ${child.pid}) does not end`);
    });
    return server;
  }

  private throwIfInterrupted(mayThrow = true): void {
    if (this.interruptedBy && mayThrow && !this.undoing) throw new Interrupted(this.interruptedBy);
  }

  private async undoTo(depth: number): Promise<void> {
    const wasUndoing = this.undoing;
    this.undoing = true;
    while (this.undos.length > depth) {
      await this.undos.pop()!().catch((error) => this.complaints.push(messageOf(error)));
    }
    this.undoing = wasUndoing;
  }
}

/** Waits until `isReady`; throws when the server ends before, or after `limitSeconds`. */
export async function waitUntil(
  what: string,
  isReady: () => boolean | Promise<boolean>,
  { server, limitSeconds = 10 }: { server?: Server; limitSeconds?: number } = {},
): Promise<void> {
  const deadline = performance.now() + limitSeconds * 1000;
  while (!(await isReady())) {
    if (server?.hasEnded()) throw new Error(`${what}: ${server.stderr().trim() || 'the server ended'}`);
    if (performance.now() > deadline) throw new Error(`${what}: not ready after ${limitSeconds} s`);
    await sleep(10);
  }
}

/** Asynchronous: a server that hangs must not hang us. */
export async function isThere(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}

/** In a process group of its own: Ctrl-C at the terminal reaches us alone. */
function spawnDetached(
  command: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
): ChildProcess {
  return spawn(command, args, {
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, LC_ALL: 'C.UTF-8', ...env },
  });
}

function collect(child: ChildProcess): Promise<Outcome> {
  let stdout = '';
  let stderr = '';
  child.stdout!.on('data', (chunk) => (stdout += chunk));
  child.stderr!.on('data', (chunk) => (stderr += chunk));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, stdout, stderr }));
  });
}

function killGroup({ pid }: ChildProcess, signal: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(-pid, signal);
  } catch {
    // It has ended meanwhile.
  }
}
