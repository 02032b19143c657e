/** `dmfuse snapshot` and `dmfuse cbt` on real mounts. */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';

import { describe, expect } from 'vitest';
import { type Lab, MAIN, type Mount, mountTest, type Running, suspend, until } from './harness.js';

/** Sectors; an event comes when half of that is free. */
const PORTION = 65_536;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** A mount with targets that are files of 64 MiB of zeros. */
async function mountTargets(lab: Lab, ...names: string[]): Promise<Mount> {
  const creates: string[] = [];
  for (const name of names) {
    await lab.sh(`truncate -s 64M ${name}.img`);
    creates.push('--create', `${name} linear ${lab.path(`${name}.img`)} 0 1 no_passthrough`);
  }
  return await lab.mount({
    args: ['--param', `diff_storage_minimum=${PORTION}`, ...creates],
  });
}

/** An ext4 on a target, mounted at folder `fs` of the lab. */
async function mountExt4(lab: Lab, mount: Mount, target = 'a'): Promise<{ loop: string; fs: string }> {
  await lab.sh(`mkfs.ext4 -q ${mount.path(target, 'device')}`);
  const loop = await lab.loop(mount.path(target, 'device'));
  return { loop, fs: await lab.mountFs(loop) };
}

const filters = (mount: Mount, ...names: string[]) => names.map((name) => mount.read(`${name}/filter`));
const snapshots = (mount: Mount) => readdirSync(mount.path('snapshots')).filter((name) => name !== 'params');

/** Does not end while the file system is frozen. */
async function expectWritable(lab: Lab, folder: string): Promise<void> {
  await lab.sh(`echo x >${folder}/probe; sync -f ${folder}/probe`);
}

/** A target whose next write waits, until `release`; the write is under way. */
async function holdWrites(
  lab: Lab,
  above: Mount,
  { loop, fs }: { loop: string; fs: string },
): Promise<() => void> {
  await lab.sh('truncate -s 64M slow.img');
  const below = await lab.mount({ name: 'below' });
  await below.create('b', `linear ${lab.path('slow.img')} 0 1 no_passthrough`);
  await above.create('slow', `linear ${below.path('b/device')} 0 1 no_passthrough`);
  await lab.sh(`echo blksnap >${above.path('slow/filter')}`);
  await suspend(below.pid);
  const release = () => void process.kill(below.pid, 'SIGCONT');
  lab.onClose(async () => {
    release();
    await lab.ok('umount', fs);
    await lab.unloop(loop);
    await above.umount();
    await below.umount();
  });
  const writer = lab.start('dd', [
    'if=/dev/zero',
    `of=${above.path('slow/device')}`,
    'bs=4k',
    'count=1',
    'conv=notrunc',
  ]);
  await until(() => waitsForFuse(writer.pid), 'a write that waits');
  return release;
}

function waitsForFuse(pid: number): boolean {
  const tasks = readdirSync(`/proc/${pid}/task`);
  return tasks.some(
    (task) => readFileSync(`/proc/${pid}/task/${task}/wchan`, 'utf8') === 'request_wait_answer',
  );
}

/** Waits until a command has frozen something, and waits for a take. */
async function untilTaking({ pid }: Running): Promise<void> {
  const hasGuard = () => readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim() !== '';
  await until(() => hasGuard() && waitsForFuse(pid), 'a take that waits');
}

