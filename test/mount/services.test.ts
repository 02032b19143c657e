/** What makes and keeps mounts where nobody types: fstab, systemd, pid files, and what follows a daemon that was killed. */
import { chmodSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { helperArguments } from '../../mount/cli/mount-helper.js';
import { type Lab, MAIN, mountTest, type Running, until, withoutWarning } from './harness.js';

/** Files below `root` as `install-services` makes them, and the helper among them. */
async function install(lab: Lab): Promise<string> {
  await lab.dmfuseOk('install-services', '--root', lab.path('root'));
  return lab.path('root/sbin/mount.dmfuse');
}

async function image(lab: Lab, name: string, size = '4M'): Promise<string> {
  await lab.sh(`truncate -s ${size} ${name}`);
  return lab.path(name);
}

async function expectNothingLeft(lab: Lab): Promise<void> {
  expect(lab.fuseMounts()).toEqual([]);
  await until(() => lab.daemons().length === 0, 'all daemons to end');
}

async function expectEndedWell(daemon: Running): Promise<void> {
  const { code, stderr } = await daemon.ended;
  expect({ code, stderr: withoutWarning(stderr) }).toEqual({ code: 0, stderr: '' });
}

/** A mount file in which each of five targets stands on the next line's; its path. */
async function stackOfAll(lab: Lab): Promise<string> {
  await lab.sh('head -c 4M /dev/urandom >checked; truncate -s 4M meta copied');
  await lab.dmfuseOk('csum', 'format', lab.path('checked'));
  const sectors = 7000;
  await lab.sh(`truncate -s ${sectors * 512} base`);
  await lab.dmfuseOk('cow', 'create', lab.path('base'), lab.path('layer'));
  writeFileSync(
    lab.path('vm.tab'),
    `# Upside down.
undo bow @top 1 block_size:1024
undo filter blksnap

top: 0 ${sectors} cow @copy 0 ${lab.path('layer.bitmap')} ${lab.path('layer')} 0
copy clone ${lab.path('meta')} ${lab.path('copied')} @part 8
part 0 ${sectors} linear @safe 0
safe csum ${lab.path('checked')} 0
`,
  );
  return lab.path('vm.tab');
}

const STACK = ['safe', 'part', 'copy', 'top', 'undo'];

describe('a mount file', () => {
  mountTest(
    '--tab makes a stack of all targets from lines in any order, and it can be written',
    async (lab) => {
      const { point, read, path, umount } = await lab.mount({ args: ['--tab', await stackOfAll(lab)] });
      const targets = JSON.parse(await lab.dmfuseOk('ls', '--json', point)).targets as { name: string }[];
      expect(targets.map(({ name }) => name).sort()).toEqual([...STACK].sort());
      expect(read('undo/filter')).toBe('blksnap');
      await lab.sh(`head -c 1M /dev/urandom >data
      dd if=data of=${path('undo/device')} bs=64K conv=notrunc,fsync status=none`);
      await umount();
      await lab.sh('cmp -n 1M data layer');
    },
  );

  mountTest('what `table` prints of all targets is a mount file', async (lab) => {
    await lab.sh('truncate -s 1M disk.img');
    const table = `linear ${lab.path('disk.img')} 0 1 no_passthrough`;
    const { point } = await lab.mount({ args: ['--create', `b ${table}`, '--create', 'a linear @b 0'] });
    await lab.sh(`echo blksnap >${point}/b/filter`);
    const said = await lab.dmfuseOk('table', point);
    expect(said).toBe(`a: 0 2048 linear @b 0\nb: 0 2048 ${table}\nb: filter blksnap\n`);
    await lab.sh('cat >all.tab', { input: said });
    await lab.dmfuseOk('umount', point);
    await lab.dmfuseOk('mount', point, '--tab', lab.path('all.tab'));
    expect(await lab.dmfuseOk('table', point)).toBe(said);
    await lab.dmfuseOk('umount', point);
  });

  mountTest('--state-dir is refused where nothing can be saved', async (lab) => {
    const point = lab.makeFolder('mnt');
    await lab.sh('touch file');
    for (const [folder, reason] of [
      [lab.path('file'), /^--state-dir \/.*\/file: nothing can be saved there: not a directory$/],
      [lab.path('file/below'), /file\/below: nothing can be saved there: ENOTDIR/],
      // mkdir(2) says there that the parent is missing.
      ['/proc/dmfuse', /^--state-dir \/proc\/dmfuse: nothing can be saved there: ENOENT/],
    ] as const)
      expect(await lab.refusal('mount', point, '--state-dir', folder)).toMatch(reason);
    expect(lab.daemons()).toEqual([]);
    await lab.dmfuseOk('mount', point, '--state-dir', lab.path('a/b'));
    expect(await lab.sh('stat -c %a a/b')).toBe('700\n');
    await lab.dmfuseOk('umount', point);
  });

  mountTest('--state-dir brings a filter back that the file attaches too', async (lab) => {
    const file = await image(lab, 'a.img');
    await lab.sh(`printf 'a linear ${file} 0 1 no_passthrough\na filter blksnap\n' >a.tab`);
    const args = ['--tab', lab.path('a.tab'), '--state-dir', lab.path('state')];
    const first = await lab.mount({ args });
    const generation = /^generation_id .*$/m.exec(first.read('a/cbtinfo'))![0];
    await first.umount();
    const second = await lab.mount({ args });
    expect(second.read('a/cbtinfo')).toContain(generation);
  });

  mountTest('what is wrong is told with file and line, and leaves neither mount nor daemon', async (lab) => {
    const point = lab.makeFolder('mnt');
    const good = `a linear ${await image(lab, 'a.img')} 0`;
    const file = lab.path('x.tab');
    const cases: [string, RegExp][] = [
      [`b bow @a\n${good}\nc linear /does/not/exist 0`, /x\.tab: line 3: \/does\/not\/exist: no such file/],
      [`${good}\na filter log-writes /not/there`, /x\.tab: line 2: .*\/not\/there: no such file/],
      [`${good}\n.b bow @a`, /x\.tab: line 2: `\.b` cannot name a target/],
      [`${good}\nb bow @c`, /x\.tab: line 2: @c: no line makes/],
    ];
    for (const [text, reason] of cases) {
      writeFileSync(file, text);
      expect(await lab.refusal('mount', point, '--tab', file)).toMatch(reason);
      await expectNothingLeft(lab);
    }
    expect(await lab.refusal('mount', point, '--tab', lab.path('none.tab'))).toMatch(
      /^the mount file .*none\.tab cannot be read: ENOENT/,
    );
  });
});

describe('mount.dmfuse', () => {
  test('options of fstab are options of dmfuse mount, or ignored', () => {
    const options =
      'rw,noauto,nofail,_netdev,noatime,x-systemd.automount,x-systemd.requires=/img,comment=mine,' +
      'lanes=4,allow_other,state_dir=/var/lib/dm,pidfile=/run/dm.pid,diff_storage_minimum=2097152,replace';
    expect(helperArguments(['/etc/dmfuse/vm.tab', '/mnt/dm', '-sn', '-t', 'dmfuse', '-o', options])).toEqual(
      [
        'mount',
        '--tab',
        '/etc/dmfuse/vm.tab',
        '--source',
        '/etc/dmfuse/vm.tab',
        '--lanes',
        '4',
        '--allow-other',
      ]
        .concat([
          '--state-dir',
          '/var/lib/dm',
          '--pidfile',
          '/run/dm.pid',
          '-o',
          'diff_storage_minimum=2097152',
        ])
        .concat(['--replace', '--', '/mnt/dm']),
    );
    expect(helperArguments(['none', '/mnt/dm'])).toEqual(['mount', '--source', 'none', '--', '/mnt/dm']);
    expect(helperArguments(['none', '/mnt/dm', '-vf', '-o', 'lanes=4'])).toEqual([]);
  });

  test.each([
    ['ro', /^-o ro: a mount of control files is written to/],
    ['remount', /^-o remount: a mount stays as it was begun/],
    ['lanes', /^-o lanes: expected lanes=VALUE/],
    ['lanes=', /^-o lanes=: expected lanes=VALUE/],
    ['nofail,frob=1', /^-o frob=1: not known; known are allow_other, /],
    ['toString', /^-o toString: not known/],
  ])('-o %s is refused', (options, message) => {
    expect(() => helperArguments(['none', '/mnt', '-o', options])).toThrow(message);
  });

  test.each([[[]], [['none']], [['none', '/mnt', 'more']], [['none', '/mnt', '-N', '/proc/1/ns/mnt']]])(
    '%j is refused',
    (args) => {
      expect(() => helperArguments(args)).toThrow(/expected SOURCE MNT|-N: not known/);
    },
  );

  mountTest(
    'mount(8) mounts lines of fstab by it, once, with no environment, and umount ends it',
    async (lab) => {
      await install(lab);
      const [point, empty] = [lab.makeFolder('mnt'), lab.makeFolder('empty')];
      writeFileSync(
        lab.path('fstab'),
        `${await stackOfAll(lab)} ${point} dmfuse lanes=2,nofail,_netdev,x-systemd.automount 0 0
none ${empty} dmfuse defaults,lanes=2 0 0\n`,
      );
      // A mount namespace of its own, where /sbin holds the helper alone: nothing of this machine changes.
      await lab.sh(`cat >inside`, {
        input: `
        mount --bind ${lab.path('root/sbin')} "$(readlink -f /sbin)"
        env -i "$(command -v mount)" -a -T fstab
        env -i "$(command -v mount)" -a -T fstab
        grep ' - fuse.dmfuse ' /proc/self/mountinfo | grep -c ' ${lab.folder}/'
        ls ${point} | sort | tr '\\n' ' '
        cat ${point}/undo/filter
        ls -A ${empty}
        pids=$(sed -n 's/^pid //p' ${point}/.dmfuse ${empty}/.dmfuse)
        env -i "$(command -v umount)" ${point}
        env -i "$(command -v umount)" ${empty}
        for pid in $pids; do while [[ -d /proc/$pid ]]; do sleep 0.02; done; done`,
      });
      expect(await lab.sh('unshare -m --propagation slave bash -euo pipefail inside')).toBe(
        `2\n${[...STACK, 'snapshots'].sort().join(' ')} blksnap\n`,
      );
    },
  );

  mountTest('its exit codes are those of mount(8)', async (lab) => {
    const helper = await install(lab);
    const point = lab.makeFolder('mnt');
    const run = (...args: string[]) => lab.run('/usr/bin/env', ['-i', helper, ...args]);
    expect(await run(lab.path('none.tab'), point)).toMatchObject({
      code: 32,
      stderr: expect.stringMatching(/^dmfuse: the mount file .* cannot be read/),
    });
    expect(await run('none', point, '-o', 'lanes=no')).toMatchObject({ code: 32 });
    expect(await run('none', point, '-o', 'ro')).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/^mount\.dmfuse: -o ro: .+\n$/),
    });
    expect(await run('none', point, '-f')).toMatchObject({ code: 0, stdout: '', stderr: '' });
    await expectNothingLeft(lab);
  });
});

