/**
 * Snapshots as they are meant to be used: devices that are written to all the time are taken at one moment, read in peace by a
 * backup, and let go; and what becomes of them when the storage is full or fails, or when the daemon ends.
 */
import { existsSync, readdirSync, readFileSync, statSync, truncateSync } from 'node:fs';
import { open, readFile, rmdir } from 'node:fs/promises';
import { describe, expect } from 'vitest';
import { Prng } from '../../src/device/prng.js';
import {
  type Changes,
  changedBlocks,
  changesOf,
  field,
  Load,
  refusal,
  refusedLine,
  SnapshotFolder,
  setFile,
  track,
} from './filter-work.js';
import { changeTree, endMount } from './fs-work.js';
import { type Lab, type Mount, mountTest, suspend, until } from './harness.js';

const MIB = 1 << 20;
const NO_PASSTHROUGH = '0 1 no_passthrough';

/** Mounts with targets, each a `linear` on NAME.img of so many MiB of noise, and tracks them. */
async function mountTracked(
  lab: Lab,
  names: readonly string[],
  { mebibytes = 16, args = [] as readonly string[] } = {},
): Promise<Mount> {
  for (const name of names)
    await lab.sh(`[[ -e ${name}.img ]] || head -c ${mebibytes}M /dev/urandom >${name}.img`);
  const mount = await mountLinear(lab, names, args);
  await track(mount, ...names);
  return mount;
}

/** The same of images that are there, and nobody is tracked. */
async function mountLinear(
  lab: Lab,
  names: readonly string[],
  args: readonly string[] = [],
  lanes = 2,
): Promise<Mount> {
  const creates = names.flatMap((name) => ['--create', `${name} ${linear(lab, name)}`]);
  return await lab.mount({ args: ['--lanes', `${lanes}`, ...creates, ...args] });
}

function linear(lab: Lab, name: string): string {
  return `linear ${lab.path(`${name}.img`)} ${NO_PASSTHROUGH}`;
}

/** A line for `storage`: so many MiB of a file, which is made when it is missing. */
async function storageLine(lab: Lab, mebibytes: number, name = 'store'): Promise<string> {
  await lab.sh(`touch ${name}`);
  return `${lab.path(name)} 0 ${mebibytes * 2048}`;
}

/** The checksum of what a file holds, not of what the kernel remembers of it. */
async function directSha256(lab: Lab, file: string): Promise<string> {
  return (await lab.sh(`dd if=${file} iflag=direct bs=1M status=none | sha256sum`)).split(' ')[0]!;
}

/** Writes noise to a part of a device, past the caches. */
async function writeNoise(
  lab: Lab,
  file: string,
  { at, length }: { at: number; length: number },
): Promise<void> {
  await lab.sh(`dd if=/dev/urandom of=${file} bs=4K iflag=fullblock oflag=direct,seek_bytes seek=${at} \
    count=${length / 4096} conv=notrunc status=none`);
}

async function readFails(lab: Lab, file: string): Promise<void> {
  expect(await lab.shell(`dd if=${file} of=/dev/null bs=4K count=1 iflag=direct status=none`)).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('Input/output error'),
  });
}

describe('images do not change while their devices do', () => {
  for (const args of [[], ['--param', 'chunk_minimum_shift=12']]) {
    mountTest(`two devices under fio ${args.join(' ')}`.trimEnd(), async (lab) => {
      const mount = await mountTracked(lab, ['a', 'b'], { args });
      const loop = await lab.loop(mount.path('a/device'));
      const hashes = [await lab.sha256('a.img'), await lab.sha256('b.img')];
      const atRest = await SnapshotFolder.take(mount, 's', ['a', 'b'], await storageLine(lab, 40));
      const load = Load.start(lab, [loop, mount.path('b/device')], 16);
      for (let round = 1; round <= 2; round++) {
        expect([await lab.sha256(atRest.image('a')), await directSha256(lab, atRest.image('b'))]).toEqual(
          hashes,
        );
        await load.rounds(round);
      }
      expect([await directSha256(lab, atRest.image('a')), await lab.sha256(atRest.image('b'))]).toEqual(
        hashes,
      );
      expect(atRest.amount('filled')).toBeGreaterThan(0);
      expect(atRest.state).toBe('taken');
      await atRest.remove();
      // Now of devices that are being written to.
      const inMotion = await SnapshotFolder.take(mount, 's', ['a', 'b'], await storageLine(lab, 40));
      const read = async () => [
        await directSha256(lab, inMotion.image('a')),
        await directSha256(lab, inMotion.image('b')),
      ];
      const first = await read();
      expect(first).not.toContain(hashes[0]);
      await load.rounds(4);
      expect(await read()).toEqual(first);
      await load.stop();
      expect(await read()).toEqual(first);
      expect(inMotion.state).toBe('taken');
      expect(inMotion.amount('filled')).toBeGreaterThan(0);
      expect(await directSha256(lab, mount.path('a/device'))).not.toBe(first[0]);
      await inMotion.remove();
      await lab.unloop(loop);
      await endMount(lab, mount);
    });
  }
});

/**
 * Threads that each write a number to their slot on one file and then on the other, and then the next number, until a file is
 * there. Each has a chunk of its own; half of them begin with the second file.
 */
const IN_TURN = `
import mmap, os, struct, sys, threading
a, b, end, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
failures = []
def work(t):
    try:
        sync = os.O_SYNC if t < 2 else 0
        paths = [a, b] if t % 2 == 0 else [b, a]
        fds = [os.open(path, os.O_RDWR | os.O_DIRECT | sync) for path in paths]
        page = mmap.mmap(-1, 4096)
        n = 0
        while not os.path.exists(end):
            for i in range(20):
                n += 1
                page[:8] = struct.pack('<Q', n)
                for fd in fds:
                    assert os.pwrite(fd, page, t << 18) == 4096
        print(n)
    except BaseException as e:
        failures.append(e)
all = [threading.Thread(target=work, args=(t,)) for t in range(threads)]
for t in all: t.start()
for t in all: t.join()
assert not failures, failures
`;

