/** `dmfuse snapshot run`: a snapshot for as long as a command runs, whose storage grows as it is asked for. */
import { type ChildProcess, spawn } from 'node:child_process';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { DmError, messageOf } from '../../src/errors.js';
import { readControl } from './control.js';
import { mayReadAgain, parseEvent } from './event-line.js';
import { requireMount } from './find-mount.js';
import { GrowingStorage } from './growing-storage.js';
import { EXIT_FAILED, note } from './output.js';
import { type EndSignal, exitCodeOf, type HeldSignals, withSignalsHeld } from './signals.js';
import { destroySnapshot, refuseStorageOnOrigin, takeSnapshot } from './snapshot.js';
import { type CreatedSnapshot, createSnapshot, imagePath, readState } from './snapshot-files.js';

const EVENTS_BYTES = 65_536;
/** As a shell reports a command that is not there, or cannot be executed. */
const EXIT_NOT_FOUND = 127;
const EXIT_CANNOT_RUN = 126;

export interface RunOptions {
  readonly device: readonly string[];
  readonly storage: string;
  /** Bytes. */
  readonly grow: number;
  readonly freeze: boolean;
}

export async function run(
  mountArgument: string,
  name: string,
  command: readonly string[],
  options: RunOptions,
): Promise<void> {
  const mountPoint = requireMount(mountArgument);
  // A terminal that is gone must not end this before the snapshot is.
  process.stderr.on('error', () => {});
  await withSignalsHeld(async (signals) => {
    requireWholeChunks(mountPoint, options.grow);
    refuseStorageOnOrigin(mountPoint, options.storage, options.device);
    const storage = GrowingStorage.open(options.storage, options.grow);
    try {
      process.exitCode = await runTaken(mountPoint, name, command, { ...options, storage, signals });
    } finally {
      storage.close();
    }
  });
}

interface RunContext extends Pick<RunOptions, 'device' | 'freeze'> {
  readonly storage: GrowingStorage;
  readonly signals: HeldSignals;
}

/** Resolves to the exit code when nothing is left of the snapshot. */
async function runTaken(
  mountPoint: string,
  name: string,
  command: readonly string[],
  { device: devices, freeze, storage, signals }: RunContext,
): Promise<number> {
  signals.check();
  const snapshot = await createSnapshot(mountPoint, name, devices);
  const { folder } = snapshot;
  const growth = new Growth(folder, storage, readState(folder).requestedSectors);
  try {
    await growth.append();
    signals.check();
    await takeSnapshot(mountPoint, folder, { freeze, signals });
    signals.check();
  } catch (error) {
    await snapshot.undo().catch((failure) => note(messageOf(failure)));
    throw error;
  }
  // Trackers stay: what changes from now on is what the next backup copies.
  const following = growth.follow();
  let status = await runCommand(command, signals, {
    DMFUSE_SNAPSHOT: folder,
    DMFUSE_IMAGE: imagePath(folder, devices[0]!),
    DMFUSE_IMAGES: devices.map((device) => imagePath(folder, device)).join('\n'),
  });
  const flaw = growth.isOver(snapshot);
  if (flaw !== undefined) {
    note(`snapshot ${name}: ${flaw}: what was read from it is of no use`);
    if (status === 0) status = EXIT_FAILED;
  }
  if (isStillThere(snapshot)) await destroySnapshot(folder);
  await following;
  return status;
}

/** Keeps storage in supply, and watches what becomes of the snapshot. */
class Growth {
  private hasEnded = false;
  private corruption: string | undefined;

  constructor(
    private readonly folder: string,
    private readonly storage: GrowingStorage,
    /** Sectors that the snapshot asks for at a time. */
    private readonly portion: number,
  ) {}

  async append(): Promise<void> {
    await this.storage.appendTo(this.folder, this.portion);
  }

