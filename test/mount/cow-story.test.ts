/**
 * cow as it is meant to be used: layers made by `dmfuse cow create`, a file system on a loop device on MNT/NAME/device,
 * trees that differ from layer to layer. Whatever is below the top must stay as it is, byte by byte.
 */
import { statSync } from 'node:fs';
import { expect } from 'vitest';
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
import { type Lab, type Mount, mountTest } from './harness.js';

const SIZE_MIB = 40;
const SECTORS = SIZE_MIB * 2048;
const KILLS = 2;

/** A base image, and any number of layers on it. */
class Images {
  /** The tree on the base. */
  tree = '';

  private constructor(readonly lab: Lab) {}

  static async make(lab: Lab, work: (fs: string) => Promise<void>): Promise<Images> {
    const images = new Images(lab);
    await lab.sh(`truncate -s ${SIZE_MIB}M base.img; mkfs.ext4 -q -E lazy_itable_init=0 -b 4096 base.img`);
    const loop = await lab.loop(images.base);
    const fs = await lab.mountFs(loop);
    await work(fs);
    images.tree = await lab.treeState(fs);
    await lab.sh(`umount ${fs}`);
    await lab.unloop(loop);
    return images;
  }

  get base(): string {
    return this.lab.path('base.img');
  }

  /** Makes a layer, on the base or on others. Returns the table of the stack of which it is the top. */
  async create(layer: string, below: string = this.base): Promise<string> {
    const { table } = JSON.parse(
      await this.lab.dmfuseOk('cow', 'create', '--json', below, this.lab.path(layer)),
    );
    return table as string;
  }

  /** Checksums of the base and of layers. */
  async hashes(...layers: string[]): Promise<string> {
    return await this.lab.ok(
      'sha256sum',
      ...[this.base, ...layers.flatMap((layer) => [layer, `${layer}.bitmap`])],
    );
  }
}

/** A stack in a mount, with its file system mounted. */
class Attached {
  private constructor(
    readonly lab: Lab,
    readonly mount: Mount,
    readonly name: string,
    readonly loop: string,
    readonly fs: string,
  ) {}

  /** Attaches a target that is there. */
  static async open(lab: Lab, mount: Mount, name: string, ...loopOptions: string[]): Promise<Attached> {
    const loop = await lab.loop(mount.path(name, 'device'), ...loopOptions);
    return new Attached(lab, mount, name, loop, await lab.mountFs(loop, { name: `fs-${name}` }));
  }

  async tree(): Promise<string> {
    return await this.lab.treeState(this.fs);
  }

  /** The file system away, and found to be sound. */
  async detach(): Promise<void> {
    await this.lab.sh(`umount ${this.fs}; e2fsck -fn ${this.loop}`);
    await this.lab.unloop(this.loop);
  }
}

/** The tree that a table shows, looked at and not written to. */
async function treeOf(lab: Lab, mount: Mount, table: string): Promise<string> {
  await createTarget(lab, mount, 'view', table);
  const view = await Attached.open(lab, mount, 'view', '-r');
  const tree = await view.tree();
  await view.detach();
  await lab.sh(`rmdir ${mount.path('view')}`);
  return tree;
}

/** The tree of an image as such. */
async function treeOfImage(lab: Lab, image: string): Promise<string> {
  const loop = await lab.loop(image, '-r');
  const fs = await lab.mountFs(loop, { name: 'raw' });
  const tree = await lab.treeState(fs);
  await lab.sh(`umount ${fs}; e2fsck -fn ${loop}`);
  await lab.unloop(loop);
  return tree;
}

/** The members of a stack as `layers` tells them: sectors that each holds, device, bitmap. */
function layersOf(mount: Mount, name: string) {
  return mount
    .read(`${name}/layers`)
    .split('\n')
    .map((line, index) => {
      const [number, sectors, bitmap, device, offset] = line.split(' ');
      expect([number, offset]).toEqual([`${index}`, '0']);
      return { sectors: Number(sectors), bitmap, device };
    });
}

