import { chmodSync, existsSync, readFileSync, writeFileSync } from 'node:fs';

import type { Command } from 'commander';
import { describe, expect } from 'vitest';
import { program } from '../../mount/cli/program.js';
import { type Lab, mountTest, type Running, suspend, until, withoutWarning } from './harness.js';

const BOW_COMMANDS = ['restore', 'check', 'dump'];
const CSUM_COMMANDS = ['format', 'check'];
const COW_COMMANDS = ['create', 'commit', 'flatten', 'map'];
const CLONE_COMMANDS = ['dump', 'check', 'wait'];
const SNAPSHOT_COMMANDS = ['create', 'append', 'take', 'list', 'show', 'watch', 'destroy', 'run'];
const CBT_COMMANDS = ['info', 'map', 'dirty'];
const COMMANDS = [
  '',
  'mount',
  'create',
  'remove',
  'rename',
  'suspend',
  'resume',
  'message',
  'ls',
  'status',
  'table',
  'deps',
  'info',
  'targets',
  'wait',
  'umount',
  'map',
  'stats',
  'top',
  'bow',
  ...BOW_COMMANDS.map((verb) => `bow ${verb}`),
  'csum',
  ...CSUM_COMMANDS.map((verb) => `csum ${verb}`),
  'cow',
  ...COW_COMMANDS.map((verb) => `cow ${verb}`),
  'clone',
  ...CLONE_COMMANDS.map((verb) => `clone ${verb}`),
  'snapshot',
  ...SNAPSHOT_COMMANDS.map((verb) => `snapshot ${verb}`),
  'cbt',
  ...CBT_COMMANDS.map((verb) => `cbt ${verb}`),
  'install-services',
  'completion',
];

async function image(lab: Lab, name = 'disk.img', size = '8M'): Promise<string> {
  await lab.sh(`truncate -s ${size} ${name}`);
  return lab.path(name);
}

/** What a refused command leaves: no mount and no daemon. */
async function expectNothingLeft(lab: Lab): Promise<void> {
  expect(lab.fuseMounts()).toEqual([]);
  await until(() => lab.daemons().length === 0, 'all daemons to end');
}

/** A shell that has done something, and stays. */
async function hold(lab: Lab, script: string): Promise<Running> {
  const holder = lab.start('bash', ['-c', `${script} && echo done; while :; do sleep 1; done`]);
  await holder.prints(/done/);
  return holder;
}

/** What `--help` prints, without a process for each page. */
function helpOf(args: readonly string[]): string {
  const said: string[] = [];
  const tellUs = (command: Command) => {
    command.configureOutput({ writeOut: (text) => said.push(text), getOutHelpWidth: () => 80 });
    for (const part of command.commands) tellUs(part);
  };
  const dmfuse = program('');
  tellUs(dmfuse);
  expect(() => dmfuse.parse(args, { from: 'user' })).toThrow('(outputHelp)');
  return said.join('');
}

