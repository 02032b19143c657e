/** Suspend and resume: what is held, what goes on, what is durable; and the growth that comes with a resume. */
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { rmdir, truncate } from 'node:fs/promises';
import { describe, expect } from 'vitest';
import { cloneTable, hydrationOf, makeTargetFiles, setHydration } from './clone-work.js';
import {
  changesOf,
  field,
  Load,
  refusal,
  refusedLine,
  SnapshotFolder,
  setFile,
  track,
} from './filter-work.js';
import { changeTree, mountWith } from './fs-work.js';
import { type Lab, type Mount, mountTest, type Running, until } from './harness.js';
import { startHeld, WORK } from './held-work.js';

const MIB = 1 << 20;
const IN_LANES = '1 no_passthrough';

const suspend = (mount: Mount, name: string) => setFile(mount.path(name, 'suspended'), '1');
const resume = (mount: Mount, name: string) => setFile(mount.path(name, 'suspended'), '0');
const sectorsOf = (mount: Mount, name: string) => Number(mount.read(`${name}/size`));

async function randomFile(lab: Lab, name: string, mebibytes: number): Promise<string> {
  await lab.sh(`head -c ${mebibytes}M /dev/urandom >${name}`);
  return lab.path(name);
}

/** Many writes through a device that no fsync promises, at places of a seed: what it holds afterwards. */
async function writeLoosely(lab: Lab, device: string, seed: number): Promise<string> {
  return await lab.python(
    `
import hashlib, os, random, sys
rng = random.Random(int(sys.argv[2]))
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(fd).st_size
for _ in range(150):
    os.pwrite(fd, rng.randbytes(rng.randrange(1, 9000)), rng.randrange(size - 9000))
print(hashlib.sha256(os.pread(fd, size, 0)).hexdigest())`,
    device,
    String(seed),
  );
}