mountTest('layer on layer: each view has its own tree, and what is below stays as it is', async (lab) => {
  const images = await Images.make(lab, (fs) => changeTree(lab, fs, 1));
  const { base } = images;
  const baseHash = await images.hashes();
  const mount = await mountWith(lab);

  const table1 = await images.create('l1');
  expect(table1).toBe(`cow ${base} 0 ${lab.path('l1.bitmap')} ${lab.path('l1')} 0`);
  await createTarget(lab, mount, 's', table1);
  expect(mount.read('s/status')).toBe(`0 ${SECTORS} cow 1 0/${SECTORS}`);
  const first = await Attached.open(lab, mount, 's');
  expect(await first.tree()).toBe(images.tree);
  await changeTree(lab, first.fs, 2);
  const tree1 = await first.tree();
  await first.detach();
  const [, { sectors: held1 } = { sectors: 0 }] = layersOf(mount, 's');
  expect(held1).toBeGreaterThan(1000);
  expect(mount.read('s/status')).toBe(`0 ${SECTORS} cow 1 ${held1}/${SECTORS}`);
  await lab.sh(`rmdir ${mount.path('s')}`);
  const below = await images.hashes('l1');
  expect(below.startsWith(baseHash)).toBe(true);

  const table2 = await images.create('l2', table1);
  expect(table2).toBe(`${table1} ${lab.path('l2.bitmap')} ${lab.path('l2')} 0`);
  await createTarget(lab, mount, 's', table2);
  const second = await Attached.open(lab, mount, 's');
  expect(await second.tree()).toBe(tree1);
  await changeTree(lab, second.fs, 3);
  const tree2 = await second.tree();
  // What is below is everybody's to read and nobody's to write.
  expect(await refusedTable(lab, mount, table1)).toMatch(
    /l1\.bitmap: in use by another target of this mount$/,
  );
  await second.detach();
  const [bottom, frozen, top] = layersOf(mount, 's');
  expect(bottom).toEqual({ sectors: SECTORS, bitmap: '-', device: base });
  expect(frozen).toEqual({ sectors: held1, bitmap: lab.path('l1.bitmap'), device: lab.path('l1') });
  expect(top).toMatchObject({ bitmap: lab.path('l2.bitmap'), device: lab.path('l2') });
  expect(mount.read('s/status')).toBe(`0 ${SECTORS} cow 2 ${top!.sectors}/${SECTORS}`);
  await mount.umount();
  expect(await images.hashes('l1')).toBe(below);

  // All three views, in another mount.
  expect(new Set([images.tree, tree1, tree2]).size).toBe(3);
  const all = await images.hashes('l1', 'l2');
  const again = await mountWith(lab, [], 'again');
  expect(await treeOfImage(lab, base)).toBe(images.tree);
  expect(await treeOf(lab, again, `cow ${base} 0`)).toBe(images.tree);
  expect(await treeOf(lab, again, table1)).toBe(tree1);
  expect(await treeOf(lab, again, table2)).toBe(tree2);
  await endMount(lab, again);
  expect(await images.hashes('l1', 'l2')).toBe(all);
});

mountTest('six stacks on one base at once: six trees, and nobody writes to the base', async (lab) => {
  const images = await Images.make(lab, (fs) => changeTree(lab, fs, 1));
  const { base } = images;
  const baseHash = await images.hashes();
  const names = ['v0', 'v1', 'v2', 'v3', 'v4', 'v5'];
  const tables = await Promise.all(names.map((name) => images.create(name)));
  const targets = names.map((name, i) => [name, tables[i]!] as const);

  const mount = await mountWith(lab, targets);
  const stacks: Attached[] = [];
  for (const name of names) stacks.push(await Attached.open(lab, mount, name));
  await Promise.all(stacks.map(({ fs }, i) => changeTree(lab, fs, 10 + i, 2)));
  const trees = await Promise.all(stacks.map((stack) => stack.tree()));
  expect(new Set([images.tree, ...trees]).size).toBe(1 + names.length);

  for (const table of [
    `cow ${base} 0`,
    `linear ${base} 0`,
    `bow ${base}`,
    `cow ${base} 0 ${base} ${base} 0`,
  ]) {
    expect(await refusedTable(lab, mount, table)).toMatch(
      /base\.img: in use by another target of this mount$/,
    );
  }
  expect(await refusedTable(lab, mount, tables[0]!)).toMatch(/v0\.bitmap: in use by another target/);
  // Another mount may read it, too, and not write it either.
  const other = await mountWith(lab, [], 'other');
  expect(await refusedTable(lab, other, `cow ${base} 0`)).toMatch(/base\.img: in use by another process/);
  expect(await refusedTable(lab, other, tables[0]!)).toMatch(/v0\.bitmap: in use by another process/);
  await images.create('w');
  expect(await treeOf(lab, other, `cow ${base} 0 ${lab.path('w.bitmap')} ${lab.path('w')} 0`)).toBe(
    images.tree,
  );
  await endMount(lab, other);

  await Promise.all(stacks.map((stack) => stack.detach()));
  await endMount(lab, mount);
  expect(await images.hashes()).toBe(baseHash);
  const again = await mountWith(lab, targets);
  for (const [i, name] of names.entries()) {
    const stack = await Attached.open(lab, again, name);
    expect(await stack.tree(), name).toBe(trees[i]);
    await stack.detach();
  }
});