mountTest(
  'all devices are taken at one moment: of what is written in turn, no image is ahead',
  async (lab) => {
    const THREADS = 4;
    await lab.sh('for name in a b c; do truncate -s 4M $name.img; done');
    const mount = await mountTracked(lab, ['a', 'b', 'c']);
    const loop = await lab.loop(mount.path('a/device'));
    const writer = lab.start('python3', [
      '-c',
      IN_TURN,
      loop,
      mount.path('b/device'),
      lab.path('end'),
      `${THREADS}`,
    ]);
    const line = await storageLine(lab, 12);
    const counters = async (image: string) => {
      const bytes = await readFile(image);
      return Array.from({ length: THREADS }, (_, t) => Number(bytes.readBigUInt64LE(t << 18)));
    };
    await until(async () => (await counters(mount.path('b/device'))).every((n) => n > 0), 'all to write');
    for (let taken = 0; taken < 20; taken++) {
      // The one that is not written to is in between.
      const order = taken % 2 === 0 ? ['a', 'c', 'b'] : ['b', 'c', 'a'];
      const snapshot = await SnapshotFolder.take(mount, 's', order, line);
      const a = await counters(snapshot.image('a'));
      const b = await counters(snapshot.image('b'));
      const ahead = a.map((n, t) => (t % 2 === 0 ? n - b[t]! : b[t]! - n));
      expect(
        ahead.every((n) => n === 0 || n === 1),
        `take ${taken}: ${a} and ${b}`,
      ).toBe(true);
      expect(snapshot.state).toBe('taken');
      await snapshot.remove();
      // The next take is of other numbers.
      const goesOn = async () => (await counters(mount.path('b/device'))).every((n, t) => n > b[t]! + 1);
      await until(goesOn, 'all to write on');
    }
    await lab.sh('touch end');
    expect(await writer.ended).toMatchObject({ code: 0, stderr: '' });
    await lab.unloop(loop);
    await endMount(lab, mount);
  },
);

/** A backup of a device that copies from images what the change map names. */
class Backup {
  copy = Buffer.alloc(0);
  private last: Changes | undefined;

  constructor(private readonly mount: Mount) {}

  /** The same backup, after its device was mounted anew. */
  on(mount: Mount): Backup {
    const same = new Backup(mount);
    same.copy = this.copy;
    same.last = this.last;
    return same;
  }

  /** Copies what has changed. Returns the numbers of the blocks, undefined when it had to be all. */
  async run(snapshot: SnapshotFolder, device: string): Promise<number[] | undefined> {
    const changes = await changesOf(this.mount, device);
    const blocks = changedBlocks(changes, this.last);
    const isFull = this.last?.generation !== changes.generation;
    const image = await readFile(snapshot.image(device));
    if (isFull) this.copy = Buffer.alloc(image.length);
    for (const block of blocks) {
      const at = block * changes.blockBytes;
      image.copy(this.copy, at, at, at + changes.blockBytes);
    }
    expect(this.copy.equals(image)).toBe(true);
    this.last = changes;
    return isFull ? undefined : blocks;
  }

  /** Of the last run. */
  get number(): number {
    return this.last!.number;
  }

  get generation(): string {
    return this.last!.generation;
  }
}

mountTest(
  '300 incremental backups in a row are all complete, and copy what has changed and no more',
  async (lab) => {
    const BLOCK = 4096;
    const args = ['--param', 'tracking_block_minimum_shift=12', '--param', 'chunk_minimum_shift=14'];
    await lab.sh('head -c 2M /dev/urandom >a.img');
    const mount = await mountTracked(lab, ['a'], { args });
    const storage = await storageLine(lab, 3);
    const prng = new Prng(1);
    const backup = new Backup(mount);
    const device = await open(mount.path('a/device'), 'r+');
    let touched = new Set<number>();
    const touch = (at: number, length: number) => {
      for (let block = Math.floor(at / BLOCK); block * BLOCK < at + length; block++) touched.add(block);
    };
    const change = async (file: { write: typeof device.write }) => {
      const at = 512 * prng.below(4096 - 40);
      const data = Buffer.alloc(512 * (1 + prng.below(40)), prng.below(256));
      await file.write(data, 0, data.length, at);
      touch(at, data.length);
    };
    const generations = new Set<string>();
    for (let take = 1; take <= 300; take++) {
      for (let i = prng.below(4); i > 0; i--) await change(device);
      if (prng.chance(0.1)) {
        const block = prng.below(512);
        await setFile(mount.path('a/discard'), `${block * 8} 8`);
        touch(block * BLOCK, BLOCK);
      }
      if (prng.chance(0.1)) {
        const block = prng.below(512);
        await setFile(mount.path('a/cbtdirty'), `${block * 8 + 1} 1`);
        touched.add(block);
      }
      const snapshot = await SnapshotFolder.take(mount, 's', ['a'], storage);
      const before = touched;
      touched = new Set();
      for (let i = prng.below(3); i > 0; i--) await change(device);
      if (prng.chance(0.2)) {
        // In this backup as well as in the next.
        const inNext = touched;
        touched = new Set();
        const image = await open(snapshot.image('a'), 'r+');
        await change(image);
        await image.close();
        for (const block of touched) before.add(block);
        touched = new Set([...inNext, ...touched]);
      }
      const copied = await backup.run(snapshot, 'a');
      const number = ((take - 1) % 254) + 1;
      expect({
        take,
        number: backup.number,
        isNew: !generations.has(backup.generation),
        isFull: !copied,
      }).toEqual({
        take,
        number,
        isNew: number === 1,
        isFull: number === 1,
      });
      generations.add(backup.generation);
      if (copied) expect({ take, copied }).toEqual({ take, copied: [...before].sort((a, b) => a - b) });
      await snapshot.remove();
    }
    expect(generations.size).toBe(2);
    await device.close();
    await endMount(lab, mount);
  },
);

/** Answers each event with a file of the size that was asked for, until the snapshot is gone. */
const STRETCH = `
import os, sys
folder = sys.argv[1]
events = os.open(folder + '/events', os.O_RDONLY)
n = 0
while True:
    text = os.read(events, 4096).decode()
    if not text: break
    for line in text.splitlines():
        name, value = line.split()[:2]
        assert name == 'low_free_space', line
        n += 1
        open('piece-%d' % n, 'w').close()
        sectors = value.split('=')[1]
        with open(folder + '/storage', 'r+b', buffering=0) as storage:
            storage.write(('%s/piece-%d 0 %s' % (os.getcwd(), n, sectors)).encode())
        print('appended', n, sectors)
`;