describe('suspend', () => {
  mountTest('holds whatever is asked of a device; all else goes on, and resume serves it', async (lab) => {
    const works = Object.entries(WORK);
    const content = readFileSync(await randomFile(lab, 'y.img', 1));
    for (const [name] of works) writeFileSync(lab.path(`${name}.img`), content);
    // One for each: the kernel lets one that changes a file wait for another. And more than there are lanes.
    const mount = await mountWith(
      lab,
      [...works.map(([name]) => name), 'y'].map((name) => [
        name,
        `linear ${lab.path(`${name}.img`)} 0 ${IN_LANES}`,
      ]),
    );
    const held: Running[] = [];
    for (const [name, work] of works) {
      expect(await lab.dmfuseOk('suspend', mount.point, name)).toBe('');
      held.push(await startHeld(lab, mount.path(name, 'device'), work));
    }

    const { reads } = mount.stats('y');
    await lab.sh(`cmp y.img ${mount.path('y/device')}; cp y.img ${mount.path('y/device')}
      sync ${mount.path('y/device')}`);
    expect(mount.stats('y').reads).toBeGreaterThan(reads!);
    for (const [name] of works) {
      expect(mount.read(`${name}/status`)).toBe('0 2048 linear');
      expect(mount.read(`${name}/suspended`)).toBe('1');
      expect(mount.read(`${name}/info`)).toMatch(/^state suspended$/m);
      expect(mount.read(`${name}/info`)).toMatch(/^open_count 1$/m);
      expect(mount.stats(name)).toMatchObject({ reads: 0, writes: 0, flushes: 0, discards: 0, zeroes: 0 });
      expect(readFileSync(lab.path(`${name}.img`)).equals(content)).toBe(true);
    }
    expect(held.every(({ isRunning }) => isRunning)).toBe(true);

    for (const [i, [name]] of works.entries()) {
      expect(JSON.parse(await lab.dmfuseOk('resume', mount.point, name, '--json'))).toEqual({
        output_version: expect.any(Number),
        resumed: name,
        lengthSectors: 2048,
      });
      expect({ name, ...(await held[i]!.ended) }).toMatchObject({ code: 0, stderr: '' });
      expect(mount.read(`${name}/info`)).toMatch(/^state active$/m);
      const expected = Buffer.from(content);
      if (name === 'write') expected.fill('w', 4096, 8192);
      if (name === 'punch') expected.fill(0, 8192, 12_288);
      if (name === 'zero') expected.fill(0, 16_384, 20_480);
      expect(readFileSync(lab.path(`${name}.img`)).equals(expected), name).toBe(true);
    }
    expect(held[0]!.stdout).toBe(`open\n${content.subarray(0, 4096).toString('hex')}`);
    expect(mount.stats('read').reads).toBe(1);
    expect(mount.stats('write').writes).toBe(1);
    expect(mount.stats('fsync').flushes).toBe(1);
    expect(mount.stats('punch').discards).toBe(1);
    expect(mount.stats('zero').zeroes).toBe(1);
    const operations = { read: 'read', write: 'write', fsync: 'flush', punch: 'discard', zero: 'zeroes' };
    for (const [name, operation] of Object.entries(operations))
      expect(mount.read(`${name}/latency`)).toMatch(new RegExp(`^${operation} count 1$`, 'm'));
  });

  mountTest(
    'holds what stands on the target: nothing is written below, not in the background either',
    async (lab) => {
      await lab.sh('truncate -s 8M s.img imd.img t.img tmd.img base.img');
      for (const name of ['s', 't']) {
        await lab.dmfuseOk(
          'csum',
          'format',
          lab.path(`${name}.img`),
          lab.path(name === 's' ? 'imd.img' : 'tmd.img'),
        );
      }
      await lab.sh('truncate -s 8M dat.img; truncate -s 1M bm.img');
      const lower = ['s', 'imd', 'dat', 'bm'].map(
        (name) => [`l-${name}`, `linear ${lab.path(`${name}.img`)} 0 ${IN_LANES}`] as const,
      );
      const mount = await mountWith(lab, [
        ...lower,
        ['s', 'csum @l-s 0 @l-imd 0'],
        ['v', `cow ${lab.path('base.img')} 0 @l-bm @l-dat 0`],
        ['t', `csum ${lab.path('t.img')} 0 ${lab.path('tmd.img')} 0`],
      ]);
      const sums = [
        await writeLoosely(lab, mount.path('s/device'), 1),
        await writeLoosely(lab, mount.path('v/device'), 2),
      ];
      for (const [name] of lower) await suspend(mount, name);
      const files = ['s.img', 'imd.img', 'dat.img', 'bm.img'];
      const state = () => lab.sh(`stat -c '%n %y' ${files.join(' ')}; sha256sum ${files.join(' ')}`);
      const before = await state();
      const held = await Promise.all(
        ['s', 'v'].map((name) => startHeld(lab, mount.path(name, 'device'), WORK.write)),
      );
      expect(mount.read('s/suspended')).toBe('0');
      // The attendant that commits once a second: what it does for `t` it would do for the others.
      for (const seed of [3, 4]) {
        const tables = await lab.sha256('tmd.img');
        await writeLoosely(lab, mount.path('t/device'), seed);
        await until(async () => (await lab.sha256('tmd.img')) !== tables, 'a regular commit');
      }
      expect(await state()).toBe(before);
      expect(held.every(({ isRunning }) => isRunning)).toBe(true);

      for (const [name] of lower) await resume(mount, name);
      for (const { ended } of held) expect(await ended).toMatchObject({ code: 0 });
      for (const [i, name] of ['s', 'v'].entries()) {
        const content = await lab.sh(`dd if=${mount.path(name, 'device')} bs=4k skip=1 count=1 status=none`);
        expect(content).toBe('w'.repeat(4096));
        expect(await lab.sha256(mount.path(name, 'device'))).not.toBe(sums[i]);
      }
      await mount.umount();
      await lab.dmfuseOk('csum', 'check', lab.path('s.img'), lab.path('imd.img'));
    },
  );

  for (const [what, suspended] of [
    ['the target itself', 'v'],
    ['what it stands on', 'l'],
  ] as const) {
    mountTest(`fifty times under a load that verifies: ${what}`, async (lab) => {
      await lab.sh('truncate -s 16M base.img dat.img; truncate -s 1M bm.img');
      const mount = await mountWith(lab, [
        ['l', `linear ${lab.path('dat.img')} 0 ${IN_LANES}`],
        ['v', `cow ${lab.path('base.img')} 0 ${lab.path('bm.img')} @l 0`],
      ]);
      const loop = await lab.loop(mount.path('v/device'));
      const load = Load.start(lab, [loop], 16);
      await load.rounds(1);
      for (let round = 0; round < 50; round++) {
        await suspend(mount, suspended);
        await resume(mount, suspended);
      }
      await load.stop();
      await lab.unloop(loop);
    });
  }

  mountTest('suspend-S1: what was answered is in the files, whatever becomes of the daemon', async (lab) => {
    await lab.sh('truncate -s 8M base.img dat.img c.img; truncate -s 1M bm.img');
    await lab.dmfuseOk('csum', 'format', lab.path('c.img'));
    const tables = [
      ['v', `cow ${lab.path('base.img')} 0 ${lab.path('bm.img')} ${lab.path('dat.img')} 0`],
      ['c', `csum ${lab.path('c.img')} 0`],
    ] as const;
    for (let round = 1; round <= 2; round++) {
      const mount = await mountWith(lab, tables);
      const sums: string[] = [];
      for (const [name] of tables) {
        sums.push(await writeLoosely(lab, mount.path(name, 'device'), round));
        await suspend(mount, name);
      }
      await mount.killDaemon();
      await lab.ok('umount', mount.point);
      const again = await mountWith(lab, tables);
      for (const [i, [name]] of tables.entries()) {
        expect(await lab.sha256(again.path(name, 'device')), name).toBe(sums[i]);
      }
      await again.umount();
    }
  });

  mountTest('is refused while the kernel passes I/O through, and not a moment longer', async (lab) => {
    const mount = await mountWith(lab, [['x', `linear ${await randomFile(lab, 'x.img', 1)} 0`]]);
    const reader = lab.start('bash', [
      '-c',
      `exec 3<${mount.path('x/device')}; echo open; read -u 3 -N 1; sleep 1000`,
    ]);
    await reader.prints(/^open$/m);
    expect(await lab.refusal('suspend', mount.point, 'x')).toBe(
      'x: its device was opened for passthrough, so the kernel does I/O that cannot be held: close it, or make the target ' +
        'with no_passthrough',
    );
    expect(mount.read('x/suspended')).toBe('0');
    reader.kill();
    await reader.ended;
    for (let round = 0; round < 10; round++) {
      await lab.sh(`cmp ${mount.path('x/device')} x.img`);
      await suspend(mount, 'x');
      const held = await startHeld(lab, mount.path('x/device'), WORK.read);
      await resume(mount, 'x');
      expect(await held.ended).toMatchObject({ code: 0 });
    }
  });

  mountTest('what would write to what is suspended is refused', async (lab) => {
    await makeTargetFiles(lab, 1);
    await randomFile(lab, 'source.img', 1);
    const mount = await mountWith(lab, [
      ['l', `linear ${await randomFile(lab, 'l.img', 1)} 0 ${IN_LANES}`],
      ['b', 'bow @l'],
      ['k', cloneTable(lab, { options: '1 no_hydration' })],
    ]);
    await suspend(mount, 'l');
    await suspend(mount, 'k');
    for (const name of ['l', 'b']) {
      expect(await refusedLine(mount.path(name, 'discard'), '0 8')).toBe('EBUSY');
      expect(await refusedLine(mount.path(name, 'filter'), 'blksnap')).toBe('EBUSY');
    }
    expect(await refusedLine(mount.path('b/state'), '1')).toBe('EBUSY');
    expect(await refusedLine(mount.path('k/hydration'), '1')).toBe('EBUSY');
    expect(await lab.refusal('message', mount.point, 'k', '0', 'enable_hydration')).toBe(
      'k: it, or what it stands on, is suspended; resume that first',
    );
    expect(await lab.refusal('create', mount.point, 'new', 'linear @k 0')).toBe(
      'create new: @k: suspended; resume it first',
    );
    expect(await refusal(rmdir(mount.path('b')))).toBe('EBUSY');
    // Nor does one that is suspended itself go, as long as what it stands on is.
    await suspend(mount, 'b');
    expect(await refusal(rmdir(mount.path('b')))).toBe('EBUSY');
    await resume(mount, 'l');
    await rmdir(mount.path('b'));
    await rmdir(mount.path('k'));
    await mount.create('b', 'bow @l');
    expect(await lab.sha256(mount.path('b/device'))).toBe(await lab.sha256('l.img'));
  });

  mountTest('one on another: each is held until both are resumed, in whatever order', async (lab) => {
    const mount = await mountWith(lab, [
      ['l', `linear ${await randomFile(lab, 'l.img', 1)} 0 ${IN_LANES}`],
      ['u', `linear @l 0`],
    ]);
    const device = mount.path('u/device');
    for (const [first, second] of [
      ['l', 'u'],
      ['u', 'l'],
    ] as const) {
      for (const name of ['u', 'l', 'l', 'u']) await suspend(mount, name);
      const held = await startHeld(lab, device, WORK.read);
      await resume(mount, first);
      // Asked after the resume: a request that came through would have been answered before this one is known to wait.
      const later = await startHeld(lab, device, WORK.fsync);
      expect(held.isRunning).toBe(true);
      await resume(mount, second);
      expect(await held.ended).toMatchObject({ code: 0 });
      expect(await later.ended).toMatchObject({ code: 0 });
      await resume(mount, second);
    }
  });

  mountTest('stops the hydration of a clone, which goes on with the resume', async (lab) => {
    await lab.sh('head -c 48M /dev/urandom >source.img; cp source.img a-source.img');
    for (const prefix of ['', 'a-']) await makeTargetFiles(lab, 48, prefix);
    const mount = await mountWith(lab, [
      ['x', cloneTable(lab, { options: '1 no_hydration 4 hydration_threshold 1 hydration_batch_size 1' })],
      [
        'a',
        cloneTable(lab, {
          prefix: 'a-',
          source: lab.path('a-source.img'),
          region: 1024,
          options: '1 no_hydration',
        }),
      ],
    ]);
    setHydration(mount, true);
    await until(() => hydrationOf(mount).regions > 0, 'the first region');
    await suspend(mount, 'x');
    const { regions, total } = hydrationOf(mount);
    expect(regions).toBeLessThan(total);
    const before = await lab.sha256('dest.img');
    // The same attendant does this.
    setHydration(mount, true, 'a');
    await until(() => hydrationOf(mount, 'a').regions === hydrationOf(mount, 'a').total, 'another clone');
    expect(hydrationOf(mount).regions).toBe(regions);
    expect(await lab.sha256('dest.img')).toBe(before);
    await setFile(mount.path('x/suspended'), '0');
    await until(() => hydrationOf(mount).regions > regions, 'it to go on');
    expect(mount.read('x/hydration')).toBe('1');
    await lab.sh(`cmp source.img ${mount.path('x/device')}`);
  });

  mountTest('SIGTERM serves what is held; unmounting what is not open needs no resume', async (lab) => {
    const table = `linear ${await randomFile(lab, 'x.img', 1)} 0 ${IN_LANES}`;
    const mount = await mountWith(lab, [['x', table]]);
    await suspend(mount, 'x');
    const held = await startHeld(lab, mount.path('x/device'), WORK.write);
    expect(await lab.refusal('umount', mount.point)).toMatch(/busy|in use|open/);
    process.kill(mount.pid, 'SIGTERM');
    expect(await held.ended).toMatchObject({ code: 0 });
    await mount.daemonEnd();
    expect(readFileSync(lab.path('x.img')).subarray(4096, 8192).equals(Buffer.alloc(4096, 'w'))).toBe(true);
    const again = await mountWith(lab, [['x', table]]);
    await suspend(again, 'x');
    await again.umount();
    await again.daemonEnd();
  });

  mountTest('an empty target, wrong words, names that are none', async (lab) => {
    const mount = await mountWith(lab, [['x', `linear ${await randomFile(lab, 'x.img', 1)} 0`]]);
    await lab.sh(`mkdir ${mount.path('empty')}`);
    expect(await lab.shell(`echo 1 >${mount.path('empty/suspended')}`)).toMatchObject({ code: 1 });
    expect(await refusedLine(mount.path('x/suspended'), '2')).toBe('EINVAL');
    expect(await lab.refusal('suspend', mount.point, 'y')).toBe(
      `y: there is no target of that name in ${mount.point}`,
    );
    expect(await lab.refusal('resume', mount.point, 'snapshots')).toMatch(/^snapshots: there is no target/);
    expect(await lab.dmfuseOk('resume', mount.point, 'x')).toBe('');
    expect(mount.read('x/suspended')).toBe('0');
  });
});

