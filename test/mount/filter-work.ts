/** What the stories of filters and snapshots share: control files, loads that verify themselves, snapshots, change maps. */
import { existsSync } from 'node:fs';
import { mkdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { expect } from 'vitest';
import type { Lab, Mount, Running } from './harness.js';

/** Writes a line to a control file. */
export async function setFile(file: string, line: string): Promise<void> {
  await writeFile(file, `${line}\n`, { flag: 'r+' });
}

/** The name of the errno with which something is refused. */
export async function refusal(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
  return 'not refused';
}

/** The same of a line for a control file. */
export async function refusedLine(file: string, line: string): Promise<string> {
  return await refusal(setFile(file, line));
}

/** A line `key value` of a control file's text. */
export function field(text: string, key: string): string | undefined {
  return new RegExp(`^${key} (.*)$`, 'm').exec(text)?.[1];
}

/** fio that writes to files all the time, and verifies what it has written, until it is stopped. */
export class Load {
  private constructor(
    private readonly lab: Lab,
    private readonly running: Running,
    private readonly end: string,
  ) {}

  /** Requests of 4 and of 64 KiB in the first `mebibytes` of each file. */
  static start(lab: Lab, files: readonly string[], mebibytes: number): Load {
    const half = mebibytes / 2;
    const jobs = files.flatMap((file, i) => [
      `--name=small${i} --filename=${file} --bs=4k --offset=0 --size=${half}m --io_size=2m`,
      `--name=large${i} --filename=${file} --bs=64k --offset=${half}m --size=${half}m --io_size=4m`,
    ]);
    const end = lab.path(`end-${Math.random().toString(36).slice(2)}`);
    const fio =
      'fio --thread --ioengine=psync --direct=1 --rw=randwrite --verify=crc32c --verify_fatal=1 --do_verify=1 ' +
      `--allow_file_create=0 --fallocate=none --randrepeat=0 --verify_state_save=0 --output=${end}.out ${jobs.join(' ')}`;
    const running = lab.start('bash', [
      '-c',
      `for ((round = 1; ; round++)); do
        ${fio} || { cat ${end}.out; exit 1; }
        echo round $round
        [[ ! -e ${end} ]] || exit 0
      done`,
    ]);
    return new Load(lab, running, end);
  }

  /** Waits until so many rounds are done in all. */
  async rounds(count: number): Promise<void> {
    await this.running.prints(new RegExp(`^round ${count}$`, 'm'));
  }

  /** Waits until a round is done that begins from now on. */
  async another(): Promise<void> {
    await this.rounds((this.running.stdout.match(/^round /gm)?.length ?? 0) + 2);
  }

  /** Ends it after the round that runs: all was as written, all the time. */
  async stop(): Promise<void> {
    await this.lab.sh(`touch ${this.end}`);
    const { code, stdout, stderr } = await this.running.ended;
    // fio looks at all loop devices of the machine, and complains of one that somebody detaches just then.
    const complaints = stderr.replaceAll('stat: No such file or directory\n', '');
    expect({ code, stdout, complaints }).toEqual({
      code: 0,
      stdout: expect.stringMatching(/^(round \d+\n)+$/),
      complaints: '',
    });
  }
}

/** A snapshot of a mount, by its control files. */
export class SnapshotFolder {
  private constructor(
    private readonly mount: Mount,
    readonly name: string,
  ) {}

  static async make(mount: Mount, name: string, devices: readonly string[] = []): Promise<SnapshotFolder> {
    const snapshot = new SnapshotFolder(mount, name);
    await mkdir(snapshot.path());
    for (const device of devices) await setFile(snapshot.path('devices'), `add ${device}`);
    return snapshot;
  }

  /** One that is taken, of devices with a filter. */
  static async take(mount: Mount, name: string, devices: readonly string[], storage: string) {
    const snapshot = await SnapshotFolder.make(mount, name, devices);
    await setFile(snapshot.path('storage'), storage);
    await setFile(snapshot.path('take'), '1');
    return snapshot;
  }

  readonly path = (...names: string[]): string => this.mount.path('snapshots', this.name, ...names);

  readonly image = (device: string): string => this.path('images', device);

  /** First line of `state`. */
  get state(): string {
    return this.text.split('\n')[0]!;
  }

  get text(): string {
    return this.mount.read(`snapshots/${this.name}/state`);
  }

  amount(key: 'capacity' | 'filled' | 'requested'): number {
    return Number(field(this.text, key));
  }

  /** So far, without the times. */
  async events(): Promise<string[]> {
    const lines = await this.mount.events(`snapshots/${this.name}`);
    return lines.map((line) => line.replace(/ monotonic_ns=\d+$/, ''));
  }

  async remove(): Promise<void> {
    await rmdir(this.path());
    expect(existsSync(this.path())).toBe(false);
  }
}

/** What `cbtinfo` and `cbtmap` of a tracked device say. */
export async function changesOf(mount: Mount, device: string) {
  const info = mount.read(`${device}/cbtinfo`);
  const map = await readFile(mount.path(device, 'cbtmap'));
  expect(field(info, 'block_count')).toBe(`${map.length}`);
  return {
    generation: field(info, 'generation_id')!,
    number: Number(field(info, 'changes_number')),
    blockBytes: Number(field(info, 'block_size')),
    map,
  };
}

export type Changes = Awaited<ReturnType<typeof changesOf>>;

/** The blocks that an incremental backup copies: all after a new generation. */
export function changedBlocks({ generation, map }: Changes, before: Changes | undefined): number[] {
  const isSame = before?.generation === generation;
  return [...map.keys()].filter((block) => !isSame || map[block]! > before.number);
}

/** `blksnap` before each of these targets. */
export async function track(mount: Mount, ...names: string[]): Promise<void> {
  for (const name of names) await setFile(mount.path(name, 'filter'), 'blksnap');
}
