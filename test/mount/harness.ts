/**
 * What end-to-end tests stand on: real mounts, loop devices and file systems, and their end.
 *
 * A lab is the world of one test: a folder of its own, in which everything it makes lies. `mountTest` gives a test its
 * lab. Before anything else a guard (guard.sh) is started, a process that outlives everything: it takes the lab away when
 * the test ends, however it ends, and aborts mounts that hang when the test is over its time limit.
 *
 * The daemon is the built one: `npm run build` before (scripts/test does that).
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { isAlive } from '../../mount/cli/umount.js';

/** What `npm run build` made. */
export const DIST = fileURLToPath(new URL('../../dist', import.meta.url));
export const MAIN = join(DIST, 'main.js');
const GUARD = fileURLToPath(new URL('./guard.sh', import.meta.url));

/** For what hangs, not for what is slow: machines are shared. */
const TEST_LIMIT_SECONDS = 120;
const WAIT_SECONDS = 100;
/** What the guard may take to clean up, and a little more. */
const CLEAN_UP_SECONDS = 60;

/** The tools of the tests, by the Debian package that has them. */
const PACKAGES: Readonly<Record<string, readonly string[]>> = {
  mount: ['mount', 'umount', 'losetup'],
  'util-linux': ['unshare', 'setpriv', 'fsfreeze', 'fstrim', 'blockdev'],
  e2fsprogs: ['mkfs.ext4', 'e2fsck'],
  xfsprogs: ['mkfs.xfs', 'xfs_repair'],
  fuse3: ['fusermount3'],
  fio: ['fio'],
  python3: ['python3'],
  mawk: ['awk'],
};
const PATH = `/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:${process.env.PATH}`;

export interface Outcome {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** For stdin. */
  readonly input?: string;
}

/** A test with a lab of its own. */
export function mountTest(
  title: string,
  body: (lab: Lab) => Promise<void>,
  { limitSeconds = TEST_LIMIT_SECONDS }: { limitSeconds?: number } = {},
): void {
  test(title, { timeout: (limitSeconds + CLEAN_UP_SECONDS) * 1000 }, async () => {
    requireTools();
    const lab = await Lab.open(limitSeconds);
    let failure: unknown;
    try {
      await Promise.race([body(lab), lab.overLimit]);
    } catch (error) {
      failure = error;
    }
    const complaint = await lab.close();
    if (failure instanceof Error) {
      if (complaint) failure.message += `\n${complaint}`;
      throw failure;
    }
    if (complaint) throw new Error(complaint);
  });
}

/** A command that runs. Nothing it prints is lost, and it ends with the lab at the latest. */
export class Running {
  stdout = '';
  stderr = '';
  readonly ended: Promise<Outcome>;
  private readonly watchers = new Set<() => void>();

  constructor(
    readonly words: readonly string[],
    private readonly child: ChildProcess,
  ) {
    const tell = () => {
      for (const watcher of this.watchers) watcher();
    };
    child.stdout?.on('data', (chunk) => {
      this.stdout += chunk;
      tell();
    });
    child.stderr?.on('data', (chunk) => {
      this.stderr += chunk;
      tell();
    });
    this.ended = new Promise((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code, signal) => {
        resolve({ code, signal, stdout: this.stdout, stderr: this.stderr });
        tell();
      });
    });
    this.ended.catch(() => {});
  }

  get pid(): number {
    return this.child.pid!;
  }

  get isRunning(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  /** To the command alone; its own children hear nothing. */
  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  /** It and all it has started, at once. */
  kill(): void {
    if (this.isRunning) process.kill(-this.pid, 'SIGKILL');
  }

  /** Waits until stdout matches. */
  async prints(pattern: RegExp): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const look = () => {
        if (pattern.test(this.stdout)) resolve();
        else if (this.isRunning) return;
        else reject(new Error(`${this.words.join(' ')} ended: ${this.stdout}${this.stderr}`));
        this.watchers.delete(look);
      };
      this.watchers.add(look);
      look();
    });
  }
}

export class Lab {
  /** Rejects when the test is over its limit, with what all threads did then. */
  readonly overLimit: Promise<never>;
  private readonly commands: Running[] = [];
  private readonly undo: (() => Promise<void>)[] = [];

  private constructor(
    readonly folder: string,
    private readonly guard: Running,
    private readonly guardProcess: ChildProcess,
  ) {
    this.overLimit = guard.prints(/^aborted$/m).then(() => {
      throw new Error(guard.stdout);
    });
    this.overLimit.catch(() => {});
  }

  static async open(limitSeconds: number): Promise<Lab> {
    const folder = join(tmpdir(), `dmfuse-e2e-${process.pid}-${Date.now().toString(36)}`);
    const words = [GUARD, folder, String(limitSeconds)];
    const child = spawn('bash', words, { detached: true, stdio: 'pipe', env: { ...process.env, PATH } });
    const guard = new Running(words, child);
    await guard.prints(/^ready$/m);
    return new Lab(folder, guard, child);
  }

