/** Targets on targets of the same mount, each with a file system on a loop device on the one at the top. */
import { closeSync, openSync, readdirSync, readFileSync, writeSync } from 'node:fs';
import { describe, expect } from 'vitest';
import {
  changeTree,
  createTarget,
  endMount,
  expectKept,
  killUnderFsyncs,
  mountWith,
  refusedTable,
  sectorOf,
  type Tables,
} from './fs-work.js';
import { type Lab, type Mount, mountTest } from './harness.js';

const MKFS = 'mkfs.ext4 -q -E nodiscard,lazy_itable_init=0 -b 4096';

/** Attaches the device of a target and mounts its file system. */
async function attach(lab: Lab, mount: Mount, target: string, between = '', ...loopOptions: string[]) {
  const loop = await lab.loop(mount.path(target, 'device'), ...loopOptions);
  await lab.sh(`loop=${loop}\n${between}`);
  const fs = await lab.mountFs(loop, { name: `fs-${target}` });
  const detach = async () => {
    await lab.sh(`umount ${fs}; e2fsck -fn ${loop}`);
    await lab.unloop(loop);
  };
  return { loop, fs, detach };
}

/** The tree of a target's file system, which is sound. */
async function treeOf(lab: Lab, mount: Mount, target: string, ...loopOptions: string[]): Promise<string> {
  const { fs, detach } = await attach(lab, mount, target, '', ...loopOptions);
  const tree = await lab.treeState(fs);
  await detach();
  return tree;
}

/** Nobody takes a target away, or writes to it, on which another one stands. */
async function expectStoodUpon(lab: Lab, mount: Mount, lower: string): Promise<void> {
  expect((await lab.shell(`rmdir ${mount.path(lower)}`)).stderr).toMatch(/Device or resource busy/);
  expect((await lab.shell(`: <>${mount.path(lower, 'device')}`)).stderr).toMatch(/Device or resource busy/);
  expect(mount.read(`${lower}/status`)).toMatch(/^0 \d+ /);
}

/** Removes targets, those on top first; a lower one does not go before them. */
async function removeAll(lab: Lab, mount: Mount, tables: Tables): Promise<void> {
  for (const [i, [name]] of [...tables.entries()].reverse()) {
    for (const [lower] of tables.slice(0, i)) await expectStoodUpon(lab, mount, lower);
    await lab.sh(`rmdir ${mount.path(name)}`);
  }
  expect(readdirSync(mount.point)).toEqual([]);
}

