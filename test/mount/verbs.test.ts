/** dmsetup's verbs as a user meets them: plain, with --json, in columns. Suspend and resume are suspend.test.ts. */
import { constants, existsSync, readFileSync, readlinkSync } from 'node:fs';
import { rename, rmdir } from 'node:fs/promises';
import { describe, expect } from 'vitest';
import { cloneTable, hydrationOf, makeTargetFiles } from './clone-work.js';
import { Load, refusal, refusedLine, SnapshotFolder, setFile, track } from './filter-work.js';
import { mountWith, type Tables } from './fs-work.js';
import { type Lab, MAIN, type Mount, mountTest, type Running, until } from './harness.js';
import { startHeld, WORK } from './held-work.js';

const IN_LANES = '1 no_passthrough';

async function image(lab: Lab, name: string, size = '1M'): Promise<string> {
  await lab.sh(`truncate -s ${size} ${name}`);
  return lab.path(name);
}

async function json(lab: Lab, ...args: string[]) {
  const { output_version: version, ...rest } = JSON.parse(await lab.dmfuseOk(...args, '--json'));
  expect(version).toEqual(expect.any(Number));
  return rest;
}

/** Three targets on each other, and two that read one base. */
async function makeStacks(lab: Lab): Promise<Mount> {
  for (const name of ['a.img', 'base.img', 'd1', 'd2']) await image(lab, name);
  for (const name of ['m1', 'm2']) await image(lab, name, '128K');
  return await mountWith(lab, [
    ['a', `linear ${lab.path('a.img')} 0 ${IN_LANES}`],
    ['b', 'linear @a 8'],
    ['c', 'bow @b'],
    ['base', `linear ${lab.path('base.img')} 0`],
    ['v1', `cow @base 0 ${lab.path('m1')} ${lab.path('d1')} 0`],
    ['v2', `cow @base 0 ${lab.path('m2')} ${lab.path('d2')} 0`],
  ]);
}