describe('dmfuse snapshot create, append, take, list, show, destroy', () => {
  mountTest('a snapshot comes, is taken, and goes; its targets stay tracked', async (lab) => {
    const mount = await mountTargets(lab, 'a', 'b');
    const { point } = mount;
    expect(await lab.dmfuseOk('snapshot', 'list', point)).toBe('');
    await lab.sh(`echo blksnap >${mount.path('a/filter')}; head -c 1M /dev/urandom >data
      dd if=data of=${mount.path('a/device')} conv=notrunc status=none`);

    const id = (
      await lab.dmfuseOk('snapshot', 'create', point, 's', '--device', 'a', '--device', 'b')
    ).trim();
    expect(id).toMatch(UUID);
    expect(filters(mount, 'a', 'b')).toEqual(['blksnap', 'blksnap']);
    expect(await lab.dmfuseOk('snapshot', 'show', point, 's')).toBe(
      `id ${id}\nstate created\ncapacity 0\nfilled 0\nrequested ${PORTION}\ndevice a\ndevice b\n`,
    );
    // A path from here on, a file that is not there.
    expect(await lab.dmfuseOk('snapshot', 'append', point, 's', 'the store', '8', '65536')).toBe('');
    expect(statSync(lab.path('the store'))).toMatchObject({ mode: 0o100600, size: 8 * 512 + 65536 * 512 });
    expect(await lab.dmfuseOk('snapshot', 'take', point, 's')).toBe('');

    await lab.sh(`dd if=/dev/zero of=${mount.path('a/device')} bs=1M count=1 conv=notrunc status=none
      cmp -n 1048576 data ${mount.path('snapshots/s/images/a')}`);
    const filled = Number(/^filled (\d+)$/m.exec(mount.read('snapshots/s/state'))![1]);
    expect(filled).toBeGreaterThan(0);
    const image = (name: string) => mount.path('snapshots/s/images', name);
    const storage = { path: lab.path('the store'), sector: 8, count: 65536 };
    expect(await lab.dmfuseOk('snapshot', 'show', point, 's')).toBe(
      [
        `id ${id}`,
        'state taken',
        'capacity 65536',
        `filled ${filled}`,
        `requested ${PORTION}`,
        `storage ${lab.path('the\\ store')} 8 65536`,
        `device a image ${image('a')}`,
        `device b image ${image('b')}\n`,
      ].join('\n'),
    );
    expect(JSON.parse(await lab.dmfuseOk('snapshot', 'show', point, 's', '--json'))).toEqual({
      output_version: 1,
      name: 's',
      id,
      state: 'taken',
      capacitySectors: 65536,
      filledSectors: filled,
      requestedSectors: PORTION,
      storage: [storage],
      devices: [
        { name: 'a', errorCode: 0, image: image('a') },
        { name: 'b', errorCode: 0, image: image('b') },
      ],
    });
    const other = (await lab.dmfuseOk('snapshot', 'create', point, 'longer')).trim();
    expect((await lab.dmfuseOk('snapshot', 'list', point)).split('\n').sort()).toEqual([
      '',
      `longer  created    ${other}`,
      `s       taken      ${id}  a b`,
    ]);
    const listed = JSON.parse(await lab.dmfuseOk('snapshot', 'list', point, '--json'));
    expect(listed).toMatchObject({ output_version: 1 });
    expect(listed.snapshots).toContainEqual({ name: 's', state: 'taken', id, devices: ['a', 'b'] });

    expect(await lab.refusal('snapshot', 'take', point, 's')).toBe('snapshot s is taken');
    expect(await lab.dmfuseOk('snapshot', 'destroy', point, 's')).toBe('');
    expect(snapshots(mount)).toEqual(['longer']);
    expect(filters(mount, 'a', 'b')).toEqual(['blksnap', 'blksnap']);
  });

  mountTest('create: all or nothing, in the words of the daemon', async (lab) => {
    const mount = await mountTargets(lab, 'a', 'b', 'c');
    const { point } = mount;
    const create = (name: string, ...devices: string[]) =>
      lab.refusal('snapshot', 'create', point, name, ...devices.flatMap((device) => ['--device', device]));
    await lab.dmfuseOk('snapshot', 'create', point, 'first', '--device', 'c');
    for (const missing of ['nobody', 'snapshots', '.dmfuse', '..']) {
      expect(await create('s', 'a', missing)).toBe(`${missing}: there is no target of that name in ${point}`);
    }
    for (const name of ['', 'a/device']) {
      expect(await create('s', 'a', name)).toMatch(`\`${name}\` cannot name a target: `);
    }
    expect(await create('s', 'a', 'b', 'c')).toBe('c: is in snapshot first; destroy that first');
    expect(await create('s', 'a', 'a')).toBe('a: is in snapshot s');
    expect(await create('first', 'a')).toBe('snapshot first: there is one of that name');
    for (const name of ['', '.', '..', '@s', 'two words', 's/x', '../a', 'params', 'x'.repeat(256)]) {
      expect(await create(name, 'a')).toMatch(/not a name for a snapshot/);
    }
    expect(snapshots(mount)).toEqual(['first']);
    expect(filters(mount, 'a', 'b', 'c')).toEqual(['none', 'none', 'blksnap']);
  });

  mountTest('append: what is refused changes nothing, and leaves no file', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const { point } = mount;
    const { fs } = await mountExt4(lab, mount);
    await lab.dmfuseOk('snapshot', 'create', point, 's', '--device', 'a');
    const append = (...words: string[]) => lab.refusal('snapshot', 'append', point, 's', ...words);
    expect(await append('none/store', '0', '8')).toBe(`${lab.path('none/store')}: there is no such folder`);
    expect(await append('.', '0', '8')).toMatch(/neither a regular file nor a block device$/);
    expect(await append('huge', '0', String(2 ** 43))).toMatch(/huge/);
    expect(await append(`${fs}/store`, '0', '8')).toBe(
      `${fs}/store: is on the ext4 of a device of the snapshot itself, whose copies cannot go there: choose a file elsewhere`,
    );
    await lab.sh('truncate -s 1M small.img');
    const block = await lab.loop(lab.path('small.img'));
    expect(await append(block, '2000', '49')).toMatch(/has 2048 sectors, not 2049: append a part of it$/);
    expect(existsSync(lab.path('huge'))).toBe(false);
    expect(existsSync(`${fs}/store`)).toBe(false);
    expect(mount.read('snapshots/s/storage')).toBe('');
    await lab.dmfuseOk('snapshot', 'append', point, 's', block, '2000', '48');
    expect(await append(block, '2047', '1')).toMatch(/would be in the storage twice/);
    expect(mount.read('snapshots/s/storage')).toBe(`${block} 2000 48`);
  });

  mountTest('what is asked of no mount, a dead one, or no snapshot, fails', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const { point } = mount;
    const folder = lab.makeFolder('plain');
    const verbs = [['append', 'store', '0', '8'], ['take'], ['show'], ['watch'], ['destroy']];
    for (const [verb, ...rest] of verbs) {
      expect(await lab.refusal('snapshot', verb!, folder, 's', ...rest)).toMatch(
        /no dmfuse is mounted there/,
      );
      expect(await lab.refusal('snapshot', verb!, point, 's', ...rest)).toBe(
        `s: there is no snapshot of that name; \`dmfuse snapshot list ${point}\` tells which there are`,
      );
      expect(await lab.refusal('snapshot', verb!, point, 'params', ...rest)).toMatch(
        /no snapshot of that name/,
      );
      expect(await lab.refusal('snapshot', verb!, point, '..', ...rest)).toMatch(/not a name for a snapshot/);
    }
    expect(existsSync(lab.path('store'))).toBe(false);
    await lab.dmfuseOk('snapshot', 'create', point, 's', '--device', 'a');
    expect(await lab.refusal('snapshot', 'take', point, 's')).toBe(
      'snapshot s has no storage: append some first',
    );
    await mount.killDaemon();
    for (const args of [['list'], ['show', 's'], ['create', 't', '--device', 'a']]) {
      expect(await lab.refusal('snapshot', args[0]!, point, ...args.slice(1))).toMatch(/its daemon is dead/);
    }
    expect(await lab.refusal('cbt', 'info', point, 'a')).toMatch(/its daemon is dead/);
  });

  mountTest('wrong usage exits 64', async (lab) => {
    const run = ['snapshot', 'run', 'm', 's'];
    const cases: [string[], RegExp][] = [
      [['snapshot'], /^Usage: dmfuse snapshot /],
      [['cbt'], /^Usage: dmfuse cbt /],
      [['snapshot', 'create', 'm'], /missing required argument 'S'/],
      [['snapshot', 'append', 'm', 's', 'p', '0', '0'], /value '0' is invalid for argument 'COUNT'/],
      [['snapshot', 'append', 'm', 's', 'p', 'x', '1'], /value 'x' is invalid for argument 'SECTOR'/],
      [[...run, '--device', 'a', '--', 'true'], /required option '--storage <PATH>' not specified/],
      [[...run, '--storage', 'p', '--', 'true'], /required option '--device <NAME>' not specified/],
      [[...run, '--storage', 'p', '--device', 'a'], /missing required argument 'COMMAND'/],
      [
        [...run, '--storage', 'p', '--device', 'a', '--grow', '100', '--', 'true'],
        /argument '100' is invalid/,
      ],
      [[...run, '--storage', 'p', '--device', 'a', '--grow', '0G', '--', 'true'], /argument '0G' is invalid/],
      [[...run, '--storage', 'p', '--device', 'a', '--grow', '1X', '--', 'true'], /argument '1X' is invalid/],
      [['cbt', 'map', 'm', 'a', '--since', '256'], /argument '256' is invalid/],
      [['cbt', 'map', 'm', 'a', '--generation', 'x'], /--generation is of use with --since only/],
      [['cbt', 'map', 'm', 'a', '--raw', '--json'], /'--raw' cannot be used with option '--json'/],
      [['cbt', 'map', 'm', 'a', '--raw', '--since', '1'], /'--raw' cannot be used with option '--since <N>'/],
      [['cbt', 'dirty', 'm', 'a', '0'], /missing required argument 'COUNT'/],
      [['cbt', 'dirty', 'm', 'a', '0', '-1'], /value '-1' is invalid for argument 'SECTOR COUNT'/],
      [['cbt', 'dirty', 'm', 'a', '0', '1k'], /value '1k' is invalid for argument 'SECTOR COUNT'/],
    ];
    const outcomes = await Promise.all(cases.map(([args]) => lab.dmfuse(...args)));
    for (const [i, [args, message]] of cases.entries()) {
      const { code, stdout, stderr } = outcomes[i]!;
      expect({ args, code, stdout, stderr }).toEqual({
        args,
        code: 64,
        stdout: '',
        stderr: expect.stringMatching(message),
      });
    }
  });
});