describe('csum on cow', () => {
  async function make(lab: Lab) {
    await lab.sh('head -c 40M /dev/urandom >base.img');
    const base = await lab.sha256('base.img');
    const { table } = JSON.parse(
      await lab.dmfuseOk('cow', 'create', '--json', lab.path('base.img'), lab.path('l1')),
    );
    const tables: Tables = [
      ['v', table],
      ['s', 'csum @v 0'],
    ];
    const mount = await mountWith(lab, tables.slice(0, 1));
    await lab.dmfuseOk('csum', 'format', mount.path('v/device'));
    await createTarget(lab, mount, 's', 'csum @v 0');
    return { mount, tables, base };
  }

  /** The csum volume, once nothing is attached: sound, and closed in good order. */
  async function expectSound(lab: Lab): Promise<void> {
    await lab.dmfuseOk('cow', 'flatten', lab.path('base.img'), lab.path('l1'), 'flat');
    expect(await lab.dmfuseOk('csum', 'check', 'flat')).toMatch(/^sound: \d+ sectors in \d+ groups\n$/);
    await lab.sh('rm flat');
  }

  mountTest(
    'the file system is there after remove and create, umount and mount, in whatever order',
    async (lab) => {
      const { mount, tables, base } = await make(lab);
      const { fs, detach } = await attach(lab, mount, 's', `${MKFS} $loop 32M`);
      await changeTree(lab, fs, 1);
      expect(await lab.dmfuse('remove', mount.point, 'v')).toMatchObject({
        code: 1,
        stdout: '',
        stderr:
          'dmfuse: remove v: in use: its device is open (losetup -a, fuser), or another target stands on it\n',
      });
      // What is below changes only by what is above.
      expect((await lab.shell(`echo '0 8' >${mount.path('v/discard')}`)).code).toBe(1);
      expect((await mount.events('v')).at(-1)).toMatch(/^refused file=discard errno=16 /);
      const tree = await lab.treeState(fs);
      expect(await lab.dmfuse('umount', mount.point)).toMatchObject({
        code: 1,
        stderr: expect.stringContaining(`${mount.path('s/device')} by /dev/loop`),
      });
      await detach();
      await removeAll(lab, mount, tables);
      // In the same mount: this time the directory of the upper one is the older one.
      await lab.sh(`cd ${mount.point}; mkdir s v
      echo '${tables[0]![1]}' >v/table; echo '${tables[1]![1]}' >s/table`);
      expect(await treeOf(lab, mount, 's')).toBe(tree);
      // Behind the file system, and flushed by nobody.
      await lab.sh(
        `dd if=base.img of=${mount.path('s/device')} bs=1M seek=34 count=2 conv=notrunc status=none`,
      );
      await mount.umount();
      await expectSound(lab);
      const again = await mountWith(lab, tables, 'again');
      expect(await treeOf(lab, again, 's')).toBe(tree);
      await lab.sh(`cmp -n 2M -i 34M:0 ${again.path('s/device')} base.img`);
      expect(again.read('s/errors')).toBe('count 0');
      expect(again.read('v/status')).toMatch(/^0 81920 cow 1 [1-9]\d*\/81920$/);
      expect(await lab.sha256('base.img')).toBe(base);
    },
  );

  mountTest('kill -9 under load: what was fsynced is there, and there is no false alarm', async (lab) => {
    const { mount, tables, base } = await make(lab);
    const killed = await attach(lab, mount, 's', `${MKFS} $loop`);
    const promises = await killUnderFsyncs(lab, mount, { ...killed, seed: 1 });
    const again = await mountWith(lab, tables);
    const { fs, loop, detach } = await attach(lab, again, 's', `cat ${again.path('s/device')} >/dev/null`);
    await expectKept(lab, fs, promises);
    await lab.sh(`umount ${fs}; e2fsck -fn ${loop}; mount ${loop} ${fs}; fstrim ${fs}`);
    expect(again.read('s/errors')).toBe('count 0');
    await detach();
    expect(await lab.sha256('base.img')).toBe(base);
  });
});

describe('bow on csum', () => {
  async function make(lab: Lab) {
    await lab.sh('truncate -s 36M d.img');
    await lab.dmfuseOk('csum', 'format', lab.path('d.img'));
    const tables: Tables = [
      ['c', `csum ${lab.path('d.img')} 0`],
      // A volume is no whole number of 4 KiB.
      ['b', 'bow @c 1 block_size:512'],
    ];
    const mount = await mountWith(lab, tables);
    const top = await attach(lab, mount, 'b', `${MKFS} $loop`);
    await changeTree(lab, top.fs, 1);
    await lab.sh(`sync -f ${top.fs}; fstrim ${top.fs}`);
    const tree = await lab.treeState(top.fs);
    await lab.sh(`fsfreeze -f ${top.fs}; echo 1 >${mount.path('b/state')}; fsfreeze -u ${top.fs}`);
    await changeTree(lab, top.fs, 2);
    await lab.sh(`rm -r ${top.fs}/objects; sync -f ${top.fs}; fstrim ${top.fs}`);
    await changeTree(lab, top.fs, 3);
    return { mount, tables, top, tree };
  }

  async function expectSound(lab: Lab): Promise<void> {
    expect(await lab.dmfuseOk('csum', 'check', 'd.img')).toMatch(/^sound: \d+ sectors in \d+ groups\n$/);
  }

  mountTest(
    'roll back through the device below: the tree of the checkpoint, and every checksum right',
    async (lab) => {
      const { mount, tables, top, tree } = await make(lab);
      const changed = await lab.treeState(top.fs);
      expect(changed).not.toBe(tree);
      await expectStoodUpon(lab, mount, 'c');
      await top.detach();
      expect(await treeOf(lab, mount, 'b')).toBe(changed);
      const device = mount.path('c/device');
      await lab.sh(`rmdir ${mount.path('b')}`);

      // Nobody goes on with the checkpoint by accident, also not after a new mount.
      expect(await refusedTable(lab, mount, 'bow @c')).toMatch(
        /: run `dmfuse bow restore MNT\/c\/device` first$/,
      );
      await endMount(lab, mount);
      await expectSound(lab);
      const again = await mountWith(lab, tables.slice(0, 1));
      expect(await lab.dmfuseOk('bow', 'check', device)).toMatch(/^sound: a restore would roll back: [1-9]/);
      expect(await lab.dmfuseOk('bow', 'restore', device)).toMatch(/^restored: [1-9]\d* entries, /);
      expect(await lab.dmfuseOk('bow', 'restore', device)).toBe('no log\n');
      await createTarget(lab, again, 'b', tables[1]![1]);
      expect(await treeOf(lab, again, 'b')).toBe(tree);
      expect(again.read('c/errors')).toBe('count 0');
      await removeAll(lab, again, tables);
      await endMount(lab, again);
      await expectSound(lab);
    },
  );

  mountTest('kill -9 after the checkpoint, then roll back', async (lab) => {
    const { mount, tables, top, tree } = await make(lab);
    const promises = await killUnderFsyncs(lab, mount, { ...top, seed: 1 });
    const again = await mountWith(lab, tables.slice(0, 1));
    expect(await lab.dmfuseOk('bow', 'restore', again.path('c/device'))).toMatch(
      /^restored: [1-9]\d* entries, /,
    );
    await createTarget(lab, again, 'b', tables[1]![1]);
    expect(await treeOf(lab, again, 'b')).toBe(tree);
    expect(tree).not.toContain(promises.folder);
    await lab.sh(`cat ${again.path('b/device')} >/dev/null`);
    expect(again.read('c/errors')).toBe('count 0');
  });
});