describe('reading verbs', () => {
  mountTest('ls: columns, --tree, --json', async (lab) => {
    const { point } = await makeStacks(lab);
    const at = (name: string) => lab.path(name);
    expect(await lab.dmfuseOk('ls', point, '--tree')).toBe(
      `c (bow)
 └─b (linear)
    └─a (linear)
       └─${at('a.img')}
v1 (cow)
 ├─base (linear)
 │  └─${at('base.img')}
 ├─${at('m1')}
 └─${at('d1')}
v2 (cow)
 ├─base (linear)
 │  └─${at('base.img')}
 ├─${at('m2')}
 └─${at('d2')}
`,
    );
    const { tree } = await json(lab, 'ls', point, '--tree');
    expect(tree[0]).toEqual({
      name: 'c',
      type: 'bow',
      on: [
        {
          name: 'b',
          type: 'linear',
          on: [{ name: 'a', type: 'linear', on: [{ name: at('a.img'), on: [] }] }],
        },
      ],
    });
    expect(await lab.dmfuseOk('ls', point, '-o', 'name,sectors,deps')).toBe(
      `Name  Sectors  Deps
a     2048     ${at('a.img')}
b     2040     @a
base  2048     ${at('base.img')}
c     2040     @b
v1    2048     @base,${at('m1')},${at('d1')}
v2    2048     @base,${at('m2')},${at('d2')}
`,
    );
    expect(await lab.dmfuseOk('ls', point, '-o', 'type', '--noheadings')).toBe(
      'linear\nlinear\nlinear\nbow\ncow\ncow\n',
    );
    const { targets } = await json(lab, 'ls', point, '-o', 'name,open,table');
    expect(targets[1]).toEqual({ name: 'b', open: 0, table: '0 2040 linear @a 8' });
    expect(await lab.refusal('ls', point, '-o', 'constructor')).toMatch(
      /^-o constructor: expected some of name,/,
    );
    expect(await lab.refusal('ls', point, '-o', 'name,size')).toBe(
      '-o size: expected some of name, type, state, sectors, open, events, filter, removal, deps, table',
    );
  });

  mountTest('table, deps, info of one and of all; of what has no table', async (lab) => {
    const mount = await makeStacks(lab);
    const { point, path } = mount;
    await lab.sh(`mkdir ${path('empty')} ${path('bad')}; echo frob >${path('bad/table')} || true`);
    expect(await lab.dmfuseOk('table', point, 'b')).toBe('0 2040 linear @a 8\n');
    expect((await lab.dmfuseOk('table', point)).split('\n').slice(0, 4)).toEqual([
      `a: 0 2048 linear ${lab.path('a.img')} 0 ${IN_LANES}`,
      'b: 0 2040 linear @a 8',
      `base: 0 2048 linear ${lab.path('base.img')} 0`,
      'c: 0 2040 bow @b 1 block_size:4096',
    ]);
    expect((await json(lab, 'table', point, 'c')).targets).toEqual([
      { name: 'c', table: '0 2040 bow @b 1 block_size:4096', filter: 'none' },
    ]);
    expect(await lab.dmfuseOk('deps', point, 'v1')).toBe(
      `3 dependencies : @base (read), ${lab.path('m1')} (write), ${lab.path('d1')} (write)\n`,
    );
    expect(await lab.dmfuseOk('deps', point)).toMatch(/^bad: 0 dependencies$/m);
    expect((await json(lab, 'deps', point, 'v1')).targets[0].deps[0]).toEqual({
      access: 'read',
      device: '@base',
    });

    await setFile(path('c/filter'), 'blksnap');
    const holder = lab.start('bash', ['-c', `exec 3<${path('c/device')}; echo open; read -t 1000 <> <(:)`]);
    await holder.prints(/open/);
    expect(await lab.dmfuseOk('info', point, 'c')).toBe(
      `Name:             c
State:            ACTIVE
Type:             bow
Sectors:          2040
Open count:       1
Event number:     0
Filter:           blksnap
Removal:          normal
`,
    );
    const { targets } = await json(lab, 'info', point);
    expect(targets.find(({ name }: { name: string }) => name === 'c')).toEqual({
      name: 'c',
      state: 'active',
      type: 'bow',
      lengthSectors: 2040,
      openCount: 1,
      eventNr: 0,
      filter: 'blksnap',
      removal: 'normal',
    });
    expect(await lab.dmfuseOk('info', point, '-o', 'name,state,events', '--noheadings')).toBe(
      'a      active    0\nb      active    0\nbad    failed    1\nbase   active    0\nc      active    0\n' +
        'empty  no_table  0\nv1     active    0\nv2     active    0\n',
    );
    for (const verb of ['table', 'deps', 'info']) {
      expect(await lab.refusal(verb, point, 'nobody')).toBe(
        `nobody: there is no target of that name in ${point}`,
      );
    }
  });

  mountTest('targets: every type, with its arguments', async (lab) => {
    const { types } = await json(lab, 'targets');
    expect(types.map(({ name, kind }: Record<string, string>) => `${kind} ${name}`)).toEqual([
      ...['linear', 'bow', 'csum', 'cow', 'clone'].map((name) => `target ${name}`),
      ...['blksnap', 'log-writes'].map((name) => `filter ${name}`),
    ]);
    expect(await lab.dmfuseOk('targets')).toMatch(/^linear +v\d\S+ {2}target {2}<dev> <offset> /);
  });
});

describe('create', () => {
  mountTest('takes the table from an argument, a file, or standard input', async (lab) => {
    const { point, read } = await mountWith(lab);
    const tables = ['1', '2', '3', '4'].map((name) => `0 2048 linear ${lab.path(name)} 0`);
    await lab.sh('truncate -s 1M 1 2 3 4');
    expect(await json(lab, 'create', point, 't1', tables[0]!)).toEqual({ created: 't1' });
    await lab.sh(`printf '# made by hand\\n\\n  # and more\\n%s\\n\\n' '${tables[1]}' >table`);
    await lab.dmfuseOk('create', point, 't2', 'table');
    for (const [i, words] of [[], ['-']].entries()) {
      const create = lab.start(process.execPath, [MAIN, 'create', point, `t${3 + i}`, ...words], {
        input: `${tables[2 + i]}\n`,
      });
      expect(await create.ended).toMatchObject({ code: 0, stdout: '', stderr: '' });
    }
    for (const [i, table] of tables.entries()) expect(read(`t${i + 1}/table`)).toBe(table);
    await lab.sh('printf "0 8 linear /x 0\\n8 8 linear /y 0\\n" >two; : >none');
    expect(await lab.refusal('create', point, 'x', 'two')).toBe(
      'two: 2 table lines, expected one: a target is one piece',
    );
    expect(await lab.refusal('create', point, 'x', 'none')).toMatch(/^none: 0 table lines, expected one/);
    expect(await lab.refusal('create', point, 'x', 'missing')).toBe(
      'missing: no table line, and no file with one: no such file',
    );
    expect(existsSync(`${point}/x`)).toBe(false);
  });
});