describe('what dmfuse says of itself', () => {
  mountTest('--help of every command, in full', async (lab) => {
    const pages: string[] = [];
    for (const command of COMMANDS) {
      const args = [...command.split(' ').filter(Boolean), '--help'];
      pages.push(`$ dmfuse ${args.join(' ')}\n${helpOf(args)}`);
    }
    await expect(pages.join('\n')).toMatchFileSnapshot('./help.txt');
    // What is asked of the tree of commands here is what the program says.
    for (const args of [['--help'], ['cow', 'create', '--help']]) {
      expect(await lab.dmfuseOk(...args)).toBe(helpOf(args));
    }
  });

  mountTest('--version is the package`s', async (lab) => {
    const manifest = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
    expect(await lab.dmfuseOk('--version')).toBe(`${manifest.version}\n`);
  });

  mountTest('wrong usage exits 64 and says on stderr what is wrong', async (lab) => {
    const cases: [string[], RegExp][] = [
      [[], /^Usage: dmfuse /],
      [['bow'], /^Usage: dmfuse bow /],
      [['frobnicate'], /^dmfuse: unknown command 'frobnicate'/],
      [['bow', 'frobnicate'], /^dmfuse: unknown command 'frobnicate'/],
      [['mount'], /^dmfuse: missing required argument 'MNT'/],
      [['mount', 'here', '--frob'], /^dmfuse: unknown option '--frob'/],
      [['mount', 'here', '--lanes', '0'], /^dmfuse: option '--lanes <N>' argument '0' is invalid/],
      [['mount', 'here', '--lanes', 'many'], /^dmfuse: option '--lanes <N>' argument 'many' is invalid/],
      [['mount', 'here', '--create'], /^dmfuse: option '--create <NAME TABLE>' argument missing/],
      [['create', 'here'], /^dmfuse: missing required argument 'NAME'/],
      [
        ['remove', 'here', 'x', '--force', '--deferred'],
        /^dmfuse: option '--force' cannot be used with option/,
      ],
      [['ls', 'here', '--tree', '-o', 'name'], /^dmfuse: option '--tree' cannot be used with option/],
      [['message', 'here', 'x', '0'], /^dmfuse: missing required argument 'MESSAGE'/],
      [['message', 'here', 'x', 'scrub', 'start'], /^dmfuse: command-argument value 'scrub' is invalid/],
      [['wait', 'here', 'x', 'soon'], /^dmfuse: command-argument value 'soon' is invalid/],
      [['umount', 'here', 'there'], /^dmfuse: too many arguments/],
      [['bow', 'restore'], /^dmfuse: missing required argument 'IMAGE'/],
      [['cow'], /^Usage: dmfuse cow /],
      [['cow', 'create', 'base'], /^dmfuse: missing required argument 'LAYER'/],
      [['cow', 'create', 'base', 'l', '--size', '0'], /^dmfuse: option '--size <SECTORS>' argument '0' is/],
      [['cow', 'create', 'base', 'l', '--size', '1k'], /^dmfuse: option '--size <SECTORS>' argument '1k' is/],
      [
        ['cow', 'create', 'base', 'l', '--block-size', '1000'],
        /^dmfuse: option '--block-size <BYTES>' argument '1000' is invalid/,
      ],
      [['cow', 'commit'], /^dmfuse: missing required argument 'STACK'/],
      [['cow', 'flatten'], /^dmfuse: missing required argument 'STACK'/],
      [['cow', 'flatten', 'base'], /^dmfuse: missing required argument 'OUT'/],
    ];
    for (const [args, message] of cases) {
      const { code, stdout, stderr } = await lab.dmfuse(...args);
      expect({ args, code, stdout, stderr }).toEqual({
        args,
        code: 64,
        stdout: '',
        stderr: expect.stringMatching(message),
      });
    }
  });
});