describe('dmfuse install-services', () => {
  mountTest('writes two files, which --remove takes away; another`s stays as it is', async (lab) => {
    const root = lab.path('root');
    const helper = `${root}/sbin/mount.dmfuse`;
    const unit = `${root}/etc/systemd/system/dmfuse@.service`;
    for (let twice = 0; twice < 2; twice++) {
      expect(await lab.dmfuseOk('install-services', '--root', root)).toBe(`wrote ${helper}\nwrote ${unit}\n`);
    }
    expect(statSync(helper).mode & 0o777).toBe(0o755);
    expect(await lab.dmfuseOk('install-services', '--root', root, '--remove')).toBe(
      `removed ${helper}\nremoved ${unit}\n`,
    );
    expect(existsSync(helper) || existsSync(unit)).toBe(false);
    expect(await lab.dmfuseOk('install-services', '--root', root, '--remove')).toBe('');

    writeFileSync(unit, '[Service]\n');
    for (const args of [[], ['--remove']]) {
      expect(await lab.refusal('install-services', '--root', root, ...args)).toBe(
        `${unit}: not written by dmfuse, so it is left alone; move it away first`,
      );
    }
    expect(readFileSync(unit, 'utf8')).toBe('[Service]\n');
    expect(existsSync(helper)).toBe(false);
  });

  mountTest('systemd-analyze verify has nothing to say of the unit', async (lab) => {
    await install(lab);
    const { stdout } = await lab.shell('command -v systemd-analyze || true');
    if (stdout === '') return console.warn('no systemd-analyze here: the unit is not verified');
    // The manual may not be where man(1) looks.
    const verify = ['verify', '--man=no', lab.path('root/etc/systemd/system/dmfuse@.service')];
    expect(await lab.run('systemd-analyze', verify)).toMatchObject({ code: 0, stdout: '', stderr: '' });
  });

  mountTest('the command line of the unit serves an instance', async (lab) => {
    await install(lab);
    const unit = readFileSync(lab.path('root/etc/systemd/system/dmfuse@.service'), 'utf8');
    await lab.sh(`mkdir etc run var; printf 'a linear ${await image(lab, 'a.img')} 0\n' >etc/vm.tab`);
    const command = /^ExecStart=(.*)$/m
      .exec(unit)![1]!
      .replaceAll('%i', 'vm')
      .replaceAll(/\/(etc|run|var)\/(lib\/)?dmfuse\//g, (_, folder) => `${lab.path(folder)}/`);
    lab.makeFolder('run/vm');
    const daemon = lab.start('env', ['-i', 'OPTIONS=--lanes 2', 'bash', '-c', `exec ${command}`]);
    await until(() => existsSync(lab.path('run/vm/a/device')), 'the target');
    daemon.signal('SIGTERM');
    await expectEndedWell(daemon);
    await expectNothingLeft(lab);
  });
});

describe('the service manager', () => {
  /** Prints what comes to NOTIFY_SOCKET, and, when it is READY, what there is in the mount by then. */
  const LISTENER = `
import os, socket, sys
name, point = sys.argv[1:]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind("\\0" + name[1:] if name[0] == "@" else name)
print("listens", flush=True)
while True:
    text = s.recv(4096).decode()
    if text.startswith("READY=1"): text += "\\nsees " + " ".join(sorted(os.listdir(point)))
    print(text, flush=True)`;

  for (const kind of ['a path', 'an abstract name']) {
    mountTest(`is told at ${kind} when all targets are made, and when the daemon stops`, async (lab) => {
      const point = lab.makeFolder('mnt');
      const address = kind === 'a path' ? lab.path('notify') : `@${lab.path('notify')}`;
      const listener = lab.start('python3', ['-c', LISTENER, address, point]);
      await listener.prints(/^listens$/m);
      const mount = (...args: string[]) =>
        lab.start('env', [
          ...[`NOTIFY_SOCKET=${address}`, process.execPath, MAIN, 'mount', '-f', point, '--lanes', '2'],
          ...args,
        ]);
      const failed = await mount('--create', 'a linear /does/not/exist 0').ended;
      expect(failed.code).toBe(1);
      expect(listener.stdout).toBe('listens\n');

      const daemon = mount('--create', `a linear ${await image(lab, 'a.img')} 0`);
      await listener.prints(/^sees .*\n/m);
      expect(listener.stdout).toBe(
        `listens\nREADY=1\nMAINPID=${daemon.pid}\nSTATUS=Serves 1 targets at ${point}\nsees a\n`,
      );
      daemon.signal('SIGTERM');
      await expectEndedWell(daemon);
      await listener.prints(/^STOPPING=1$/m);
    });
  }

  mountTest('that does not listen is no reason to fail', async (lab) => {
    const point = lab.makeFolder('mnt');
    const main = [process.execPath, MAIN, 'mount', '-f', point, '--lanes', '1'];
    for (const address of [lab.path('nobody'), 'vsock:2:1', `/${'x'.repeat(200)}`]) {
      const daemon = lab.start('env', [`NOTIFY_SOCKET=${address}`, ...main]);
      await until(() => daemon.stderr.includes('is not told'), 'the daemon to say so');
      await lab.dmfuseOk('umount', point);
      expect(await daemon.ended).toMatchObject({ code: 0 });
    }
  });
});

mountTest('a mount that nobody waits for any more does not come up behind his back', async (lab) => {
  const point = lab.makeFolder('mnt');
  // The daemon waits for the end of its mount file.
  await lab.sh('mkfifo slow.tab go');
  const command = lab.startDmfuse('mount', point, '--tab', lab.path('slow.tab'));
  const opened = lab.sh('exec 3>slow.tab; read -r _ <go');
  await until(() => lab.daemons().length === 2, 'the daemon');
  command.signal('SIGKILL');
  await command.ended;
  await lab.sh('echo >go');
  await opened;
  await until(() => lab.daemons().length === 0, 'the daemon to end');
  expect(lab.fuseMounts()).toEqual([]);
});

describe('--pidfile', () => {
  mountTest(
    'holds the process id while the daemon serves, is refused to a second and gone with the first',
    async (lab) => {
      const file = lab.path('dm.pid');
      const { point, pid, umount } = await lab.mount({ args: ['--pidfile', file] });
      expect(readFileSync(file, 'utf8')).toBe(`${pid}\n`);
      const other = lab.makeFolder('other');
      expect(await lab.refusal('mount', other, '--pidfile', file)).toBe(
        `${file}: the pid file of a live daemon, process ${pid}`,
      );
      // Of a mount that is refused nothing is left.
      await lab.refusal('mount', other, '--pidfile', lab.path('other.pid'), '--create', 'a linear /no 0');
      expect(await lab.sh('ls')).toBe('dm.pid\nmnt\nother\n');
      await umount();
      expect(await lab.sh('ls')).toBe('mnt\nother\n');
      expect(point).toBe(lab.path('mnt'));
    },
  );

  mountTest('of a daemon that was killed is replaced, whoever has its number now', async (lab) => {
    const file = lab.path('dm.pid');
    const first = await lab.mount({ args: ['--pidfile', file] });
    await first.killDaemon();
    await first.umount();
    writeFileSync(file, `${process.pid}\n`);
    const second = await lab.mount({ args: ['--pidfile', file] });
    expect(readFileSync(file, 'utf8')).toBe(`${second.pid}\n`);
    // Removed by its owner only while it is his.
    await lab.sh(`rm ${file}; echo 1 >${file}`);
    await second.umount();
    expect(readFileSync(file, 'utf8')).toBe('1\n');
  });

  mountTest('is not written over a file that is none, or where there is no folder', async (lab) => {
    const point = lab.makeFolder('mnt');
    writeFileSync(lab.path('notes'), 'mine');
    expect(await lab.refusal('mount', point, '--pidfile', lab.path('notes'))).toMatch(/something else than/);
    expect(readFileSync(lab.path('notes'), 'utf8')).toBe('mine');
    const folder = lab.makeFolder('folder');
    expect(await lab.refusal('mount', point, '--pidfile', folder)).toMatch(/something else than/);
    expect(await lab.refusal('mount', point, '--pidfile', lab.path('none/x'))).toMatch(/x cannot be made/);
    for (const file of [`${point}/x`, `${folder}/../mnt/x`]) {
      expect(await lab.refusal('mount', point, '--pidfile', file)).toMatch(
        /x cannot be made: the mount will be there$/,
      );
    }
    await expectNothingLeft(lab);
  });

  mountTest('that cannot appear leaves no mount', async (lab) => {
    const [point, folder] = [lab.makeFolder('mnt'), lab.makeFolder('folder')];
    // There the daemon waits with the last target.
    await lab.sh('mkdir state; mkfifo state/a.blksnap; truncate -s 1M a.img');
    const table = `a linear ${lab.path('a.img')} 0`;
    const mounting = lab.startDmfuse(
      ...['mount', point, '--pidfile', `${folder}/x`, '--state-dir', lab.path('state'), '--create', table],
    );
    await until(() => readdirSync(folder).length > 0, 'the draft of the pid file');
    await lab.sh(`rm -r ${folder}; : >state/a.blksnap`);
    expect(await mounting.ended).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^dmfuse: ENOENT: /),
    });
    await expectNothingLeft(lab);
  });
});