describe('message', () => {
  mountTest('says what control files take, and dm-clone`s own words', async (lab) => {
    await makeTargetFiles(lab, 1);
    await lab.sh('truncate -s 1M source.img; truncate -s 4M c.img w.img w.log');
    await lab.dmfuseOk('csum', 'format', lab.path('c.img'));
    const mount = await mountWith(lab, [
      ['k', cloneTable(lab, { options: '1 no_hydration' })],
      ['c', `csum ${lab.path('c.img')} 0`],
      ['w', `linear ${lab.path('w.img')} 0 ${IN_LANES}`],
    ]);
    const { point, read } = mount;
    const send = (name: string, ...words: string[]) => lab.dmfuseOk('message', point, name, '0', ...words);
    expect(await json(lab, 'message', point, 'k', '0', 'hydration_threshold', '7')).toEqual({ sent: 'k' });
    expect(read('k/hydration_threshold')).toBe('7');
    await send('k', 'hydration_batch_size', '3');
    expect(read('k/hydration_batch_size')).toBe('3');
    await send('k', 'enable_hydration');
    await until(() => hydrationOf(mount, 'k').regions === hydrationOf(mount, 'k').total, 'the hydration');
    await send('k', 'disable_hydration');
    expect(read('k/hydration')).toBe('0');
    await send('c', 'scrub start');
    await until(async () => (await mount.events('c')).some((line) => /^scrub/.test(line)), 'the scrub');
    await setFile(mount.path('w/filter'), `log-writes ${lab.path('w.log')}`);
    await send('w', 'mark', 'here', 'it', 'is');
    expect(readFileSync(lab.path('w.log')).includes('here it is')).toBe(true);

    expect(await lab.refusal('message', point, 'k', '0', 'frobnicate')).toBe(
      'message `frobnicate`: expected one of enable_hydration, disable_hydration, hydration, hydration_threshold, hydration_batch_size',
    );
    expect(await lab.refusal('message', point, 'k', '0', 'constructor')).toMatch(
      /^message `constructor`: expected one of enable_hydration, /,
    );
    expect(await lab.refusal('message', point, 'k', '0', 'enable_hydration', 'now')).toMatch(
      /^message `enable_hydration now`/,
    );
    expect(await lab.refusal('message', point, 'w', '0', 'device', 'x')).toBe(
      'message `device x`: expected one of mark',
    );
    await setFile(mount.path('w/filter'), 'none');
    expect(await lab.refusal('message', point, 'w', '0', 'mark', 'x')).toBe(
      'message `mark x`: the target has no messages',
    );
    expect(await lab.refusal('message', point, 'k', '8', 'enable_hydration')).toBe(
      'message k: sector 8: a target is one piece, so say 0',
    );
  });
});