describe('dmfuse mount', () => {
  mountTest('returns when the mount answers', async (lab) => {
    const { point, pid } = await lab.mount();
    expect(await lab.sh(`ls -A ${point}; stat -f -c %T ${point}; cat ${point}/.dmfuse`)).toMatch(
      new RegExp(`^fuseblk|fuse\\npid ${pid}\\nversion `),
    );
    expect(lab.daemons()).toEqual([pid]);
  });

  mountTest(
    '--lanes: that many threads serve; crew-P1: spare ones too, when others are held up',
    async (lab) => {
      for (const lanes of [1, 9]) {
        const below = await lab.mount({ name: 'below' });
        await below.create('slow', `linear ${await image(lab)} 0 1 no_passthrough`);
        const mount = await lab.mount({ args: ['--lanes', String(lanes)] });
        await mount.create('slow', `linear ${below.path('slow/device')} 0 1 no_passthrough`);
        await mount.create('x', `linear ${await image(lab, 'other.img')} 0 1 no_passthrough`);
        await suspend(below.pid);
        lab.onClose(async () => void process.kill(below.pid, 'SIGCONT'));
        const readers = Array.from({ length: lanes - 1 }, (_, i) =>
          lab.start('dd', [
            `if=${mount.path('slow/device')}`,
            'of=/dev/null',
            'bs=4k',
            `skip=${i}`,
            'count=1',
          ]),
        );
        // Each holds a lane, but one is left.
        const stuck = () =>
          lab.sh(`cat /proc/${mount.pid}/task/*/wchan | { grep -o request_wait_answer || true; } | wc -l`);
        await until(async () => Number(await stuck()) === lanes - 1, `${lanes - 1} lanes to be held up`);
        await lab.sh(`cmp other.img ${mount.path('x/device')}; cat ${mount.path('slow/status')}`);
        expect(readers.every(({ isRunning }) => isRunning)).toBe(true);
        process.kill(below.pid, 'SIGCONT');
        for (const reader of readers) expect(await reader.ended).toMatchObject({ code: 0 });
        await mount.umount();
        await below.umount();
      }
    },
  );

  mountTest('-f stays in the foreground until it is unmounted', async (lab) => {
    const point = lab.makeFolder('mnt');
    const daemon = lab.startDmfuse('mount', '-f', point, '--create', `lin linear ${await image(lab)} 0`);
    await until(() => existsSync(`${point}/lin/device`), 'the target');
    expect(readFileSync(`${point}/.dmfuse`, 'utf8')).toMatch(`pid ${daemon.pid}\n`);
    await lab.dmfuseOk('umount', point);
    const { code, stdout, stderr } = await daemon.ended;
    expect({ code, stdout, stderr: withoutWarning(stderr) }).toEqual({ code: 0, stdout: '', stderr: '' });
  });

  mountTest('--debug prints a line for each request', async (lab) => {
    const point = lab.makeFolder('mnt');
    const daemon = lab.startDmfuse('mount', '-f', '--debug', point);
    await until(() => existsSync(`${point}/.dmfuse`), 'the mount');
    await lab.dmfuseOk('umount', point);
    expect((await daemon.ended).stderr).toMatch(/^dmfuse: lane \d: \d+ LOOKUP node 1 /m);
    expect(await lab.dmfuse('mount', '--debug', point)).toMatchObject({ code: 64 });
    await expectNothingLeft(lab);
  });

  mountTest('--create can be repeated; a later one stands on an earlier', async (lab) => {
    const table = `linear ${await image(lab)} 0`;
    const { point } = await lab.mount({ args: ['--create', `a ${table}`, '--create', 'b bow @a'] });
    expect(await lab.dmfuseOk('ls', point)).toBe('a  linear  16384 sectors\nb  bow  16384 sectors\n');
  });

  mountTest('a --create that fails says why, and leaves neither mount nor daemon', async (lab) => {
    const point = lab.makeFolder('mnt');
    const good = `a linear ${await image(lab)} 0`;
    const cases = [
      ['b linear /does/not/exist 0', /^\/does\/not\/exist: no such file or device$/],
      ['b frob /dev/null', /^there is no target type `frob`: known are /],
      ['a bow @a', /^a: exists$/],
      ['just-a-name', /^--create 'just-a-name': expected 'NAME TABLE'/],
    ] as const;
    for (const [bad, reason] of cases) {
      expect(await lab.refusal('mount', point, '--create', good, '--create', bad)).toMatch(reason);
      await expectNothingLeft(lab);
    }
    // In the foreground too.
    expect(await lab.refusal('mount', '-f', point, '--create', cases[0][0])).toMatch(cases[0][1]);
    await expectNothingLeft(lab);
  });

  mountTest('refuses what is no directory, and a directory that is a dmfuse mount already', async (lab) => {
    const file = await image(lab);
    expect(await lab.refusal('mount', lab.path('missing'))).toBe(
      `${lab.path('missing')}: no such directory; make it with mkdir`,
    );
    expect(await lab.refusal('mount', file)).toBe(`${file}: not a directory`);
    const { point } = await lab.mount();
    expect(await lab.refusal('mount', point)).toMatch(
      `${point}: a dmfuse mount already; \`dmfuse umount ${point}\` ends it`,
    );
    expect(lab.fuseMounts()).toHaveLength(1);
    expect(lab.daemons()).toHaveLength(1);
  });

  mountTest('takes relative paths, links and blanks in names', async (lab) => {
    lab.makeFolder('a folder');
    await lab.sh(`truncate -s 1M 'an image'; ln -s 'a folder' link`);
    await lab.dmfuseOk('mount', 'link');
    await lab.dmfuseOk('create', 'a folder', 'x', `linear ${lab.path('an\\ image')} 0`);
    expect(await lab.dmfuseOk('ls', lab.path('link'))).toBe('x  linear  2048 sectors\n');
    expect(await lab.sh(`cat 'a folder/x/table'`)).toBe(`0 2048 linear ${lab.path('an\\ image')} 0\n`);
    await lab.dmfuseOk('umount', './link');
    expect(await lab.ok('ls', '-A', 'a folder')).toBe('');
  });
});

