/** `dmfuse mount`: in the foreground the daemon itself; else it starts one and waits until its mount answers. */
import { fork, spawn } from 'node:child_process';
import { realpathSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DmError, messageOf } from '../../src/errors.js';
import { params } from '../../src/filters/blksnap/params.js';
import type { TransportChoice } from '../transport.js';
import { findMount } from './find-mount.js';
import { EXIT_FAILED } from './output.js';

export interface MountCommandOptions {
  readonly create: readonly string[];
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

export async function mount(argument: string, options: MountCommandOptions): Promise<void> {
  if (process.send) await serve(argument, options, logToSyslog);
  else if (options.foreground) await serve(argument, options, logToStderr);
  else await startInBackground();
}

async function serve(
  argument: string,
  options: MountCommandOptions,
  log: (line: string) => void,
): Promise<void> {
  const { exitNow, startDaemon } = await import('../daemon.js');
  let ended: Promise<number>;
  try {
    for (const setting of options.param) setParameter(setting);
    ended = (
      await startDaemon({
        ...options,
        mountPoint: checkMountPoint(argument),
        create: options.create.map(parseCreate),
        stateDir: options.stateDir === undefined ? undefined : resolve(options.stateDir),
        log,
      })
    ).ended;
  } catch (error) {
    await tell({ error: messageOf(error) });
    // Not thrown on: lanes that still wait for a mount would keep this process for ever.
    logToStderr(messageOf(error));
    exitNow(EXIT_FAILED);
    return;
  }
  await tell({ ready: true });
  process.chdir('/');
  exitNow(await ended);
}

/** The path, absolute and without links. Throws ENOENT, ENOTDIR, EBUSY for one that is a dmfuse mount already. */
function checkMountPoint(argument: string): string {
  if (findMount(argument)) {
    throw new DmError('EBUSY', `${argument}: a dmfuse mount already; \`dmfuse umount ${argument}\` ends it`);
  }
  let path: string;
  try {
    path = realpathSync(argument);
  } catch {
    throw new DmError('ENOENT', `${argument}: no such directory; make it with mkdir`);
  }
  if (!statSync(path).isDirectory()) throw new DmError('ENOTDIR', `${argument}: not a directory`);
  return path;
}

function parseCreate(argument: string): { name: string; table: string } {
  const [, name, table] = /^\s*(\S+)\s+(.+)$/s.exec(argument) ?? [];
  if (name !== undefined && table !== undefined) return { name, table };
  throw new DmError('EINVAL', `--create '${argument}': expected 'NAME TABLE', e.g. 'sys bow /img/disk.img'`);
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

function logToStderr(line: string): void {
  process.stderr.write(`dmfuse: ${line}\n`);
}

/** logger(1), of every Linux system: Node has no Unix datagram sockets. Where there is no syslog, nobody listens. */
function logToSyslog(line: string): void {
  spawn('logger', ['-t', 'dmfuse', '--', line], { stdio: 'ignore' }).on('error', () => {});
}
