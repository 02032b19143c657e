/**
 * The control files, the status line, and what is done in the background.
 *
 *   control-P1  `scrub` takes `start` and `stop`, EBUSY while one runs, EINVAL otherwise; a stopped one starts anew, alone.
 *   control-P2  A scrub finds what is corrupt before anybody reads it, and settles a volume that was not closed, so that it is
 *               clean after this time.
 *   control-P3  `errors` lists what is bad until it is healed, and counts what was found; the status line counts too.
 *   control-P4  What nobody flushes is committed before long; when that fails, it is told once, and it is tried again.
 *   control-P5  A volume is marked clean only when all of it is durable and settled.
 */
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import { quoteWord } from '../../../src/table.js';
import { csum } from '../../../src/targets/csum/index.js';
import { Scrub } from '../../../src/targets/csum/scrub.js';
import { pause, until } from '../../threads.js';
import { codeOf, contentOf, expectSameBytes, FaultyDisk, makeRig, readBytes } from '../harness.js';
import { Images, LAYOUTS } from './images.js';
import { attach, attachImages } from './rig.js';

const filled = (value: number, sectors = 1) => new Uint8Array(512 * sectors).fill(value);

/** A scrub whose groups are counted, and bad where `isBad` says so. */
function makeScrub(groups: number, isBad: (group: number) => boolean = () => false) {
  const seen: number[] = [];
  const events: string[] = [];
  let requests = 0;
  const scrub = new Scrub(groups, {
    verify: (group) => {
      seen.push(group);
      return isBad(group) ? 'bad' : undefined;
    },
    requests: () => requests++,
    raise: (event) => events.push(event),
  });
  return { scrub, seen, events };
}

describe('control-P1: the scrub', () => {
  it('takes start and stop, and says where it is', async () => {
    const { scrub, seen, events } = makeScrub(40, (group) => group % 10 === 3);
    expect(scrub.report()).toBe('state idle\npercent 0\ngroups 40\ngroups_done 0\ngroups_bad 0\n');
    expect(codeOf(() => scrub.command('pause'))).toBe('EINVAL');
    expect(codeOf(() => scrub.command(''))).toBe('EINVAL');
    scrub.command('stop');
    expect(scrub.report()).toContain('state idle');
    scrub.command('start');
    expect(scrub.report()).toBe('state running\npercent 40\ngroups 40\ngroups_done 16\ngroups_bad 2\n');
    expect(codeOf(() => scrub.command('start'))).toBe('EBUSY');
    await until('it is done', () => scrub.report().includes('done\n'));
    expect(scrub.report()).toBe('state done\npercent 100\ngroups 40\ngroups_done 40\ngroups_bad 4\n');
    expect(seen).toEqual(Array.from({ length: 40 }, (_, group) => group));
    expect(events).toEqual(['scrub_done groups=40 bad=4']);
  });

  it('goes no further when it is stopped, and starts from the beginning', async () => {
    const { scrub, seen, events } = makeScrub(100);
    scrub.command('start');
    scrub.command('stop');
    await pause(30);
    expect([scrub.report().split('\n')[0], seen.length, events]).toEqual(['state stopped', 16, []]);
    scrub.command('start');
    await until('it is done', () => scrub.report().includes('state done'));
    expect(seen.slice(16)).toEqual(Array.from({ length: 100 }, (_, group) => group));
  });

  it('runs once, however often it was stopped and started', async () => {
    const { scrub, seen, events } = makeScrub(2000);
    for (let times = 0; times < 20; times++) {
      scrub.command('start');
      scrub.command('stop');
    }
    scrub.command('start');
    const before = seen.length;
    // The first run to wake again goes on with its work: one step between two turns of 4 ms, not twenty.
    await until('it goes on', () => seen.length > before);
    expect(seen.length - before).toBe(16);
    scrub.command('stop');
    expect(events).toEqual([]);
  });
});

