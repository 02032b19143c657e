/**
 * csum as it is meant to be used: formatted, a file system on a loop device on MNT/NAME/device; then the backing files are
 * damaged behind its back, or the daemon is killed. Where a sector lies there is computed by the tests' own volume.
 */
import { closeSync, openSync, readSync, statSync, writeSync } from 'node:fs';
import { describe, expect } from 'vitest';
import { type NaivePlacement, naiveDataSector } from '../targets/csum/naive-volume.js';
import {
  changeTree,
  createTarget,
  endMount,
  expectKept,
  killUnderFsyncs,
  mountWith,
  type Promises,
  refusedTable,
  sectorOf,
} from './fs-work.js';
import { type Lab, type Mount, mountTest, until } from './harness.js';

const SECTOR_BYTES = 512;
const KILLS = 2;

interface Layout {
  readonly placement: NaivePlacement;
  /** Start offsets, sectors. */
  readonly dataStart: number;
  readonly imdStart: number;
  readonly mkfs: string;
}

const LAYOUTS: Record<string, Layout> = {
  'tables among the data': { placement: 'interleaved', dataStart: 0, imdStart: 0, mkfs: '-b 4096' },
  'tables on another device': { placement: 'separate-r', dataStart: 24, imdStart: 9, mkfs: '-b 1024' },
};

/** A volume in files of a lab, and a file system on it. */
class World {
  mount!: Mount;
  loop = '';
  fs = '';
  /** Of the volume. */
  sectors = 0;
  /** Words of the command line that name it. */
  readonly words: string[];

  private constructor(
    readonly lab: Lab,
    readonly layout: Layout,
  ) {
    const { placement, dataStart, imdStart } = layout;
    this.words = [lab.path('data.img')];
    if (placement !== 'interleaved') {
      this.words.push(lab.path('imd.img'), '--offset', `${dataStart}`, '--imd-offset', `${imdStart}`);
    }
  }

  static async format(lab: Lab, layout: Layout): Promise<World> {
    const world = new World(lab, layout);
    await lab.sh('truncate -s 32M data.img; truncate -s 2M imd.img');
    const formatted = await lab.dmfuseOk('csum', 'format', ...world.words);
    world.sectors = Number(/^formatted: (\d+) sectors /.exec(formatted)![1]);
    return world;
  }

  get table(): string {
    const { placement, dataStart, imdStart } = this.layout;
    const imd = placement === 'interleaved' ? '' : ` ${this.lab.path('imd.img')} ${imdStart}`;
    return `csum ${this.lab.path('data.img')} ${dataStart}${imd}`;
  }

  get mkfs(): string {
    return `mkfs.ext4 -q -E lazy_itable_init=0 ${this.layout.mkfs}`;
  }

  get device(): string {
    return this.mount.path('x/device');
  }

  /** Mounts dmfuse, and the file system, with a piece of shell about `$loop` in between. */
  async attach(between = ''): Promise<void> {
    const { lab } = this;
    this.mount = await mountWith(lab, [['x', this.table]]);
    this.loop = await lab.loop(this.device);
    await lab.sh(`loop=${this.loop}\n${between}`);
    this.fs = await lab.mountFs(this.loop);
  }

  /** All away again, with a sound file system. */
  async detach(): Promise<void> {
    const { lab, fs, loop, mount } = this;
    await lab.sh(`umount ${fs}; e2fsck -fn ${loop}`);
    await lab.unloop(loop);
    await endMount(lab, mount);
  }

  async check() {
    return await this.lab.dmfuse('csum', 'check', ...this.words);
  }