describe('the difference storage', () => {
  mountTest('is too small: the devices go on, their images end, and the next take works', async (lab) => {
    const mount = await mountTracked(lab, ['a', 'b']);
    // Four chunks, and a rest that is none.
    const SECTORS = 4 * 512 + 511;
    const snapshot = await SnapshotFolder.take(
      mount,
      's',
      ['a', 'b'],
      await storageLine(lab, SECTORS / 2048),
    );
    const load = Load.start(lab, [mount.path('a/device'), mount.path('b/device')], 16);
    await load.rounds(2);
    await load.stop();
    expect(snapshot.state).toBe('corrupted');
    expect(field(snapshot.text, 'device a')).toBe('error -28');
    expect(field(snapshot.text, 'device b')).toBe('error -28');
    expect(snapshot.amount('filled')).toBe(SECTORS);
    const events = await snapshot.events();
    expect(events[0]).toBe('low_free_space requested_nr_sect=2097152');
    expect(
      events
        .slice(1)
        .map((event) => event.replace(/ reason=".*"$/, ''))
        .sort(),
    ).toEqual(['corrupted device=a err=28', 'corrupted device=b err=28']);
    for (const name of ['a', 'b']) {
      await readFails(lab, snapshot.image(name));
      expect(
        await refusal(
          lab.sh(`dd if=/dev/zero of=${snapshot.image(name)} bs=4K count=1 oflag=direct conv=notrunc`),
        ),
      ).not.toBe('not refused');
      expect(field(mount.read(`${name}/snapshot`), 'error_code')).toBe('-28');
    }
    // More storage does not heal it.
    await setFile(snapshot.path('storage'), await storageLine(lab, 40, 'late'));
    await readFails(lab, snapshot.image('a'));
    await snapshot.remove();
    expect(mount.read('a/snapshot')).toBe('snapshot \nid \nimage \nerror_code -28');
    expect(mount.read('b/snapshot')).toBe('snapshot \nid \nimage \nerror_code -28');

    const next = await SnapshotFolder.take(mount, 's', ['a', 'b'], await storageLine(lab, 40));
    expect(field(mount.read('a/snapshot'), 'error_code')).toBe('0');
    const hash = await lab.sha256('a.img');
    await writeNoise(lab, mount.path('a/device'), { at: 0, length: 4 * MIB });
    expect(await directSha256(lab, next.image('a'))).toBe(hash);
    expect(await lab.sha256('a.img')).not.toBe(hash);
    await next.remove();
    await endMount(lab, mount);
  });

  mountTest('grows when it asks for it, and never runs full under load', async (lab) => {
    const M = 65536;
    const MEBIBYTES = 48;
    const args = ['--param', `diff_storage_minimum=${M}`];
    const mount = await mountTracked(lab, ['a', 'b'], { mebibytes: MEBIBYTES, args });
    const hashes = [await lab.sha256('a.img'), await lab.sha256('b.img')];
    const snapshot = await SnapshotFolder.make(mount, 's', ['a', 'b']);
    // Answers each event with a file of the size that was asked for.
    const stretcher = lab.start('python3', ['-u', '-c', STRETCH, snapshot.path()]);
    await stretcher.prints(/^appended 1 /m);
    await setFile(snapshot.path('take'), '1');
    // Both at full speed, but never so far that a slow machine's append could come too late: what is left at the alarm is twice as
    // much as they write before they look again.
    const step = M / 2048 / 8;
    for (let at = 0; at < MEBIBYTES; at += step) {
      const write = (name: string) =>
        lab.ok(
          'dd',
          'if=/dev/zero',
          `of=${mount.path(name, 'device')}`,
          'bs=256K',
          `seek=${at * 4}`,
          `count=${step * 4}`,
          'conv=notrunc',
          'oflag=direct',
          'status=none',
        );
      await Promise.all(['a', 'b'].map(write));
      await until(() => snapshot.amount('capacity') - snapshot.amount('filled') > M / 2, 'storage');
    }
    expect([
      await directSha256(lab, snapshot.image('a')),
      await directSha256(lab, snapshot.image('b')),
    ]).toEqual(hashes);
    // Everything was copied. One event at the making, and one whenever no more than half of M was left.
    const filled = 2 * MEBIBYTES * 2048;
    const asked = 1 + Math.floor((filled + M / 2) / M);
    await stretcher.prints(new RegExp(`^appended ${asked} `, 'm'));
    expect(snapshot.text.split('\n')).toEqual([
      'taken',
      `capacity ${asked * M}`,
      `filled ${filled}`,
      `requested ${asked * M}`,
      'device a ok',
      'device b ok',
    ]);
    expect(await snapshot.events()).toEqual(Array(asked).fill(`low_free_space requested_nr_sect=${M}`));
    await snapshot.remove();
    expect((await stretcher.ended).stdout).toBe(
      Array.from({ length: asked }, (_, i) => `appended ${i + 1} ${M}\n`).join(''),
    );
    expect(await lab.sh('cmp a.img b.img; head -c 48M /dev/zero | cmp - a.img')).toBe('');
    await endMount(lab, mount);
  });

  mountTest('fails, for its medium goes away: the devices go on', async (lab) => {
    await lab.sh('truncate -s 40M low.img');
    const low = await lab.mount({
      name: 'low',
      args: ['--lanes', '2', '--create', `s ${linear(lab, 'low')}`],
    });
    const mount = await mountTracked(lab, ['a', 'b']);
    const beside = await storageLine(lab, 1, 'beside');
    const snapshot = await SnapshotFolder.take(
      mount,
      's',
      ['a', 'b'],
      `${beside}\n${low.path('s/device')} 0 81920`,
    );
    const load = Load.start(lab, [mount.path('a/device'), mount.path('b/device')], 16);
    await until(() => snapshot.amount('filled') > 3072, 'some chunks to be stored');
    await low.killDaemon();
    // Or every chunk may have been copied before.
    for (const name of ['a', 'b'])
      await until(async () => {
        if (snapshot.text.includes(`device ${name} error`)) return true;
        await lab.shell(`dd if=${snapshot.image(name)} of=/dev/null bs=1M iflag=direct; true`);
        return snapshot.amount('filled') === 2 * 16 * 2048;
      }, `the area of ${name} to fail`);
    await load.stop();
    const events = (await snapshot.events()).filter((event) => event.startsWith('corrupted'));
    const codes = ['a', 'b'].map((name) => Number(field(mount.read(`${name}/snapshot`), 'error_code')));
    expect(codes.every((code) => code < 0)).toBe(true);
    expect(events.map((event) => event.replace(/ reason=".*"$/, '')).sort()).toEqual([
      `corrupted device=a err=${-codes[0]!}`,
      `corrupted device=b err=${-codes[1]!}`,
    ]);
    expect(snapshot.state).toBe('corrupted');
    for (const name of ['a', 'b']) await readFails(lab, snapshot.image(name));
    await snapshot.remove();
    expect(Number(field(mount.read('a/snapshot'), 'error_code'))).toBe(codes[0]);
    await lab.ok('umount', low.point);
    // The files that it had are free.
    const next = await SnapshotFolder.take(mount, 's', ['a', 'b'], await storageLine(lab, 40, 'beside'));
    const hash = await lab.sha256('a.img');
    await writeNoise(lab, mount.path('a/device'), { at: 0, length: MIB });
    expect(await directSha256(lab, next.image('a'))).toBe(hash);
    await next.remove();
    await endMount(lab, mount);
  });

  mountTest(
    'a device that cannot be read before it is written loses its image, and nothing else',
    async (lab) => {
      const mount = await mountTracked(lab, ['a', 'b']);
      const hash = await lab.sha256('b.img');
      const snapshot = await SnapshotFolder.take(mount, 's', ['a', 'b'], await storageLine(lab, 40));
      truncateSync(lab.path('a.img'), 8 * MIB);
      await writeNoise(lab, mount.path('a/device'), { at: 12 * MIB, length: 4096 });
      await writeNoise(lab, mount.path('b/device'), { at: 0, length: 4 * MIB });
      expect(snapshot.text).toMatch(/^corrupted\n[\s\S]*\ndevice a error -5\ndevice b ok$/);
      await readFails(lab, snapshot.image('a'));
      expect(await directSha256(lab, snapshot.image('b'))).toBe(hash);
      await snapshot.remove();
      expect(field(mount.read('b/snapshot'), 'error_code')).toBe('0');
      await endMount(lab, mount);
    },
  );

  mountTest('what is no storage is refused by line, and nothing has changed', async (lab) => {
    const mount = await mountTracked(lab, ['a', 'b']);
    await lab.sh('truncate -s 8M disk; touch short; mkfifo fifo');
    const loop = await lab.loop(lab.path('disk'));
    const snapshot = await SnapshotFolder.make(mount, 's', ['a']);
    const refused = async (line: string) => await refusedLine(snapshot.path('storage'), line);
    const good = `${lab.path('short')} 0 2048`;
    for (const line of [
      'short 0 2048',
      `${lab.path('short')} 0 0`,
      `${lab.path('short')} 0`,
      `${lab.path('short')} 0 2048 1`,
      `${lab.path('short')} -1 2048`,
      `${lab.path('short')} x 2048`,
      `${lab.path('short')} 0 99999999999999999999`,
      `${good}\n${lab.path('short')} 2047 2`,
      `${good}\n${loop} 0 16385`,
      `${loop} 16384 1`,
      `${loop} 0 8\n${loop} 0 8`,
      `${good}\nnonsense`,
      mount.path('b/device').concat(' 0 2048'),
      `${lab.path('fifo')} 0 2048`,
      lab.folder.concat(' 0 2048'),
    ]) {
      expect([line, await refused(line)]).toEqual([line, expect.stringMatching(/^(EINVAL|EISDIR|ENOTBLK)$/)]);
      expect(field(snapshot.text, 'refused')).toMatch(/^E\w+ ./);
    }
    expect(await refused(`${lab.path('missing')} 0 2048`)).toBe('ENOENT');
    // A loop device on the mount itself, and what targets have.
    const own = await lab.loop(mount.path('b/device'));
    expect(await refused(`${own} 0 2048`)).toBe('EINVAL');
    expect(await refused(`${lab.path('a.img')} 0 2048`)).toBe('EBUSY');
    expect(await refused(`${lab.path('b.img')} 0 2048`)).toBe('EBUSY');
    await lab.unloop(own);
    expect(mount.read('snapshots/s/storage')).toBe('');
    expect(snapshot.amount('capacity')).toBe(0);
    expect(await refusedLine(snapshot.path('take'), '1')).toBe('EFAULT');
    const hash = await lab.sha256('a.img');

    // What is good is taken: a file gets its space, a block device is used in its range alone.
    await lab.sh(`head -c 8M /dev/urandom >noise; dd if=noise of=${loop} bs=1M oflag=direct status=none`);
    await setFile(snapshot.path('storage'), `${good}\n${loop} 4096 8192`);
    expect(statSync(lab.path('short'))).toMatchObject({
      size: MIB,
      blocks: expect.toSatisfy((blocks) => blocks >= 2048),
    });
    expect(await refused(`${loop} 12287 1`)).toBe('EINVAL');
    await setFile(snapshot.path('storage'), `${lab.path('short')} 2048 24576`);
    expect(statSync(lab.path('short')).blocks).toBeGreaterThanOrEqual(2048 + 24576);
    expect(mount.read('snapshots/s/storage').split('\n')).toEqual([
      good,
      `${loop} 4096 8192`,
      `${lab.path('short')} 2048 24576`,
    ]);
    expect(snapshot.amount('capacity')).toBe(2048 + 8192 + 24576);
    await setFile(snapshot.path('take'), '1');
    await writeNoise(lab, mount.path('a/device'), { at: 0, length: 16 * MIB });
    expect(await directSha256(lab, snapshot.image('a'))).toBe(hash);
    expect(snapshot.amount('filled')).toBe(32768);
    await snapshot.remove();
    await lab.unloop(loop);
    await lab.sh('cmp -n 2M noise disk; cmp -i 6M noise disk; ! cmp -s noise disk');
    await endMount(lab, mount);
  });
});