  /** Takes all of it away. Returns what had to be forced, '' when nothing was. */
  async close(): Promise<string> {
    for (const command of this.commands) command.kill();
    for (const undo of this.undo.reverse()) await undo().catch(() => {});
    this.guardProcess.stdin!.end();
    const { stdout, stderr } = await this.guard.ended;
    return `${stdout}${stderr}`.replace(/^ready\n/, '').trim();
  }

  /** For what the guard cannot know of: called when the test ends. */
  onClose(undo: () => Promise<void>): void {
    this.undo.push(undo);
  }

  path(...names: string[]): string {
    return join(this.folder, ...names);
  }

  makeFolder(name: string): string {
    mkdirSync(this.path(name), { recursive: true });
    return this.path(name);
  }

  /** Starts a command; it ends with the lab at the latest. */
  start(command: string, args: readonly string[], { input }: RunOptions = {}): Running {
    const child = spawn(command, args, {
      cwd: this.folder,
      detached: true,
      stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
      env: { ...process.env, PATH, LC_ALL: 'C.UTF-8', COLUMNS: '80' },
    });
    child.stdin?.on('error', () => {}).end(input);
    const running = new Running([command, ...args], child);
    this.commands.push(running);
    return running;
  }

  async run(command: string, args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
    return await this.start(command, args, options).ended;
  }

  /** A command that must do: its stdout. */
  async ok(command: string, ...args: string[]): Promise<string> {
    return success(await this.run(command, args), [command, ...args]);
  }

  /** A piece of shell. */
  async shell(script: string, options: RunOptions = {}): Promise<Outcome> {
    return await this.run('bash', ['-c', script], options);
  }

  /** A piece of shell in which every command must do: its stdout. */
  async sh(script: string, options: RunOptions = {}): Promise<string> {
    return success(await this.shell(`set -euo pipefail\n${script}`, options), [script]);
  }

  /** A piece of Python, for the system calls that a shell cannot make: its stdout without the last newline. */
  async python(script: string, ...args: string[]): Promise<string> {
    const outcome = await this.run('python3', ['-c', script, ...args]);
    return success(outcome, ['python3', script, ...args]).trimEnd();
  }

  async dmfuse(...args: string[]): Promise<Outcome> {
    return await this.startDmfuse(...args).ended;
  }

  startDmfuse(...args: string[]): Running {
    const [verb, ...rest] = args;
    // Eight, the default, take longer to start than most tests last; those for which it matters say how many.
    const lanes = verb === 'mount' && !rest.includes('--lanes') ? ['--lanes', '2', ...rest] : rest;
    return this.start(process.execPath, [MAIN, ...args.slice(0, 1), ...lanes]);
  }

  /** dmfuse must do: its stdout. */
  async dmfuseOk(...args: string[]): Promise<string> {
    return success(await this.dmfuse(...args), ['dmfuse', ...args]);
  }

  /** dmfuse must refuse: exit 1, nothing on stdout, one line on stderr, of which what follows `dmfuse: ` is returned. */
  async refusal(...args: string[]): Promise<string> {
    const { code, stdout, stderr: all } = await this.dmfuse(...args);
    const stderr = withoutWarning(all);
    expect({ args, code, stdout, stderr }).toEqual({
      args,
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/^dmfuse: .+\n$/),
    });
    return stderr.slice('dmfuse: '.length).trim();
  }

  /** Mounts at folder `mnt` of the lab, or the one named, with further arguments. */
  async mount({ name = 'mnt', args = [] as string[] } = {}): Promise<Mount> {
    const point = this.makeFolder(name);
    await this.dmfuseOk('mount', point, ...args);
    return new Mount(this, point);
  }

  /** A loop device on a file, by its path. */
  async loop(file: string, ...options: string[]): Promise<string> {
    return (await this.ok('losetup', '-f', '--show', '--direct-io=on', ...options, file)).trim();
  }

  /** Detaches loop devices, and waits until they are: udev may have one open just then. */
  async unloop(...loops: string[]): Promise<void> {
    await this.ok('losetup', '-d', ...loops);
    const files = loops.map((loop) => `/sys/block/${loop.split('/').at(-1)}/loop/backing_file`);
    await until(() => !files.some(existsSync), `${loops.join(', ')} to be detached`);
  }

  /** Mounts a file system of a block device at a folder of the lab. */
  async mountFs(device: string, { name = 'fs', type = 'ext4' } = {}): Promise<string> {
    const point = this.makeFolder(name);
    await this.ok('mount', '-t', type, device, point);
    return point;
  }

  /** All that a tree is: names, kinds, modes, sizes, times of change, and the checksum of every file. */
  async treeState(folder: string): Promise<string> {
    return await this.sh(`cd '${folder}'
      find . -type f -printf '%p %y %m %U:%G %s %T@ %l\n' -o -printf '%p %y %m %U:%G %T@ %l\n' | sort
      find . -type f -print0 | sort -z | xargs -0r sha256sum`);
  }

  async sha256(file: string): Promise<string> {
    return (await this.ok('sha256sum', file)).split(' ')[0]!;
  }

  /** The processes of daemons that serve mounts of this lab. */
  daemons(): number[] {
    const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
    return pids.map(Number).filter((pid) => {
      try {
        const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
        return words.includes('main.js\0mount\0') && words.includes(`${this.folder}/`);
      } catch {
        return false; // gone meanwhile
      }
    });
  }

  /** FUSE mounts of this lab. */
  fuseMounts(): string[] {
    return readFileSync('/proc/self/mountinfo', 'utf8')
      .split('\n')
      .filter((line) => line.includes(' - fuse.dmfuse ') && line.includes(` ${this.folder}/`));
  }
}