  async expectSound(): Promise<void> {
    expect(await this.check()).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(new RegExp(`^sound: ${this.sectors} sectors in \\d+ groups\n$`)),
      stderr: '',
    });
  }

  /** Where a sector of the volume is on the data device, in sectors. */
  place(sector: number): number {
    return naiveDataSector({ ...this.layout, order: 'be', sectors: this.sectors }, sector);
  }

  /** Flips bytes of a sector, behind the volume's back. Returns what it held. */
  damage(sector: number): Buffer {
    const fd = openSync(this.lab.path('data.img'), 'r+');
    const before = Buffer.alloc(SECTOR_BYTES);
    readSync(fd, before, 0, SECTOR_BYTES, this.place(sector) * SECTOR_BYTES);
    const after = Buffer.from(before);
    for (const at of [0, 100, 101, 511]) after[at]! ^= 0x41;
    writeSync(fd, after, 0, SECTOR_BYTES, this.place(sector) * SECTOR_BYTES);
    closeSync(fd);
    return before;
  }

  /** Verifies everything, in the background of whatever else there is. */
  async scrub(): Promise<string> {
    const { lab, mount } = this;
    await lab.sh(`echo start >${mount.path('x/scrub')}`);
    await until(() => mount.read('x/scrub').startsWith('state done'), 'the scrub to be done');
    return mount.read('x/scrub');
  }

  async corruptEvents(): Promise<string[]> {
    const events = await this.mount.events('x');
    return events.flatMap((event) => /^corrupt sector=\d+/.exec(event) ?? []);
  }
}

/**
 * Reads a file in pieces of 4 KiB: numbers of those that are EIO. All others must be as in another file. Past the page
 * cache, which reads larger pieces ahead.
 */
async function badPieces(lab: Lab, file: string, original: string): Promise<number[]> {
  const answer = await lab.python(
    `
import errno, json, mmap, os, sys
fd, piece, bad = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096), []
original = open(sys.argv[2], 'rb').read()
assert os.fstat(fd).st_size == len(original)
for i in range((len(original) + 4095) // 4096):
    expected = original[i * 4096:i * 4096 + 4096]
    try:
        assert os.preadv(fd, [piece], i * 4096) == len(expected), i
        assert piece[:len(expected)] == expected, i
    except OSError as e:
        assert e.errno == errno.EIO, e
        bad.append(i)
print(json.dumps(bad))`,
    file,
    original,
  );
  return JSON.parse(answer) as number[];
}