mountTest(
  'fstrim gives a layer`s space back; what is trimmed reads as zeros, not as what is below',
  async (lab) => {
    const MIB = 1 << 20;
    const images = await Images.make(lab, async (fs) => {
      await changeTree(lab, fs, 1, 2);
      await lab.sh(`head -c ${8 * MIB} /dev/urandom >${fs}/below`);
    });
    const baseHash = await images.hashes();
    const table = await images.create('l1');
    const mount = await mountWith(lab, [['s', table]]);
    const stack = await Attached.open(lab, mount, 's');
    const { fs } = stack;
    await lab.sh(`head -c ${16 * MIB} /dev/urandom >${fs}/big; sync -f ${fs}`);
    const space = () => statSync(lab.path('l1')).blocks * 512;
    const full = space();
    expect(full).toBeGreaterThan(16 * MIB);
    const freed = [
      await sectorOf(lab, `${fs}/below`, 4 * MIB),
      await sectorOf(lab, `${fs}/big`, 9 * MIB),
      await sectorOf(lab, `${fs}/below`, 6 * MIB),
    ];
    await lab.sh(`rm ${fs}/below ${fs}/big; sync -f ${fs}`);
    const tree = await stack.tree();
    // One by the `discard` file, the others by the file system.
    const byFile = freed.pop()!;
    await lab.sh(`echo '${byFile} 8' >${mount.path('s/discard')}`);
    await lab.sh(`cmp -n 4096 -i $((${byFile} * 512)):0 ${mount.path('s/device')} /dev/zero`);
    await lab.ok('fstrim', fs);
    expect(space()).toBeLessThan(full - 15 * MIB);
    const expectZeros = async (point: Mount) => {
      for (const sector of freed) {
        await lab.sh(`cmp -n 4096 -i $((${sector} * 512)):0 ${point.path('s/device')} /dev/zero
        ! cmp -s -n 4096 -i $((${freed[0]} * 512)):0 base.img /dev/zero`);
      }
    };
    await expectZeros(mount);
    // A trim of what was never written here takes no space, and hides what is below.
    expect(layersOf(mount, 's')[1]!.sectors).toBeGreaterThan((8 + 16) * 2048);
    expect(await stack.tree()).toBe(tree);
    await stack.detach();
    await endMount(lab, mount);
    expect(await images.hashes()).toBe(baseHash);

    const again = await mountWith(lab, [['s', table]]);
    await expectZeros(again);
    const reopened = await Attached.open(lab, again, 's');
    expect(await reopened.tree()).toBe(tree);
    await changeTree(lab, reopened.fs, 2, 1);
    await reopened.detach();
  },
);