describe('wait', () => {
  /** Waits are under way: each knows what there was before it began, and reads what is next. */
  const listening = (waits: readonly Running[]) =>
    until(() => waits.every(({ pid }) => isListening(pid)), 'the waits to wait');
  const isListening = (pid: number) => {
    const [, fd = ''] = readFileSync(`/proc/${pid}/syscall`, 'utf8').split(' ');
    try {
      const flags = /^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/fdinfo/${Number(fd)}`, 'utf8'))![1]!;
      const isWaiting = (Number.parseInt(flags, 8) & constants.O_NONBLOCK) === 0;
      return isWaiting && readlinkSync(`/proc/${pid}/fd/${Number(fd)}`).endsWith('/events');
    } catch {
      return false; // in no call, or in one that is about no descriptor
    }
  };

  /** Raises an event: a refused line. */
  const provoke = async (mount: Mount, line: string) =>
    expect(await refusedLine(mount.path('x/filter'), line)).toBe('ENOENT');

  mountTest(
    'for the next event, or for those after a number; several at a time; to the end of the target',
    async (lab) => {
      const mount = await mountWith(lab, [['x', `linear ${await image(lab, 'x.img')} 0`]]);
      const { point } = mount;
      await provoke(mount, 'first');
      const waits = ['x', 'x', 'x 1', 'x 2'].map((words) =>
        lab.startDmfuse('wait', point, ...words.split(' '), '--json'),
      );
      await listening(waits);
      await provoke(mount, 'second');
      for (const { ended } of waits.slice(0, 3)) {
        expect(JSON.parse((await ended).stdout)).toMatchObject({
          eventNr: 2,
          name: 'refused',
          fields: { file: 'filter', reason: expect.stringContaining('`second`') },
        });
      }
      await listening(waits.slice(3));
      await provoke(mount, 'third');
      expect(JSON.parse((await waits[3]!.ended).stdout)).toMatchObject({ eventNr: 3 });
      // What there is already is not waited for.
      expect(await lab.dmfuseOk('wait', point, 'x', '0')).toMatch(
        /^refused file=filter .*`third`.* monotonic_ns=\d+\n$/,
      );
      expect(await json(lab, 'wait', point, 'x', '2')).toMatchObject({ eventNr: 3 });
      // More than the stream keeps.
      await lab.sh(
        `for ((i = 0; i < 1100; i++)); do echo no$i >${mount.path('x/filter')} || true; done 2>/dev/null`,
      );
      expect(await json(lab, 'wait', point, 'x', '1000')).toMatchObject({
        eventNr: 1103,
        fields: { reason: expect.stringContaining('`no1099`') },
      });

      const last = [lab.startDmfuse('wait', point, 'x'), lab.startDmfuse('wait', point, 'x', '2000')];
      await listening(last);
      await rmdir(mount.path('x'));
      for (const { ended } of last) {
        expect(await ended).toMatchObject({
          code: 1,
          stderr: `dmfuse: ${mount.path('x')}: the target was removed\n`,
        });
      }
    },
  );

  mountTest('with fuse-native too, where no read waits for long', async (lab) => {
    const table = `x linear ${await image(lab, 'x.img')} 0`;
    const mount = await lab.mount({ args: ['--transport', 'fuse-native', '--create', table] });
    const wait = lab.startDmfuse('wait', mount.point, 'x');
    await listening([wait]);
    const sleeps = () =>
      /^voluntary_ctxt_switches:.*/m.exec(readFileSync(`/proc/${wait.pid}/status`, 'utf8'))![0];
    const before = sleeps();
    await until(() => !wait.isRunning || sleeps() !== before, 'the read to begin anew');
    await provoke(mount, 'first');
    expect(await wait.ended).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('`first`'),
      stderr: '',
    });

    const last = lab.startDmfuse('wait', mount.point, 'x');
    await listening([last]);
    await rmdir(mount.path('x'));
    expect(await last.ended).toMatchObject({
      code: 1,
      stderr: `dmfuse: ${mount.path('x')}: the target was removed\n`,
    });
  });
});

describe('rename', () => {
  mountTest('an open device goes on, and all that stands on it says the new name', async (lab) => {
    await lab.sh('truncate -s 4M f.img c.img base.img; truncate -s 1M m; truncate -s 32M l.img');
    await lab.dmfuseOk('csum', 'format', lab.path('c.img'));
    await makeTargetFiles(lab, 1);
    const file = (name: string) => `linear ${lab.path(name)} 0`;
    const tables: Tables = [
      ['low', file('f.img')],
      ['csumfile', file('c.img')],
      ['base', file('base.img')],
      ['open', `${file('l.img')} ${IN_LANES}`],
      ['linear', '0 2048 linear @low 8'],
      ['bow', 'bow @linear'],
      ['csum', 'csum @csumfile 0'],
      ['cow', `cow @base 0 ${lab.path('m')} ${await image(lab, 'd', '4M')} 0`],
      ['clone', `clone ${lab.path('meta')} ${lab.path('dest.img')} @base 8 1 no_hydration`],
    ];
    const mount = await mountWith(
      lab,
      tables.filter(([name]) => name !== 'clone'),
    );
    // A source is as long as the clone.
    await lab.sh('truncate -s 4M dest.img');
    await mount.create('clone', tables.at(-1)![1]);
    const loop = await lab.loop(mount.path('open/device'));
    const load = Load.start(lab, [loop], 16);
    await load.rounds(1);

    expect(await json(lab, 'rename', mount.point, 'open', 'still-open')).toEqual({
      renamed: 'open',
      to: 'still-open',
    });
    await lab.sh(`mv ${mount.path('low')} ${mount.path('lower')}`);
    for (const [name, newName] of [
      ['csumfile', 'c2'],
      ['base', 'b2'],
      ['linear', 'l2'],
    ] as const) {
      await rename(mount.path(name), mount.path(newName));
      expect(existsSync(mount.path(name))).toBe(false);
      expect((await mount.events(newName)).at(-1)).toMatch(
        new RegExp(`^renamed from=${name} to=${newName} `),
      );
    }
    await load.another();
    await load.stop();
    await lab.unloop(loop);
    expect(mount.read('l2/table')).toBe('0 2048 linear @lower 8');
    expect(mount.read('bow/table')).toMatch(/^0 2048 bow @l2/);
    expect(mount.read('csum/table')).toMatch(/^0 \d+ csum @c2 0$/);
    expect(mount.read('cow/table')).toMatch(/^0 8192 cow @b2 0 /);
    expect(mount.read('clone/table')).toMatch(/^0 8192 clone \S+ \S+ @b2 8 /);
    expect(mount.read('bow/deps')).toBe('write @l2');
    expect(await lab.dmfuseOk('ls', mount.point, '--tree')).toMatch(
      /^bow \(bow\)\n └─l2 \(linear\)\n {4}└─lower /m,
    );

    const lines = (await lab.dmfuseOk('table', mount.point)).trimEnd().split('\n');
    await mount.umount();
    const again = await mountWith(lab);
    // In the order in which they can stand on each other.
    const pending = lines.map((line) => /^(\S+): (.*)$/.exec(line)!.slice(1) as [string, string]);
    for (const isUpper of [false, true]) {
      for (const [name, table] of pending.filter(
        ([name, line]) => (line.includes('@') && name !== 'l2') === isUpper && !/@lower/.test(line),
      )) {
        await again.create(name, table);
        const onIt = pending.find(([, line]) => line.includes(`@${name} `) && line.includes('linear'));
        if (onIt) await again.create(...onIt);
      }
    }
    expect((await lab.dmfuseOk('table', again.point)).trimEnd().split('\n').sort()).toEqual(lines.sort());
  });

  mountTest('refused: names that are none, taken, or no target`s; while it is in a snapshot', async (lab) => {
    const mount = await mountWith(lab, [
      ['x', `linear ${await image(lab, 'x.img')} 0`],
      ['y', `linear ${await image(lab, 'y.img')} 0`],
    ]);
    const { point, path } = mount;
    for (const name of ['.hidden', '@at', 'a b', 'snapshots', 'n'.repeat(129)]) {
      expect(await lab.refusal('rename', point, 'x', name)).toBe(
        `rename x to ${name}: not a name for a target: no blanks or slashes, no leading dot or @, 128 bytes at most, not snapshots`,
      );
      expect(existsSync(path('x'))).toBe(true);
    }
    expect(await lab.refusal('rename', point, 'x', 'y')).toBe(
      'rename x to y: there is a target of that name',
    );
    expect(await lab.refusal('rename', point, 'nobody', 'z')).toMatch(/^nobody: there is no target/);
    expect(await refusal(rename(path('x'), path('y/x')))).toBe('EXDEV');
    expect(await refusal(rename(path('x/status'), path('x/other')))).toBe('EPERM');
    expect(await refusal(rename(path('x'), path('y')))).toBe('EEXIST');
    const exchange = `import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), int(sys.argv[3]))
print(os.strerror(ctypes.get_errno()))`;
    expect(await lab.python(exchange, path('x'), path('y'), '2')).toBe('Invalid argument');
    expect(await lab.python(exchange, path('x'), path('z'), '1')).toBe('Success');
    await rename(path('z'), path('x'));
    await rename(path('x'), path('x'));
    await track(mount, 'x');
    const snapshot = await SnapshotFolder.make(mount, 's', ['x']);
    expect(await refusal(rename(path('x'), path('z')))).toBe('EBUSY');
    await snapshot.remove();
    await rename(path('x'), path('z'));
    expect(mount.read('z/filter')).toBe('blksnap');
  });
});