describe('an image with a file system', () => {
  /** ext4 on `a`, at work through a loop device; a snapshot of it, taken while it stands still. */
  async function makeWorld(lab: Lab) {
    await lab.sh('head -c 32M /dev/urandom >a.img; mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0 a.img');
    const mount = await mountTracked(lab, ['a']);
    const loop = await lab.loop(mount.path('a/device'));
    const fs = await lab.mountFs(loop);
    await changeTree(lab, fs, 1);
    const take = async () => {
      const snapshot = await SnapshotFolder.make(mount, 's', ['a']);
      await setFile(snapshot.path('storage'), await storageLine(lab, 40));
      await lab.sh(`fsfreeze -f ${fs}; echo 1 >${snapshot.path('take')}; fsfreeze -u ${fs}`);
      return snapshot;
    };
    const contents = async (folder: string) =>
      await lab.sh(`cd '${folder}'; find . -type f -print0 | sort -z | xargs -0r sha256sum`);
    return { mount, loop, fs, take, contents };
  }

  mountTest('is mounted and written to, while the device is too: neither knows of the other', async (lab) => {
    const { mount, loop, fs, take, contents } = await makeWorld(lab);
    const before = await contents(fs);
    const first = await take();
    const taken = await changesOf(mount, 'a');
    await changeTree(lab, fs, 2);
    const after = await contents(fs);
    const imageLoop = await lab.loop(first.image('a'));
    const imageFs = await lab.mountFs(imageLoop, { name: 'image' });
    expect(await contents(imageFs)).toBe(before);
    await Promise.all([changeTree(lab, imageFs, 3), changeTree(lab, fs, 4)]);
    await lab.sh(`head -c 3M /dev/urandom >${imageFs}/restored; sync -f ${imageFs}`);
    const changed = await contents(imageFs);
    expect(changed).not.toBe(before);
    await lab.sh(`umount ${imageFs}; e2fsck -fn ${imageLoop}`);
    await lab.mountFs(imageLoop, { name: 'image' });
    expect(await contents(imageFs)).toBe(changed);
    await lab.sh(`umount ${imageFs}`);
    await lab.unloop(imageLoop);
    expect(existsSync(`${fs}/restored`)).toBe(false);
    expect(await contents(fs)).not.toBe(after);
    const image = await readFile(first.image('a'));
    expect(first.state).toBe('taken');

    // What the image was changed in is in this backup, and comes again with the next.
    const written = await changesOf(mount, 'a');
    const ofImage = [...written.map.keys()].filter((block) => written.map[block] !== taken.map[block]);
    expect(ofImage.length).toBeGreaterThan(3 * 16);
    expect(ofImage.every((block) => written.map[block] === written.number)).toBe(true);
    await first.remove();
    const second = await take();
    const next = await changesOf(mount, 'a');
    const copied = changedBlocks(next, written);
    expect(copied).toEqual(expect.arrayContaining(ofImage));
    const now = await readFile(second.image('a'));
    for (const block of copied) {
      now.copy(image, block * next.blockBytes, block * next.blockBytes, (block + 1) * next.blockBytes);
    }
    expect(image.equals(now)).toBe(true);
    await second.remove();
    await lab.sh(`umount ${fs}; e2fsck -fn ${loop}`);
    await lab.unloop(loop);
    await endMount(lab, mount);
  });

  mountTest(
    'is let go while it is mounted and the device is at work: only its readers hear of it',
    async (lab) => {
      const { mount, loop, fs, take, contents } = await makeWorld(lab);
      await lab.sh(`mkdir reference; cp -a ${fs}/. reference`);
      for (let round = 0; round < 2; round++) {
        const snapshot = await take();
        const waiting = lab.start('cat', [snapshot.path('events')]);
        await waiting.prints(/low_free_space/);
        const imageLoop = await lab.loop(snapshot.image('a'));
        const imageFs = await lab.mountFs(imageLoop, { name: 'image' });
        const held = await open(snapshot.image('a'), 'r');
        const reader = lab.start('bash', [
          '-c',
          `while dd if=${imageLoop} of=/dev/null bs=64K iflag=direct status=none; do echo again; done`,
        ]);
        const writer = lab.start('bash', [
          '-c',
          `while head -c 1M /dev/urandom >${imageFs}/w && sync ${imageFs}/w; do echo again; done`,
        ]);
        await Promise.all([reader.prints(/again/), writer.prints(/again/)]);
        const work = Promise.all([
          changeTree(lab, fs, 10 + round, 6),
          changeTree(lab, lab.path('reference'), 10 + round, 6),
        ]);
        await snapshot.remove();
        expect(await waiting.ended).toMatchObject({ code: 0, stderr: '' });
        expect(waiting.stdout.split('\n')).toHaveLength(2);
        expect(await refusal(held.read(Buffer.alloc(4096), 0, 4096, 0))).toMatch(/^(EIO|ENXIO|ENODEV)$/);
        expect((await reader.ended).stderr).toMatch(/Input\/output error|No such device/);
        await writer.ended;
        // The name and the storage can be used at once, with the loop device still there.
        const next = await take();
        expect(next.state).toBe('taken');
        expect(await refusal(held.read(Buffer.alloc(4096), 0, 4096, 0))).not.toBe('not refused');
        await held.close();
        await lab.shell(`umount ${imageFs} || umount -l ${imageFs}`);
        await lab.unloop(imageLoop);
        await work;
        await next.remove();
        expect(mount.daemonIsAlive).toBe(true);
        expect(await contents(fs)).toBe(await contents(lab.path('reference')));
      }
      expect(mount.stats('a').errors).toBe(0);
      await lab.sh(`umount ${fs}; e2fsck -fn ${loop}`);
      await lab.unloop(loop);
      await endMount(lab, mount);
    },
  );
});