for (const [title, layout] of Object.entries(LAYOUTS)) {
  describe(`csum, ${title}`, () => {
    mountTest('a file system lives on it, and everything verifies', async (lab) => {
      const world = await World.format(lab, layout);
      await world.expectSound();
      await world.attach(`${world.mkfs} $loop`);
      expect(Number(await lab.ok('blockdev', '--getsz', world.loop))).toBe(world.sectors);
      await changeTree(lab, world.fs, 1, 5);
      await lab.sh(`rm -r ${world.fs}/objects; sync -f ${world.fs}; fstrim ${world.fs}`);
      await changeTree(lab, world.fs, 2);
      const tree = await lab.treeState(world.fs);
      await world.detach();
      await world.expectSound();

      await world.attach();
      expect(await lab.treeState(world.fs)).toBe(tree);
      await changeTree(lab, world.fs, 3);
      expect(await world.scrub()).toMatch(/^groups_bad 0$/m);
      expect(world.mount.read('x/errors')).toBe('count 0');
      expect(world.mount.read('x/status')).toMatch(
        new RegExp(`^0 ${world.sectors} csum errors:0 pending:\\d+$`),
      );
      expect(await world.corruptEvents()).toEqual([]);
      await world.detach();
      await world.expectSound();
    });

    mountTest(
      'damage is EIO where it is and nowhere else, is named, and is healed by writing',
      async (lab) => {
        const world = await World.format(lab, layout);
        await world.attach(`${world.mkfs} $loop`);
        await lab.sh(
          `for name in a b c d; do head -c 100000 /dev/urandom >$name; cp $name ${world.fs}; done`,
        );
        // Sector 3 of piece 5 of a, sector 6 of piece 2 of b, and one that no file has any more.
        const inA = await sectorOf(lab, `${world.fs}/a`, 5 * 4096 + 3 * SECTOR_BYTES);
        const inB = await sectorOf(lab, `${world.fs}/b`, 2 * 4096 + 6 * SECTOR_BYTES);
        const unused = await sectorOf(lab, `${world.fs}/d`, 50_000);
        await lab.sh(`rm ${world.fs}/d`);
        await world.detach();
        const [before] = [inA, inB, unused].map((sector) => world.damage(sector));
        await lab.sh(`cmp -n 512 <(tail -c +$((5 * 4096 + 3 * 512 + 1)) a | head -c 512) \
        <(printf %s '${before!.toString('base64')}' | base64 -d)`);

        await world.attach();
        const { mount, fs } = world;
        expect(mount.read('x/errors')).toBe('count 0');
        expect(await badPieces(lab, `${fs}/a`, 'a')).toEqual([5]);
        expect(await badPieces(lab, `${fs}/a`, 'a')).toEqual([5]);
        await lab.sh(`cmp ${fs}/c c`);
        expect(mount.read('x/errors')).toBe(`count 1\nsector ${inA}`);
        expect(await world.corruptEvents()).toEqual([`corrupt sector=${inA}`]);
        // Of the device it is that sector alone.
        const readSector = (sector: number) =>
          lab.shell(`dd if=${world.device} bs=512 skip=${sector} count=1 iflag=direct status=none | wc -c`);
        for (const sector of [inA - 1, inA + 1])
          expect(await readSector(sector)).toMatchObject({ stdout: '512\n' });
        expect(await readSector(inA)).toMatchObject({
          stdout: '0\n',
          stderr: expect.stringContaining('Input/output error'),
        });

        expect(await world.scrub()).toBe(
          ['state done', 'percent 100', ...groupLines(world.sectors, [inA, inB, unused])].join('\n'),
        );
        const listed = [inA, inB, unused].sort((x, y) => x - y).map((sector) => `sector ${sector}`);
        expect(mount.read('x/errors').split('\n')).toEqual(['count 3', ...listed]);
        expect((await world.corruptEvents()).sort()).toEqual(
          [inA, inB, unused].map((sector) => `corrupt sector=${sector}`).sort(),
        );
        expect(
          (await mount.events('x')).some((event) => /^scrub_done groups=\d+ bad=[123] /.test(event)),
        ).toBe(true);
        await world.detach();

        const json = await lab.dmfuse('csum', 'check', '--json', ...world.words);
        const found = JSON.parse(json.stdout);
        expect([json.code, found.state, found.badSectorsTotal]).toEqual([2, 'damaged', 3]);
        expect(found.badSectors.map(({ sector }: { sector: number }) => `sector ${sector}`)).toEqual(listed);
        for (const { sector, deviceSector } of found.badSectors) {
          expect(deviceSector).toBe(world.place(sector));
        }

        // Writing heals: the sector of the device, the file, and a trim.
        await world.attach();
        expect(await badPieces(lab, `${world.fs}/a`, 'a')).toEqual([5]);
        expect(await badPieces(lab, `${world.fs}/b`, 'b')).toEqual([2]);
        const errors = () => world.mount.read('x/errors').split('\n').slice(1);
        expect(errors()).toEqual([inA, inB].sort((x, y) => x - y).map((sector) => `sector ${sector}`));
        await lab.sh(`dd if=a bs=512 skip=43 count=1 status=none |
        dd of=${world.device} bs=512 seek=${inA} conv=notrunc status=none`);
        expect(errors()).toEqual([`sector ${inB}`]);
        await lab.sh(`dd if=b of=${world.fs}/b bs=4096 skip=2 seek=2 count=1 conv=notrunc,fsync status=none
        cmp ${world.fs}/a a; cmp ${world.fs}/b b
        echo '${unused} 1' >${world.mount.path('x/discard')}`);
        expect(errors()).toEqual([]);
        expect(await world.scrub()).toMatch(/^groups_bad 0$/m);
        expect(world.mount.read('x/errors')).toBe('count 2');
        await world.detach();
        await world.expectSound();
      },
    );

    mountTest('kill -9 under load: what was fsynced is there, and there is no false alarm', async (lab) => {
      const world = await World.format(lab, layout);
      await world.attach(`${world.mkfs} $loop`);
      const kept: Promises[] = [];
      for (let seed = 1; seed <= KILLS; seed++) {
        kept.push(await killUnderFsyncs(lab, world.mount, { ...world, seed }));
        expect(await world.check()).toMatchObject({
          code: 0,
          stdout: expect.stringMatching(
            /^sound: .*; not closed in good order, so the older tables count too$/m,
          ),
        });
        // The kernel replays the journal before the file system is looked at.
        await world.attach(`cat ${lab.path('mnt/x/device')} >/dev/null`);
        for (const promises of kept) await expectKept(lab, world.fs, promises);
        await lab.sh(`umount ${world.fs}; e2fsck -fn ${world.loop}; cat ${world.device} >/dev/null
            mount ${world.loop} ${world.fs}; fstrim ${world.fs}`);
        expect(world.mount.read('x/errors')).toBe('count 0');
        expect((await world.mount.events('x')).filter((event) => !event.startsWith('refused'))).toEqual([]);
      }
      // The scrub settles what the kills have left open.
      expect(await world.scrub()).toMatch(/^groups_bad 0$/m);
      await world.detach();
      await world.expectSound();
    });
  });
}

