/**
 * I/O errors below, at every operation of a commit and of a scrub.
 *
 *   faults-P1  The flush that meets an error says so. Nothing is lost: all reads give what was written last, and the flush
 *              after the repair works.
 *   faults-P2  Whenever the power fails in all that, what was flushed is there, what was not is old or new, and nothing is
 *              called corrupt (cut-P1).
 *   faults-P3  The same on a medium that forgets: a flush that fails drops what was not written, while reads show it still.
 *   faults-P4  A scrub that meets an error leaves no update half done behind a commit's back.
 *   faults-P5  What a commit had to give up, because both tables of a group were damaged, is told to the flush that asks
 *              next, whoever's commit it was; other groups' writes are durable.
 */
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { Prng } from '../../../src/device/prng.js';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import { DmError } from '../../../src/errors.js';
import { codeOf, contentOf, expectSameBytes, FaultyDisk } from '../harness.js';
import { OrdinaryDisk } from '../ordinary-disk.js';
import { Images, LAYOUTS } from './images.js';
import { attach, attachImages, type CsumRig } from './rig.js';

/** Counters about to wrap; group 0 with a half-done update, of a sector that the writes touch and of one that they do not. */
function startImages(layout: 'interleaved' | 'separate', isClean: boolean): Images {
  const images = new Images({ layout, sectors: 150 });
  for (const group of [0, 1, 2]) images.setCounters(group, 253 + group);
  if (!isClean) {
    images.halfUpdate([5, 40]);
    images.setState('in-use');
  }
  return images;
}

type Note = (what: 'write' | 'zeroes', offset: number, data: Uint8Array) => void;

/** Writes over all three groups: whole and partial sectors, zeros, one sector twice. */
function someWrites(target: BlockDevice, rng: Prng, note: Note): void {
  const write = (offset: number, length: number) => {
    const data = rng.bytes(length);
    target.write(offset, data);
    note('write', offset, data);
  };
  write(5 * 512, 1024);
  write(60 * 512 + 100, 3000);
  target.writeZeroes(70 * 512, 700, { unmap: rng.chance(0.5) });
  note('zeroes', 70 * 512, new Uint8Array(700));
  write(149 * 512, 512);
  write(6 * 512, 512);
}

/** A target, what it was told, and what may be left of it. */
class Story {
  readonly model: Uint8Array;
  private readonly ordinary: OrdinaryDisk;

  constructor(
    readonly rig: CsumRig,
    content: Uint8Array,
    readonly power: PowerSupply,
    readonly rng: Prng,
  ) {
    this.model = content.slice();
    this.ordinary = new OrdinaryDisk(content, power);
  }

  writes(): void {
    const start = this.power.operations;
    someWrites(this.rig.target, this.rng, (_, offset, data) => {
      this.model.set(data, offset);
      this.ordinary.write(start, offset, data);
    });
  }

  flush(): void {
    const start = this.power.operations;
    this.rig.target.flush();
    this.ordinary.note({ kind: 'flush', offset: 0, data: new Uint8Array(0), start, code: 'none' });
  }

  expectReads(where: string): void {
    expectSameBytes(contentOf(this.rig.target), this.model, `faults-P1: ${where}`);
    expect(this.rig.read('errors'), where).toBe('count 0\n');
  }

  async expectCut(images: Uint8Array[], cut: number, where: string): Promise<void> {
    const rig = await attachImages(images);
    try {
      this.ordinary.check(contentOf(rig.target), cut);
      expect(rig.read('errors')).toBe('count 0\n');
    } catch (error) {
      throw new Error(`faults-P2: ${where}, cut ${cut} of ${this.power.operations}: ${error}`);
    }
  }
}

describe.each(LAYOUTS)('%s', (layout) => {
  const kinds = [true, false].flatMap((isClean) =>
    ([false, true, 'some'] as const).flatMap((landed) =>
      [false, true].map((lasting) => ({ isClean, landed, lasting })),
    ),
  );

  it.each(kinds)(
    'faults-P1, faults-P2: clean $isClean, landed $landed, lasting $lasting',
    async ({ isClean, landed, lasting }) => {
      let failed = 0;
      for (const device of layout === 'interleaved' ? [0] : [0, 1]) {
        for (let at = 1; ; at++) {
          const { disks, faulty, story } = await makeStory(layout, isClean, at);
          const where = `operation ${at} of device ${device}`;
          story.writes();
          story.flush();
          story.writes();
          const first = story.power.operations;
          faulty[device]!.fail({ at, landed, lasting });
          const code = codeOf(() => story.rig.target.flush());
          if (code === 'none') break;
          failed++;
          expect(code, where).toBe('EIO');
          if (lasting)
            expect(
              codeOf(() => story.rig.target.flush()),
              where,
            ).toBe('EIO');
          faulty[device]!.repair();
          story.expectReads(where);
          if (at % 2 === 0) story.writes();
          story.flush();
          story.expectReads(where);
          story.writes();
          story.flush();
          story.expectReads(where);
          await expectCuts(disks, story, first, where);
        }
      }
      expect(failed).toBeGreaterThan(10);
    },
  );

  it.each([false, true, 'some'] as const)('faults-P4: landed %s', async (landed) => {
    let failed = 0;
    for (const device of layout === 'interleaved' ? [0] : [0, 1]) {
      for (let at = 1; ; at++) {
        const { disks, faulty, story } = await makeStory(layout, false, at);
        const where = `operation ${at} of device ${device}`;
        const first = story.power.operations;
        faulty[device]!.fail({ at, landed });
        story.rig.write('scrub', 'start');
        expect(story.rig.read('scrub')).toContain('state done');
        const isOver = faulty[device]!.operations < at;
        faulty[device]!.repair();
        if (isOver) break;
        failed++;
        expect(story.rig.read('scrub'), where).toContain('groups_bad 1');
        story.expectReads(where);
        story.writes();
        story.flush();
        story.expectReads(where);
        await expectCuts(disks, story, first, where);
      }
    }
    expect(failed).toBeGreaterThan(5);
  });
});