describe('dmfuse create, remove, ls, status', () => {
  mountTest('a target comes, is listed, and goes', async (lab) => {
    const mount = await lab.mount();
    await lab.dmfuseOk('create', mount.point, 'sys', `bow ${await image(lab)} 1 block_size:1024`);
    await lab.dmfuseOk('create', mount.point, 'x', `linear ${await image(lab, 'x.img', '1M')} 8`);
    expect(await lab.dmfuseOk('ls', mount.point)).toBe(
      'sys  bow  16384 sectors\nx    linear  2040 sectors\n',
    );
    expect(await lab.dmfuseOk('status', mount.point)).toBe(
      'sys: 0 16384 bow state:0 free:0\nx: 0 2040 linear\n',
    );
    expect(await lab.dmfuseOk('status', mount.point, 'sys')).toBe('0 16384 bow state:0 free:0\n');
    await lab.dmfuseOk('remove', mount.point, 'sys');
    expect(await lab.dmfuseOk('ls', mount.point)).toBe('x  linear  2040 sectors\n');
    await lab.dmfuseOk('remove', mount.point, 'x');
    expect(await lab.dmfuseOk('ls', mount.point)).toBe('');
    expect(await lab.dmfuseOk('status', mount.point)).toBe('');
  });

  mountTest('--json carries output_version, and numbers as numbers', async (lab) => {
    const mount = await lab.mount();
    await mount.create('x', `linear ${await image(lab)} 0 1 no_passthrough`);
    await lab.sh(`mkdir ${mount.path('empty')}
      dd if=/dev/zero of=${mount.path('x/device')} bs=4096 count=3 conv=notrunc oflag=direct status=none`);
    expect(JSON.parse(await lab.dmfuseOk('ls', '--json', mount.point))).toEqual({
      output_version: 1,
      targets: [{ name: 'empty' }, { name: 'x', type: 'linear', lengthSectors: 16384 }],
    });
    const status = JSON.parse(await lab.dmfuseOk('status', mount.point, '--json'));
    expect(status).toMatchObject({
      output_version: 1,
      targets: [
        { name: 'empty', error: 'no table' },
        { name: 'x', type: 'linear', lengthSectors: 16384, stats: { writes: 3, written_bytes: 12288 } },
      ],
    });
    const one = JSON.parse(await lab.dmfuseOk('status', mount.point, 'x', '--json'));
    expect(one.targets).toEqual([status.targets[1]]);
  });

  mountTest('create tells why a table is refused, and leaves no directory', async (lab) => {
    const mount = await lab.mount();
    const file = await image(lab);
    await mount.create('first', `linear ${file} 0`);
    const refusals: [string, RegExp][] = [
      ['frob 1', /there is no target type `frob`: known are linear, bow, csum, cow, clone$/],
      ['', /the table is empty: expected/],
      ['linear /dev/null', /linear needs a device and an offset/],
      [
        'linear',
        /^create x: linear: no table line, and no file with one: no such file$|^linear: no table line/,
      ],
      [`linear ${lab.path('none')} 0`, /none: no such file or device$/],
      [`linear ${lab.folder} 0`, /neither a regular file nor a block device$/],
      [`linear ${file} 0`, /disk.img: in use by another target of this mount$/],
      ['linear @nobody 0', /@nobody: there is no target of that name in this mount$/],
      [`bow ${file} 1 block_size:123`, /block_size is 123 bytes: it must be 512, 1024, 2048 or 4096$/],
    ];
    for (const [table, reason] of refusals) {
      expect(await lab.refusal('create', mount.point, 'second', table)).toMatch(reason);
      expect(existsSync(mount.path('second'))).toBe(false);
    }
    expect(await lab.refusal('create', mount.point, 'first', 'linear @x 0')).toBe(
      'create first: there is a target of that name',
    );
    for (const name of ['.hidden', '@at', 'a b', 'snapshots']) {
      expect(await lab.refusal('create', mount.point, name, `linear ${file} 0`)).toMatch(
        /not a name for a target/,
      );
    }
    for (const name of ['', '..', 'a/b', '../x'])
      await lab.refusal('create', mount.point, name, 'linear @x 0');
    expect(await lab.dmfuseOk('ls', mount.point)).toBe('first  linear  16384 sectors\n');
  });

  mountTest('what is asked of no mount, or of no target, fails', async (lab) => {
    const folder = lab.makeFolder('plain');
    const noMount = `${folder}: no dmfuse is mounted there; \`dmfuse mount ${folder}\` does that`;
    expect(await lab.refusal('ls', folder)).toBe(noMount);
    expect(await lab.refusal('status', folder)).toBe(noMount);
    expect(await lab.refusal('umount', folder)).toBe(noMount);
    expect(await lab.refusal('create', folder, 'a', 'linear /dev/null 0')).toBe(noMount);
    expect(await lab.refusal('remove', folder, 'a')).toBe(noMount);
    const { point } = await lab.mount();
    expect(await lab.refusal('status', point, 'a')).toBe(`a: there is no target of that name in ${point}`);
    expect(await lab.refusal('remove', point, 'a')).toBe('remove a: there is no target of that name');
  });
});

