/**
 * bow as it is meant to be used: a file system on a loop device on MNT/NAME/device, a checkpoint, many changes, and
 * then the way back or the way on. What counts is the tree, down to times and checksums.
 */
import { describe, expect } from 'vitest';
import { type Lab, type Mount, mountTest, type Running, until } from './harness.js';

interface Story {
  /** Of bow. */
  readonly blockSize: number;
  readonly type: 'ext4' | 'xfs';
  readonly mkfs: string;
  readonly size: string;
}

const EXT4 = { type: 'ext4', size: '64M' } as const;
const STORIES: Record<string, Story> = {
  'bow 4096, ext4 of 4 KiB blocks': {
    ...EXT4,
    blockSize: 4096,
    mkfs: 'mkfs.ext4 -q -E nodiscard,lazy_itable_init=0 -b 4096',
  },
  'bow 512, ext4 of 1 KiB blocks': {
    ...EXT4,
    blockSize: 512,
    mkfs: 'mkfs.ext4 -q -E nodiscard,lazy_itable_init=0 -b 1024',
  },
  'bow 4096, ext4 of 1 KiB blocks': {
    ...EXT4,
    blockSize: 4096,
    mkfs: 'mkfs.ext4 -q -E nodiscard,lazy_itable_init=0 -b 1024',
  },
  'bow 1024, ext4 of 1 KiB blocks': {
    ...EXT4,
    blockSize: 1024,
    mkfs: 'mkfs.ext4 -q -E nodiscard,lazy_itable_init=0 -b 1024',
  },
  'bow 4096, xfs': { blockSize: 4096, type: 'xfs', mkfs: 'mkfs.xfs -q -K', size: '320M' },
};

/** Changes a tree: new files, changed, lengthened, cut, punched, renamed, linked and deleted ones. */
const CHANGE = `
import ctypes, os, random, sys
root, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(root)
files = sorted(os.path.join(d, f) for d, _, names in os.walk('.') for f in names if not os.path.islink(os.path.join(d, f)))
def some():
    return rng.choice(files)
def size():
    return rng.choice([0, 1, 100, 1000, 4096, 5000, rng.randrange(100000)])
def new(i):
    folder = 'd%d/e%d' % (rng.randrange(5), rng.randrange(5))
    os.makedirs(folder, exist_ok=True)
    name = '%s/%s-%d' % (folder, seed, i)
    with open(name, 'wb') as f:
        f.write(rng.randbytes(size()))
    files.append(name)
def fallocate(f, mode, offset, length):
    if libc.fallocate(f.fileno(), mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), 'fallocate')
for i in range(rounds):
    what = rng.choice(['new', 'new', 'part', 'part', 'part', 'more', 'cut', 'hole', 'space', 'mode', 'move', 'link', 'delete', 'delete', 'sync'])
    if what == 'new' or len(files) < 20:
        new(i)
    elif what == 'part':
        with open(some(), 'r+b') as f:
            for _ in range(5):
                f.seek(rng.randrange(max(1, os.fstat(f.fileno()).st_size)))
                f.write(rng.randbytes(rng.choice([1, 300, 512, 1024, 3000])))
            f.flush()
            os.fdatasync(f.fileno())
    elif what == 'more':
        with open(some(), 'ab') as f:
            f.write(rng.randbytes(size()))
    elif what == 'cut':
        name = some()
        os.truncate(name, rng.randrange(1 + os.stat(name).st_size))
    elif what in ('hole', 'space'):
        with open(some(), 'r+b') as f:
            fallocate(f, rng.choice([3, 17]) if what == 'hole' else 0, rng.randrange(50000), rng.randrange(1, 50000))
    elif what == 'mode':
        os.chmod(some(), rng.choice([0o600, 0o644, 0o755]))
    elif what == 'move':
        at = rng.randrange(len(files))
        to = '%s-%d' % (os.path.join(os.path.dirname(files[at]), 'moved'), i)
        os.rename(files[at], to)
        files[at] = to
    elif what == 'link':
        name = some()
        to = '%s-%s-%d' % (name, seed, i)
        os.symlink(name, to) if rng.random() < 0.5 else os.link(name, to) or files.append(to)
    elif what == 'delete':
        os.unlink(files.pop(rng.randrange(len(files))))
    elif rng.random() < 0.3:
        os.sync()
    if i % 50 == 0:
        print('round', i, flush=True)
`;