describe('snapshots and their devices', () => {
  mountTest('several at once, of different devices; each wrong step says what it is', async (lab) => {
    await lab.sh('truncate -s 4M plain.img');
    const mount = await mountTracked(lab, ['a', 'b', 'c'], { mebibytes: 4 });
    await mount.create('plain', linear(lab, 'plain'));
    const add = async (snapshot: SnapshotFolder, line: string) =>
      await refusedLine(snapshot.path('devices'), line);
    const one = await SnapshotFolder.make(mount, 'one');
    expect(await refusal(SnapshotFolder.make(mount, 'one'))).toBe('EEXIST');
    expect(await refusedLine(one.path('take'), '1')).toBe('ENODEV');
    expect(await add(one, 'add nobody')).toBe('ENOENT');
    expect(await add(one, 'add plain')).toBe('ENOENT');
    expect(await add(one, 'remove a')).toBe('EINVAL');
    await setFile(one.path('devices'), 'add a');
    expect(await add(one, 'add a')).toBe('EALREADY');
    expect(field(one.text, 'refused')).toMatch(/^EALREADY /);
    expect(await refusedLine(one.path('take'), '1')).toBe('EFAULT');
    expect(one.state).toBe('created');
    const two = await SnapshotFolder.make(mount, 'two');
    expect(await add(two, 'add a')).toBe('EBUSY');
    expect(await refusedLine(mount.path('a/snapshot'), 'two')).toBe('EBUSY');
    expect(await refusedLine(mount.path('a/snapshot'), 'one')).toBe('EALREADY');
    expect(await refusedLine(mount.path('b/snapshot'), 'three')).toBe('ESRCH');
    // By the UUID, as a name would.
    await setFile(mount.path('b/snapshot'), mount.read('snapshots/two/id'));
    expect(mount.read('snapshots/two/devices')).toBe('b');
    expect(mount.read('b/snapshot')).toBe(
      `snapshot two\nid ${mount.read('snapshots/two/id')}\nimage \nerror_code 0`,
    );
    await setFile(one.path('storage'), await storageLine(lab, 8, 'store1'));
    await setFile(two.path('storage'), await storageLine(lab, 8, 'store2'));
    const [a, b] = [await lab.sha256('a.img'), await lab.sha256('b.img')];
    await setFile(one.path('take'), '1');
    expect(await refusedLine(one.path('take'), '1')).toBe('EALREADY');
    expect(await add(one, 'add c')).toBe('EBUSY');
    expect(await refusedLine(mount.path('c/snapshot'), 'one')).toBe('EBUSY');
    expect(await refusal(readFile(two.image('b')))).toBe('ENOENT');
    await writeNoise(lab, mount.path('a/device'), { at: 0, length: 2 * MIB });
    const between = [lab.sha256(mount.path('a/device')), lab.sha256('b.img')];
    await setFile(two.path('take'), '1');
    await writeNoise(lab, mount.path('a/device'), { at: MIB, length: 3 * MIB });
    await writeNoise(lab, mount.path('b/device'), { at: 0, length: 4 * MIB });
    expect([await directSha256(lab, one.image('a')), await directSha256(lab, two.image('b'))]).toEqual([
      a,
      b,
    ]);
    expect((await Promise.all(between))[0]).not.toBe(a);
    expect([one.amount('filled'), two.amount('filled')]).toEqual([8192, 8192]);
    // Neither filter nor device can go.
    for (const name of ['a', 'b']) {
      expect(await refusedLine(mount.path(name, 'filter'), 'none')).toBe('EBUSY');
      expect(await refusal(rmdir(mount.path(name)))).toBe('EBUSY');
    }
    await one.remove();
    expect(await directSha256(lab, two.image('b'))).toBe(b);
    await setFile(mount.path('a/filter'), 'none');
    await rmdir(mount.path('a'));
    expect(await refusal(rmdir(mount.path('snapshots/one')))).toBe('ENOENT');
    expect(await refusal(rmdir(mount.path('snapshots/params')))).toBe('EPERM');
    await two.remove();
    await endMount(lab, mount);
  });

  mountTest('one that stands on another is taken with it, 30 times under load', async (lab) => {
    await lab.sh('truncate -s 16M low.img; head -c 1M /dev/urandom >noise');
    await lab.dmfuseOk('csum', 'format', lab.path('low.img'));
    const mount = await mountLinear(lab, ['low'], ['--create', 'up csum @low 0']);
    await track(mount, 'low', 'up');
    const up = mount.path('up/device');
    const load = Load.start(lab, [up], 8);
    // A number that is durable when it is written again.
    const counter = lab.start('python3', ['-c', COUNT, up, lab.path('end'), `${12 * MIB}`]);
    const line = await storageLine(lab, 40);
    await load.rounds(1);
    let last = 0;
    for (let take = 0; take < 30; take++) {
      const order = take % 2 === 0 ? ['low', 'up'] : ['up', 'low'];
      const snapshot = await SnapshotFolder.take(mount, 's', order, line);
      if (take % 6 === 0) {
        const hashes = async () => [
          await directSha256(lab, snapshot.image('up')),
          await directSha256(lab, snapshot.image('low')),
        ];
        const first = await hashes();
        // What is below is a volume as a power cut leaves one, and holds at least what was durable above.
        await lab.sh(`dd if=${snapshot.image('low')} of=copy.img bs=1M iflag=direct status=none`);
        const above = (await readFile(snapshot.image('up'))).readBigUInt64LE(12 * MIB);
        const other = await lab.mount({
          name: 'other',
          args: ['--lanes', '1', '--create', `up csum ${lab.path('copy.img')} 0`],
        });
        const below = (await readFile(other.path('up/device'))).readBigUInt64LE(12 * MIB);
        expect(mount.read('up/errors')).toMatch(/^count 0/);
        expect(other.read('up/errors')).toMatch(/^count 0/);
        await endMount(lab, other);
        expect(below === above || below === above - 1n, `above ${above}, below ${below}`).toBe(true);
        expect(Number(above)).toBeGreaterThan(last);
        last = Number(above);
        expect(await hashes()).toEqual(first);
      }
      expect(snapshot.state).toBe('taken');
      await snapshot.remove();
    }
    await load.stop();
    await lab.sh('touch end');
    expect(await counter.ended).toMatchObject({ code: 0, stderr: '' });
    expect(mount.stats('up').errors).toBe(0);
    await endMount(lab, mount);
    expect(await lab.dmfuse('csum', 'check', lab.path('low.img'))).toMatchObject({ code: 0, stderr: '' });
  });
});