describe('how a mount ends', () => {
  /** A mount with target `x`, and bytes that were written to it a moment ago. */
  async function dirtyMount(lab: Lab) {
    const file = await image(lab);
    const mount = await lab.mount();
    await mount.create('x', `bow ${file}`);
    await lab.sh(
      `head -c 1M /dev/urandom >data; dd if=data of=${mount.path('x/device')} conv=notrunc status=none`,
    );
    return {
      mount,
      file,
      expectClean: async () => {
        await mount.daemonEnd();
        await expectNothingLeft(lab);
        await lab.sh(`cmp -n 1048576 data ${file}`);
      },
    };
  }

  mountTest('dmfuse umount waits for the daemon to end', async (lab) => {
    const { mount, expectClean } = await dirtyMount(lab);
    await mount.umount();
    expect(mount.daemonIsAlive).toBe(false);
    await expectClean();
  });

  for (const command of ['umount', 'fusermount3 -u']) {
    mountTest(`${command} ends the daemon as cleanly`, async (lab) => {
      const { mount, expectClean } = await dirtyMount(lab);
      await lab.sh(`${command} ${mount.point}`);
      await expectClean();
    });
  }

  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    mountTest(`${signal} flushes, unmounts, exits 0`, async (lab) => {
      const point = lab.makeFolder('mnt');
      const daemon = lab.startDmfuse('mount', '-f', point, '--create', `x bow ${await image(lab)}`);
      await until(() => existsSync(`${point}/x/device`), 'the target');
      await lab.sh(`head -c 1M /dev/urandom >data; dd if=data of=${point}/x/device conv=notrunc status=none`);
      daemon.signal(signal);
      expect(await daemon.ended).toMatchObject({ code: 0, signal: null });
      await expectNothingLeft(lab);
      await lab.sh('cmp -n 1048576 data disk.img');
    });
  }

  mountTest('SIGTERM while a device is open: detached, served to the last close', async (lab) => {
    const point = lab.makeFolder('mnt');
    const daemon = lab.startDmfuse(
      'mount',
      '-f',
      point,
      '--create',
      `x linear ${await image(lab)} 0 1 no_passthrough`,
    );
    await until(() => existsSync(`${point}/x/device`), 'the target');
    const device = await lab.loop(`${point}/x/device`);
    daemon.signal('SIGTERM');
    await until(() => lab.fuseMounts().length === 0, 'the mount to be detached');
    await lab.sh(`head -c 1M /dev/urandom >data
      dd if=data of=${device} bs=64K oflag=direct status=none
      dd if=${device} bs=64K iflag=direct count=16 status=none | cmp - data`);
    expect(daemon.isRunning).toBe(true);
    await lab.unloop(device);
    expect(await daemon.ended).toMatchObject({ code: 0, stderr: expect.stringContaining('detached') });
    await lab.sh('cmp -n 1048576 data disk.img');
  });

  mountTest('a second signal ends it at once', async (lab) => {
    const point = lab.makeFolder('mnt');
    const daemon = lab.startDmfuse('mount', '-f', point, '--create', `x linear ${await image(lab)} 0`);
    await until(() => existsSync(`${point}/x/device`), 'the target');
    await hold(lab, `exec 3<>${point}/x/device`);
    daemon.signal('SIGTERM');
    await until(() => lab.fuseMounts().length === 0, 'the mount to be detached');
    expect(daemon.isRunning).toBe(true);
    daemon.signal('SIGTERM');
    expect(await daemon.ended).toMatchObject({ code: 1, stderr: expect.stringContaining('SIGTERM again') });
  });

  mountTest('dmfuse umount refuses while a device is open, and says by what', async (lab) => {
    const mount = await lab.mount();
    await mount.create('x', `linear ${await image(lab)} 0`);
    const file = mount.path('x/device');
    const loop = await lab.loop(file);
    const holder = await hold(lab, `exec 3<>${file}`);
    const reason = await lab.refusal('umount', mount.point);
    expect(reason).toContain(`${mount.point}: in use: ${file} by ${loop} (losetup -d)`);
    expect(reason).toContain(`${file} by process ${holder.pid} (bash)`);
    holder.kill();
    await holder.ended;
    await lab.unloop(loop);

    const worker = await hold(lab, `cd ${mount.path('x')}`);
    expect(await lab.refusal('umount', mount.point)).toContain(`by process ${worker.pid} (bash)`);
    worker.kill();
    await worker.ended;
    await mount.umount();
    await expectNothingLeft(lab);
  });

  mountTest('after kill -9 of the daemon, ls names the remedy and umount clears away', async (lab) => {
    const mount = await lab.mount();
    await mount.killDaemon();
    expect(await lab.refusal('ls', mount.point)).toContain(
      `its daemon is dead; \`dmfuse umount ${mount.point}\``,
    );
    expect(await lab.refusal('mount', mount.point)).toContain('a dmfuse mount whose daemon is dead');
    await mount.umount();
    await expectNothingLeft(lab);
    await lab.mount();
  });
});