describe('cow on csum', () => {
  async function make(lab: Lab) {
    await lab.sh('truncate -s 40M d.img');
    await lab.dmfuseOk('csum', 'format', lab.path('d.img'));
    const mount = await mountWith(lab, [['c', `csum ${lab.path('d.img')} 0`]]);
    const { fs, detach } = await attach(lab, mount, 'c', `${MKFS} $loop`);
    await changeTree(lab, fs, 1);
    await lab.sh(`head -c 20000 /dev/urandom >file; cp file ${fs}/file`);
    const sector = await sectorOf(lab, `${fs}/file`, 8192);
    const tree = await lab.treeState(fs);
    await detach();
    for (const layer of ['l1', 'l2'])
      await lab.dmfuseOk('cow', 'create', mount.path('c/device'), lab.path(layer));
    await endMount(lab, mount);
    const tables: Tables = [
      ['c', `csum ${lab.path('d.img')} 0`],
      ['v1', `cow @c 0 ${lab.path('l1.bitmap')} ${lab.path('l1')} 0`],
      ['v2', `cow @c 0 ${lab.path('l2.bitmap')} ${lab.path('l2')} 0`],
    ];
    return { tables, tree, sector };
  }

  mountTest('two stacks on one volume: two trees, and the volume stays as it is', async (lab) => {
    const { tables, tree } = await make(lab);
    const before = await lab.sha256('d.img');
    const mount = await mountWith(lab, tables);
    const tops = await Promise.all(['v1', 'v2'].map((name) => attach(lab, mount, name)));
    for (const { fs } of tops) expect(await lab.treeState(fs)).toBe(tree);
    await Promise.all(tops.map(({ fs }, i) => changeTree(lab, fs, 2 + i)));
    const trees = await Promise.all(tops.map(({ fs }) => lab.treeState(fs)));
    await expectStoodUpon(lab, mount, 'c');
    // To read it is no harm; to write it is refused, whoever asks.
    await lab.sh(`cat ${mount.path('c/device')} >/dev/null`);
    for (const table of ['bow @c', 'cow @c 0', 'linear @c 0']) {
      expect(await refusedTable(lab, mount, table)).toBe('@c: in use by another target of this mount');
    }
    for (const { detach } of tops) await detach();
    // Either one is enough to keep the volume.
    await lab.sh(`rmdir ${mount.path('v1')}`);
    await expectStoodUpon(lab, mount, 'c');
    await lab.sh(`rmdir ${mount.path('v2')}`);
    expect(await treeOf(lab, mount, 'c', '-r')).toBe(tree);
    await lab.sh(`rmdir ${mount.path('c')}`);
    await endMount(lab, mount);
    expect(await lab.sha256('d.img')).toBe(before);

    const again = await mountWith(lab, tables, 'again');
    expect([await treeOf(lab, again, 'v1'), await treeOf(lab, again, 'v2')]).toEqual(trees);
    expect(again.read('c/errors')).toBe('count 0');
    await endMount(lab, again);
    expect(await lab.sha256('d.img')).toBe(before);
  });

  mountTest('damage of the base is EIO in every stack, until a stack has written there', async (lab) => {
    const { tables, sector } = await make(lab);
    // Interleaved: 64 sectors a group, of which 62 are data.
    const at = 512 * (64 * Math.trunc(sector / 62) + 3 + (sector % 62));
    const fd = openSync(lab.path('d.img'), 'r+');
    writeSync(fd, 'damage', at);
    closeSync(fd);
    const mount = await mountWith(lab, tables);
    const [v1, v2] = [await attach(lab, mount, 'v1'), await attach(lab, mount, 'v2')];
    const readPiece = (fs: string) =>
      lab.shell(
        `dd if=${fs}/file bs=4096 skip=2 count=1 iflag=direct status=none | cmp - <(tail -c +8193 file | head -c 4096)`,
      );
    for (const { fs } of [v1, v2]) {
      expect((await readPiece(fs)).stderr).toMatch(/Input\/output error/);
      await lab.sh(`dd if=${fs}/file bs=4096 count=2 iflag=direct status=none | cmp - <(head -c 8192 file)`);
    }
    expect(mount.read('c/errors')).toBe(`count 1\nsector ${sector}`);
    await lab.sh(`dd if=file of=${v1.fs}/file bs=4096 skip=2 seek=2 count=1 conv=notrunc,fsync status=none`);
    expect(await readPiece(v1.fs)).toMatchObject({ code: 0, stderr: '' });
    expect((await readPiece(v2.fs)).stderr).toMatch(/Input\/output error/);
    expect(mount.read('c/errors')).toBe(`count 1\nsector ${sector}`);
    for (const { detach } of [v1, v2]) await detach();
    await endMount(lab, mount);
    expect(await lab.dmfuse('csum', 'check', 'd.img')).toMatchObject({
      code: 2,
      stdout: expect.stringMatching(new RegExp(`^sector ${sector} `, 'm')),
    });
  });
});