/** The last lines of a scrub that is done. */
function groupLines(sectors: number, bad: readonly number[]): string[] {
  const groups = Math.ceil(sectors / 62);
  const groupsBad = new Set(bad.map((sector) => Math.trunc(sector / 62))).size;
  return [`groups ${groups}`, `groups_done ${groups}`, `groups_bad ${groupsBad}`];
}

mountTest('the scrub takes `start` and `stop` and nothing else', async (lab) => {
  const { table } = await World.format(lab, LAYOUTS['tables among the data']!);
  const mount = await mountWith(lab, [['x', table]]);
  const scrub = mount.path('x/scrub');
  expect(mount.read('x/scrub')).toMatch(/^state idle\npercent 0\ngroups \d+\ngroups_done 0\ngroups_bad 0$/);
  for (const word of ['begin', 'START', '1', 'start now', 'startstop']) {
    expect(await lab.shell(`echo '${word}' >${scrub}`)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('Invalid argument'),
    });
    expect((await mount.events('x')).at(-1)).toMatch(/^refused file=scrub errno=22 reason="/);
  }
  await lab.sh(`echo stop >${scrub}`);
  expect(mount.read('x/scrub')).toMatch(/^state idle$/m);
  // It may be faster than `stop`.
  await until(async () => {
    await lab.sh(`echo start >${scrub}; echo stop >${scrub}`);
    const [state] = mount.read('x/scrub').split('\n');
    expect(['state stopped', 'state done']).toContain(state);
    return state === 'state stopped';
  }, 'a scrub to be stopped');
  await lab.sh(`echo start >${scrub}`);
  await until(() => mount.read('x/scrub').startsWith('state done\npercent 100\n'), 'the scrub to be done');
});

