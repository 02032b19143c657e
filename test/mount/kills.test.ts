/**
 * Real kills: SIGKILL to the daemon at random moments under fio, then `dmfuse bow restore`, and the image is what was
 * promised. `DMFUSE_KILLS=N` asks for N lives (default 50).
 *
 * A life makes a target, trims about half of its image, puts load on it, goes up the states and is killed in one of
 *
 *   state0   before a checkpoint       no log; every acknowledged write is there
 *   to1      in `echo 1 > state`       that, or state1: never a mixture
 *   state1   after the checkpoint      a log; every block that was not free at the checkpoint comes back as it read then
 *   to2      in `echo 2 > state`       state1 or state2, never a mixture
 *   state2   after the commit          no log; the device as at the commit, and every acknowledged write
 *
 * Some restores are killed as well and run again. Who knows what the device read at a moment:
 *
 *   - where fio writes, a copy of the device taken while fio stands still; nothing is compared there in lives in which fio
 *     runs through the change of state;
 *   - in the witness's slots, its record. Each of its threads writes stamped slots one after the other, from before the
 *     checkpoint to the kill. A checkpoint cuts each thread's writes at one point: all before it, none after it;
 *   - in the rest, what nobody writes: what it held from the start.
 *
 * fio and the witness share blocks, block 0 among them. A kill -9 loses nothing of the page cache: that data is written
 * too early is seen here, a missing flush is not (power-cuts.test.ts sees that). The seed repeats the choices of a run;
 * the moments are real time, and come out otherwise each time.
 */
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync, readSync, rmdirSync } from 'node:fs';
import { setImmediate, setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { Prng } from '../../src/device/prng.js';
import { expectSameBytes, underSeed } from '../targets/harness.js';
import { type Lab, type Mount, mountTest, type Running, until } from './harness.js';
import { type Range, WITNESS, Witness } from './witness.js';

const DEFAULT_KILLS = 50;
const KILLS = Number(process.env.DMFUSE_KILLS ?? DEFAULT_KILLS);
const SEED = Number(process.env.DMFUSE_SEED ?? Math.floor(Math.random() * 1e9));
const BLOCK_SIZES = [512, 1024, 2048, 4096];

const PHASES = ['state0', 'to1', 'state1', 'to2', 'state2'] as const;
type Phase = (typeof PHASES)[number];
/** Most are killed in state 1. */
const SCHEDULE: readonly Phase[] =
  'state1 to1 state1 to2 state1 state0 state1 to2 state1 to1 state1 state2'.split(' ') as Phase[];

const SECTOR_BYTES = 512;
const IMAGE_BYTES = 32 << 20;
/** The witness's first slot ends in the middle of a block, and fio's front begins there. */
const SLOT0_BYTES = 5 * SECTOR_BYTES;
const FRONT_END = 64 << 10;
const SLOTS = 48;
const SLOT_BYTES_MAX = 20 << 10;
const FIO_END = 22 << 20;
const NEAR_BYTES = 128 << 10;

/** What the lives have come across: lives that never meet a thing test nothing. */
const met = {
  ...(Object.fromEntries(PHASES.map((phase) => [phase, 0])) as Record<Phase, number>),
  to2Unanswered: 0,
  checkpointsUnderLoad: 0,
  commitsUnderLoad: 0,
  commitsAtRest: 0,
  livesWithBackups: 0,
  livesWithOverflow: 0,
  restoresKilled: 0,
};
/** By chance one may be missing: the moment decides. */
const outcomes = {
  to1Unanswered: 0,
  to1Log: 0,
  to1NoLog: 0,
  to2Log: 0,
  to2NoLog: 0,
  livesWithNoSpace: 0,
  restoresKilledHalfWay: 0,
  entries: 0,
  comparedBytes: 0,
  writes: 0,
};

BLOCK_SIZES.forEach((blockSize, nth) => {
  const lives: number[] = [];
  for (let life = nth; life < KILLS; life += BLOCK_SIZES.length) lives.push(life);
  const limitSeconds = 30 + 12 * lives.length;
  mountTest(
    `kill -9 under load, ${lives.length} times, block size ${blockSize}`,
    async (lab) => {
      await underSeed(SEED, async () => {
        await lab.sh(`head -c ${IMAGE_BYTES} /dev/urandom >original`);
        const again = await lab.mount({ name: 'again' });
        for (const [i, number] of lives.entries()) {
          const phase = SCHEDULE[(i + 3 * nth) % SCHEDULE.length]!;
          await new Life(lab, again, { number, blockSize, phase, turn: met[phase] }).run();
        }
        await again.umount();
      });
    },
    { limitSeconds },
  );
});

test('all that was to be met was met', () => {
  if (process.env.DMFUSE_KILLS !== undefined) console.log(SEED, met, outcomes);
  if (KILLS < DEFAULT_KILLS) return;
  for (const [what, times] of Object.entries(met)) expect(times, what).toBeGreaterThan(0);
});

/** The slots' places and lengths: [64 KiB, …) without a gap, in sectors of any number, so that neighbours share blocks. */
function chooseSlots(prng: Prng): Range[] {
  const slots: Range[] = [[0, SLOT0_BYTES]];
  for (let at = FRONT_END; slots.length < SLOTS; at = slots.at(-1)![1]) {
    slots.push([at, at + SECTOR_BYTES * (1 + prng.below(SLOT_BYTES_MAX / SECTOR_BYTES))]);
  }
  return slots;
}

/** fio, and trims by the `discard` file. */
class Load {
  private readonly commands: Running[];
  private readonly jobs: number;

  /** Where it changes things. */
  static areas(slots: readonly Range[]): Range[] {
    return [
      [SLOT0_BYTES, FRONT_END],
      [slots.at(-1)![1], FIO_END],
    ];
  }

  constructor(
    lab: Lab,
    prng: Prng,
    private readonly target: string,
    slots: readonly Range[],
  ) {
    const areas = Load.areas(slots);
    const [front, wide] = areas.map(([start, end]) => `--offset=${start} --size=${end - start}`);
    const jobs = [`--name=wide ${wide} --rw=randwrite --bsrange=512-64k`];
    // A swarm: not every life has every job.
    for (const job of [
      `--name=front ${front} --rw=randrw --bs=512`,
      // Where backups go first: backups of backups, and block 0's live copy, which moves.
      `--name=near --offset=${areas[1]![0]} --size=${NEAR_BYTES} --rw=randwrite --bsrange=512-8k`,
      `--name=fsync ${wide} --rw=randrw --bsrange=512-16k --fsync=16`,
      `--name=small ${wide} --rw=randwrite --bs=512`,
      `--name=large ${wide} --rw=randwrite --bs=64k --thinktime=2ms`,
      `--name=punch ${wide} --ioengine=falloc --rw=randtrim --bsrange=512-256k --thinktime=5ms`,
    ]) {
      if (prng.chance(0.6)) jobs.push(job);
    }
    const options =
      '--thread --ioengine=psync --direct=1 --allow_file_create=0 --fallocate=none --norandommap --time_based ' +
      `--runtime=60 --ignore_error=,ENOSPC --eta=never --output-format=json --randseed=${1 + prng.below(1e6)}`;
    const words = `${options} --filename=${target}/device ${jobs.join(' ')}`.split(' ');
    this.jobs = jobs.length;
    this.commands = [lab.start('fio', words)];
    if (prng.chance(0.5)) this.commands.push(lab.start('bash', ['-c', trimmer(prng, target, areas[1]!)]));
  }

  /**
   * Waits until every job of fio has the device open. One that opened it in state 2 would be passed through to the image, and never
   * lose it.
   */
  async isOpen(): Promise<void> {
    const fio = this.commands[0]!;
    const opens = () => {
      const links = readdirSync(`/proc/${fio.pid}/fd`).map((fd) => `/proc/${fio.pid}/fd/${fd}`);
      return links.filter((link) => readlinkOf(link) === `${this.target}/device`).length;
    };
    await until(() => !fio.isRunning || opens() >= this.jobs, 'fio to open the device');
  }

  /**
   * Ends it and waits until no request of it is under way. By SIGKILL: fio forgets a SIGINT that comes while it starts its
   * jobs, and runs on.
   */
  async stop(): Promise<void> {
    for (const command of this.commands) command.kill();
    await Promise.all(this.commands.map(({ ended }) => ended));
  }

  /** Waits until it has met the end of the daemon. Whether fio met ENOSPC before. */
  async end(): Promise<boolean> {
    const [fio, trims] = this.commands as [Running, Running?];
    const { code, stdout } = await fio.ended;
    expect(code, 'the exit code of a fio that has lost its device').toBeGreaterThan(0);
    await trims?.ended;
    return /"first_error" : 28\b/.test(stdout);
  }
}

/** '' for a link that is gone. */
function readlinkOf(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return '';
  }
}