/** Writes numbers to a place, one after the other, each durable before the next, until a file is there. */
const COUNT = `
import mmap, os, struct, sys
path, end, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_SYNC)
page = mmap.mmap(-1, 4096)
n = 0
while not os.path.exists(end):
    n += 1
    page[:8] = struct.pack('<Q', n)
    assert os.pwrite(fd, page, at) == 4096
`;

describe('with --state-dir', () => {
  const mountAgain = async (lab: Lab, names: readonly string[] = ['a']) =>
    await mountLinear(lab, names, ['--state-dir', lab.path('states')], 1);

  /** A device whose first backup is done; the mount still stands. */
  async function backedUp(lab: Lab) {
    await lab.sh('head -c 4M /dev/urandom >a.img');
    const mount = await mountAgain(lab);
    await track(mount, 'a');
    const backup = new Backup(mount);
    await runBackup(lab, mount, backup);
    await writeNoise(lab, mount.path('a/device'), { at: MIB, length: 4096 });
    return { mount, backup };
  }

  async function runBackup(lab: Lab, mount: Mount, backup: Backup) {
    const snapshot = await SnapshotFolder.take(mount, 's', ['a'], await storageLine(lab, 6));
    await writeNoise(lab, mount.path('a/device'), { at: 3 * MIB, length: 4096 });
    const copied = await backup.run(snapshot, 'a');
    await snapshot.remove();
    return copied;
  }

  async function restarts(mount: Mount, name = 'a'): Promise<number> {
    const events = await mount.events(name);
    return events.filter((event) => event.startsWith('tracking_restarted reason=')).length;
  }

  /** The generations of devices that were all in one snapshot. */
  async function takenAll(lab: Lab, mount: Mount, names: readonly string[]): Promise<Map<string, string>> {
    const snapshot = await SnapshotFolder.take(mount, 's', names, await storageLine(lab, 1));
    await snapshot.remove();
    const changes = await Promise.all(names.map(async (name) => await changesOf(mount, name)));
    return new Map(names.map((name, i) => [name, changes[i]!.generation]));
  }

  mountTest('change maps go on after a clean end, and the next backup is an incremental one', async (lab) => {
    const { mount, backup: first } = await backedUp(lab);
    const { generation } = first;
    let backup = first;
    await endMount(lab, mount);
    let files = '';
    for (let life = 1; life <= 3; life++) {
      files = await lab.sh('ls states');
      expect(files).not.toBe('');
      const next = await mountAgain(lab);
      expect(await lab.sh('ls states')).toBe('');
      expect(next.read('a/filter')).toBe('blksnap');
      expect(await restarts(next)).toBe(0);
      backup = backup.on(next);
      await writeNoise(lab, next.path('a/device'), { at: 2 * MIB, length: 4096 });
      expect(await runBackup(lab, next, backup)).toEqual(life === 1 ? [16, 32, 48] : [32, 48]);
      expect([backup.generation, backup.number]).toEqual([generation, life + 1]);
      await (life === 2 ? next.umount() : endMount(lab, next));
      await next.daemonEnd();
    }
    // A filter that is detached is not there the next time, nor is one of a target that went.
    const last = await mountAgain(lab);
    await setFile(last.path('a/filter'), 'none');
    await endMount(lab, last);
    expect(await lab.sh('ls states')).toBe('');
    const none = await mountAgain(lab);
    expect(none.read('a/filter')).toBe('none');
    await track(none, 'a');
    // By rmdir and mkdir too.
    const { generation: kept } = await changesOf(none, 'a');
    await rmdir(none.path('a'));
    await none.create('a', linear(lab, 'a'));
    expect((await changesOf(none, 'a')).generation).toBe(kept);
    await endMount(lab, none);
  });

  /** What may happen to a device NAME, or to its state, while it is not mounted; in a shell. */
  const MEDDLING: Readonly<Record<string, string>> = {
    byte: 'printf x | dd of=$name.img bs=1 seek=70000 conv=notrunc status=none',
    bytetimes: `touch -r $name.img times; printf x | dd of=$name.img bs=1 seek=70000 conv=notrunc status=none
      touch -d "$(stat -c %y times)" $name.img`,
    size: 'truncate -s +4K $name.img',
    copy: 'cp -p $name.img other; mv other $name.img',
    short: 'truncate -s -1 $state',
    long: 'printf x >>$state',
    empty: 'truncate -s 0 $state',
    other: 'cp states/byte.blksnap $state',
    missing: 'rm $state',
    untouched: 'cat $name.img >read',
    ...Object.fromEntries(
      [0, 8, 12, 16, 24, 25, 26, 27, 33, 60, -140, -70, -5, -1].map((at) => [
        `flip${at}`,
        `python3 -c "
import sys
data = bytearray(open('$state', 'rb').read())
data[${at}] ^= 1
open('$state', 'wb').write(data)"`,
      ]),
    ),
  };
  mountTest(
    'a device that may have changed meanwhile, or whose state is damaged, begins anew',
    async (lab) => {
      const names = Object.keys(MEDDLING);
      await lab.sh(`for name in ${names.join(' ')}; do head -c 1M /dev/urandom >$name.img; done`);
      const first = await mountAgain(lab, names);
      await track(first, ...names);
      const before = await takenAll(lab, first, names);
      await endMount(lab, first);
      expect((await lab.sh('ls states')).trim().split('\n')).toHaveLength(names.length);
      for (const [name, script] of Object.entries(MEDDLING)) {
        await lab.sh(`name=${name}; state=states/$name.blksnap; ${script}`);
      }
      const second = await mountAgain(lab, names);
      expect(await lab.sh('ls states')).toBe('');
      for (const name of names) {
        const isKept = name === 'untouched';
        const isTracked = name !== 'missing';
        expect([name, second.read(`${name}/filter`)]).toEqual([name, isTracked ? 'blksnap' : 'none']);
        expect([name, await restarts(second, name)]).toEqual([name, isTracked && !isKept ? 1 : 0]);
        if (!isTracked) await track(second, name);
        const { generation, number } = await changesOf(second, name);
        expect([name, generation === before.get(name), number]).toEqual([name, isKept, isKept ? 1 : 0]);
      }
      await endMount(lab, second);
      // What began anew is kept as well.
      const third = await mountAgain(lab, names);
      for (const name of names) expect([name, await restarts(third, name)]).toEqual([name, 0]);
      await endMount(lab, third);
    },
  );

  mountTest(
    'after kill -9 there is no state: not that of the mount before, not of one that did nothing',
    async (lab) => {
      let { mount, backup } = await backedUp(lab);
      for (const what of ['after writes', 'at once']) {
        await endMount(lab, mount);
        expect(await lab.sh('ls states')).not.toBe('');
        mount = await mountAgain(lab);
        if (what === 'after writes') await writeNoise(lab, mount.path('a/device'), { at: 0, length: MIB });
        await mount.killDaemon();
        await lab.ok('umount', mount.point);
        expect([what, await lab.sh('ls states')]).toEqual([what, '']);
        mount = await mountAgain(lab);
        expect([what, mount.read('a/filter')]).toEqual([what, 'none']);
        await track(mount, 'a');
        const { generation } = backup;
        backup = backup.on(mount);
        expect([what, await runBackup(lab, mount, backup)]).toEqual([what, undefined]);
        expect(backup.generation).not.toBe(generation);
      }
      await endMount(lab, mount);
    },
  );

  mountTest(
    'a block device, and what stands on another target, begin anew: nobody sees who writes to them',
    async (lab) => {
      await lab.sh('head -c 4M /dev/urandom >a.img; head -c 4M /dev/urandom >b.img');
      const loop = await lab.loop(lab.path('a.img'));
      const args = ['--state-dir', lab.path('states')];
      const creates = [
        '--create',
        `x linear ${loop} 0`,
        '--create',
        `b ${linear(lab, 'b')}`,
        '--create',
        'y linear @b 0',
      ];
      const again = async () => await lab.mount({ args: ['--lanes', '2', ...args, ...creates] });
      const mount = await again();
      await track(mount, 'x', 'y', 'b');
      const before = await Promise.all(['x', 'y', 'b'].map((name) => changesOf(mount, name)));
      await endMount(lab, mount);
      const next = await again();
      const after = await Promise.all(['x', 'y', 'b'].map((name) => changesOf(next, name)));
      expect(after.map(({ generation }, i) => generation === before[i]!.generation)).toEqual([
        false,
        false,
        true,
      ]);
      for (const name of ['x', 'y'])
        expect((await next.events(name))[0]).toMatch(/^tracking_restarted reason=/);
      await endMount(lab, next);
      await lab.unloop(loop);
    },
  );
});