describe('file systems at the take', () => {
  const features = (lab: Lab, image: string) =>
    lab.sh(`dumpe2fs -h ${image} 2>/dev/null | grep ^Filesystem.features`);

  /** A snapshot of `names` that could be taken. */
  async function prepare(lab: Lab, mount: Mount, ...names: string[]): Promise<void> {
    const devices = names.flatMap((name) => ['--device', name]);
    await lab.dmfuseOk('snapshot', 'create', mount.point, 's', ...devices);
    await lab.dmfuseOk('snapshot', 'append', mount.point, 's', 'store', '0', String(2 ** 18));
  }

  mountTest('a busy ext4, mounted twice, is clean in the image; with --no-freeze it is not', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const { fs } = await mountExt4(lab, mount);
    await lab.sh(`mkdir 'a bind'; mount --bind ${fs} 'a bind'`);
    lab.onClose(async () => void (await lab.ok('umount', 'a bind')));
    await prepare(lab, mount, 'a');
    const writer = lab.start('bash', ['-c', `while :; do seq 1000 >${fs}/$((RANDOM % 99)); echo; done`]);
    await writer.prints(/\n\n\n/);
    await lab.dmfuseOk('snapshot', 'take', mount.point, 's');
    const image = mount.path('snapshots/s/images/a');
    expect(await features(lab, image)).not.toMatch('needs_recovery');
    await lab.sh(`e2fsck -fn ${image}`);
    await lab.dmfuseOk('snapshot', 'destroy', mount.point, 's');

    await prepare(lab, mount, 'a');
    await lab.dmfuseOk('snapshot', 'take', mount.point, 's', '--no-freeze');
    expect(await features(lab, image)).toMatch('needs_recovery');
    writer.kill();
    await expectWritable(lab, fs);
  });

  mountTest('a FUSE mount that calls itself by their device is none of them', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const { loop, fs } = await mountExt4(lab, mount);
    const other = await lab.mount({ name: 'other', args: ['--source', loop, '--lanes', '1'] });
    await prepare(lab, mount, 'a');
    await lab.dmfuseOk('snapshot', 'take', mount.point, 's');
    await expectWritable(lab, fs);
    await other.umount();
  });

  mountTest('one on a target that stands on one of the snapshot, too', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    await mount.create('upper', 'linear @a 2048 1 no_passthrough');
    const { fs } = await mountExt4(lab, mount, 'upper');
    await prepare(lab, mount, 'a');
    await lab.sh(`echo x >${fs}/file`);
    await lab.dmfuseOk('snapshot', 'take', mount.point, 's');
    await lab.sh(`tail -c +1048577 ${mount.path('snapshots/s/images/a')} >upper.img`);
    expect(await features(lab, 'upper.img')).not.toMatch('needs_recovery');
    await expectWritable(lab, fs);
  });

  mountTest('on device-mapper and on partitions, where there are such here', async (lab) => {
    const mount = await mountTargets(lab, 'a', 'b');
    const hasDm = (await lab.shell('command -v dmsetup && grep -q device-mapper /proc/misc')).code === 0;
    const hasParts = (await lab.shell('command -v sfdisk')).code === 0;
    const points: string[] = [];
    const images: string[] = [];
    if (hasDm) {
      const loop = await lab.loop(mount.path('a/device'));
      const name = `dmfuse-test-${process.pid}`;
      await lab.sh(
        `dmsetup create ${name} --table '0 131072 linear ${loop} 0'; mkfs.ext4 -q /dev/mapper/${name}`,
      );
      points.push(await lab.mountFs(`/dev/mapper/${name}`, { name: 'on-dm' }));
      lab.onClose(async () => void (await lab.sh(`umount ${lab.path('on-dm')}; dmsetup remove ${name}`)));
      images.push(mount.path('snapshots/s/images/a'));
    }
    if (hasParts) {
      await lab.sh(`echo 'start=2048' | sfdisk -q ${mount.path('b/device')}`);
      const loop = await lab.loop(mount.path('b/device'), '--partscan');
      const part = `${loop}p1`;
      if (existsSync(part)) {
        await lab.sh(`mkfs.ext4 -q ${part}`);
        points.push(await lab.mountFs(part, { name: 'on-part' }));
        images.push(mount.path('snapshots/s/images/b'));
      }
    }
    await prepare(lab, mount, 'a', 'b');
    for (const point of points) await lab.sh(`echo x >${point}/file`);
    await lab.dmfuseOk('snapshot', 'take', mount.point, 's');
    for (const image of images) {
      const offset = image.endsWith('/b') ? 2048 * 512 : 0;
      await lab.sh(`tail -c +$((${offset} + 1)) ${image} >copy.img`);
      expect(await features(lab, 'copy.img')).not.toMatch('needs_recovery');
    }
    for (const point of points) await expectWritable(lab, point);
  });

  mountTest('read-only ones and frozen ones are left alone', async (lab) => {
    const mount = await mountTargets(lab, 'a', 'b');
    const { fs } = await mountExt4(lab, mount);
    await lab.sh(`mkfs.ext4 -q ${mount.path('b/device')}`);
    const loop = await lab.loop(mount.path('b/device'));
    await lab.sh(`mkdir ro; mount -o ro ${loop} ro; fsfreeze -f ${fs}`);
    lab.onClose(async () => void (await lab.shell(`fsfreeze -u ${fs}; umount ro`)));
    await prepare(lab, mount, 'a', 'b');
    await lab.dmfuseOk('snapshot', 'take', mount.point, 's');
    expect((await lab.run('fsfreeze', ['-u', fs])).code).toBe(0);
    expect(mount.read('snapshots/s/state')).toMatch(/^taken\n/);
  });

  mountTest('who may not freeze is told of --no-freeze, and nothing is taken', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const { fs } = await mountExt4(lab, mount);
    await prepare(lab, mount, 'a');
    const attempt = (...args: string[]) =>
      lab.shell(
        `setpriv --bounding-set=-sys_admin ${process.execPath} ${MAIN} snapshot take ${mount.point} s ${args.join(' ')}`,
      );
    expect(await attempt()).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        `^dmfuse: ${fs}: this ext4 cannot be frozen .*Operation not permitted.*--no-freeze`,
      ),
    });
    expect(mount.read('snapshots/s/state')).toMatch(/^created\n/);
    expect(await attempt('--no-freeze')).toMatchObject({ code: 0, stderr: '' });
  });

  mountTest('a take that is refused leaves them writable', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const { fs } = await mountExt4(lab, mount);
    await lab.dmfuseOk('snapshot', 'create', mount.point, 's', '--device', 'a');
    expect(await lab.refusal('snapshot', 'take', mount.point, 's')).toMatch(/has no storage/);
    await expectWritable(lab, fs);
  });

  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    mountTest(`${signal} while they are frozen: they go on at once`, async (lab) => {
      const mount = await mountTargets(lab, 'a');
      const ext4 = await mountExt4(lab, mount);
      const release = await holdWrites(lab, mount, ext4);
      await prepare(lab, mount, 'a', 'slow');
      const taking = lab.startDmfuse('snapshot', 'take', mount.point, 's');
      await untilTaking(taking);
      taking.signal(signal);
      await expectWritable(lab, ext4.fs);
      release();
      const codes = { SIGTERM: 143, SIGINT: 130, SIGHUP: 129 };
      expect(await taking.ended).toMatchObject({ code: codes[signal], stdout: '', stderr: '' });
      // The next one: nothing has stayed behind.
      await lab.dmfuseOk('snapshot', 'destroy', mount.point, 's');
      await expectWritable(lab, ext4.fs);
    });
  }
});