/** A loop of trims until the device is gone. */
function trimmer(prng: Prng, target: string, [start, end]: Range): string {
  const [first, sectors] = [start / SECTOR_BYTES, (end - start) / SECTOR_BYTES - 300];
  return `RANDOM=${prng.below(1e4)}
    while echo "$((${first} + (RANDOM * 32768 + RANDOM) % ${sectors})) $((1 + RANDOM % 300))" >${target}/discard
    do sleep 0.01; done 2>/dev/null`;
}

/** What an image must hold. */
interface Known {
  readonly bytes: Buffer;
  /** Where nothing is promised or known. */
  readonly except: readonly Range[];
}

/** A write to `state`, and what is known of its moment. */
interface Change {
  readonly sent: number;
  /** Infinity: the kill came before an answer. */
  answered: number;
}

interface LifeOptions {
  readonly number: number;
  readonly blockSize: number;
  readonly phase: Phase;
  /** How many lives ended in this phase before. What all runs must meet is dealt out by this, not left to chance. */
  readonly turn: number;
}

class Life {
  private readonly prng: Prng;
  private readonly slots: readonly Range[];
  private readonly image: string;
  private readonly point: string;
  private readonly target: string;
  private mount!: Mount;
  private load: Load | undefined;
  /** Areas that fio has changed since the checkpoint, or is changing. */
  private touched: readonly Range[] = [];
  /** Areas in which fio has trimmed and written in state 0. */
  private freeUnknown: readonly Range[] = [];
  /** Blocks that the trims have freed. */
  private readonly freed: Uint8Array;
  private checkpoint!: Known;
  private commit: Known | undefined;
  private up: Change | undefined;
  private down: Change | undefined;