describe('dmfuse bow', () => {
  /** An image whose checkpoint was interrupted, with 30 blocks changed since; `original` is as it was. */
  async function interruptedImage(lab: Lab): Promise<string> {
    await lab.sh('head -c 4M /dev/urandom >original; cp original disk.img');
    const mount = await lab.mount();
    await mount.create('x', `bow ${lab.path('disk.img')}`);
    await lab.sh(`cd ${mount.path('x')}
      echo '4096 1024' >discard; echo 1 >state
      for i in $(seq 1 2 60); do dd if=/dev/zero of=device bs=4096 count=1 seek=$i conv=notrunc status=none; done`);
    await mount.umount();
    return lab.path('disk.img');
  }

  mountTest(
    'an image without a log: restore says so and exits 0, check and dump exit 3; untouched',
    async (lab) => {
      const file = await image(lab);
      await lab.sh(`head -c 100000 /dev/urandom | dd of=${file} conv=notrunc status=none`);
      const before = await lab.sha256(file);
      expect(await lab.dmfuse('bow', 'restore', file)).toMatchObject({
        code: 0,
        stdout: 'no log\n',
        stderr: '',
      });
      expect(await lab.dmfuse('bow', 'check', file)).toMatchObject({
        code: 3,
        stdout: 'no log: a restore would change nothing\n',
        stderr: '',
      });
      expect(await lab.dmfuse('bow', 'dump', file)).toMatchObject({
        code: 3,
        stdout: 'no log\n',
        stderr: '',
      });
      const json = await lab.dmfuse('bow', 'check', file, '--json');
      expect([json.code, JSON.parse(json.stdout)]).toEqual([3, { output_version: 1, state: 'no-log' }]);
      expect(await lab.sha256(file)).toBe(before);
    },
  );

  mountTest('an interrupted checkpoint: check 0, dump 0, restore gives the original back', async (lab) => {
    const file = await interruptedImage(lab);
    const before = await lab.sha256(file);
    const check = await lab.dmfuse('bow', 'check', file);
    expect(check).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^sound: a restore would roll back: 31 entries/),
    });
    const json = JSON.parse(await lab.dmfuseOk('bow', 'check', file, '--json'));
    expect(json).toMatchObject({ output_version: 1, state: 'sound', entries: 31, logs: 1, findings: [] });
    const dump = JSON.parse(await lab.dmfuseOk('bow', 'dump', file, '--json'));
    expect(dump.logs[0].entries).toHaveLength(31);
    expect(dump.logs[0].entries[1]).toMatchObject({ sourceSector: 8, sizeBytes: 4096 });
    expect(await lab.dmfuseOk('bow', 'dump', file)).toMatch(
      /^log 0 at sector 0: .*31 entries.*\n {2}0: source 0 dest /,
    );
    expect(await lab.sha256(file)).toBe(before);

    expect(await lab.dmfuse('bow', 'restore', file)).toMatchObject({
      code: 0,
      stdout: 'restored: 31 entries, 126976 bytes, 1 log block\n',
    });
    await lab.sh('cmp -n 2097152 original disk.img');
    expect(await lab.dmfuseOk('bow', 'restore', file)).toBe('no log\n');
  });

  mountTest('a damaged backup: check and dump exit 2, restore refuses and changes nothing', async (lab) => {
    const file = await interruptedImage(lab);
    const dump = JSON.parse(await lab.dmfuseOk('bow', 'dump', file, '--json'));
    const { destSector } = dump.logs[0].entries[7];
    await lab.sh(`printf x | dd of=${file} bs=1 seek=$((${destSector} * 512 + 77)) conv=notrunc status=none`);
    const before = await lab.sha256(file);
    const check = await lab.dmfuse('bow', 'check', file);
    expect(check).toMatchObject({
      code: 2,
      stdout: expect.stringMatching(/^damaged: a restore would refuse/),
    });
    expect((await lab.dmfuse('bow', 'check', file, '--json')).code).toBe(2);
    expect((await lab.dmfuse('bow', 'dump', file)).code).toBe(2);
    expect(await lab.refusal('bow', 'restore', file)).toMatch(
      /^the bow log is damaged, nothing was changed: /,
    );
    expect(await lab.sha256(file)).toBe(before);
  });

  mountTest('an image that is attached is left alone', async (lab) => {
    const file = await interruptedImage(lab);
    await lab.dmfuseOk('bow', 'restore', file);
    const mount = await lab.mount();
    await mount.create('x', `bow ${file}`);
    await lab.sh(`echo '4096 1024' >${mount.path('x/discard')}; echo 1 >${mount.path('x/state')}`);
    const before = await lab.sha256(file);
    expect(await lab.refusal('bow', 'restore', file)).toMatch(
      /in use by another process, which holds a lock on it/,
    );
    expect(await lab.sha256(file)).toBe(before);
    expect(mount.read('x/state')).toBe('1');
  });

  mountTest('what is not there, or no image, exits 1', async (lab) => {
    for (const verb of BOW_COMMANDS) {
      expect(await lab.refusal('bow', verb, lab.path('none'))).toBe(
        `${lab.path('none')}: no such file or device`,
      );
      expect(await lab.refusal('bow', verb, lab.folder)).toMatch(/neither a regular file nor a block device/);
    }
    writeFileSync(lab.path('empty'), '');
    chmodSync(lab.path('empty'), 0o600);
    expect(await lab.dmfuse('bow', 'restore', lab.path('empty'))).toMatchObject({
      code: 0,
      stdout: 'no log\n',
    });
  });
});