async function makeStory(layout: 'interleaved' | 'separate', isClean: boolean, seed: number) {
  const rng = new Prng(seed);
  const power = new PowerSupply();
  const { bytes, content } = startImages(layout, isClean);
  const disks = bytes.map((image) => new SimulatedDisk(image, { power, rng: new Prng(seed + 1) }));
  const faulty = disks.map((disk) => new FaultyDisk(disk));
  const story = new Story(await attach(faulty), content, power, rng);
  for (const disk of faulty) disk.repair();
  return { disks, faulty, story };
}

async function expectCuts(
  disks: readonly SimulatedDisk[],
  story: Story,
  first: number,
  where: string,
): Promise<void> {
  const { power, rng } = story;
  const step = (power.operations - first) / 20;
  for (let cut = first; cut <= power.operations; cut += 1 + rng.below(1 + step)) {
    for (let image = 0; image < 2; image++) {
      const images = disks.map((disk) => disk.imageAt(cut, rng));
      await story.expectCut(images, cut, where);
    }
  }
}

/** Of each disk, what reads show, what is on the medium, and which sectors have yet to get there. One supply's fail together. */
class ForgetfulDisk implements BlockDevice {
  readonly size: number;
  private readonly cache: Uint8Array;
  private readonly medium: Uint8Array;
  private readonly dirty = new Set<number>();

  constructor(
    content: Uint8Array,
    private readonly power: PowerSupply,
    /** Numbers of the operations that fail. */
    private readonly failing: ReadonlySet<number>,
  ) {
    this.size = content.length;
    this.cache = content.slice();
    this.medium = content.slice();
  }

  /** The medium if the power fails now. */
  image(rng: Prng): Uint8Array {
    const image = this.medium.slice();
    const likely = rng.pick([0, 0.1, 0.5, 0.9, 1]);
    for (const sector of this.dirty) if (rng.chance(likely)) this.land(image, sector);
    return image;
  }

  read(offset: number, into: Uint8Array): void {
    into.set(this.cache.subarray(offset, offset + into.length));
  }

  write(offset: number, from: Uint8Array): void {
    this.operate(offset, from.length, () => this.cache.set(from, offset));
  }

  writeZeroes(offset: number, length: number): void {
    this.operate(offset, length, () => this.cache.fill(0, offset, offset + length));
  }

  discard(offset: number, length: number): void {
    this.writeZeroes(offset, length);
  }

  flush(): void {
    this.operate(0, 0, () => {
      for (const sector of this.dirty) this.land(this.medium, sector);
      this.dirty.clear();
    });
  }

  private operate(offset: number, length: number, does: () => void): void {
    this.power.check();
    const number = this.power.operations++;
    this.power.check();
    if (this.failing.has(number)) {
      // What a failing write leaves in the cache is not written back either.
      if (length > 0) does();
      this.dirty.clear();
      throw new DmError('EIO', `operation ${number} fails`);
    }
    for (let at = offset; at < offset + length; at += 512) this.dirty.add(Math.floor(at / 512));
    does();
  }

  private land(image: Uint8Array, sector: number): void {
    image.set(this.cache.subarray(sector * 512, sector * 512 + 512), sector * 512);
  }
}

describe.each(LAYOUTS)('faults-P3: a medium that forgets, %s', (layout) => {
  it.each([
    { isClean: true, scrubs: false },
    { isClean: false, scrubs: false },
    { isClean: false, scrubs: true },
  ])('clean $isClean, scrub $scrubs', async ({ isClean, scrubs }) => {
    const plan = { layout, isClean, scrubs };
    const { operations } = await forgetfulRun(plan, new Set(), Number.POSITIVE_INFINITY);
    const rng = new Prng(1);
    let failures = 0;
    for (let failing = 0; failing < operations; failing++) {
      // Also with the operation that follows the next attempt's first ones.
      for (const second of [-1, failing + 1, failing + 2]) {
        const all = new Set([failing, second]);
        const run = await forgetfulRun(plan, all, Number.POSITIVE_INFINITY);
        failures += run.failures;
        for (let cut = failing; cut <= run.operations; cut += 1 + rng.below(second < 0 ? 4 : 12)) {
          await forgetfulRun(plan, all, cut);
        }
      }
    }
    expect(failures).toBeGreaterThan(20);
  });
});