describe('the daemon ends', () => {
  mountTest(
    'by umount and by SIGTERM while a snapshot is held: the devices are as they were left',
    async (lab) => {
      for (const way of ['umount', 'SIGTERM']) {
        const mount = await mountTracked(lab, ['a']);
        const snapshot = await SnapshotFolder.take(mount, 's', ['a'], await storageLine(lab, 20));
        await writeNoise(lab, mount.path('a/device'), { at: 0, length: 4 * MIB });
        const hash = await directSha256(lab, mount.path('a/device'));
        expect(snapshot.amount('filled')).toBe(16 * 512);
        if (way === 'umount') {
          await mount.umount();
          await mount.daemonEnd();
        } else {
          // A reader of events does not keep the mount busy then.
          const waiting = lab.start('cat', [snapshot.path('events')]);
          await waiting.prints(/low_free_space/);
          process.kill(mount.pid, 'SIGTERM');
          await mount.daemonEnd();
          expect((await waiting.ended).code).toBe(0);
        }
        expect(lab.fuseMounts()).toEqual([]);
        expect(await lab.sha256('a.img')).toBe(hash);
      }
    },
  );

  /** Lets a write to `x` hang, and a take wait for it. */
  async function takeWhileHanging(lab: Lab, low: Mount, mount: Mount, snapshot: SnapshotFolder) {
    await suspend(low.pid);
    const writer = lab.start('dd', [
      'if=/dev/urandom',
      `of=${mount.path('x/device')}`,
      'bs=64K',
      'count=1',
      'conv=notrunc',
      'oflag=direct',
      'status=none',
    ]);
    await until(() => hangs(mount.pid), 'the write to hang');
    const take = lab.start('bash', ['-c', `echo 1 >${snapshot.path('take')}`]);
    await untilTaking(mount, snapshot);
    return { writer, take };
  }

  /** A take that waits: a write to its device hangs, because the daemon of the mount that the device lies on stands still. */
  async function makeHangingTake(lab: Lab) {
    await lab.sh('for name in low b c; do head -c 4M /dev/urandom >$name.img; done');
    const low = await lab.mount({
      name: 'low',
      args: ['--lanes', '2', '--create', `s ${linear(lab, 'low')}`],
    });
    const mount = await mountLinear(
      lab,
      ['b', 'c'],
      ['--create', `x linear ${low.path('s/device')} ${NO_PASSTHROUGH}`],
    );
    await track(mount, 'b', 'c', 'x');
    await SnapshotFolder.make(mount, 'other', ['c']);
    const snapshot = await SnapshotFolder.make(mount, 's', ['b', 'x']);
    await setFile(snapshot.path('storage'), await storageLine(lab, 10));
    lab.onClose(async () => void process.kill(low.pid, 'SIGCONT'));
    const { writer, take } = await takeWhileHanging(lab, low, mount, snapshot);
    expect(snapshot.state).toBe('created');
    expect(await refusal(readFile(snapshot.image('b')))).toBe('ENOENT');
    // The others go on.
    await writeNoise(lab, mount.path('b/device'), { at: 0, length: MIB });
    const resume = () => process.kill(low.pid, 'SIGCONT');
    return { low, mount, snapshot, writer, take, resume };
  }

  mountTest('or the snapshot goes, or it is asked to end, while a take waits', async (lab) => {
    const { low, mount, snapshot, writer, take, resume } = await makeHangingTake(lab);
    const removed = snapshot.remove();
    await until(
      async () => (await refusedLine(mount.path('c/snapshot'), 's')) === 'ENOENT',
      'the end to begin',
    );
    resume();
    await removed;
    expect((await take.ended).stderr).toContain('No such file or directory');
    expect(await writer.ended).toMatchObject({ code: 0 });
    expect((await changesOf(mount, 'b')).number).toBe(0);
    // And the same once more, with a signal.
    const again = await SnapshotFolder.make(mount, 's', ['b', 'x']);
    await setFile(again.path('storage'), await storageLine(lab, 10));
    const { writer: second, take: late } = await takeWhileHanging(lab, low, mount, again);
    process.kill(mount.pid, 'SIGTERM');
    resume();
    expect((await second.ended).code).toBe(0);
    await late.ended;
    await mount.daemonEnd();
    expect(lab.fuseMounts()).toHaveLength(1);
    await endMount(lab, low);
  });

  mountTest('by kill -9 with a snapshot under load: the device has all that was written', async (lab) => {
    const mount = await mountTracked(lab, ['a']);
    const snapshot = await SnapshotFolder.take(mount, 's', ['a'], await storageLine(lab, 20));
    const writer = lab.start('python3', ['-u', '-c', APPEND, mount.path('a/device')]);
    await until(() => snapshot.amount('filled') >= 8 * 512, 'some chunks to be stored');
    await mount.killDaemon();
    const written = Number(/(\d+)\n$/.exec((await writer.ended).stdout)![1]);
    await lab.ok('umount', mount.point);
    const bytes = readFileSync(lab.path('a.img'));
    for (let n = 0; n < written; n++) expect(Number(bytes.readBigUInt64LE(n * 4096))).toBe(n);
    expect(written).toBeGreaterThan(0);

    const next = await mountTracked(lab, ['a']);
    const again = await SnapshotFolder.take(next, 's', ['a'], await storageLine(lab, 20));
    expect(await directSha256(lab, again.image('a'))).toBe(await lab.sha256('a.img'));
    await again.remove();
    await endMount(lab, next);
  });
});