  constructor(
    private readonly lab: Lab,
    private readonly again: Mount,
    private readonly options: LifeOptions,
  ) {
    const { number, blockSize } = options;
    this.prng = new Prng(SEED * 1000 + number);
    this.slots = chooseSlots(this.prng);
    this.image = lab.path(`disk${number}.img`);
    this.point = lab.path(`mnt${number}`);
    this.target = `${this.point}/x`;
    this.freed = new Uint8Array(IMAGE_BYTES / blockSize);
  }

  async run(): Promise<void> {
    const { number, blockSize, phase } = this.options;
    try {
      const witness = await this.liveAndDie();
      await this.judge(witness);
      await this.lab.ok('rm', this.image);
      met[phase]++;
      outcomes.writes += witness.writes;
    } catch (error) {
      if (error instanceof Error) {
        error.message = `life ${number}, block size ${blockSize}, killed in ${phase}: ${error.message}`;
      }
      throw error;
    }
  }

  private async liveAndDie(): Promise<Witness> {
    const { lab, prng, image, slots, options } = this;
    await lab.ok('cp', lab.path('original'), image);
    const table = `x bow ${image} 1 block_size:${options.blockSize}`;
    this.mount = await lab.mount({ name: `mnt${options.number}`, args: ['--lanes', '4', '--create', table] });
    await this.trim();
    const words = [`${this.target}/device`, String(prng.below(1e9)), JSON.stringify(slots)];
    const witness = lab.start('python3', ['-c', WITNESS, ...words]);
    await witness.prints(/^ready$/m);
    this.checkpoint = this.copy();
    this.expectFree();

    await this.liveUntilKilled();

    const { code, stdout, stderr } = await witness.ended;
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const noSpace = (await this.load?.end()) ?? false;
    const record = new Witness(slots, stdout);
    if (noSpace || record.metNoSpace) outcomes.livesWithNoSpace++;
    await lab.ok('umount', '-l', this.point);
    rmdirSync(this.point);
    return record;
  }

  /** Up the states, as far as this life gets. */
  private async liveUntilKilled(): Promise<void> {
    const { prng, mount } = this;
    const { phase, turn } = this.options;
    const before = phase === 'state0' ? 'running' : ['running', 'stopped', 'none'][turn % 3];
    if (before !== 'none') await this.startLoad();
    if (before === 'stopped') await this.stopLoad();
    if (phase === 'state0') return await mount.killDaemon();

    if (this.load) met.checkpointsUnderLoad++;
    this.checkpoint = this.copy();
    this.expectFree();
    if (phase === 'to1') {
      this.up = await this.killWithin(1);
      return;
    }
    this.up = await this.change(1);
    if (!this.load) await this.startLoad();
    else await sleep(prng.below(200));
    if (phase === 'state1') return await mount.killDaemon();

    if (turn % 2 === 0) {
      await this.stopLoad();
      this.commit = this.copy();
      met.commitsAtRest++;
    } else {
      await this.load?.isOpen();
      met.commitsUnderLoad++;
    }
    if (phase === 'to2') {
      this.down = await this.killWithin(2);
      return;
    }
    this.down = await this.change(2);
    await sleep(prng.below(60));
    await mount.killDaemon();
  }