mountTest('commit and flatten: the same is shown by less; refused while anybody has it open', async (lab) => {
  const images = await Images.make(lab, (fs) => changeTree(lab, fs, 1));
  const { base } = images;
  const [l1, l2] = [lab.path('l1'), lab.path('l2')];
  const table1 = await images.create('l1');
  const change = async (mount: Mount, seed: number, meanwhile: Promise<unknown>[] = []) => {
    const stack = await Attached.open(lab, mount, 's');
    await changeTree(lab, stack.fs, seed);
    await lab.sh(`rm -r ${stack.fs}/objects/1*; sync -f ${stack.fs}; fstrim ${stack.fs}`);
    const tree = await stack.tree();
    await Promise.all(meanwhile);
    await stack.detach();
    return tree;
  };
  const mount = await mountWith(lab, [['s', table1]]);
  const tree1 = await change(mount, 2);
  await lab.sh(`rmdir ${mount.path('s')}`);
  const table2 = await images.create('l2', table1);
  await createTarget(lab, mount, 's', table2);
  // Also of a stack that is not attached, while what would be changed is open for reading.
  await images.create('l3', table1);
  const below = await images.hashes('l1');
  const attempts = [
    lab.dmfuse('cow', 'commit', base, l1, lab.path('l3')),
    lab.dmfuse('cow', 'commit', base, l1, l2),
    lab.dmfuse('cow', 'flatten', base, l1, l2, 'refused'),
  ];
  const tree2 = await change(mount, 3, attempts);
  for (const [i, { code, stdout, stderr }] of (await Promise.all(attempts)).entries()) {
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^dmfuse: .*: in use by another process, which holds a lock on it\n$/);
    if (i === 0) expect(stderr).toMatch(/\/l1(\.bitmap)?: in use/);
  }
  const shown = await lab.sha256(mount.path('s/device'));
  await endMount(lab, mount);
  expect(await images.hashes('l1')).toBe(below);

  await lab.dmfuseOk('cow', 'flatten', base, l1, l2, 'flat2');
  await lab.dmfuseOk('cow', 'flatten', base, l1, 'flat1');
  expect(await lab.sha256('flat2')).toBe(shown);
  expect(await treeOfImage(lab, lab.path('flat2'))).toBe(tree2);
  expect(await treeOfImage(lab, lab.path('flat1'))).toBe(tree1);

  expect(await lab.dmfuseOk('cow', 'commit', base, l1, l2)).toMatch(
    /^merged: \d+ sectors of \S+\/l2 into \S+\/l1\n$/,
  );
  expect(below.startsWith(await images.hashes())).toBe(true);
  const after = await mountWith(lab, [], 'after');
  expect(await treeOf(lab, after, table1)).toBe(tree2);
  expect(await treeOf(lab, after, table2)).toBe(tree2);
  await createTarget(lab, after, 's', table2);
  expect(await lab.sha256(after.path('s/device'))).toBe(shown);
  expect(layersOf(after, 's')[2]!.sectors).toBe(0);
  await endMount(lab, after);
  await lab.dmfuseOk('cow', 'flatten', base, l1, 'flat3');
  expect(await lab.sha256('flat3')).toBe(shown);

  expect(await lab.dmfuseOk('cow', 'commit', base, l1)).toMatch(
    /^merged: \d+ sectors of \S+\/l1 into \S+\/base\.img\n$/,
  );
  expect(await lab.sha256(base)).toBe(shown);
  expect(await treeOfImage(lab, base)).toBe(tree2);
  // An emptied layer is as good as a new one.
  const last = await mountWith(lab, [['s', table1]]);
  const tree3 = await change(last, 4);
  await endMount(lab, last);
  expect(await lab.sha256(base)).toBe(shown);
  await lab.dmfuseOk('cow', 'flatten', base, l1, 'flat4');
  expect(await treeOfImage(lab, lab.path('flat4'))).toBe(tree3);
});

mountTest('kill -9 under load: what was fsynced is there, and what is below stays as it is', async (lab) => {
  const images = await Images.make(lab, (fs) => changeTree(lab, fs, 1, 1));
  const table = await images.create('l2', await images.create('l1'));
  const below = await images.hashes('l1');
  const kept: Promises[] = [];
  const attach = async () => {
    const mount = await mountWith(lab, [['s', table]]);
    return await Attached.open(lab, mount, 's');
  };
  let stack = await attach();
  for (let seed = 1; seed <= KILLS; seed++) {
    const { mount, fs, loop } = stack;
    kept.push(await killUnderFsyncs(lab, mount, { fs, loop, seed }));
    expect(await images.hashes('l1')).toBe(below);
    // The kernel replays the journal before the file system is looked at.
    stack = await attach();
    for (const promises of kept) await expectKept(lab, stack.fs, promises);
    await lab.sh(`umount ${fs}; e2fsck -fn ${stack.loop}; mount ${stack.loop} ${fs}; fstrim ${fs}`);
    const inBase = images.tree.split('\n').filter((line) => /^[0-9a-f]{64} /.test(line));
    const sums = await lab.sh(`cd ${fs}; find objects work -type f -print0 | sort -z | xargs -0r sha256sum`);
    expect(sums.trimEnd().split('\n')).toEqual(inBase.map((line) => line.replace('  ./', '  ')));
  }
  await stack.detach();
  await endMount(lab, stack.mount);
  expect(await images.hashes('l1')).toBe(below);
});