  /**
   * Answers events until there are no more, which is when the snapshot is destroyed: it must be, for the thread that waits for
   * the next one would keep this process.
   */
  async follow(): Promise<void> {
    try {
      for await (const line of eventLines(this.folder)) {
        if (this.hasEnded) continue;
        const { name, fields } = parseEvent(line);
        if (name === 'low_free_space') await this.supply();
        if (name === 'corrupted') this.noteCorruption(String(fields.device), String(fields.reason));
      }
    } catch (error) {
      if (!this.hasEnded) note(`${this.folder}/events: ${messageOf(error)}: its storage grows no more`);
    }
  }

  /** No more storage is needed. Returns what has spoilt the images, undefined when they are whole. */
  isOver(snapshot: CreatedSnapshot): string | undefined {
    this.hasEnded = true;
    try {
      if (!isStillThere(snapshot)) return 'it was destroyed while the command ran';
      const { state, devices } = readState(this.folder);
      if (state !== 'corrupted') return undefined;
      const lost = devices.filter(({ errorCode }) => errorCode !== 0).map(({ name }) => name);
      return `the image of ${lost.join(', ')} was lost${this.corruption === undefined ? '' : `: ${this.corruption}`}`;
    } catch (error) {
      return messageOf(error);
    }
  }

  private async supply(): Promise<void> {
    try {
      await this.append();
    } catch (error) {
      if (!this.hasEnded) note(`the storage of the snapshot does not grow: ${messageOf(error)}`);
    }
  }

  private noteCorruption(device: string, reason: string): void {
    this.corruption ??= reason;
    note(`the image of ${device} is lost, reads of it fail from now on: ${reason}`);
  }
}

/** Whether the snapshot of that name is the one that was made here. */
function isStillThere({ folder, id }: CreatedSnapshot): boolean {
  try {
    return readControl(folder, 'id') === id;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

async function* eventLines(folder: string): AsyncGenerator<string> {
  const file = await open(join(folder, 'events'), 'r');
  try {
    const buffer = Buffer.alloc(EVENTS_BYTES);
    let rest = '';
    for (let length: number; (length = await readWaiting(file, buffer)) > 0; ) {
      const lines = (rest + buffer.toString('latin1', 0, length)).split('\n');
      rest = lines.pop()!;
      for (const line of lines) yield Buffer.from(line, 'latin1').toString('utf8');
    }
  } finally {
    await file.close();
  }
}

async function readWaiting(file: FileHandle, buffer: Buffer): Promise<number> {
  for (;;) {
    try {
      return (await file.read(buffer)).bytesRead;
    } catch (error) {
      if (!mayReadAgain(error)) return 0;
    }
  }
}

/** Resolves to the command's exit code. */
async function runCommand(
  [file, ...args]: readonly string[],
  signals: HeldSignals,
  environment: Readonly<Record<string, string>>,
): Promise<number> {
  const failed = (error: NodeJS.ErrnoException): number => {
    note(`${file}: cannot be run: ${error.code === 'ENOENT' ? 'there is no such command' : error.message}`);
    return error.code === 'ENOENT' ? EXIT_NOT_FOUND : EXIT_CANNOT_RUN;
  };
  let child: ChildProcess;
  try {
    child = spawn(file!, args, { stdio: 'inherit', env: { ...process.env, ...environment } });
  } catch (error) {
    return failed(error as NodeJS.ErrnoException);
  }
  signals.passTo((signal) => passOn(child, signal));
  return await new Promise((resolve) => {
    child.once('error', (error) => resolve(failed(error)));
    child.once('exit', (code, signal) => resolve(signal ? exitCodeOf(signal) : code!));
  });
}

/** A terminal sends Ctrl-C to the command, too: many programs take a second one for impatience. */
function passOn(child: ChildProcess, signal: EndSignal): void {
  const isFromTerminal = signal !== 'SIGTERM' && (process.stdin.isTTY || process.stderr.isTTY);
  if (!isFromTerminal) child.kill(signal);
}

/** A step that is shorter than a chunk could hold nothing. */
function requireWholeChunks(mountPoint: string, grow: number): void {
  const chunk = 2 ** Number(readControl(join(mountPoint, 'snapshots/params'), 'chunk_minimum_shift'));
  if (grow >= chunk) return;
  throw new DmError('EINVAL', `--grow ${grow}: less than a chunk of the snapshot, which is ${chunk} bytes`);
}