  /** Trims about half of the image, or so little that space runs short; some of it by PUNCH_HOLE. */
  private async trim(): Promise<void> {
    const { prng, target } = this;
    const { blockSize, turn } = this.options;
    const pieceMax = turn % 4 === 3 ? 24 : 1600;
    const commands: string[] = [];
    for (let piece = 0; piece < 40; piece++) {
      const sectors = 1 + prng.below(pieceMax);
      // One at block 0, one where the job `near` writes.
      const first =
        [prng.below(9), this.slots.at(-1)![1] / SECTOR_BYTES][piece] ??
        prng.below(IMAGE_BYTES / SECTOR_BYTES - sectors);
      const [start, end] = [first * SECTOR_BYTES, (first + sectors) * SECTOR_BYTES];
      if (prng.chance(0.1)) commands.push(`fallocate -p -o ${start} -l ${end - start} ${target}/device`);
      else commands.push(`echo '${first} ${sectors}' >${target}/discard`);
      const [from, to] = [Math.max(1, Math.ceil(start / blockSize)), Math.floor(end / blockSize)];
      if (from < to) this.freed.fill(1, from, to);
    }
    await this.lab.sh(commands.join('\n'));
    for (const [start, end] of this.slots) {
      this.freed.fill(0, Math.floor(start / blockSize), Math.ceil(end / blockSize));
    }
  }

  private async startLoad(): Promise<void> {
    const { lab, prng, target, slots } = this;
    this.load = new Load(lab, prng, target, slots);
    this.touched = this.freeUnknown = Load.areas(slots);
    // fio takes 50 ms to start: some lives end before it does a thing.
    await sleep(prng.chance(0.2) ? prng.below(60) : 60 + prng.below(250));
  }

  private async stopLoad(): Promise<void> {
    await this.load!.stop();
    this.load = undefined;
  }

  /** What the device reads now, and where that is no checkpoint's: free blocks, slots, and where fio is writing. */
  private copy(): Known {
    const bytes = readFileSync(`${this.target}/device`);
    if (!this.load) this.touched = [];
    return { bytes, except: [...this.slots, ...this.touched, ...this.freeRanges()] };
  }

  private freeRanges(): Range[] {
    const lines = this.mount.read('x/ranges').split('\n');
    const at = (line: string) => Number(line.split(': ')[1]) * SECTOR_BYTES;
    return lines.flatMap((line, i) => (line.startsWith('Free: ') ? [[at(line), at(lines[i + 1]!)]] : []));
  }

  /** What is called free, and so compared with nothing, is what was trimmed and no more. */
  private expectFree(): void {
    const { blockSize } = this.options;
    const [expected, found] = [this.freed.slice(), new Uint8Array(this.freed.length)];
    for (const [start, end] of this.freeRanges()) found.fill(1, start / blockSize, end / blockSize);
    for (const [start, end] of this.freeUnknown) {
      for (const blocks of [expected, found]) {
        blocks.fill(0, Math.floor(start / blockSize), Math.ceil(end / blockSize));
      }
    }
    expectSameBytes(found, expected, 'free blocks');
  }

  private async change(state: number): Promise<Change> {
    const sent = monotonic();
    await this.lab.sh(`echo ${state} >${this.target}/state`);
    return { sent, answered: monotonic() };
  }

  /** Kills the daemon while a change of state is under way, or a little before or after. */
  private async killWithin(state: 1 | 2): Promise<Change> {
    const change = { sent: monotonic(), answered: Infinity };
    const echo = this.lab.start('bash', ['-c', `echo ${state} >${this.target}/state`]);
    // Half of the kills wait until block 0 is another: done on the medium, and not yet answered.
    if (this.options.turn % 2 === 0) await sleep(this.prng.below(16));
    else while (echo.isRunning && (magicOf(this.image) === 'BOW') === (state === 2)) await setImmediate();
    await this.mount.killDaemon();
    if ((await echo.ended).code === 0) change.answered = monotonic();
    else if (state === 2) met.to2Unanswered++;
    else outcomes.to1Unanswered++;
    return change;
  }

