/** `dmfuse mount`: in the foreground the daemon itself; else it starts one and waits until its mount answers. */
import { fork, spawn } from 'node:child_process';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DmError, messageOf } from '../../src/errors.js';
import { params } from '../../src/filters/blksnap/params.js';
import type { TransportChoice } from '../transport.js';
import { EXIT_FAILED, note } from './output.js';

export interface MountCommandOptions {
  readonly create: readonly string[];
  readonly tab: readonly string[];
  readonly source?: string;
  readonly pidfile?: string;
  readonly replace: boolean;
  readonly foreground: boolean;
  readonly allowOther: boolean;
  readonly transport: TransportChoice;
  readonly lanes: number;
  readonly debug: boolean;
  readonly stateDir?: string;
  readonly param: readonly string[];
}

/** What the daemon in the background says to the command that started it. */
type Readiness = { readonly ready: true } | { readonly error: string };

/** Where logger and fusermount3 are: who mounts at boot may have no PATH. */
const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

export async function mount(argument: string, options: MountCommandOptions): Promise<void> {
  process.env.PATH ||= DEFAULT_PATH;
  if (process.send) {
    await serve(argument, options, logToSyslog);
    return;
  }
  // Here, not in the background: what it says is for whoever asked.
  if (options.replace) await (await import('./mount-point.js')).detachDead(argument);
  // The daemon in the background inherits it, and the mark of an I/O flusher, too.
  (await import('../hardening.js')).giveUpPrivileges();
  const { beginAsIoFlusher, markIoFlusher } = await import('../lanes/reclaim.js');
  if (options.foreground) {
    beginAsIoFlusher();
    await serve(argument, options, note);
  } else {
    markIoFlusher();
    await startInBackground();
  }
}

async function serve(
  argument: string,
  options: MountCommandOptions,
  log: (line: string) => void,
): Promise<void> {
  const { startDaemon } = await import('../daemon.js');
  const { exitNow } = await import('../exit-now.js');
  const { checkMountPoint } = await import('./mount-point.js');
  const { notifyManager } = await import('./notify.js');
  const { PidFile } = await import('./pid-file.js');
  let ended: Promise<number>;
  let pidFile: InstanceType<typeof PidFile> | undefined;
  try {
    for (const setting of options.param) setParameter(setting);
    const mountPoint = checkMountPoint(argument);
    const create = await targetsToCreate(options);
    const stateDir = options.stateDir === undefined ? undefined : resolve(options.stateDir);
    if (stateDir !== undefined) (await import('../saved-filters.js')).prepareStateDir(stateDir);
    pidFile = options.pidfile === undefined ? undefined : new PidFile(resolve(options.pidfile), mountPoint);
    ended = (
      await startDaemon({
        ...options,
        mountPoint,
        create,
        source: sourceOf(options),
        stateDir,
        log,
        onMade: () => pidFile?.publish(),
      })
    ).ended;
    // Whoever asked for the mount has been stopped meanwhile (Ctrl-C, a time limit): there is to be none.
    if (process.send && !process.connected) process.kill(process.pid, 'SIGTERM');
    notifyManager(
      `READY=1\nMAINPID=${process.pid}\nSTATUS=Serves ${create.length} targets at ${mountPoint}`,
      log,
    );
  } catch (error) {
    pidFile?.remove();
    await tell({ error: messageOf(error) });
    // Not thrown on: lanes that still wait for a mount would keep this process for ever.
    note(messageOf(error));
    exitNow(EXIT_FAILED);
    return;
  }
  // First: the daemon's own handlers flush, which takes its time.
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.prependListener(signal, () => notifyManager('STOPPING=1', log));
  }
  await tell({ ready: true });
  process.chdir('/');
  const code = await ended;
  pidFile?.remove();
  exitNow(code);
}

async function targetsToCreate({ tab, create }: MountCommandOptions) {
  const { parseCreate, readTab, targetsOf } = await import('./tab.js');
  return targetsOf([...tab.flatMap(readTab), ...create.map(parseCreate)]);
}

/** A mount file, so that `mount -a` recognises its line of fstab as mounted. */
function sourceOf({ source, tab }: MountCommandOptions): string {
  return source ?? (tab.length === 1 ? resolve(tab[0]!) : 'dmfuse');
}

/** `NAME=VALUE`. */
function setParameter(setting: string): void {
  const [, name, value] = /^([^=]*)=(.*)$/s.exec(setting) ?? [];
  const known = params.names.find((candidate) => candidate === name);
  if (known === undefined || value === undefined) {
    throw new DmError(
      'EINVAL',
      `--param ${setting}: expected NAME=VALUE, where NAME is ${params.names.join(', ')}`,
    );
  }
  params.set(known, value);
}

async function startInBackground(): Promise<void> {
  const daemon = fork(fileURLToPath(new URL('./main.js', import.meta.url)), process.argv.slice(2), {
    detached: true,
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    // Mebibytes. The main thread makes garbage only where control files are used; by default that grows to 16 and stays.
    execArgv: [...process.execArgv, '--max-semi-space-size=1'],
  });
  const readiness = await new Promise<Readiness>((resolve) => {
    daemon.once('message', (message) => resolve(message as Readiness));
    daemon.once('error', (error) => resolve({ error: messageOf(error) }));
    daemon.once('exit', (code, signal) => resolve({ error: `the daemon ended with ${signal ?? code}` }));
  });
  if ('error' in readiness) throw new Error(readiness.error);
  daemon.disconnect();
  daemon.unref();
}

/** Tells the command that waits, where one does, and lets go of it. */
async function tell(message: Readiness): Promise<void> {
  if (!process.send) return;
  await new Promise<void>((resolve) => process.send!(message, () => resolve()));
  if (process.connected) process.disconnect();
}

/** logger(1), of every Linux system: Node has no Unix datagram sockets. Where there is no syslog, nobody listens. */
function logToSyslog(line: string): void {
  spawn('logger', ['-t', 'dmfuse', '--', line], { stdio: 'ignore' }).on('error', () => {});
}