/** Waits until a take is under way, in a mount where `c` is in another snapshot. */
async function untilTaking(mount: Mount, snapshot: SnapshotFolder): Promise<void> {
  await until(async () => {
    expect(await refusedLine(mount.path('c/snapshot'), snapshot.name)).toBe('EBUSY');
    return field(snapshot.text, 'refused')!.includes(' is taken');
  }, 'the take to begin');
}

/** Whether some thread of a process waits for a file system that does not answer. */
function hangs(pid: number): boolean {
  const tasks = `/proc/${pid}/task`;
  return readdirSync(tasks).some((task) => {
    const wchan = readFileSync(`${tasks}/${task}/wchan`, 'utf8');
    return (
      wchan.includes('request_wait_answer') || wchan.includes('fuse_direct') || wchan.includes('fuse_simple')
    );
  });
}

/** Writes the number of a page to it, page after page, until that fails, and says how many it has written. */
const APPEND = `
import mmap, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
n = 0
try:
    while n < 4096:
        page[:8] = struct.pack('<Q', n)
        if os.pwrite(fd, page, n * 4096) != 4096: break
        n += 1
except OSError: pass
print(n)
`;

mountTest('a tracked device of 16 TiB, and a snapshot of it, take little memory', async (lab) => {
  await lab.sh('mkdir huge; mount -t tmpfs none huge; truncate -s 16T huge/disk');
  lab.onClose(async () => void (await lab.shell('umount huge')));
  const mount = await lab.mount({
    args: ['--create', `x linear ${lab.path('huge/disk')} ${NO_PASSTHROUGH}`],
  });
  const resident = () =>
    Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${mount.pid}/status`, 'utf8'))![1]) / 1024;
  // What each thread needs for any request is there before.
  await writeNoise(lab, mount.path('x/device'), { at: 0, length: MIB });
  await lab.sh(`dd if=${mount.path('x/device')} of=/dev/null bs=1M count=8 iflag=direct status=none`);
  const before = resident();
  await track(mount, 'x');
  expect(field(mount.read('x/cbtinfo'), 'block_size')).toBe(`${8 * MIB}`);
  const snapshot = await SnapshotFolder.take(mount, 's', ['x'], await storageLine(lab, 4));
  const after = resident();
  expect(snapshot.state).toBe('taken');
  expect(after - before).toBeLessThan(32);
  // It works at both of its ends.
  await writeNoise(lab, mount.path('x/device'), { at: 0, length: 8192 });
  await writeNoise(lab, mount.path('x/device'), { at: 2 ** 44 - 4096, length: 4096 });
  const image = await open(snapshot.image('x'), 'r');
  const read = async (at: number) => (await image.read(Buffer.alloc(4096), 0, 4096, at)).buffer;
  expect((await read(2 ** 44 - 4096)).every((byte) => byte === 0)).toBe(true);
  expect((await read(0)).some((byte) => byte !== 0)).toBe(true);
  await image.close();
  expect(snapshot.amount('filled')).toBe(2 * 512);
  await snapshot.remove();
  await endMount(lab, mount);
});