describe('dmfuse snapshot watch', () => {
  mountTest('prints events as they come until the snapshot is destroyed, or at a signal', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const { point } = mount;
    await lab.dmfuseOk('snapshot', 'create', point, 's', '--device', 'a');
    const plain = lab.startDmfuse('snapshot', 'watch', point, 's');
    const json = lab.startDmfuse('snapshot', 'watch', '--json', point, 's');
    const third = lab.startDmfuse('snapshot', 'watch', point, 's');
    await Promise.all([plain, json, third].map((watcher) => watcher.prints(/low_free_space/)));
    third.signal('SIGINT');
    expect(await third.ended).toMatchObject({ signal: 'SIGINT' });
    await lab.refusal('snapshot', 'take', point, 's');
    await plain.prints(/^refused .*\n/m);
    await json.prints(/refused.*\n/);
    await lab.dmfuseOk('snapshot', 'destroy', point, 's');
    const { code, stdout } = await plain.ended;
    expect(code).toBe(0);
    expect(stdout).toMatch(
      new RegExp(
        `^low_free_space requested_nr_sect=${PORTION} monotonic_ns=\\d+\nrefused file=take errno=14 reason="[^"]+" monotonic_ns=\\d+\n$`,
      ),
    );
    const ended = await json.ended;
    expect(ended).toMatchObject({ code: 0, stderr: '' });
    expect(
      ended.stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    ).toEqual([
      {
        output_version: 1,
        event: 'low_free_space',
        requested_nr_sect: PORTION,
        monotonic_ns: expect.any(Number),
      },
      {
        output_version: 1,
        event: 'refused',
        file: 'take',
        errno: 14,
        reason: 'snapshot s has no storage: append some first',
        monotonic_ns: expect.any(Number),
      },
    ]);
  });
});