mountTest('four targets high', async (lab) => {
  const { table } = await (async () => {
    await lab.sh('truncate -s 36M base.img');
    return JSON.parse(await lab.dmfuseOk('cow', 'create', '--json', lab.path('base.img'), lab.path('l1')));
  })();
  const mount = await mountWith(lab, [['v', table]]);
  await lab.dmfuseOk('csum', 'format', mount.path('v/device'));
  const tables: Tables = [
    ['v', table],
    ['s', 'csum @v 0'],
    ['b', 'bow @s 1 block_size:1024'],
    ['w', '0 60000 linear @b 0'],
  ];
  for (const [name, line] of tables.slice(1)) await createTarget(lab, mount, name, line);
  const { fs, detach } = await attach(lab, mount, 'w', `${MKFS} $loop`);
  await changeTree(lab, fs, 1, 2);
  await lab.sh(`sync -f ${fs}; fstrim ${fs}`);
  const tree = await lab.treeState(fs);
  await lab.sh(`fsfreeze -f ${fs}; echo 1 >${mount.path('b/state')}; fsfreeze -u ${fs}`);
  await changeTree(lab, fs, 2, 2);
  await detach();
  await removeAll(lab, mount, tables);
  await endMount(lab, mount);
  const again = await mountWith(lab, tables.slice(0, 2), 'again');
  await lab.dmfuseOk('bow', 'restore', again.path('s/device'));
  for (const [name, line] of tables.slice(2)) await createTarget(lab, again, name, line);
  expect(await treeOf(lab, again, 'w')).toBe(tree);
  expect(again.read('s/errors')).toBe('count 0');
  await endMount(lab, again);
  expect(readFileSync(lab.path('base.img')).every((byte) => byte === 0)).toBe(true);
});