describe('a resume that finds a backing grown', () => {
  for (const options of ['', ` ${IN_LANES}`]) {
    mountTest(`linear${options}: a mounted ext4 grows with it`, async (lab) => {
      await lab.sh('truncate -s 32M disk.img; mkfs.ext4 -q disk.img');
      const mount = await mountWith(lab, [['x', `linear ${lab.path('disk.img')} 0${options}`]]);
      const loop = await lab.loop(mount.path('x/device'));
      const fs = await lab.mountFs(loop);
      await lab.sh(`mkdir -p ${fs}/tree/work ${fs}/tree/objects`);
      await changeTree(lab, `${fs}/tree`, 1);
      truncateSync(lab.path('disk.img'), 96 * MIB);
      expect(statSync(mount.path('x/device')).size).toBe(32 * MIB);
      expect(JSON.parse(await lab.dmfuseOk('resume', mount.point, 'x', '--json')).lengthSectors).toBe(
        196_608,
      );
      // Without the rights that ext4 wants for a resize in place.
      await lab.sh(
        `losetup -c ${loop}; umount ${fs}; e2fsck -fp ${loop}; resize2fs ${loop}; mount ${loop} ${fs}`,
      );
      expect(await lab.sh(`blockdev --getsize64 ${loop}`)).toBe(`${96 * MIB}\n`);
      await lab.sh(`head -c 50M /dev/urandom >${fs}/big`);
      const tree = await lab.treeState(fs);
      await lab.sh(`umount ${fs}; e2fsck -fn ${loop}`);
      await lab.unloop(loop);
      expect(mount.read('x/table')).toMatch(/^0 196608 linear /);
      expect(
        (await mount.events('x')).filter((line) => line.startsWith('grown sectors=196608 ')),
      ).toHaveLength(1);
      await mount.umount();
      const again = await lab.loop(lab.path('disk.img'));
      expect(await lab.treeState(await lab.mountFs(again))).toBe(tree);
    });
  }

  mountTest(
    'linear: to the last whole sector behind its offset; not where its LENGTH ended before',
    async (lab) => {
      await lab.sh('truncate -s 1M a.img b.img c.img');
      const mount = await mountWith(lab, [
        ['a', `linear ${lab.path('a.img')} 8`],
        ['b', `0 1000 linear ${lab.path('b.img')} 0`],
        ['c', `linear ${lab.path('c.img')} 0`],
      ]);
      for (const name of ['a', 'b']) await truncate(lab.path(`${name}.img`), 2 * MIB + 700);
      for (const name of ['a', 'b', 'c']) {
        await suspend(mount, name);
        await resume(mount, name);
      }
      expect(['a', 'b', 'c'].map((name) => sectorsOf(mount, name))).toEqual([4097 - 8, 1000, 2048]);
      await lab.sh(
        `dd if=/dev/urandom of=${mount.path('a/device')} bs=512 seek=4088 count=1 conv=notrunc status=none`,
      );
      expect(await lab.sh(`tail -c 512 ${mount.path('a/device')} | sha256sum`)).toBe(
        await lab.sh('dd if=a.img bs=512 skip=4096 count=1 status=none | sha256sum'),
      );
      const past = await lab.shell(
        `head -c 4096 /dev/zero | dd of=${mount.path('a/device')} bs=512 seek=4089 conv=notrunc`,
      );
      expect(past.stderr).toMatch(/No space left/);
    },
  );

  mountTest(
    'what stands on the target grows when it is resumed itself, and not while that is suspended',
    async (lab) => {
      await lab.sh('truncate -s 1M l.img');
      const mount = await mountWith(lab, [
        ['l', `linear ${lab.path('l.img')} 0`],
        ['u', `linear @l 0`],
      ]);
      await truncate(lab.path('l.img'), 3 * MIB);
      await resume(mount, 'u');
      expect(['l', 'u'].map((name) => sectorsOf(mount, name))).toEqual([2048, 2048]);
      await resume(mount, 'l');
      expect(['l', 'u'].map((name) => sectorsOf(mount, name))).toEqual([6144, 2048]);
      await suspend(mount, 'l');
      await suspend(mount, 'u');
      await resume(mount, 'u');
      expect(sectorsOf(mount, 'u')).toBe(2048);
      await resume(mount, 'l');
      await resume(mount, 'u');
      expect(sectorsOf(mount, 'u')).toBe(6144);
      await lab.sh(`head -c 3M /dev/urandom >new; cp new ${mount.path('u/device')}; cmp new l.img`);
    },
  );

  mountTest('cow: a base alone; a layer with its bitmap; what keeps a stack from growing', async (lab) => {
    await lab.sh(
      'truncate -s 20M base.img one.img; head -c 5M /dev/urandom | dd of=base.img conv=notrunc status=none',
    );
    const table = JSON.parse(
      await lab.dmfuseOk('cow', 'create', '--json', lab.path('base.img'), lab.path('l1')),
    ).table as string;
    const mount = await mountWith(lab, [
      ['one', `cow ${lab.path('one.img')} 0`],
      ['v', table],
    ]);
    await truncate(lab.path('one.img'), 21 * MIB);
    await resume(mount, 'one');
    expect(sectorsOf(mount, 'one')).toBe(21 * 2048);

    const device = mount.path('v/device');
    await lab.sh(`head -c 9M /dev/urandom | dd of=${device} bs=1M seek=3 conv=notrunc status=none
      head -c 2000 /dev/urandom | dd of=${device} bs=2000 oflag=seek_bytes seek=${20 * MIB - 2000} conv=notrunc status=none`);
    const before = await lab.sh(`head -c 20M ${device} | sha256sum`);
    // Several times as long, and so that the magic block of the bitmap moves: with every 128 MiB.
    await lab.sh(
      'truncate -s 150M base.img; head -c 1M /dev/urandom | dd of=base.img bs=1M seek=134 conv=notrunc status=none',
    );
    const expectRefused = async (pattern: RegExp) => {
      await suspend(mount, 'v');
      expect(await lab.refusal('resume', mount.point, 'v')).toMatch(pattern);
      expect(mount.read('v/suspended')).toBe('0');
      expect(sectorsOf(mount, 'v')).toBe(20 * 2048);
    };
    await expectRefused(
      /^\S+ has 40960 sectors, the stack is to have 307200: make it 157286400 bytes long \(truncate -s\)/,
    );
    const layer = table.split(' ').at(-2)!;
    await truncate(layer, 150 * MIB);
    await resume(mount, 'v');
    expect(sectorsOf(mount, 'v')).toBe(150 * 2048);
    expect(await lab.sh(`head -c 20M ${device} | sha256sum`)).toBe(before);
    await lab.sh(
      `cmp <(dd if=${device} bs=1M skip=120 count=28 status=none) <(dd if=base.img bs=1M skip=120 count=28 status=none)`,
    );
    await lab.sh(`head -c 3M /dev/urandom | dd of=${device} bs=1M seek=133 conv=notrunc status=none`);
    const after = await lab.sha256(device);
    const line = mount.read('v/table');
    expect(line).toMatch(/^0 307200 cow /);
    await mount.umount();
    const again = await mountWith(lab, [['v', line]]);
    expect(await lab.sha256(again.path('v/device'))).toBe(after);
    await rmdir(again.path('v'));

    const two = JSON.parse(await lab.dmfuseOk('cow', 'create', '--json', line, lab.path('l2')))
      .table as string;
    await again.create('v', two);
    await truncate(lab.path('base.img'), 151 * MIB);
    await suspend(again, 'v');
    expect(await lab.refusal('resume', again.point, 'v')).toMatch(
      /^cow cannot grow over 1 frozen layers, .* of 307200 /,
    );
    expect(again.read('v/suspended')).toBe('0');
    expect(await lab.sh(`head -c 150M ${again.path('v/device')} | sha256sum`)).toMatch(after);
  });

  mountTest('blksnap: a new generation of the new size; in a snapshot it does not grow', async (lab) => {
    await lab.sh('truncate -s 8M x.img; truncate -s 8M store');
    const mount = await mountWith(lab, [['x', `linear ${lab.path('x.img')} 0 ${IN_LANES}`]]);
    await track(mount, 'x');
    const before = await changesOf(mount, 'x');
    const snapshot = await SnapshotFolder.take(mount, 's', ['x'], `${lab.path('store')} 0 16384`);
    await truncate(lab.path('x.img'), 64 * MIB);
    await suspend(mount, 'x');
    const held = await startHeld(lab, mount.path('x/device'), WORK.write);
    expect(await lab.refusal('resume', mount.point, 'x')).toBe(
      'x: in a snapshot, so it cannot grow; destroy that first and resume again',
    );
    expect(await held.ended).toMatchObject({ code: 0 });
    expect(mount.read('x/suspended')).toBe('0');
    expect(sectorsOf(mount, 'x')).toBe(16_384);
    await snapshot.remove();
    await resume(mount, 'x');
    const after = await changesOf(mount, 'x');
    expect(after.generation).not.toBe(before.generation);
    expect(after.map.length * after.blockBytes).toBeGreaterThanOrEqual(64 * MIB);
    expect(field(mount.read('x/cbtinfo'), 'device_capacity')).toBe(`${64 * MIB}`);
    await lab.sh(
      `dd if=/dev/zero of=${mount.path('x/device')} bs=4k count=1 seek=16000 conv=notrunc status=none`,
    );
    // A take is what makes a map tell of the changes before it.
    await (await SnapshotFolder.take(mount, 's', ['x'], `${lab.path('store')} 0 16384`)).remove();
    const { map, blockBytes } = await changesOf(mount, 'x');
    expect([...map.keys()].filter((block) => map[block]! > 0)).toEqual([
      Math.floor((16_000 * 4096) / blockBytes),
    ]);
  });

  mountTest(
    'passed through: a file made longer stays so; what is written past the end does not',
    async (lab) => {
      await lab.sh('truncate -s 1M x.img');
      const mount = await mountWith(lab, [['x', `linear ${lab.path('x.img')} 0`]]);
      await lab.sh(`exec 3<>${mount.path('x/device')}; truncate -s 2M x.img; exec 3>&-`);
      expect(statSync(lab.path('x.img')).size).toBe(2 * MIB);
      const { code, stderr } = await lab.shell(
        `dd if=/dev/urandom of=${mount.path('x/device')} bs=4k seek=300 count=1 conv=notrunc`,
      );
      expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringMatching(/No space left/) });
      expect(statSync(lab.path('x.img')).size).toBe(MIB);
      expect((await mount.events('x')).at(-1)).toMatch(/^write_past_end size=1048576 /);
    },
  );

  mountTest('passed through: who only reads cuts nothing that was appended to the file', async (lab) => {
    await lab.sh('head -c 1M /dev/urandom >x.img; head -c 1M /dev/urandom >more');
    const mount = await mountWith(lab, [['x', `linear ${lab.path('x.img')} 0`]]);
    await lab.sh(`cat more >>x.img; head -c 4096 ${mount.path('x/device')} | cmp - x.img -n 4096`);
    await resume(mount, 'x');
    await lab.sh(`tail -c 1M ${mount.path('x/device')} | cmp - more`);
  });

  mountTest('passed through, grown to a part of a sector: its size is kept all the same', async (lab) => {
    await lab.sh('truncate -s 1M x.img');
    const mount = await mountWith(lab, [['x', `linear ${lab.path('x.img')} 0`]]);
    const size = 2 * MIB + 700;
    const { code, stderr } = await lab.shell(`exec 3<>${mount.path('x/device')}; truncate -s ${size} x.img
      echo 0 >${mount.path('x/suspended')}
      dd if=/dev/urandom of=${mount.path('x/device')} bs=4k seek=600 count=1 conv=notrunc`);
    expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringMatching(/No space left/) });
    expect(statSync(lab.path('x.img')).size).toBe(size);
    expect(sectorsOf(mount, 'x')).toBe(4097);
  });
});