/** A file system with files on a bow target, in state 1. */
class World {
  loop = '';
  fs = '';
  /** The tree at the checkpoint. */
  tree = '';

  constructor(
    readonly lab: Lab,
    readonly mount: Mount,
    readonly story: Story,
  ) {}

  get image(): string {
    return this.lab.path('disk.img');
  }

  get checker(): string {
    return this.story.type === 'ext4' ? 'e2fsck -fn' : 'xfs_repair -n';
  }

  static async make(lab: Lab, story: Story): Promise<World> {
    const world = new World(lab, await lab.mount(), story);
    const { mount, image } = world;
    await lab.sh(`truncate -s ${story.size} ${image}`);
    await mount.create('sys', `bow ${image} 1 block_size:${story.blockSize}`);
    await world.attach(`${story.mkfs} $loop`);
    await world.change(1, 300);
    await lab.sh(`rm -r ${world.fs}/d2; sync -f ${world.fs}`);
    expect(mount.read('sys/free')).toBe('0');
    const trimmed = Number(/\((\d+) bytes\)/.exec(await lab.ok('fstrim', '-v', world.fs))![1]);
    const free = () => Number(mount.read('sys/free'));
    // Blocks that are free in part, and what the file system wrote meanwhile, do not count. xfs speaks of all its space,
    // and trims on after fstrim.
    const [blocks, size] = (await lab.ok('stat', '-f', '-c', '%f %S', world.fs)).split(' ').map(Number);
    const expected = Math.min(trimmed, blocks! * size!);
    await until(() => free() > 0.9 * expected, `most of ${expected} bytes to be free`);
    expect(free()).toBeLessThanOrEqual(trimmed);
    expect(free()).toBe(freeIn(mount.read('sys/ranges')));
    return world;
  }

  /** Attaches the device, with a piece of shell about `$loop` in between, and mounts it. */
  async attach(between = ''): Promise<void> {
    this.loop = await this.lab.loop(this.mount.path('sys/device'));
    await this.lab.sh(`loop=${this.loop}\n${between}`);
    this.fs = await this.lab.mountFs(this.loop, { type: this.story.type });
  }

  async detach(): Promise<void> {
    await this.lab.ok('umount', this.fs);
    await this.lab.unloop(this.loop);
  }

  /** All of dmfuse away; the image is a file again. */
  async takeDown(): Promise<void> {
    await this.detach();
    await this.lab.sh(`rmdir ${this.mount.path('sys')}`);
    await this.mount.umount();
  }

  async checkpoint(): Promise<void> {
    this.tree = await this.lab.treeState(this.fs);
    await this.lab.sh(
      `fsfreeze -f ${this.fs}; echo 1 >${this.mount.path('sys/state')}; fsfreeze -u ${this.fs}`,
    );
    expect(this.mount.read('sys/state')).toBe('1');
  }

  async change(seed: number, rounds: number): Promise<void> {
    await this.lab.python(CHANGE, this.fs, String(seed), String(rounds));
  }

  startChanging(seed: number): Running {
    return this.lab.start('python3', ['-c', CHANGE, this.fs, String(seed), '1000000']);
  }

  /** Rolls the image back and compares with the checkpoint. */
  async expectRollback(): Promise<void> {
    const { lab, image } = this;
    expect(await lab.dmfuse('bow', 'check', image)).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^sound: a restore would roll back/),
    });
    expect(await lab.dmfuseOk('bow', 'restore', image)).toMatch(/^restored: \d+ entries/);
    expect(await lab.dmfuseOk('bow', 'restore', image)).toBe('no log\n');
    await this.expectImage(this.tree);
  }

  /** The image as such holds this tree, and the file system is sound. */
  async expectImage(tree: string): Promise<void> {
    const { lab, story } = this;
    const raw = await lab.loop(this.image);
    if (story.type === 'ext4') await lab.sh(`${this.checker} ${raw}`);
    const fs = await lab.mountFs(raw, { name: 'raw', type: story.type });
    expect(await lab.treeState(fs)).toBe(tree);
    await lab.sh(`umount ${fs}; ${this.checker} ${raw}`);
    await lab.unloop(raw);
  }
}

