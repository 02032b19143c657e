/**
 * The engine of the power-cut tests. It knows no target; a test plugs one in with a factory and its own promise:
 *
 *     it('linear', () => testPowerCuts({ name: 'linear', cuts: 2000, make: (rng, power) => new LinearSubject(…) }));
 *
 * One run of a random workload gives the images of every instant: for each operation of the disks (there may be several
 * on one PowerSupply) the power fails in it, and of all that was not flushed nothing, everything, a random part, one
 * change alone, or what is on one disk alone has landed. The subject then checks what it promised at that instant. What
 * a cut may leave is the model in src/device/simulated.ts.
 *
 * A run is a swarm: its seed switches kinds of requests, the subject's own operations, and aims off at random.
 * `DMFUSE_CUTS=N` asks for N cuts a test instead of its own number, `DMFUSE_SEED=N` repeats one run.
 *
 *   cuts-P1  Every operation of a run is cut, the time after the last one too, with several images each.
 *   cuts-P2  Several disks are cut at one instant; what survives on one says nothing about another.
 *   cuts-P3  A failure names the seed, the cut, the operation that it hit, the step under way and what had landed.
 *   cuts-P4  A workload that never does a thing tests nothing: every counter of the test must have been raised.
 *   cuts-P5  `OrdinaryDisk`: every flushed write is there, of the later ones each sector is old or new.
 *
 * Left out: cuts while the subject is made, and a target that goes on after the cut.
 */
import { expect } from 'vitest';
import type { BlockDevice } from '../../src/device/block-device.js';
import { Prng } from '../../src/device/prng.js';
import { PowerSupply, type Survivors } from '../../src/device/simulated.js';
import { codeOf, contentOf, seeds, underSeed } from './harness.js';
import { OrdinaryDisk } from './ordinary-disk.js';

export interface PowerCutTest {
  /** What a failure calls it; also makes the runs of two tests differ. */
  readonly name: string;
  /** How many by default. */
  readonly cuts: number;
  /** What the runs have come across, raised by the subjects. Set to 0 at the beginning, none may be 0 at the end. */
  readonly seen?: Record<string, number>;
  /** A new target for each run, over disks that are all on `power`. Draws its shape from `rng`. */
  make(rng: Prng, power: PowerSupply): Subject | Promise<Subject>;
}

/** A target in the state from which its workload starts, and what it promises. */
export interface Subject {
  readonly target: BlockDevice;
  /** Bytes: a size of which requests are made, besides 1 and 512. */
  readonly unit: number;
  /** Bytes, a multiple of 512: discards are made of these. Default 512. */
  readonly discardUnit?: number;
  /** What the workload does besides requests, switched off by the seed like these. */
  readonly operations?: Readonly<Record<string, (work: Workload) => void | Promise<void>>>;
  /** Places that matter: the first byte of one, undefined where there is none now. */
  readonly aims?: Readonly<Record<string, () => number | undefined>>;
  /** The course of a run. Default: random requests and operations. */
  run?(work: Workload): void | Promise<void>;
  /** After each request: what it promises, and whether it may have been refused. Default: as an ordinary disk. */
  note?(request: Request, work: Workload): void;
  /**
   * Throws where the images, which it may change, break what is promised when the power fails in operation `cut`. They
   * come in the order in which the disks were made, the cuts in rising order.
   */
  check(images: readonly Uint8Array[], cut: number, work: Workload): void | Promise<void>;
}

export type RequestKind = 'write' | 'zeroes' | 'unmap' | 'discard' | 'flush';
const REQUESTS: readonly RequestKind[] = ['write', 'write', 'zeroes', 'unmap', 'discard', 'flush'];

/** A request that was made. */
export interface Request {
  readonly kind: RequestKind;
  /** Bytes. */
  readonly offset: number;
  /** What the range holds now; zeros where that is not known. Empty for a flush. */
  readonly data: Uint8Array;
  /** The operation of the power supply that came next when it began. */
  readonly start: number;
  /** Of its error; 'none' where it worked. */
  readonly code: string;
}