describe('dmfuse cbt', () => {
  mountTest('info, map, --since, --generation, --raw, dirty', async (lab) => {
    const mount = await lab.mount();
    const { point } = mount;
    // The last block is one sector.
    await lab.sh(`truncate -s ${4 * 65536 + 512} a.img`);
    await mount.create('a', `linear ${lab.path('a.img')} 0 1 no_passthrough`);
    const cbt = (verb: string, ...args: string[]) => lab.dmfuseOk('cbt', verb, point, 'a', ...args);
    expect(await lab.refusal('cbt', 'info', point, 'a')).toMatch(
      /^a: its changes are not tracked; `echo blksnap >/,
    );
    expect(await lab.refusal('cbt', 'map', point, 'b')).toBe(
      `b: there is no target of that name in ${point}`,
    );
    const write = (block: number) =>
      lab.sh(`printf x | dd of=${mount.path('a/device')} bs=64K seek=${block} conv=notrunc status=none`);
    const take = async () => {
      await lab.dmfuseOk('snapshot', 'append', point, 's', 'store', '0', '8192');
      await lab.dmfuseOk('snapshot', 'take', point, 's');
      await lab.dmfuseOk('snapshot', 'destroy', point, 's');
    };

    await lab.dmfuseOk('snapshot', 'create', point, 's', '--device', 'a');
    await write(1);
    await write(2);
    expect(await cbt('map')).toBe('');
    await take();
    const text = await cbt('info');
    const generation = /^generation_id (.*)$/m.exec(text)![1]!;
    expect(text).toBe(
      `device_capacity 262656\nblock_size 65536\nblock_count 5\ngeneration_id ${generation}\nchanges_number 1\n`,
    );
    expect(JSON.parse(await cbt('info', '--json'))).toEqual({
      output_version: 1,
      deviceCapacityBytes: 262656,
      blockSizeBytes: 65536,
      blockCount: 5,
      generation,
      changesNumber: 1,
    });
    expect(await cbt('map')).toBe('128 256 1\n');

    await write(2);
    await write(3);
    await lab.dmfuseOk('snapshot', 'create', point, 's', '--device', 'a');
    await take();
    await cbt('dirty', '512', '1');
    expect(await cbt('map')).toBe('128 128 1\n256 257 2\n');
    expect(await cbt('map', '--since', '0')).toBe('128 385\n');
    expect(await cbt('map', '--since', '1', '--generation', generation.toUpperCase())).toBe('256 257\n');
    expect(await cbt('map', '--since', '2')).toBe('');
    expect(JSON.parse(await cbt('map', '--json'))).toEqual({
      output_version: 1,
      generation,
      changesNumber: 2,
      blockSectors: 128,
      deviceSectors: 513,
      runs: [
        { sector: 128, count: 128, number: 1 },
        { sector: 256, count: 257, number: 2 },
      ],
    });
    expect(JSON.parse(await cbt('map', '--json', '--since', '1'))).toMatchObject({
      since: 1,
      isWholeDevice: false,
      runs: [{ sector: 256, count: 257 }],
    });
    await lab.sh(`${process.execPath} ${MAIN} cbt map ${point} a --raw >map
      cmp map ${mount.path('a/cbtmap')}`);

    const other = '00000000-0000-0000-0000-000000000000';
    const foreign = [
      {
        args: ['--since', '1', '--generation', other],
        reason: `its generation is ${generation}, not ${other}`,
      },
      { args: ['--since', '3'], reason: 'its last take has number 2, so 3 is of another generation' },
    ];
    for (const { args, reason } of foreign) {
      expect(await lab.dmfuse('cbt', 'map', point, 'a', ...args)).toMatchObject({
        code: 0,
        stdout: '0 513\n',
        stderr: `dmfuse: cbt map a: all of the device has to be copied: ${reason}\n`,
      });
      expect(JSON.parse(await cbt('map', '--json', ...args))).toMatchObject({
        isWholeDevice: true,
        runs: [{ sector: 0, count: 513 }],
      });
    }

    expect(await lab.refusal('cbt', 'dirty', point, 'a', '0', '1', '513', '1')).toMatch(
      /line 2: `513 1` is outside the device's 513 sectors$/,
    );
    expect(await cbt('map', '--since', '1')).toBe('256 257\n');
    expect(await cbt('dirty', '0', '1', '200', '1', '5', '0')).toBe('');
    expect(await cbt('map')).toBe('0 513 2\n');
  });
});

describe('dmfuse snapshot run', () => {
  /** Writes 8 MiB at a time, and waits until there is room again: as fast as storage comes, never faster. */
  const PACED = `
    state() { cat $DMFUSE_SNAPSHOT/state; }
    free() { state | awk '/^capacity/ { c = $2 } /^filled/ { f = $2 } END { print c - f }'; }
    fill() { dd if=/dev/urandom of=$1 bs=1M seek=$2 count=8 conv=notrunc,fsync status=none; }
    roomy() { while [ $(free) -le ${PORTION / 2} ]; do sleep 0.02; done; }`;

  function run(lab: Lab, mount: Mount, script: string, ...options: string[]): Running {
    return lab.startDmfuse('snapshot', 'run', mount.point, 's', ...options, '--', 'bash', '-c', script);
  }

  mountTest('storage grows while the origins are overwritten; the images stay as they were', async (lab) => {
    const mount = await mountTargets(lab, 'a', 'b');
    await lab.sh(`for name in a b; do head -c 64M /dev/urandom >$name.data
      dd if=$name.data of=${mount.point}/$name/device bs=1M conv=notrunc status=none; done`);
    const script = `${PACED}
      for at in 0 8 16 24 32 40 48 56; do
        fill ${mount.path('a/device')} $at; roomy; fill ${mount.path('b/device')} $at; roomy
      done
      printf '%s\n' "$DMFUSE_SNAPSHOT" "$DMFUSE_IMAGE" "$DMFUSE_IMAGES" "$@"
      stat -c '%a' ${lab.path('store')}; [ $(wc -l <$DMFUSE_SNAPSHOT/storage) -ge 5 ]; echo $?
      cmp $DMFUSE_IMAGE b.data && cmp $DMFUSE_SNAPSHOT/images/a a.data && exit 42`;
    const options = ['--storage', 'store', '--grow', '16M', '--device', 'b', '--device', 'a'];
    const outcome = await lab.dmfuse(
      'snapshot',
      'run',
      mount.point,
      's',
      ...options,
      '--',
      'bash',
      '-c',
      script,
      'x',
      '-y',
    );
    const images = mount.path('snapshots/s/images');
    expect(outcome).toEqual({
      code: 42,
      signal: null,
      stdout: [
        mount.path('snapshots/s'),
        `${images}/b`,
        `${images}/b`,
        `${images}/a`,
        '-y',
        '600',
        '0\n',
      ].join('\n'),
      stderr: '',
    });
    expect(snapshots(mount)).toEqual([]);
    expect(filters(mount, 'a', 'b')).toEqual(['blksnap', 'blksnap']);
    expect(existsSync(lab.path('store'))).toBe(false);
    // Once more: the trackers are there, and go on.
    expect(await lab.dmfuse('snapshot', 'run', mount.point, 's', ...options, '--', 'true')).toMatchObject({
      code: 0,
    });
    expect(await lab.dmfuseOk('cbt', 'map', mount.point, 'a', '--since', '1')).toBe('0 131072\n');
  });

  mountTest('a busy ext4 is clean in the image, and free again while the command runs', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const { fs } = await mountExt4(lab, mount);
    const script = `echo x >${fs}/file; sync -f ${fs}/file; e2fsck -fn $DMFUSE_IMAGE && ! dumpe2fs -h $DMFUSE_IMAGE 2>&1 | grep needs_recovery`;
    expect(await run(lab, mount, script, '--device', 'a', '--storage', 'store').ended).toMatchObject({
      code: 0,
    });
  });

  mountTest('an image that is lost: the command goes on, and its 0 becomes 1', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    lab.makeFolder('tiny');
    await lab.sh('mount -t tmpfs -o size=40M none tiny');
    lab.onClose(async () => void (await lab.ok('umount', 'tiny')));
    for (const [status, code] of [
      [0, 1],
      [5, 5],
    ]) {
      const script = `${PACED}
        for at in 0 8 16 24 32 40; do fill ${mount.path('a/device')} $at; done
        state | head -1; cat $DMFUSE_IMAGE >/dev/null 2>&1 || echo unreadable; exit ${status}`;
      const options = ['--device', 'a', '--storage', 'tiny/store', '--grow', '16M'];
      const outcome = await run(lab, mount, script, ...options).ended;
      expect(outcome).toMatchObject({ code, stdout: 'corrupted\nunreadable\n' });
      expect(outcome.stderr).toMatch(/^dmfuse: the storage of the snapshot does not grow: .*tiny\/store: /m);
      expect(outcome.stderr).toMatch(
        /^dmfuse: the image of a is lost, reads of it fail from now on: the difference storage is full/m,
      );
      expect(outcome.stderr).toMatch(
        /^dmfuse: snapshot s: the image of a was lost.*: what was read from it is of no use$/m,
      );
      expect(existsSync(lab.path('tiny/store'))).toBe(false);
      expect(snapshots(mount)).toEqual([]);
    }
    // One that somebody else destroys is no better.
    const taken = await run(lab, mount, 'rmdir $DMFUSE_SNAPSHOT', '--device', 'a', '--storage', 'store')
      .ended;
    expect(taken).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/destroyed while the command ran/),
    });
  });

  mountTest('storage: what it may be, and how it is left', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const options = (storage: string) => ['--device', 'a', '--storage', storage, '--grow', '16M'];
    const refused = async (storage: string, ...more: string[]) => {
      const { code, stderr } = await run(lab, mount, 'echo ran', ...options(storage), ...more).ended;
      expect(code).toBe(1);
      return stderr;
    };
    await lab.sh('echo precious >full; touch empty; truncate -s 40M block.img');
    expect(await refused('full')).toMatch(/^dmfuse: full: is not empty, .*name a new file, or empty it/);
    expect(readFileSync(lab.path('full'), 'utf8')).toBe('precious\n');
    expect(await refused('none/store')).toMatch(/there is no such folder/);
    expect(await refused('.')).toMatch(/neither a regular file nor a block device/);
    expect(await refused('store', '--grow', '4K')).toMatch(
      /--grow 4096: less than a chunk of the snapshot, which is 262144/,
    );
    // What others have laid there is not trusted.
    await lab.sh('touch theirs; chown 65534 theirs; ln -s empty link; chown -h 65534 link; ln -s empty mine');
    for (const foreign of ['theirs', 'link']) {
      expect(await refused(foreign)).toMatch(new RegExp(`/${foreign}: belongs to another user`));
    }
    expect(filters(mount, 'a')).toEqual(['none']);

    expect(await run(lab, mount, 'stat -c %s mine', ...options('mine')).ended).toMatchObject({ code: 0 });
    expect(await run(lab, mount, 'stat -c %s empty', ...options('empty')).ended).toMatchObject({
      code: 0,
      stdout: `${2 * 2 ** 24}\n`,
    });
    expect(statSync(lab.path('empty')).size).toBe(0);

    const block = await lab.loop(lab.path('block.img'));
    const script = `${PACED}
      fill ${mount.path('a/device')} 0; roomy; fill ${mount.path('a/device')} 8; fill ${mount.path('a/device')} 16
      cat $DMFUSE_SNAPSHOT/storage`;
    const outcome = await run(lab, mount, script, ...options(block)).ended;
    expect(outcome).toMatchObject({
      code: 0,
      stdout: `${block} 0 32768\n${block} 32768 32768\n${block} 65536 16384\n`,
    });
    expect(existsSync(block)).toBe(true);
  });

  mountTest('what fails before the command runs undoes everything', async (lab) => {
    const mount = await mountTargets(lab, 'a', 'b');
    await lab.dmfuseOk('snapshot', 'create', mount.point, 'other', '--device', 'b');
    const refused = async (...devices: string[]) => {
      const words = devices.flatMap((device) => ['--device', device]);
      const outcome = await run(lab, mount, 'echo ran', ...words, '--storage', 'store').ended;
      expect(outcome).toMatchObject({ code: 1, stdout: '' });
      expect(existsSync(lab.path('store'))).toBe(false);
      expect(snapshots(mount)).toEqual(['other']);
      expect(filters(mount, 'a', 'b')).toEqual(['none', 'blksnap']);
      return outcome.stderr;
    };
    expect(await refused('a', 'nobody')).toMatch(/^dmfuse: nobody: there is no target of that name/);
    expect(await refused('a', 'b')).toBe('dmfuse: b: is in snapshot other; destroy that first\n');
    // The file is made, but the daemon may not use it.
    const held = lab.start('bash', ['-c', 'exec 9<>locked; flock 9; echo locked; sleep 1000']);
    await held.prints(/locked/);
    const locked = await run(lab, mount, 'echo ran', '--device', 'a', '--storage', 'locked').ended;
    expect(locked).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/holds a lock on it/),
    });
    expect(snapshots(mount)).toEqual(['other']);
    expect(filters(mount, 'a')).toEqual(['none']);

    for (const [command, code] of [
      ['no-such-command', 127],
      [lab.folder, 126],
      ['', 126],
    ] as const) {
      const words = ['--device', 'a', '--storage', 'new', '--', command];
      const outcome = await lab.dmfuse('snapshot', 'run', mount.point, 's', ...words);
      expect(outcome).toMatchObject({ code, stderr: expect.stringMatching(/cannot be run: /) });
      expect(existsSync(lab.path('new'))).toBe(false);
      expect(snapshots(mount)).toEqual(['other']);
    }
  });

  mountTest('signals go to the command; the snapshot goes when that ends', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const options = ['--device', 'a', '--storage', 'store'];
    const cases = [
      {
        signal: 'SIGTERM',
        script: 'trap "echo heard; exit 3" TERM; echo up; while :; do sleep 0.05; done',
        code: 3,
      },
      { signal: 'SIGTERM', script: 'echo up; exec sleep 1000', code: 143 },
      { signal: 'SIGINT', script: 'echo up; exec sleep 1000', code: 130 },
      { signal: 'SIGHUP', script: 'echo up; exec sleep 1000', code: 129 },
    ] as const;
    for (const { signal, script, code } of cases) {
      const running = run(lab, mount, script, ...options);
      await running.prints(/up/);
      running.signal(signal);
      const outcome = await running.ended;
      expect(outcome).toMatchObject({ code, stderr: '' });
      if (code === 3) expect(outcome.stdout).toBe('up\nheard\n');
      expect(snapshots(mount)).toEqual([]);
      expect(existsSync(lab.path('store'))).toBe(false);
    }
  });

  mountTest('a signal before the command runs: nothing is left, file systems go on', async (lab) => {
    const mount = await mountTargets(lab, 'a');
    const ext4 = await mountExt4(lab, mount);
    const release = await holdWrites(lab, mount, ext4);
    const running = run(lab, mount, 'echo ran', '--device', 'a', '--device', 'slow', '--storage', 'store');
    await untilTaking(running);
    running.signal('SIGTERM');
    await expectWritable(lab, ext4.fs);
    release();
    expect(await running.ended).toMatchObject({ code: 143, stdout: '', stderr: '' });
    expect(snapshots(mount)).toEqual([]);
    expect(existsSync(lab.path('store'))).toBe(false);
    expect(filters(mount, 'a', 'slow')).toEqual(['none', 'blksnap']);
  });
});