/** Bytes of the Free ranges of a `ranges` table. */
function freeIn(ranges: string): number {
  const lines = ranges.split('\n').map((line) => line.split(': '));
  return lines.reduce(
    (sum, [name, start], i) => sum + (name === 'Free' ? (Number(lines[i + 1]![1]) - Number(start)) * 512 : 0),
    0,
  );
}

for (const [title, story] of Object.entries(STORIES)) {
  describe(title, () => {
    mountTest('roll back: the tree of the checkpoint comes back', async (lab) => {
      const world = await World.make(lab, story);
      await world.checkpoint();
      await world.change(2, 300);
      // What was written is there, read back from the device, before it is undone.
      const changed = await lab.treeState(world.fs);
      await world.detach();
      await world.attach();
      expect(await lab.treeState(world.fs)).toBe(changed);
      await lab.sh(`fstrim ${world.fs}`);
      await world.change(3, 100);
      await world.takeDown();
      expect(changed).not.toBe(world.tree);
      await world.expectRollback();
    });

    mountTest('kill -9 of the daemon in the middle of changes, then roll back', async (lab) => {
      const world = await World.make(lab, story);
      await world.checkpoint();
      const changes = world.startChanging(4);
      await changes.prints(/round 200/);
      await world.mount.killDaemon();
      changes.kill();
      await changes.ended;
      // A file system that has lost its device may complain.
      await lab.shell(`umount ${world.fs} || umount -l ${world.fs}`);
      await lab.unloop(world.loop);
      await world.mount.umount();
      // The checkpoint is still open: nobody goes on with it by accident.
      const mount = await lab.mount({ name: 'again' });
      expect(await lab.dmfuse('create', mount.point, 'sys', `bow ${world.image}`)).toMatchObject({
        code: 1,
        stderr: expect.stringContaining(`run \`dmfuse bow restore ${world.image}\` first`),
      });
      await mount.umount();
      await world.expectRollback();
    });

    mountTest('commit, while files change: they are there afterwards', async (lab) => {
      const world = await World.make(lab, story);
      const { mount } = world;
      await world.checkpoint();
      const changes = world.startChanging(5);
      await changes.prints(/round 100/);
      await lab.sh(`echo 2 >${mount.path('sys/state')}`);
      expect([mount.read('sys/state'), mount.read('sys/free')]).toEqual(['2', '0']);
      await changes.prints(/round 200/);
      changes.kill();
      await changes.ended;
      const tree = await lab.treeState(world.fs);
      await world.detach();
      // Opened anew, the kernel passes the I/O through.
      const { reads, writes } = mount.stats('sys');
      await world.attach();
      expect(await lab.treeState(world.fs)).toBe(tree);
      await world.change(6, 20);
      const last = await lab.treeState(world.fs);
      expect(mount.stats('sys')).toMatchObject({ reads, writes });
      await world.takeDown();
      expect((await lab.dmfuse('bow', 'check', world.image)).code).toBe(3);
      await world.expectImage(last);
    });
  });
}

mountTest('what ext4 zeroes in the background counts as free, and the roll back is whole', async (lab) => {
  const mount = await lab.mount();
  await lab.sh('truncate -s 64M disk.img');
  await mount.create('sys', `bow ${lab.path('disk.img')}`);
  const loop = await lab.loop(mount.path('sys/device'));
  await lab.sh(
    `mkfs.ext4 -q -E nodiscard,lazy_itable_init=1 ${loop}; mkdir fs; mount -o init_itable=0 ${loop} fs`,
  );
  // The loop driver tells the zeroing of inode tables from a trim no more than we can.
  await until(() => Number(mount.read('sys/free')) > 1e6, 'inode tables to be zeroed');
  const fill = (name: string) =>
    lab.sh(`cd fs; for i in $(seq 500); do echo ${name}$i >${name}$i; done; sync -f .`);
  await fill('old');
  const tree = await lab.treeState(lab.path('fs'));
  await lab.sh(`fstrim fs; fsfreeze -f fs; echo 1 >${mount.path('sys/state')}; fsfreeze -u fs; rm fs/old*`);
  await fill('new');
  await lab.ok('umount', 'fs');
  await lab.unloop(loop);
  await mount.umount();
  await lab.dmfuseOk('bow', 'restore', lab.path('disk.img'));
  await lab.sh('e2fsck -fn disk.img; mount -o loop disk.img fs');
  expect(await lab.treeState(lab.path('fs'))).toBe(tree);
  // The inodes that were zeroed then are as good as new.
  await lab.sh('cd fs; seq 10000 | xargs touch; cd ..; umount fs; e2fsck -fn disk.img');
});