describe('remove', () => {
  /** A process that has the device open. */
  async function hold(lab: Lab, device: string): Promise<Running> {
    const holder = lab.start('bash', ['-c', `exec 3<>${device}; echo open; exec sleep 1000`]);
    await holder.prints(/open/);
    return holder;
  }

  mountTest('--deferred: goes with the last close, or with what stands on it', async (lab) => {
    const table = (name: string) => `linear ${lab.path(name)} 0`;
    await lab.sh('truncate -s 1M x.img l.img');
    const mount = await mountWith(lab, [
      ['x', table('x.img')],
      ['l', table('l.img')],
      ['u', 'linear @l 0'],
    ]);
    const { point, path } = mount;
    const holders = [await hold(lab, path('x/device')), await hold(lab, path('x/device'))];
    const deferred = await lab.dmfuse('remove', point, 'x', '--deferred');
    expect(deferred).toEqual({
      code: 0,
      signal: null,
      stdout: '',
      stderr: 'dmfuse: x goes when its device is closed and nothing stands on it\n',
    });
    expect(mount.read('x/info')).toMatch(/^removal deferred$/m);
    holders[0]!.kill();
    await holders[0]!.ended;
    await lab.sh(`cmp ${path('x/device')} x.img`);
    expect(existsSync(path('x'))).toBe(true);
    holders[1]!.kill();
    await until(() => !existsSync(path('x')), 'x to go');
    await mount.create('x', table('x.img'));

    expect(await json(lab, 'remove', point, 'l', '--deferred')).toEqual({ deferred: 'l' });
    await lab.sh(`cmp ${path('u/device')} l.img`);
    expect(existsSync(path('l'))).toBe(true);
    await rmdir(path('u'));
    await until(() => !existsSync(path('l')), 'l to go');

    expect(await json(lab, 'remove', point, 'x', '--deferred')).toEqual({ removed: 'x' });
    expect(await lab.ok('ls', point)).toBe('');
    await mount.create('x', table('x.img'));
    await track(mount, 'x');
    const snapshot = await SnapshotFolder.make(mount, 's', ['x']);
    // It would wait for nothing that anybody does to its device.
    expect(await lab.refusal('remove', point, 'x', '--deferred')).toMatch(
      /^x: in a snapshot; destroy that first/,
    );
    expect(mount.read('x/removal')).toBe('normal');
    await snapshot.remove();
    expect(await refusedLine(path('x/removal'), 'soon')).toBe('EINVAL');
  });

  mountTest('--deferred: what was in its way at the last close need only end', async (lab) => {
    await lab.sh('truncate -s 1M l.img x.img');
    const mount = await mountWith(lab, [
      ['l', `linear ${lab.path('l.img')} 0 ${IN_LANES}`],
      ['u', 'linear @l 0'],
      ['x', `linear ${lab.path('x.img')} 0 ${IN_LANES}`],
    ]);
    const { point, path } = mount;
    const closeDeferred = async (name: string) => {
      const holder = await hold(lab, path(name, 'device'));
      await lab.dmfuseOk('remove', point, name, '--deferred');
      return async () => {
        holder.kill();
        await holder.ended;
        const refused = async () => (await mount.events(name)).some((line) => /^remove_refused/.test(line));
        await until(refused, 'a refusal');
      };
    };
    const closeLower = await closeDeferred('u');
    await setFile(path('l/suspended'), '1');
    await closeLower();
    expect(existsSync(path('u'))).toBe(true);
    await setFile(path('l/suspended'), '0');
    await until(() => !existsSync(path('u')), 'u to go');

    await track(mount, 'x');
    const closeTracked = await closeDeferred('x');
    const snapshot = await SnapshotFolder.make(mount, 's', ['x']);
    await closeTracked();
    await snapshot.remove();
    await until(() => !existsSync(path('x')), 'x to go');
    expect(await lab.ok('ls', point)).toBe('l\n');
  });

  mountTest('--deferred, again and again: opens and closes race with it', async (lab) => {
    await image(lab, 'x.img');
    const mount = await mountWith(lab);
    for (let round = 0; round < 15; round++) {
      await mount.create('x', `linear ${lab.path('x.img')} 0 ${IN_LANES}`);
      const openers = lab.start('bash', [
        '-c',
        `for i in {1..40}; do head -c 512 ${mount.path('x/device')} >/dev/null 2>&1; done; exit 0`,
      ]);
      // ENOENT: gone while the line was on its way.
      expect(['not refused', 'ENOENT', 'EBUSY']).toContain(
        await refusedLine(mount.path('x/removal'), 'deferred'),
      );
      await until(() => !existsSync(mount.path('x')), 'x to go');
      expect(await openers.ended).toMatchObject({ code: 0 });
    }
    expect(mount.daemonIsAlive).toBe(true);
  });

  mountTest(
    '--force: its users get EIO, its backing is free at once, and nothing of theirs comes there',
    async (lab) => {
      await lab.sh('truncate -s 16M base.img dat.img; truncate -s 1M bm.img');
      const table = `cow ${lab.path('base.img')} 0 ${lab.path('bm.img')} ${lab.path('dat.img')} 0`;
      const mount = await mountWith(lab, [['x', table]]);
      const { point, path } = mount;
      const writers = [1, 2, 3].map((seed) =>
        lab.start('python3', ['-c', WRITER, path('x/device'), String(seed)]),
      );
      for (const writer of writers) await writer.prints(/^writing$/m);
      expect((await lab.dmfuse('remove', point, 'x')).stderr).toMatch(/in use/);
      expect(await json(lab, 'remove', point, 'x', '--force')).toEqual({ removed: 'x' });
      expect(existsSync(path('x'))).toBe(false);
      await mount.create('y', table);
      const state = () => lab.sh("stat -c '%n %y' dat.img bm.img; sha256sum dat.img bm.img");
      const before = await state();
      for (const { ended } of writers) {
        expect(JSON.parse((await ended).stdout.split('\n')[1]!)).toEqual(
          Object.fromEntries(['write', 'read', 'fsync', 'punch', 'seek'].map((what) => [what, 'EIO'])),
        );
      }
      expect(await state()).toBe(before);
      // What they were told was written is there.
      for (const [i, { stdout }] of writers.entries()) {
        const last = Number(stdout.split('\n')[2]);
        const found = readFileSync(path('y/device')).subarray(i * 4096, i * 4096 + 4096);
        expect([last, last + 1].map((n) => Buffer.alloc(4096, n % 256).equals(found))).toContain(true);
      }
    },
  );

  mountTest(
    '--force: what is held ends with EIO; refused where force does nothing, and then no longer asked for',
    async (lab) => {
      await lab.sh('truncate -s 1M x.img p.img');
      const mount = await mountWith(lab, [
        ['x', `linear ${lab.path('x.img')} 0 ${IN_LANES}`],
        ['p', `linear ${lab.path('p.img')} 0`],
        ['u', 'linear @x 0'],
      ]);
      const { point, path } = mount;
      expect(await lab.refusal('remove', point, 'x', '--force')).toMatch(
        /^remove x: another target stands on it/,
      );
      await rmdir(path('u'));
      await setFile(path('x/suspended'), '1');
      const held = await startHeld(lab, path('x/device'), WORK.punch);
      await lab.dmfuseOk('remove', point, 'x', '--force');
      expect(await held.ended).toMatchObject({
        code: 1,
        stderr: expect.stringMatching(/OSError: \[Errno 5\]/),
      });

      const holder = await hold(lab, path('p/device'));
      expect(await lab.refusal('remove', point, 'p', '--force')).toMatch(
        /the kernel passes its I\/O through/,
      );
      expect(mount.read('p/removal')).toBe('normal');
      holder.kill();
      await holder.ended;
      await lab.dmfuseOk('remove', point, 'p', '--force');
      expect(await lab.ok('ls', point)).toBe('');
    },
  );
});

const WRITER = `
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd, seed = os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2])
def punch():
    if libc.fallocate(fd, 3, ctypes.c_int64(0), ctypes.c_int64(4096)):
        raise OSError(ctypes.get_errno(), 'punch')
def code(work):
    try:
        work()
    except OSError as e:
        return errno.errorcode[e.errno]
n = 0
try:
    while True:
        os.pwrite(fd, bytes([(n + 1) % 256]) * 4096, (seed - 1) * 4096)
        n += 1
        if n == 50: print('writing', flush=True)
except OSError as e:
    first = errno.errorcode[e.errno]
print(json.dumps({'write': first, 'read': code(lambda: os.pread(fd, 512, 0)), 'fsync': code(lambda: os.fsync(fd)),
    'punch': code(punch), 'seek': code(lambda: os.lseek(fd, 0, os.SEEK_HOLE))}))
print(n)
`;