/** Declares nothing: to be called inside a test. */
export async function testPowerCuts(test: PowerCutTest): Promise<void> {
  const { seen = {}, cuts } = test;
  const wanted = Number(process.env.DMFUSE_CUTS ?? cuts);
  for (const name of Object.keys(seen)) seen[name] = 0;
  let done = 0;
  for (const seed of seeds(() => done >= wanted)) {
    await underSeed(seed, async () => {
      done += await cutOneRun(test, seed);
    });
  }
  if (process.env.DMFUSE_SEED !== undefined || wanted < cuts) return;
  for (const [what, times] of Object.entries(seen)) {
    expect(times, `cuts-P4: ${test.name}: ${what}`).toBeGreaterThan(0);
  }
}

/** One workload and all its cuts; gives their number. */
export async function cutOneRun(test: PowerCutTest, seed: number): Promise<number> {
  const rng = new Prng([...test.name].reduce((hash, char) => Math.imul(hash, 31) + char.charCodeAt(0), seed));
  const power = new PowerSupply();
  const subject = await test.make(rng, power);
  const start = power.operations;
  const work = new Workload(rng, power, subject);
  await work.run();
  let images = 0;
  for (let cut = start; cut <= power.operations; cut++) {
    for (const survivors of imagesOf(power, cut, rng)) {
      images++;
      const media = power.disks.map((disk, index) => disk.imageAt(cut, survivors[index]!));
      try {
        await subject.check(media, cut, work);
      } catch (error) {
        if (error instanceof Error) {
          error.message = `${test.name}, ${describeCut(work, cut, survivors)}: ${error.message}`;
        }
        throw error;
      }
    }
  }
  return images;
}

/** A random workload on a target, and what was promised when. */
export class Workload {
  /** What the target promises as a disk; `check` compares with it where nothing else is promised. */
  readonly ordinary: OrdinaryDisk;
  /** What a failure calls the operations from `start` on. */
  readonly steps: { readonly start: number; readonly text: string }[] = [];
  private readonly kinds: readonly string[];
  private readonly aims: readonly string[];
  /** Bytes. */
  private readonly longest: number;
  private readonly enough: number;

  constructor(
    readonly rng: Prng,
    readonly power: PowerSupply,
    private readonly subject: Subject,
  ) {
    this.ordinary = new OrdinaryDisk(contentOf(subject.target), power);
    const some = (names: readonly string[]) => names.filter(() => rng.chance(0.7));
    this.kinds = ['write', ...some([...REQUESTS, ...Object.keys(subject.operations ?? {})])];
    this.aims = ['anywhere', ...some(['start', 'tail', ...Object.keys(subject.aims ?? {})])];
    this.longest = rng.pick([1, 3, 12, 80]) * subject.unit;
    this.enough = rng.pick([60, 150, 150, 300, 300, 1400]);
  }

  /** Whether the run has more operations than it should. Some may have many: a big log has to overflow, too. */
  get isLong(): boolean {
    return this.power.operations > this.enough;
  }

  async run(): Promise<void> {
    const { rng, subject } = this;
    if (subject.run !== undefined) {
      await subject.run(this);
      return;
    }
    const steps = rng.below(rng.pick([20, 60, 150]));
    for (let step = 0; step < steps && !this.isLong; step++) await this.randomStep();
  }

  /** One random request or operation of the subject. */
  async randomStep(): Promise<void> {
    const { rng, subject } = this;
    const { target, unit } = subject;
    const kind = rng.pick(this.kinds);
    const operation = subject.operations?.[kind];
    if (operation !== undefined) {
      await operation(this);
      return;
    }
    const start = this.somewhere();
    const grain = rng.pick([1, 512, unit]);
    const within = grain < unit ? rng.below(unit / grain) * grain : 0;
    const offset = Math.min(target.size - 1, start + within);
    const length = (1 + rng.below(Math.ceil(this.longest / grain))) * grain;
    this.request(kind as RequestKind, offset, Math.min(target.size - offset, length));
  }