describe('the states, by the shell', () => {
  async function target(lab: Lab) {
    const mount = await lab.mount();
    await lab.sh('head -c 4M /dev/urandom >original; cp original disk.img');
    await mount.create('x', `bow ${lab.path('disk.img')}`);
    const write = (text: string) => lab.shell(`printf '%s' '${text}' >${mount.path('x/state')}`);
    const expectRefused = async (texts: string[], words = 'Invalid argument') => {
      const before = ['state', 'free', 'ranges', 'status'].map((name) => mount.read(`x/${name}`));
      for (const text of texts) {
        expect(await write(text)).toMatchObject({ code: 1, stderr: expect.stringContaining(words) });
        expect((await mount.events('x')).at(-1)).toMatch(/^refused file=state errno=\d+ reason="/);
      }
      expect(['state', 'free', 'ranges', 'status'].map((name) => mount.read(`x/${name}`))).toEqual(before);
    };
    return { mount, write, expectRefused };
  }

  mountTest('only one step up is taken, and a refused one changes nothing', async (lab) => {
    const { mount, write, expectRefused } = await target(lab);
    await expectRefused(['0', '2', '3', '-1', 'x', '1 1', '01', '1.0']);
    await expectRefused(['1'], 'No space left on device');
    await lab.sh(`echo '4096 8' >${mount.path('x/discard')}`);
    await expectRefused(['1'], 'No space left on device');
    await lab.sh(`echo '4104 80' >${mount.path('x/discard')}`);
    expect((await write('1\n')).code).toBe(0);
    await expectRefused(['0', '1', '3', 'x']);
    expect((await write('2')).code).toBe(0);
    await expectRefused(['0', '1', '2', '3', 'x']);
    expect(
      (await mount.events('x')).filter((line) => line.startsWith('state ')).map((line) => line.slice(0, 17)),
    ).toEqual(['state from=0 to=1', 'state from=1 to=2']);
  });

  mountTest('`ranges` and `free` tell Android`s own vector', async (lab) => {
    const mount = await lab.mount();
    await lab.sh('truncate -s 2M disk.img');
    await mount.create('x', `bow ${lab.path('disk.img')} 1 block_size:512`);
    await lab.sh(`cd ${mount.path('x')}; for sector in 8 16 12 4; do echo "$sector 1" >discard; done`);
    expect(mount.read('x/ranges')).toBe(
      [
        'Unchanged: 0',
        'Free: 4',
        'Unchanged: 5',
        'Free: 8',
        'Unchanged: 9',
        'Free: 12',
        'Unchanged: 13',
        'Free: 16',
        'Unchanged: 17',
        'Top: 4096',
      ].join('\n'),
    ); // prettier-ignore
    expect(mount.read('x/free')).toBe('2048');
    await lab.sh(
      `cd ${mount.path('x')}; echo 1 >state; dd if=/dev/zero of=device bs=512 count=1 conv=notrunc status=none`,
    );
    expect(mount.read('x/ranges').split('\n').slice(0, 5)).toEqual([
      'Sector0: 0',
      'Unchanged: 1',
      'Sector0_current: 4',
      'Unchanged: 5',
      'Backup: 8',
    ]); // prettier-ignore
    expect(mount.read('x/free')).toBe('1024');
    expect(mount.read('x/status')).toBe('0 4096 bow state:1 free:1024 sequence:0 entries:1');
  });

  mountTest(
    'after the commit a new open is passed through; it and an older one see the same bytes',
    async (lab) => {
      const { mount, write } = await target(lab);
      await lab.sh(`echo '4096 1024' >${mount.path('x/discard')}`);
      expect((await write('1')).code).toBe(0);
      await lab.python(
        `
import os, random, sys
folder = sys.argv[1]
def stats():
    counters = dict(line.split() for line in open(folder + '/stats'))
    return counters['reads'], counters['writes']
old = os.open(folder + '/device', os.O_RDWR)
assert os.pwrite(old, b'in state 1' * 1000, 100) == 10000
open(folder + '/state', 'w').write('2')
new = os.open(folder + '/device', os.O_RDWR)
before = stats()
assert os.pread(new, 10000, 100) == b'in state 1' * 1000
assert os.pwrite(new, b'by the new' * 1000, 5000) == 10000
os.fsync(new)
assert stats() == before
assert os.pread(old, 14900, 100) == b'in state 1' * 490 + b'by the new' * 1000
assert os.pwrite(old, b'by the old' * 1000, 9000) == 10000
assert os.pread(new, 14000, 5000) == b'by the new' * 400 + b'by the old' * 1000
assert stats() != before
third = os.open(folder + '/device', os.O_RDWR)
rng = random.Random(7)
for i in range(300):
    a, b = rng.sample([old, new, third], 2)
    data, at = rng.randbytes(rng.randrange(1, 9000)), rng.randrange(4 << 20) // 2
    assert os.pwrite(a, data, at) == len(data)
    assert os.pread(b, len(data), at) == data, i
`,
        mount.path('x'),
      );
      await mount.umount();
      expect((await lab.dmfuse('bow', 'check', lab.path('disk.img'))).code).toBe(3);
    },
  );
});

describe('when free space ends', () => {
  mountTest('the write fails with ENOSPC and an event, the rest goes on, nothing is lost', async (lab) => {
    const mount = await lab.mount();
    await lab.sh('head -c 4M /dev/urandom >original; cp original disk.img');
    const image = lab.path('disk.img');
    await mount.create('x', `bow ${image}`);
    await lab.sh(`cd ${mount.path('x')}
      echo '8000 80' >discard; echo 1 >state
      ! dd if=/dev/zero of=device bs=4096 count=100 conv=notrunc oflag=direct status=none 2>${lab.path('err')}
      grep -q 'No space left on device' ${lab.path('err')}`);
    const events = await mount.events('x');
    expect(events.filter((line) => line.startsWith('no_space '))).toHaveLength(1);
    expect(mount.stats('x').errors).toBe(1);
    // What is changed already, and reading, need no space.
    await lab.sh(`cd ${mount.path('x')}
      dd if=/dev/zero of=device bs=4096 count=4 seek=1 conv=notrunc oflag=direct status=none
      cmp -n 16384 device /dev/zero 4096
      cmp -n 2097152 device ${lab.path('original')} 1048576 1048576
      ! dd if=/dev/zero of=device bs=4096 count=1 seek=500 conv=notrunc oflag=direct status=none 2>/dev/null`);
    expect((await mount.events('x')).filter((line) => line.startsWith('no_space '))).toHaveLength(1);
    await mount.umount();
    await lab.dmfuseOk('bow', 'restore', image);
    await lab.sh(
      `cmp -n $((8000 * 512)) original disk.img; cmp original disk.img $((8080 * 512)) $((8080 * 512))`,
    );
  });

  mountTest('under a file system that is nearly full: it fails, and the roll back is whole', async (lab) => {
    const world = await World.make(lab, STORIES['bow 4096, ext4 of 4 KiB blocks']!);
    const { mount, fs } = world;
    await lab.sh(`fill() { dd if=/dev/urandom of=${fs}/big bs=64K oflag=append conv=notrunc count=$1 status=none; }
      fill 500; sync -f ${fs}; fstrim ${fs}`);
    await world.checkpoint();
    await lab.shell(`shred -n 2 ${fs}/big; sync -f ${fs}`);
    expect((await mount.events('sys')).some((line) => line.startsWith('no_space '))).toBe(true);
    await world.takeDown();
    await world.expectRollback();
  });
});