describe('csum refuses', () => {
  mountTest('what was never formatted, and names the command that does it', async (lab) => {
    await lab.sh('head -c 3M /dev/urandom >d.img; head -c 1M /dev/urandom >i.img; cp d.img before');
    const [data, imd] = [lab.path('d.img'), lab.path('i.img')];
    const mount = await mountWith(lab);
    for (const table of [`csum ${data} 0`, `csum ${data} 8 ${imd} 2`]) {
      const reason = await refusedTable(lab, mount, table);
      expect(await lab.dmfuse('create', mount.point, 'x', table)).toMatchObject({
        code: 1,
        stderr: `dmfuse: create x: ${reason}\n`,
      });
      expect(reason).toMatch(/: not a csum volume; `dmfuse csum format .*` prepares it$/);
      await lab.sh('cmp d.img before');
      const [, words] = /`dmfuse (.*)`/.exec(reason)!;
      expect(await lab.dmfuseOk(...words!.split(' '))).toMatch(/^formatted: /);
      await createTarget(lab, mount, 'x', table);
      await lab.sh(`cat ${mount.path('x/device')} >/dev/null; rmdir ${mount.path('x')}; cp before d.img`);
    }
    // Another target is formatted through its device.
    await createTarget(lab, mount, 'low', `linear ${data} 0`);
    const reason = await refusedTable(lab, mount, 'csum @low 0');
    const [, words] = /`dmfuse (.*)`/.exec(reason)!;
    await lab.dmfuseOk(...words!.replace('MNT', mount.point).split(' '));
    await createTarget(lab, mount, 'x', 'csum @low 0');
    await lab.sh(`cat ${mount.path('x/device')} >/dev/null`);
  });

  mountTest('tables that do not fit, and changes nothing', async (lab) => {
    await lab.sh(
      'truncate -s 3M d.img; truncate -s 1M i.img; cp d.img e.img; cp i.img j.img; truncate -s 3M f.img',
    );
    const [d, i, e, j, f] = ['d.img', 'i.img', 'e.img', 'j.img', 'f.img'].map((name) => lab.path(name)) as [
      string,
      string,
      string,
      string,
      string,
    ];
    await lab.dmfuseOk('csum', 'format', d, i);
    await lab.dmfuseOk('csum', 'format', e, j);
    await lab.dmfuseOk('csum', 'format', f);
    const mount = await mountWith(lab);
    const hashes = () => lab.ok('sha256sum', d, i, e, j, f);
    const before = await hashes();
    for (const [table, reason] of [
      ['csum', /^csum takes 2 or 4 arguments, found 0: csum <data dev>/],
      [`csum ${d}`, /^csum takes 2 or 4 arguments, found 1/],
      [`csum ${d} 0 ${i}`, /^csum takes 2 or 4 arguments, found 3/],
      [`csum ${d} 0 ${i} 0 0`, /^csum takes 2 or 4 arguments, found 5/],
      [`csum ${d} x ${i} 0`, /the data offset \(sectors\)/],
      [`csum ${d} 0 ${i} -1`, /the imd offset \(sectors\)/],
      [`csum ${d} 0`, /formatted with its tables on an imd device, which must be given too$/],
      [`csum ${f} 0 ${i} 0`, /formatted with its tables among its data, without an imd device; leave out/],
      [`csum ${d} 0 ${j} 0`, /these two do not belong together/],
      [`csum ${i} 0 ${d} 0`, /i\.img: holds the tables of a csum volume; its data device comes first$/],
      [`csum ${d} 0 ${d} 0`, /d\.img: in use by another target of this mount$/],
      [`csum ${lab.path('none')} 0`, /none: no such file or device$/],
      [`csum ${f} 9999`, /f\.img: has 6144 sectors, none at offset 9999$/],
      [`0 5952 csum ${f} 0`, /f\.img: the volume has 5951 sectors, the table wants 5952$/],
    ] as const) {
      expect(await refusedTable(lab, mount, table)).toMatch(reason);
    }
    expect(await hashes()).toBe(before);
    await endMount(lab, mount);
    expect(await hashes()).toBe(before);
  });
});

mountTest(
  'a device has the sectors that were told: all of the volume, or as many as the table says',
  async (lab) => {
    await lab.sh('truncate -s 3M d.img; truncate -s 1M i.img');
    const [data, imd] = [lab.path('d.img'), lab.path('i.img')];
    const mount = await mountWith(lab);
    const told = async (...args: string[]) => {
      const formatted = await lab.dmfuseOk('csum', 'format', '--force', ...args);
      return Number(/^formatted: (\d+) sectors/.exec(formatted)![1]);
    };
    const expectSectors = async (table: string, sectors: number) => {
      await createTarget(lab, mount, 'x', table);
      expect(statSync(mount.path('x/device')).size).toBe(sectors * SECTOR_BYTES);
      expect([mount.read('x/size'), mount.read('x/status').split(' ')[1]]).toEqual([
        `${sectors}`,
        `${sectors}`,
      ]);
      expect(Number(await lab.sh(`wc -c <${mount.path('x/device')}`))).toBe(sectors * SECTOR_BYTES);
      const line = mount.read('x/table');
      await lab.sh(`rmdir ${mount.path('x')}`);
      await createTarget(lab, mount, 'x', line);
      expect(mount.read('x/table')).toBe(line);
      await lab.sh(`rmdir ${mount.path('x')}`);
    };
    // 6144 sectors: one is reserved; 95 groups of 64, and what is left has room for two tables and 61 sectors.
    expect(await told(data)).toBe(5951);
    await expectSectors(`csum ${data} 0`, 5951);
    await expectSectors(`0 100 csum ${data} 0`, 100);
    expect(await told(data, '--offset', '100', '--size', '3000')).toBe(3000);
    await expectSectors(`csum ${data} 100`, 3000);
    expect(await told(data, imd)).toBe(6143);
    await expectSectors(`csum ${data} 0 ${imd} 0`, 6143);
    expect(await told(data, imd, '--imd-offset', '2037')).toBe(62 * 4);
    await expectSectors(`csum ${data} 0 ${imd} 2037`, 248);
  },
);