  /** First byte of a place, by one of the aims of this run. */
  somewhere(): number {
    return this.aim(this.rng.pick(this.aims));
  }

  /** First byte of a place that is aimed at; of any other where there is no such place. */
  aim(aim: string): number {
    const { target, unit, aims } = this.subject;
    if (aim === 'start') return 0;
    if (aim === 'tail') return Math.max(0, target.size - unit - 1000);
    return aims?.[aim]?.() ?? this.rng.below(Math.floor(target.size / unit)) * unit;
  }

  /** Names what follows; gives the operation of the power supply that comes next. */
  begin(text: string): number {
    const start = this.power.operations;
    this.steps.push({ start, text });
    return start;
  }

  request(kind: RequestKind, from: number, length: number): void {
    const { rng, subject } = this;
    const { target, discardUnit = 512 } = subject;
    let [offset, end] = kind === 'flush' ? [0, 0] : [from, from + length];
    if (kind === 'discard') {
      // So that what it leaves of a sector need not be known.
      offset = Math.ceil(from / discardUnit) * discardUnit;
      end = Math.floor(end / discardUnit) * discardUnit;
      if (end <= offset) return;
    }
    const data = kind === 'write' ? rng.bytes(end - offset) : new Uint8Array(end - offset);
    const text = `${kind} of ${data.length} bytes at ${offset}`;
    const start = this.begin(text);
    const code = codeOf(() => {
      if (kind === 'write') target.write(offset, data);
      else if (kind === 'discard') target.discard(offset, data.length);
      else if (kind === 'flush') target.flush();
      else target.writeZeroes(offset, data.length, { unmap: kind === 'unmap' });
    });
    const request: Request = { kind, offset, data, start, code };
    if (subject.note !== undefined) {
      subject.note(request, this);
    } else {
      expect(code, text).toBe('none');
      this.ordinary.note(request);
    }
  }
}

/** What may have landed on each disk: the sets that are tried for one cut. */
function imagesOf({ disks, operations }: PowerSupply, cut: number, rng: Prng): Survivors[][] {
  const pending = disks.map((disk) => disk.unflushedAt(cut));
  const total = pending.reduce((sum, count) => sum + count, 0);
  const all = (survivors: Survivors) => disks.map(() => survivors);
  if (total === 0) return [all('none')];
  if (total === 1) return [all('none'), all('all'), all(rng)];
  let only = rng.below(total);
  const some = [all('none'), all('all'), all(rng), all(rng)];
  some.push(
    pending.map((count) => {
      const here = only >= 0 && only < count;
      const survivors: Survivors = here ? { only } : 'none';
      only -= count;
      return survivors;
    }),
  );
  if (disks.length > 1) {
    const chosen = rng.below(disks.length);
    some.push(disks.map((_, disk) => (disk === chosen ? 'all' : 'none')));
    some.push(disks.map((_, disk) => (disk === chosen ? 'none' : 'all')));
  }
  // Of a long run fewer, so that there are more runs.
  return operations < 200 ? some : [all(rng), rng.pick(some)];
}

/** cuts-P3. */
function describeCut({ power, steps }: Workload, cut: number, survivors: readonly Survivors[]): string {
  const { disks, operations } = power;
  const hit = disks.map((disk, index) => [index, disk.trace.find(({ instant }) => instant === cut)] as const);
  const [index, entry] = hit.find(([, found]) => found !== undefined) ?? [0, undefined];
  const landed = survivors.map((one) => (one instanceof Prng ? 'a random choice' : JSON.stringify(one)));
  const step = steps.findLastIndex(({ start }) => start <= cut);
  const during = step < 0 ? 'before the first step' : `step ${step}: ${steps[step]!.text}`;
  const where = entry
    ? `in a ${entry.kind} of ${entry.sectors.length} bytes at ${entry.offset} of disk ${index} (${during})`
    : 'after all of them';
  return `cut ${cut} of ${operations} ${where}, landed: ${landed.join(', ')}`;
}