describe('a mount whose daemon was killed', () => {
  mountTest('is named as such, and --replace mounts anew, also by a link', async (lab) => {
    const file = await image(lab, 'a.img');
    const dead = await lab.mount({ args: ['--create', `a linear ${file} 0`] });
    await lab.sh('ln -s mnt link');
    await dead.killDaemon();
    for (const at of [dead.point, lab.path('link')]) {
      expect(await lab.refusal('mount', at)).toBe(
        `${at}: a dmfuse mount whose daemon is dead; \`dmfuse mount --replace ${at} …\` mounts anew, ` +
          `\`dmfuse umount ${at}\` clears it away`,
      );
      expect(await lab.refusal('status', at)).toMatch(/its daemon is dead; .*--replace/);
    }
    const args = ['mount', '--replace', lab.path('link'), '--create', `a linear ${file} 0`];
    const { code, stderr } = await lab.dmfuse(...args);
    expect({ code, stderr }).toEqual({
      code: 0,
      stderr: `dmfuse: ${dead.point}: detached a mount whose daemon is dead\n`,
    });
    expect(lab.fuseMounts()).toHaveLength(1);
    expect(await lab.dmfuseOk('status', dead.point)).toBe('a: 0 8192 linear\n');
    // A live one is never replaced.
    expect(await lab.refusal('mount', '--replace', dead.point)).toContain('a dmfuse mount already');
    expect(await lab.dmfuseOk('status', dead.point)).toBe('a: 0 8192 linear\n');
  });

  mountTest('--replace detaches all that are dead, and names the loop devices on them', async (lab) => {
    const below = await lab.mount();
    const above = await lab.mount({
      name: 'other',
      args: ['--create', `a linear ${await image(lab, 'a.img')} 0`],
    });
    await lab.sh(`mount --bind ${above.point} ${below.point}`);
    const loop = await lab.loop(below.path('a/device'));
    lab.onClose(async () => void (await lab.shell(`losetup -d ${loop}`)));
    // Above is one that lives: nothing is done.
    await below.killDaemon();
    expect(await lab.refusal('mount', '--replace', below.point)).toContain('a dmfuse mount already');
    expect(lab.fuseMounts()).toHaveLength(3);
    await above.killDaemon();
    const { code, stderr } = await lab.dmfuse('mount', '--replace', below.point);
    expect({ code, stderr }).toEqual({
      code: 0,
      stderr: [
        `dmfuse: ${below.point}: detached a mount whose daemon is dead`,
        `dmfuse: ${loop} stays dead, it was on ${below.path('a/device')}: unmount what is on it, and losetup -d ${loop}`,
        `dmfuse: ${below.point}: detached a mount whose daemon is dead\n`,
      ].join('\n'),
    });
    expect(
      lab
        .fuseMounts()
        .map((line) => line.split(' ')[4])
        .sort(),
    ).toEqual([below.point, above.point].sort());
    expect(await lab.dmfuseOk('ls', below.point)).toBe('');
    await lab.ok('losetup', '-d', loop);
    await above.umount();
  });

  mountTest('--replace where nothing is mounted, or something else, just mounts', async (lab) => {
    const point = lab.makeFolder('mnt');
    chmodSync(point, 0o755);
    await lab.dmfuseOk('mount', '--replace', point);
    await lab.dmfuseOk('umount', point);
    await lab.sh(`mount -t tmpfs none ${point}; mkdir ${point}/stays`);
    await lab.dmfuseOk('mount', '--replace', point);
    await lab.dmfuseOk('umount', point);
    expect(existsSync(`${point}/stays`)).toBe(true);
  });

  mountTest('and one that lives, under a mount of something else: neither is touched', async (lab) => {
    const covered = await lab.mount({ args: ['--create', `a linear ${await image(lab, 'a.img')} 0`] });
    await lab.sh(`mount -t tmpfs none ${covered.point}; mkdir ${covered.point}/stays`);
    const commands = [['umount'], ['status'], ['mount'], ['mount', '--replace']];
    for (const [index, command] of [...commands, ...commands].entries()) {
      if (index === commands.length) await covered.killDaemon();
      expect(await lab.refusal(...command, covered.point)).toBe(
        `${covered.point}: a dmfuse mount, which a mount of type tmpfs covers; \`umount ${covered.point}\` takes that away`,
      );
      expect(existsSync(covered.path('stays'))).toBe(true);
    }
    await lab.ok('umount', covered.point);
    await covered.umount();
  });
});