async function forgetfulRun(
  { layout, isClean, scrubs }: { layout: 'interleaved' | 'separate'; isClean: boolean; scrubs: boolean },
  failing: ReadonlySet<number>,
  cut: number,
): Promise<{ operations: number; failures: number }> {
  const power = new PowerSupply();
  const { bytes, content } = startImages(layout, isClean);
  // The start is not in question here.
  const quiet = bytes.map((image) => new ForgetfulDisk(image, new PowerSupply(), new Set()));
  await attach(quiet);
  const begun = quiet.map((disk) => disk.image(new Prng(1)));
  const disks = begun.map((image) => new ForgetfulDisk(image, power, failing));
  const start = new PowerSupply();
  const late = disks.map((disk) => withStart(disk, start));
  const rig = await attach(late);
  start.operations = 1;
  const story = new Story(rig, content, power, new Prng(cut === Number.POSITIVE_INFINITY ? 1 : cut));
  if (!isClean) rig.target.state.setSettled(0, false);
  power.cutAt = cut;
  const where = `failing ${[...failing]}, scrub ${scrubs}`;
  let failures = 0;
  const attempt = (work: () => void) => {
    try {
      work();
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      failures++;
    }
  };
  try {
    if (scrubs) rig.write('scrub', 'start');
    story.writes();
    attempt(() => story.flush());
    story.writes();
    for (let tries = 0; tries < 3; tries++) attempt(() => story.flush());
    story.expectReads(where);
    rig.target.flush();
  } catch (error) {
    if (!`${error}`.includes('power failed')) throw error;
  }
  const images = disks.map((disk) => disk.image(story.rng));
  await story.expectCut(images, Math.min(cut, power.operations), where);
  return { operations: power.operations, failures };
}

/** Until `begun.operations` is 1, changes and flushes do nothing: the start has been made already. */
function withStart(disk: ForgetfulDisk, begun: PowerSupply): BlockDevice {
  const isBegun = () => begun.operations > 0;
  return {
    size: disk.size,
    read: (offset, into) => disk.read(offset, into),
    write: (offset, from) => isBegun() && disk.write(offset, from),
    flush: () => isBegun() && disk.flush(),
    discard: (offset, length) => isBegun() && disk.discard(offset, length),
    writeZeroes: (offset, length) => isBegun() && disk.writeZeroes(offset, length),
  };
}

describe('faults-P5: a group whose tables are damaged between a write and its commit', () => {
  const damage = (images: Images) => {
    images.table(1, 0).fill(0x55, 20, 200);
    images.table(1, 1).fill(0x55, 30, 300);
  };

  it.each(LAYOUTS)('its flush fails, the other groups are written (%s)', async (layout) => {
    const images = new Images({ layout });
    const rig = await images.attach();
    const data = new Uint8Array(512 * 3).fill(9);
    rig.target.write(61 * 512, data);
    damage(images);
    expect(codeOf(() => rig.target.flush())).toBe('EIO');
    expectSameBytes(images.data(61), data.subarray(0, 512), 'group 0');
    expectSameBytes(images.data(62), images.content.subarray(62 * 512, 63 * 512), 'group 1');
    expect(codeOf(() => rig.target.flush())).toBe('none');
    expect(rig.read('errors')).toBe('count 1\ngroup 1\n');
    expect(rig.events).toEqual(['imd_damaged group=1 lost=M1,M2', 'write_lost group=1']);
  });

  it('another thread, or the background, commits first', async () => {
    const images = new Images();
    const rig = await images.attach();
    const background = rig.openView();
    rig.target.write(70 * 512, new Uint8Array(512));
    damage(images);
    // Neither the attendant's commit nor one that makes room is the user's flush.
    (background as unknown as { committer: { commit(): void } }).committer.commit();
    expect(codeOf(() => rig.target.flush())).toBe('EIO');
    expect(codeOf(() => rig.target.flush())).toBe('none');
  });

  it('a write that only has to wait for room does not fail for it', async () => {
    const images = new Images();
    const rig = await images.attach({ groups: 4, slots: 62 });
    rig.target.write(70 * 512, new Uint8Array(512));
    damage(images);
    expect(codeOf(() => rig.target.write(0, new Uint8Array(62 * 512)))).toBe('none');
    expect(codeOf(() => rig.target.flush())).toBe('EIO');
    expectSameBytes(images.data(5), new Uint8Array(512), 'the other group');
  });
});