/** A dmfuse mount of a lab. Its functions are fields, so that a test can take them out of it. */
export class Mount {
  readonly pid: number;

  constructor(
    private readonly lab: Lab,
    readonly point: string,
  ) {
    this.pid = Number(/^pid (\d+)$/m.exec(this.read('.dmfuse'))![1]);
  }

  readonly path = (...names: string[]): string => join(this.point, ...names);

  /** The text of a control file, by its path from the mount point on, without the last newline. */
  readonly read = (file: string): string => readFileSync(this.path(file), 'utf8').replace(/\n$/, '');

  /** The events of a target so far. (An ordinary read would wait for the next one.) */
  readonly events = async (name: string): Promise<string[]> => {
    const { stdout } = await this.lab.shell(
      `dd if=${this.path(name, 'events')} iflag=nonblock bs=64K status=none`,
    );
    return stdout.split('\n').filter(Boolean);
  };

  /** Makes a target and returns its directory: as `dmfuse create`, which would take a process. */
  readonly create = async (name: string, table: string): Promise<string> => {
    const folder = this.path(name);
    await mkdir(folder);
    try {
      await writeFile(join(folder, 'table'), `${table}\n`, { flag: 'r+' });
    } catch (error) {
      throw new Error(`${table}: ${this.read(`${name}/status`)}`, { cause: error });
    }
    return folder;
  };

  /** The counters of a target. */
  readonly stats = (name: string): Record<string, number> => {
    const lines = this.read(`${name}/stats`).split('\n');
    return Object.fromEntries(lines.map((line) => [line.split(' ')[0]!, Number(line.split(' ')[1])]));
  };

  readonly umount = async (): Promise<void> => {
    await this.lab.dmfuseOk('umount', this.point);
  };

  get daemonIsAlive(): boolean {
    return isAlive(this.pid);
  }

  /** Waits for the daemon to end by itself. */
  async daemonEnd(): Promise<void> {
    await until(() => !this.daemonIsAlive, `the daemon ${this.pid} to end`);
  }

  /** kill -9, and waits until it is gone. */
  async killDaemon(): Promise<void> {
    process.kill(this.pid, 'SIGKILL');
    await this.daemonEnd();
  }
}

/** Lets a process stand still: none of its threads does anything when this resolves. A signal that is sent is not there yet. */
export async function suspend(pid: number): Promise<void> {
  process.kill(pid, 'SIGSTOP');
  const tasks = `/proc/${pid}/task`;
  const isStopped = (task: string) => /^State:\s+T/m.test(readFileSync(`${tasks}/${task}/status`, 'utf8'));
  await until(() => readdirSync(tasks).every(isStopped), `process ${pid} to stand still`);
}

/** What a daemon says to stderr, without its first words where a capability is missing, as in many containers. */
export function withoutWarning(stderr: string): string {
  return stderr.replace(/^dmfuse: no CAP_SYS_RESOURCE here: .+\n/, '');
}

/** Waits for something that will be so. */
export async function until(isSo: () => boolean | Promise<boolean>, what: string): Promise<void> {
  for (const start = Date.now(); !(await isSo()); ) {
    if (Date.now() - start > WAIT_SECONDS * 1000) throw new Error(`waited ${WAIT_SECONDS} s for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

function success({ code, signal, stdout, stderr }: Outcome, words: readonly string[]): string {
  if (code === 0) return stdout;
  throw new Error(`${words.join(' ')}: exit ${signal ?? code}\n${stdout}${stderr}`);
}

function requireTools(): void {
  if (process.getuid!() !== 0) throw new Error('the end-to-end tests mount file systems: run them as root');
  if (!existsSync(MAIN)) throw new Error(`${MAIN} is not there: run \`npm run build\` first`);
  for (const [debianPackage, tools] of Object.entries(PACKAGES)) {
    const missing = tools.filter((tool) => !PATH.split(':').some((folder) => existsSync(join(folder, tool))));
    if (missing.length > 0) {
      throw new Error(`no ${missing.join(', ')} here: apt-get install ${debianPackage}`);
    }
  }
}