describe.each(LAYOUTS)('%s', (layout) => {
  it('control-P2, control-P3: finds what is corrupt', async () => {
    const images = new Images({ layout });
    images.flipData(7);
    images.flipData(149);
    images.table(1, 0)[100]! ^= 1;
    const rig = await images.attach();
    rig.write('scrub', 'start\n');
    await until('it is done', () => rig.read('scrub').includes('state done'));
    expect(rig.read('scrub')).toContain('groups 3\ngroups_done 3\ngroups_bad 2\n');
    expect(rig.read('errors')).toBe('count 3\nsector 7\nsector 149\ngroup 1\n');
    expect(rig.target.statusArgs()).toBe('errors:3 pending:0');
    expect(rig.events.map((event) => event.split(' ').slice(0, 2).join(' '))).toEqual([
      'corrupt sector=7',
      'imd_damaged group=1',
      'corrupt sector=149',
      'scrub_done groups=3',
    ]);
  });

  it('control-P2: looks at the medium, not at what a thread has cached', async () => {
    const images = new Images({ layout });
    const rig = await images.attach();
    contentOf(rig.target);
    images.table(2, 1)[200]! ^= 4;
    rig.write('scrub', 'start');
    expect(rig.read('errors')).toBe('count 1\ngroup 2\n');
  });

  it('control-P2: what is staged is not looked for on the medium', async () => {
    const images = new Images({ layout });
    images.flipData(7);
    const rig = await images.attach();
    rig.target.write(7 * 512, filled(1));
    rig.write('scrub', 'start');
    expect(rig.read('scrub')).toContain('groups_bad 0');
  });

  it('control-P2, control-P5: settles what was not closed', async () => {
    for (const scrubs of [false, true]) {
      const images = new Images({ layout });
      images.halfUpdate([70, 71]);
      images.setState('in-use');
      const rig = await images.attach();
      if (scrubs) rig.write('scrub', 'start');
      rig.target.write(0, filled(1));
      rig.target.flush();
      rig.target.close();
      expect(images.state).toBe(scrubs ? 'clean' : 'in-use');
      const again = await images.attach();
      expectSameBytes(
        readBytes(again.target, 512, 149 * 512),
        images.content.subarray(512),
        `scrub ${scrubs}`,
      );
      expect(again.read('errors')).toBe('count 0\n');
    }
  });

  it.each([1, 31, 32, 33, 64, 65])('control-P5: %i groups are settled one by one', async (groups) => {
    const images = new Images({ layout, sectors: groups * 62 });
    images.setState('in-use');
    const rig = await images.attach();
    for (let group = 0; group < groups; group++) {
      rig.target.close();
      expect(images.state, `${group} of ${groups}`).toBe('in-use');
      rig.target.write(group * 62 * 512, filled(1));
      rig.target.flush();
    }
    rig.target.close();
    expect(images.state).toBe('clean');
  });

  it('control-P5: not while something is staged, or could not be committed', async () => {
    const images = new Images({ layout });
    const disks = images.bytes.map((image) => new FaultyDisk(new SimulatedDisk(image)));
    const { target } = await attach(disks);
    const state = () => disks[0]!.disk.content()[14];
    target.write(0, filled(1));
    target.close();
    expect(state()).toBe(2);
    for (const at of [1, 2, 3]) {
      for (const disk of disks) disk.fail({ at, landed: true });
      expect(codeOf(() => target.flush())).toBe('EIO');
      for (const disk of disks) disk.repair();
      target.close();
      expect(state()).toBe(2);
    }
    target.flush();
    target.close();
    expect(state()).toBe(3);
  });

  it('control-P5: the mark comes after what it vouches for, and goes before the next change', async () => {
    const images = new Images({ layout });
    const power = new PowerSupply();
    const disks = images.bytes.map((image) => new SimulatedDisk(image, { power }));
    const { target } = await attach(disks);
    const model = images.content.slice();
    for (const rel of [5, 6, 70]) {
      target.write(rel * 512, filled(rel));
      target.flush();
      model.fill(rel, rel * 512, rel * 512 + 512);
    }
    target.close();
    const closed = power.operations;
    const second = (await attach(disks)).target;
    second.write(5 * 512, filled(99));
    second.flush();
    const rng = new Prng(4);
    for (let cut = 0; cut <= power.operations; cut++) {
      const left = disks.map((disk) => disk.imageAt(cut, rng));
      const rig = await attachImages(left);
      const found = contentOf(rig.target);
      if (cut < closed) continue;
      if (found[5 * 512] === 99) found.fill(5, 5 * 512, 6 * 512);
      expectSameBytes(found, model, `cut ${cut}`);
    }
  });

  it('control-P4: commits what nobody flushes', async () => {
    const images = new Images({ layout });
    const rig = await images.attach();
    const stop = rig.target.commitRegularly();
    rig.target.write(10 * 512, filled(5));
    expect(rig.target.statusArgs()).toBe('errors:0 pending:1');
    await until('it is committed', () => rig.target.statusArgs() === 'errors:0 pending:0');
    expectSameBytes(images.data(10), filled(5), 'on the medium');
    rig.target.writeZeroes(10 * 512, 512);
    await until('zeros are committed', () => images.data(10)[0] === 0);
    stop();
    expect(rig.events).toEqual([]);
  });

  it('control-P4: commits early when a stage is half full', async () => {
    const images = new Images({ layout });
    const rig = await images.attach({ groups: 3, slots: 100 });
    const stop = rig.target.commitRegularly();
    const began = performance.now();
    for (let round = 0; round < 24; round++) {
      rig.target.write(0, filled(round + 1, 60));
      await until('it is committed', () => rig.target.statusArgs() === 'errors:0 pending:0');
    }
    // Not once a second.
    expect(performance.now() - began).toBeLessThan(15_000);
    stop();
  });

  it('control-P4: tells of a failure once, and tries again', async () => {
    const images = new Images({ layout });
    const disks = images.bytes.map((image) => new FaultyDisk(new SimulatedDisk(image)));
    const rig = await attach(disks);
    rig.target.discard(0, 512);
    for (const disk of disks) disk.fail({ at: 1, landed: false, lasting: true });
    const stop = rig.target.commitRegularly();
    rig.target.state.activity.wake();
    await until('it is told', () => rig.events.length > 0);
    const operations = () => disks.reduce((sum, disk) => sum + disk.operations, 0);
    for (let tries = 0; tries < 6; tries++) {
      const before = operations();
      rig.target.state.activity.wake();
      await until('it tries again', () => operations() > before);
    }
    // The first attempt fails in another operation than those after it, which begin with a flush.
    expect(rig.events).toEqual([
      expect.stringMatching(/^commit_failed errno=5 reason="simulated disk: injected read error, /),
      expect.stringMatching(/^commit_failed errno=5 reason="simulated disk: injected flush error, /),
    ]);
    for (const disk of disks) disk.repair();
    rig.target.state.activity.wake();
    await until('it works', () => !rig.target.state.hasFailed);
    expectSameBytes(readBytes(rig.target, 0, 512), filled(0), 'zeros');
    stop();
  });

  it('control-P4: makes up for a scrub that failed, so that the next one settles all', async () => {
    const images = new Images({ layout });
    images.halfUpdate([70, 71]);
    images.setState('in-use');
    const disks = images.bytes.map((image) => new FaultyDisk(new SimulatedDisk(image)));
    const rig = await attach(disks);
    const stop = rig.target.commitRegularly();
    const tables = disks.at(-1)!;
    for (let at = 1; !rig.target.state.hasFailed; at++) {
      tables.fail({ at, landed: false });
      rig.write('scrub', 'start');
      expect(rig.read('scrub')).toContain('groups_bad 1\n');
    }
    tables.repair();
    rig.target.state.activity.wake();
    await until('it is over', () => !rig.target.state.hasFailed);
    rig.write('scrub', 'start');
    stop();
    expect(rig.read('scrub')).toContain('groups_bad 0\n');
    rig.target.close();
    expect(disks[0]!.disk.content()[14]).toBe(3);
  });

  it('control-P4: nothing is done once it is over', async () => {
    const images = new Images({ layout });
    const rig = await images.attach();
    const stop = rig.target.commitRegularly();
    rig.write('scrub', 'start');
    stop();
    rig.target.write(10 * 512, filled(5));
    await pause(20);
    rig.target.state.activity.wake();
    await pause(20);
    expect(rig.target.statusArgs()).toBe('errors:0 pending:1');
  });
});

describe('control-P3: the list of what is bad', () => {
  it('is as long as there is room; more are counted', async () => {
    const images = new Images({ sectors: 4200 });
    for (let rel = 0; rel < 4150; rel++) images.flipData(rel);
    const rig = await images.attach();
    rig.write('scrub', 'start');
    await until('it is done', () => rig.read('scrub').includes('state done'));
    const lines = rig.read('errors').trimEnd().split('\n');
    expect([lines[0], lines.length, lines[1], lines.at(-1)]).toEqual([
      'count 4150',
      4097,
      'sector 0',
      'sector 4095',
    ]);
    rig.target.write(10 * 512, filled(1, 4000));
    expect(rig.read('errors').split('\n').slice(0, 12)).toEqual([
      'count 4150',
      ...Array.from({ length: 10 }, (_, sector) => `sector ${sector}`),
      'sector 4010',
    ]);
    rig.target.write(0, filled(1, 4200));
    expect(rig.read('errors')).toBe('count 4150\n');
  });
});

describe('the table line', () => {
  it('comes back as it was, and what is wrong with it is said', async () => {
    const [data, imd] = new Images({ layout: 'separate' }).bytes.map((image) => new MemoryDevice(image));
    const args = `${quoteWord('a b')} 0 @imd 0`;
    const rig = await makeRig(csum, args, { 'a b': data!, '@imd': imd! });
    expect(rig.target.tableArgs()).toBe(args);
    for (const [args, message] of [
      ['x', 'csum takes 2 or 4 arguments, found 1'],
      ['x 0 y', 'csum takes 2 or 4 arguments, found 3'],
      ['x y', 'the data offset (sectors)'],
      ['x 0 x -1', 'the imd offset (sectors)'],
    ] as const) {
      await expect(makeRig(csum, args, { x: data! })).rejects.toThrow(message);
    }
  });
});