  private async judge(witness: Witness): Promise<void> {
    const { lab, image, up } = this;
    const check = await lab.dmfuse('bow', 'check', image);
    expect([0, 3], `the exit code of check: ${check.stdout}${check.stderr}`).toContain(check.code);
    const hasLog = check.code === 0;
    this.expectOutcome(hasLog);
    if (hasLog) {
      await this.restore(check.stdout);
      const restored = readFileSync(image);
      this.expectKnown(restored, this.checkpoint);
      witness.expectCut(restored, up!.sent, up!.answered);
    }
    expect(await lab.dmfuse('bow', 'restore', image)).toMatchObject({ code: 0, stdout: 'no log\n' });
    if (!hasLog) {
      const left = readFileSync(image);
      this.expectKnown(left, this.withoutLog(left));
      witness.expectLatest(left);
    }
    // A disk like any other: it takes a target.
    const { point } = this.again;
    await lab.sh(`mkdir ${point}/x
      echo 'bow ${image}' >${point}/x/table
      grep -qx 0 ${point}/x/state
      rmdir ${point}/x`);
  }

  /** Is there a log where one must be, and none where none may be? */
  private expectOutcome(hasLog: boolean): void {
    const { phase } = this.options;
    const { up, down } = this;
    if (!up || (down && down.answered < Infinity)) expect(hasLog, 'a log').toBe(false);
    else if (up.answered < Infinity && !down) expect(hasLog, 'a log').toBe(true);
    else outcomes[`${phase as 'to1' | 'to2'}${hasLog ? 'Log' : 'NoLog'}`]++;
  }

  /** What an image without a log must hold. */
  private withoutLog(image: Buffer): Known {
    if (!this.commit) return { ...this.checkpoint, except: [...this.checkpoint.except, ...this.touched] };
    if (this.down!.answered < Infinity) return { bytes: this.commit.bytes, except: this.slots };
    // The commit may not have come to the trimmed blocks: they read as zeros, and nothing is promised of them yet.
    return { bytes: this.commit.bytes, except: [...this.slots, ...trimmed(this.commit.bytes, image)] };
  }

  private expectKnown(image: Buffer, { bytes, except }: Known): void {
    const sorted = [...except, [IMAGE_BYTES, IMAGE_BYTES] as const].sort(([a], [b]) => a - b);
    let at = 0;
    for (const [start, end] of sorted) {
      if (start > at) {
        expectSameBytes(image.subarray(at, start), bytes.subarray(at, start), `from byte ${at} on`);
        outcomes.comparedBytes += start - at;
      }
      at = Math.max(at, end);
    }
  }

  /** Restores; some restores are killed, and run again. `check` is what the check said before. */
  private async restore(check: string): Promise<void> {
    const { lab, prng, image } = this;
    const [, entries, logs] = /(\d+) entries, \d+ bytes, (\d+) log blocks/.exec(check)!.map(Number);
    outcomes.entries += entries!;
    if (entries! > 1) met.livesWithBackups++;
    if (logs! > 1) met.livesWithOverflow++;
    for (let kills = prng.pick([0, 1, 1, 2]); kills > 0; kills--) {
      const restore = lab.startDmfuse('bow', 'restore', image);
      await sleep(prng.below(100));
      // It takes 100 ms to start, and less to restore: half of the kills wait until it has begun.
      if (prng.chance(0.5)) {
        while (restore.isRunning && magicOf(image) !== 'WOB') await sleep(1);
        await sleep(prng.below(8));
      }
      restore.signal('SIGKILL');
      const { signal } = await restore.ended;
      if (signal !== 'SIGKILL') return;
      met.restoresKilled++;
      if (magicOf(image) === 'WOB') outcomes.restoresKilledHalfWay++;
      const { code, stdout } = await lab.dmfuse('bow', 'check', image);
      if (code === 3) return;
      expect({ code, stdout }).toMatchObject({ code: 0, stdout: expect.stringMatching(/^sound: /) });
    }
    expect(await lab.dmfuse('bow', 'restore', image)).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^restored: [1-9]/),
    });
  }
}

/** The clock of the witness. */
function monotonic(): number {
  return Number(process.hrtime.bigint());
}

function magicOf(image: string): string {
  const fd = openSync(image, 'r');
  const magic = Buffer.alloc(3);
  readSync(fd, magic, 0, 3, 0);
  closeSync(fd);
  return magic.toString('latin1');
}

/** Sectors that were read as zeros and differ now. */
function trimmed(before: Buffer, now: Buffer): Range[] {
  const zeros = Buffer.alloc(SECTOR_BYTES);
  const ranges: Range[] = [];
  for (let at = 0; at < before.length; at += SECTOR_BYTES) {
    const sector = before.subarray(at, at + SECTOR_BYTES);
    if (sector.equals(zeros) && !sector.equals(now.subarray(at, at + SECTOR_BYTES))) {
      ranges.push([at, at + SECTOR_BYTES]);
    }
  }
  return ranges;
}
