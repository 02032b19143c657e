import { existsSync, readdirSync, statSync } from 'node:fs';
import { describe, expect } from 'vitest';
import { type Lab, mountTest } from './harness.js';

/** The shell as somebody else (nobody). */
const AS_NOBODY = 'setpriv --reuid=65534 --regid=65534 --clear-groups';

/** Those that are there before a table is. */
const FIRST_FILES = { events: 0o400, info: 0o400, removal: 0o600, status: 0o400, table: 0o600 };

const COMMON_FILES = {
  ...FIRST_FILES,
  deps: 0o400,
  device: 0o600,
  discard: 0o200,
  filter: 0o600,
  latency: 0o400,
  message: 0o200,
  size: 0o400,
  stats: 0o400,
  suspended: 0o600,
};

/** Every target type, by the table it gets for a device and what it adds to the common files. */
const TARGETS = {
  linear: { table: (device: string) => `linear ${device} 0`, files: {} },
  bow: { table: (device: string) => `bow ${device}`, files: { free: 0o400, ranges: 0o400, state: 0o600 } },
};

async function image(lab: Lab, name = 'disk.img', size = '4M'): Promise<string> {
  await lab.sh(`truncate -s ${size} ${name}`);
  return lab.path(name);
}

/** Name and permission bits of everything in a directory. */
function modes(folder: string): Record<string, number> {
  return Object.fromEntries(
    readdirSync(folder).map((name) => [name, statSync(`${folder}/${name}`).mode & 0o7777]),
  );
}

/** A piece of shell that fails with `errno`'s words. */
async function refused(lab: Lab, script: string, words: string): Promise<void> {
  const { code, stderr } = await lab.shell(`set -o pipefail; ${script}`);
  expect({ script, code, stderr }).toMatchObject({
    code: expect.not.toBeOneOf([0]),
    stderr: expect.stringContaining(words),
  });
}

const EINVAL = 'Invalid argument';
const EILSEQ = 'Invalid or incomplete multibyte or wide character';
const ENOENT = 'No such file or directory';
const EBUSY = 'Device or resource busy';
const EACCES = 'Permission denied';
const EPERM = 'Operation not permitted';
const EEXIST = 'File exists';
const ENODEV = 'No such device';

for (const [type, { table, files }] of Object.entries(TARGETS)) {
  describe(`the files of a ${type} target`, () => {
    mountTest('are the owner`s alone', async (lab) => {
      const { point, path } = await lab.mount();
      await lab.sh(`mkdir ${path('x')}`);
      expect(modes(path('x'))).toEqual(FIRST_FILES);
      await lab.sh(`echo '${table(await image(lab))}' >${path('x/table')}`);
      expect(modes(path('x'))).toEqual({ ...COMMON_FILES, ...files });
      expect(statSync(point).mode & 0o7777).toBe(0o700);
      expect(statSync(path('x')).mode & 0o7777).toBe(0o700);
      expect(statSync(path('.dmfuse')).mode & 0o7777).toBe(0o400);
      expect(await lab.sh(`find ${point} ! -uid 0 -o ! -gid 0 -o -perm /077`)).toBe('');
      expect(statSync(path('x')).nlink).toBe(2);
      expect(statSync(path('x/device')).size).toBe(4 << 20);
      await refused(lab, `${AS_NOBODY} ls ${point}`, EACCES);
      await refused(lab, `${AS_NOBODY} cat ${path('x/status')}`, EACCES);
    });

    mountTest('with --allow-other: others pass through the directories and read no file', async (lab) => {
      const { point, path, create } = await lab.mount({ args: ['--allow-other'] });
      await create('x', table(await image(lab)));
      expect(modes(path('x'))).toEqual({ ...COMMON_FILES, ...files });
      expect(statSync(point).mode & 0o7777).toBe(0o755);
      expect(statSync(path('x')).mode & 0o7777).toBe(0o755);
      expect(await lab.sh(`${AS_NOBODY} ls ${path('x')}`)).toBe(
        `${Object.keys({ ...COMMON_FILES, ...files })
          .sort()
          .join('\n')}\n`,
      );
      for (const name of ['device', 'status', 'events', 'table', 'stats']) {
        await refused(lab, `${AS_NOBODY} cat ${path('x', name)}`, EACCES);
      }
      await refused(lab, `${AS_NOBODY} bash -c 'echo 0 1 >${path('x/discard')}'`, EACCES);
      await refused(lab, `${AS_NOBODY} mkdir ${path('mine')}`, EACCES);
      await refused(lab, `${AS_NOBODY} rmdir ${path('x')}`, EACCES);
      await lab.sh(`chmod 644 ${path('x/status')}; chown 65534 ${path('x/device')}`);
      expect(await lab.sh(`${AS_NOBODY} cat ${path('x/status')}`)).toMatch(`0 8192 ${type}`);
      await lab.sh(`${AS_NOBODY} dd if=${path('x/device')} of=/dev/null bs=4K count=1 status=none`);
    });

    mountTest('say what they should, however small the pieces they are read in', async (lab) => {
      const { path, read, create } = await lab.mount();
      const file = await image(lab);
      await create('x', table(file));
      expect(read('x/size')).toBe('8192');
      expect(read('x/status')).toMatch(new RegExp(`^0 8192 ${type}( |$)`));
      expect(read('x/table')).toMatch(new RegExp(`^0 8192 ${type} ${file}( |$)`));
      expect(read('x/filter')).toBe('none');
      expect(read('x/stats')).toMatch(/^reads 0\n(\w+ \d+\n)+passed_through 0$/);
      for (const name of ['size', 'status', 'table', 'filter', 'stats', 'latency', ...Object.keys(files)]) {
        expect(await lab.sh(`dd if=${path('x', name)} bs=1 status=none`)).toBe(`${read(`x/${name}`)}\n`);
      }
      expect(read('.dmfuse')).toMatch(
        /^pid \d+\nversion \d+\.\d+\.\d+\ntransport kernel\nlacks.*\nrequest_bytes_max \d+$/,
      );
    });

    mountTest('`table` is accepted by create unchanged', async (lab) => {
      const { path, read, create, point } = await lab.mount();
      await create('x', `0 1000 ${table(await image(lab))}`);
      const line = read('x/table');
      await lab.sh(`rmdir ${path('x')}`);
      await create('x', line);
      expect(read('x/table')).toBe(line);
      expect(read('x/size')).toBe('1000');
      // With the shell alone, too.
      await lab.sh(
        `cat ${path('x/table')} >saved; rmdir ${path('x')}; mkdir ${path('x')}; cat saved >${path('x/table')}`,
      );
      expect(read('x/table')).toBe(line);
      await refused(lab, `echo '${line}' >${path('x/table')}`, EBUSY);
      expect(readdirSync(point)).toEqual(['x']);
    });

    mountTest('cannot be used against their nature', async (lab) => {
      const { path, read, create } = await lab.mount();
      await create('x', table(await image(lab)));
      const before = read('x/table');
      for (const name of ['size', 'status', 'stats', 'events']) {
        await refused(lab, `echo 1 >${path('x', name)}`, 'Bad file descriptor');
      }
      await refused(lab, `cat ${path('x/discard')}`, 'Bad file descriptor');
      expect(read('x/table')).toBe(before);
    });
  });
}

describe('creating and removing', () => {
  mountTest('mkdir, echo > table, rmdir', async (lab) => {
    const { point, path, read } = await lab.mount();
    const file = await image(lab);
    await lab.sh(
      `cd ${point}; mkdir sys; cat sys/status; echo 'bow ${file}' >sys/table; ls sys/device; rmdir sys`,
    );
    expect(readdirSync(point)).toEqual([]);
    await lab.sh(`mkdir ${path('sys')}`);
    expect(read('sys/status')).toBe('no table');
    expect(read('sys/table')).toBe('');
    await refused(lab, `cat ${path('sys/device')}`, ENOENT);
    await lab.sh(`rmdir ${path('sys')}`);
    await refused(lab, `rmdir ${path('sys')}`, ENOENT);
  });

  mountTest(
    'a bad table: its errno, the reason in status, and a good one is taken afterwards',
    async (lab) => {
      const { path, read, events } = await lab.mount();
      const file = await image(lab);
      await lab.sh(
        `mkdir ${path('a')} ${path('x')}; echo 'linear ${await image(lab, 'a.img')} 0' >${path('a/table')}`,
      );
      const refusals: [string, string, RegExp][] = [
        ['', EINVAL, /the table is empty/],
        ['frob /dev/null', EINVAL, /no target type `frob`/],
        ['0 8 frob', EINVAL, /no target type `frob`/],
        ['8 8 linear /dev/null 0', EINVAL, /table starts at sector 8/],
        ['0 0 linear /dev/null 0', EINVAL, /LENGTH is 0/],
        ['0 x linear /dev/null 0', EINVAL, /LENGTH \(sectors\) must be a decimal number/],
        [`linear ${file}`, EINVAL, /linear needs a device and an offset/],
        [`linear ${file} -1`, EINVAL, /the offset \(sectors\) must be a decimal number/],
        [`linear ${file} 8192`, EINVAL, /has 0 sectors from sector 8192 on/],
        [`linear ${file} 99999999999999999999`, EINVAL, /must be a decimal number/],
        [`0 8193 linear ${file} 0`, EINVAL, /has 8192 sectors from sector 0 on, the table wants 8193/],
        [`linear ${file} 0 1 fast`, EINVAL, /linear does not know `fast`/],
        [`linear ${file} 0 2 no_passthrough`, EINVAL, /promises 2 options and gives 1/],
        [`linear ${file} 0 0 surplus`, EINVAL, /linear does not know `surplus`/],
        ['linear relative 0', EINVAL, /relative: a device is an absolute path or @NAME/],
        ['linear /dev/null 0', EINVAL, /neither a regular file nor a block device/],
        [`linear ${lab.path('none')} 0`, ENOENT, /none: no such file or device/],
        ['linear @none 0', ENOENT, /@none: there is no target/],
        ['linear @x 0', ENOENT, /@x: there is no target/],
        [`bow ${file} 1 block_size:0`, EINVAL, /block_size is 0 bytes/],
        [`bow ${file} 1 block_size:8192`, EINVAL, /block_size is 8192 bytes/],
        [`bow ${file} block_size:512`, EINVAL, /must be a decimal number/],
        [`0 8 bow ${file}`, EINVAL, /bow needs 2 blocks/],
        [`linear ${lab.path('a.img')} 0`, EBUSY, /a.img: in use by another target of this mount/],
      ];
      for (const [table, errno, reason] of refusals) {
        await refused(lab, `echo '${table}' >${path('x/table')}`, errno);
        expect(read('x/status')).toMatch(/^failed: /);
        expect(read('x/status')).toMatch(reason);
        expect(read('x/table')).toBe('');
        expect((await events('x')).at(-1)).toMatch(/^refused file=table errno=\d+ reason="/);
        expect(readdirSync(path('x')).sort()).toEqual(Object.keys(FIRST_FILES));
      }
      await lab.sh(`echo 'linear ${file} 0' >${path('x/table')}`);
      expect(read('x/status')).toBe('0 8192 linear');
    },
  );

  mountTest('one file has one writer: by any path to it, and in any daemon', async (lab) => {
    const { path, create, read } = await lab.mount();
    const file = await image(lab);
    await lab.sh(`ln -s disk.img symlink; ln disk.img hardlink; mkdir ${path('y')}`);
    await create('x', `bow ${file}`);
    for (const name of ['disk.img', 'symlink', 'hardlink', './disk.img']) {
      await refused(lab, `echo 'linear ${lab.path(name)} 0' >${path('y/table')}`, EBUSY);
    }
    const other = await lab.mount({ name: 'other' });
    await lab.sh(`mkdir ${other.path('z')}`);
    await refused(lab, `echo 'linear ${file} 0' >${other.path('z/table')}`, EBUSY);
    expect(other.read('z/status')).toMatch(/disk.img: in use by another process, which holds a lock on it/);
    await lab.sh(`rmdir ${path('x')}; echo 'linear ${lab.path('hardlink')} 0' >${other.path('z/table')}`);
    await refused(lab, `echo 'linear ${file} 0' >${path('y/table')}`, EBUSY);
    expect(read('y/status')).toMatch(/another process/);
  });

  mountTest('a block device that is mounted, or a target`s already, is refused', async (lab) => {
    const { path, create, read } = await lab.mount();
    const loop = await lab.loop(await image(lab, 'disk.img', '16M'));
    await lab.ok('mkfs.ext4', '-q', loop);
    const fs = await lab.mountFs(loop);
    await lab.sh(`mkdir ${path('y')}`);
    await refused(lab, `echo 'bow ${loop}' >${path('y/table')}`, EBUSY);
    expect(read('y/status')).toMatch(/in use: mounted, or opened by another program/);
    await lab.ok('umount', fs);
    await create('x', `bow ${loop}`);
    await refused(lab, `echo 'bow ${loop}' >${path('y/table')}`, EBUSY);
    await refused(lab, `mount ${loop} ${fs}`, 'already mounted or mount point busy');
  });

  mountTest('what leads into the mount itself is refused', async (lab) => {
    const { point, path, create, read } = await lab.mount();
    await create('x', `linear ${await image(lab, 'disk.img', '16M')} 0`);
    const alias = lab.makeFolder('alias');
    await lab.sh(`mkdir ${path('y')}; ln -s ${path('x/device')} symlink; mount --bind ${point} ${alias}`);
    const loop = await lab.loop(path('x/device'));
    const aliasLoop = await lab.loop(`${alias}/x/device`);
    await lab.ok('mkfs.ext4', '-q', loop);
    const fs = await lab.mountFs(loop);
    await lab.sh(`truncate -s 1M ${fs}/file`);
    const outer = await lab.loop(`${fs}/file`);
    const ways = [
      path('x/device'),
      lab.path('symlink'),
      `${alias}/x/device`,
      loop,
      aliasLoop,
      // A file of a file system on our device.
      `${fs}/file`,
    ];
    for (const way of ways) {
      await refused(lab, `echo 'linear ${way} 0' >${path('y/table')}`, EINVAL);
      expect(read('y/status')).toBe(
        `failed: ${way}: leads into this mount, which would wait for itself; stack targets with @NAME`,
      );
    }
    await lab.unloop(outer, aliasLoop);
    await lab.sh(`umount ${fs} ${alias}`);
    await lab.unloop(loop);
  });

  mountTest('a device ends with its last whole sector', async (lab) => {
    const { path, create, read } = await lab.mount();
    await lab.sh('head -c 1000001 /dev/urandom >odd.img; head -c 511 /dev/urandom >tiny.img');
    await create('x', `linear ${lab.path('odd.img')} 0`);
    expect(read('x/size')).toBe('1953');
    await lab.sh(`cmp -n 999936 ${path('x/device')} odd.img; [[ $(wc -c <${path('x/device')}) == 999936 ]]`);
    await lab.sh(`mkdir ${path('y')}`);
    await refused(lab, `echo 'linear ${lab.path('tiny.img')} 0' >${path('y/table')}`, EINVAL);
    await refused(lab, `echo 'bow ${lab.path('tiny.img')}' >${path('y/table')}`, EINVAL);
  });

  mountTest('a backing file that lost its end: EIO, and an event that says where', async (lab) => {
    const { path, create, events, stats } = await lab.mount();
    await create('x', `linear ${await image(lab)} 0 1 no_passthrough`);
    await lab.sh('truncate -s 2M disk.img');
    await refused(lab, `dd if=${path('x/device')} of=out bs=4096 skip=768 count=1`, 'Input/output error');
    expect(await events('x')).toEqual([
      expect.stringMatching(/^io_error op=read sector=6144 reason=".*disk.img: ends before byte 3149824" /),
    ]);
    expect(stats('x').errors).toBe(1);
    await lab.sh(`head -c 2M ${path('x/device')} | cmp - disk.img`);
  });

  mountTest('targets stand on targets: @NAME', async (lab) => {
    const { path, create, read } = await lab.mount();
    await create('low', `linear ${await image(lab)} 8`);
    await create('mid', '0 8000 linear @low 16');
    await create('top', 'bow @mid 1 block_size:512');
    expect(read('top/table')).toBe('0 8000 bow @mid 1 block_size:512');
    await lab.sh(`cd ${path('top')}
      echo '4000 100' >discard; echo 1 >state
      head -c 6000 /dev/urandom >${lab.path('data')}
      dd if=${lab.path('data')} of=device bs=6000 seek=512 oflag=seek_bytes conv=notrunc status=none
      cmp -n 6000 device ${lab.path('data')} 512
      cmp -n 6000 ${lab.path('disk.img')} ${lab.path('data')} $((24 * 512 + 512))`);
    for (const name of ['low', 'mid']) {
      await refused(lab, `rmdir ${path(name)}`, EBUSY);
      await refused(lab, `head -c 1 ${path(name, 'device')}`, EBUSY);
      await refused(lab, `echo x >${path(name, 'device')}`, EBUSY);
    }
    expect(await lab.dmfuse('remove', path(''), 'mid')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('another target stands on it'),
    });
    await lab.sh(`mkdir ${path('y')}`);
    await refused(lab, `echo 'linear @mid 0' >${path('y/table')}`, EBUSY);
    await lab.sh(`cd ${path('')}; rmdir top; rmdir mid; head -c 1 low/device; rmdir low`);
  });

  mountTest('a target whose device is open cannot be stood on, and cannot be removed', async (lab) => {
    const { path, create, read } = await lab.mount();
    await create('x', `linear ${await image(lab)} 0`);
    await lab.sh(`mkdir ${path('y')}`);
    await lab.sh(`exec 3<${path('x/device')}
      ! rmdir ${path('x')} 2>err; grep -q '${EBUSY}' err
      ! echo 'linear @x 0' >${path('y/table')} 2>err
      grep -q '@x: its device file is open' ${path('y/status')}
      exec 3<&-
      rmdir ${path('y')}; rmdir ${path('x')}`);
    expect(readdirSync(path(''))).toEqual([]);
    expect(read('.dmfuse')).toMatch(/pid/);
  });

  mountTest('close and rmdir follow each other at once, again and again', async (lab) => {
    const { path } = await lab.mount();
    const file = await image(lab);
    await lab.sh(`cd ${path('')}
      for i in $(seq 100); do
        mkdir x; echo 'linear ${file} 0 1 no_passthrough' >x/table; head -c 4096 x/device >/dev/null; rmdir x
      done`);
  });

  mountTest('names that are none', async (lab) => {
    const { point, path, read } = await lab.mount();
    const invalid = ['.hidden', '@at', "'a b'", "$'tab\\there'", 'n'.repeat(129)];
    for (const name of invalid) await refused(lab, `mkdir ${path('')}/${name}`, EINVAL);
    await lab.sh(`cd ${point}; mkdir ${'n'.repeat(128)} 'ä:b(c)'; rmdir *; mkdir x`);
    await refused(lab, `mkdir ${path('')}/$'\\xff'`, EILSEQ);
    await refused(lab, `mkdir ${path('x')}`, EEXIST);
    await refused(lab, `mkdir ${path('snapshots')}`, EEXIST);
    await refused(lab, `mkdir ${path('x/y')}`, EPERM);
    expect(readdirSync(point)).toEqual(['x']);
    expect(read('x/status')).toBe('no table');
  });
});

describe('the directory as a file system', () => {
  mountTest('chmod and chown last as long as the target', async (lab) => {
    const { path, create } = await lab.mount();
    const table = `linear ${await image(lab)} 0`;
    await create('x', table);
    await lab.sh(
      `chmod 4640 ${path('x/device')}; chown 65534:65533 ${path('x/device')}; chmod 750 ${path('x')}`,
    );
    expect(await lab.sh(`cd ${path('')}; stat -c '%n %a %u:%g' x x/device x/status`)).toBe(
      'x 750 0:0\nx/device 640 65534:65533\nx/status 400 0:0\n',
    );
    await lab.sh(`rmdir ${path('x')}`);
    await create('x', table);
    expect(modes(path('x'))).toEqual(COMMON_FILES);
  });

  mountTest('what no file here can do ends in an error, not in a crash', async (lab) => {
    const mount = await lab.mount();
    const { path, create, read } = mount;
    await create('x', `linear ${await image(lab)} 0`);
    const attempts = [
      'ln -s target x/link',
      'ln x/device x/hard',
      'mv x x/y',
      'mv snapshots y',
      'mv .dmfuse y',
      'mv x/status status',
      'mv x/device x/other',
      'rm x/device',
      'touch x/new',
      'echo >new',
      'mkfifo x/fifo',
      'mknod x/node c 1 3',
      'rmdir x/device',
      "python3 -c \"import os; os.setxattr('x/device', 'user.a', b'b')\"",
      "python3 -c \"import os; os.getxattr('x/device', 'user.a')\"",
      'python3 -c "import os; os.listdir(\'x/device\')"',
      "python3 -c \"import os; os.rename('x', '..')\"",
      'blockdev --getsize64 x/device',
      'readlink -e x/nothing',
    ];
    for (const attempt of attempts) {
      const { code, stderr } = await lab.shell(`cd ${path('')}; ${attempt}`);
      expect({ attempt, code, stderr }).toMatchObject({ code: expect.not.toBeOneOf([0]) });
    }
    await refused(lab, `blockdev --getsize64 ${path('x/device')}`, 'Inappropriate ioctl for device');
    await refused(lab, `blockdev --getsize64 ${path('x/status')}`, 'Inappropriate ioctl for device');
    expect(readdirSync(path(''))).toEqual(['x']);
    expect(modes(path('x'))).toEqual(COMMON_FILES);
    expect(read('x/status')).toBe('0 8192 linear');
    expect(mount.daemonIsAlive).toBe(true);
  });

  mountTest('a thousand targets are listed', async (lab) => {
    const { point, path } = await lab.mount();
    await lab.sh(`cd ${point}; seq -f 'target-%g' 1000 | xargs mkdir`);
    expect(readdirSync(point)).toHaveLength(1000);
    expect(statSync(point).nlink).toBe(1002);
    expect(existsSync(path('target-500/status'))).toBe(true);
    await lab.sh(`cd ${point}; seq -f 'target-%g' 1000 | xargs rmdir`);
    expect(readdirSync(point)).toEqual([]);
  });

  mountTest('statfs tells the trim granularity', async (lab) => {
    const { path, create } = await lab.mount();
    await create('x', `bow ${await image(lab)} 1 block_size:1024`);
    await create('y', `linear ${await image(lab, 'y.img')} 0`);
    expect(await lab.sh(`stat -f -c '%s' ${path('x/device')} ${path('y/device')} ${path('')}`)).toBe(
      '1024\n4096\n4096\n',
    );
  });

  mountTest('an error of a file that no target has: ENODEV', async (lab) => {
    const { path, create } = await lab.mount();
    await create('x', `linear ${await image(lab)} 0`);
    await lab.sh(
      `exec 3<${path('x/size')}; rmdir ${path('x')}; ! cat <&3 2>err; grep -qE '${ENODEV}|${ENOENT}' err`,
    );
  });
});

describe('`discard` and `filter`', () => {
  mountTest('discard takes lines of SECTOR COUNT, all or none', async (lab) => {
    const { path, create, read, events } = await lab.mount();
    await create('x', `bow ${await image(lab)} 1 block_size:512`);
    await lab.sh(`cd ${path('x')}; echo '8 1' >discard
      # One write(2): the shell's own printf makes one of each line.
      printf '16 4\\n  32 2  \\n\\n100 1' | dd of=discard status=none`);
    expect(read('x/free')).toBe(String(8 * 512));
    const bad = [
      '',
      '5',
      '5 6 7',
      'a 1',
      '1 b',
      '-1 2',
      '1.5 2',
      '0 0',
      '8192 1',
      '8191 2',
      '8 1\\n16',
      '40 8\\n9000 1',
    ];
    for (const lines of bad) {
      await refused(
        lab,
        `printf -- '${lines}\\n' | dd of=${path('x/discard')} bs=1K iflag=fullblock status=none`,
        EINVAL,
      );
      expect((await events('x')).at(-1)).toMatch(/^refused file=discard errno=22 reason="discard: /);
    }
    expect(read('x/free')).toBe(String(8 * 512));
    await lab.sh(`echo '8191 1' >${path('x/discard')}; echo '0 8192' >${path('x/discard')}`);
    expect(read('x/free')).toBe(String(8191 * 512));
  });

  mountTest('discard of a linear target reaches the backing file', async (lab) => {
    const { path, create } = await lab.mount();
    await lab.sh('head -c 4M /dev/urandom >disk.img');
    await create('x', `linear ${lab.path('disk.img')} 8`);
    await lab.sh(
      `sync disk.img; echo '0 4096' >${path('x/discard')}; cmp -n 2097152 disk.img /dev/zero 4096`,
    );
    expect(Number(await lab.sh('stat -c %b disk.img'))).toBeLessThanOrEqual(4096 + 16);
  });

  mountTest('what is no filter is none, and says so', async (lab) => {
    const { path, create, read, events } = await lab.mount();
    await create('x', `linear ${await image(lab)} 0`);
    await refused(lab, `echo none >${path('x/filter')}`, ENOENT);
    await refused(lab, `echo blktrap >${path('x/filter')}`, ENOENT);
    await refused(lab, `echo blksnap now >${path('x/filter')}`, EINVAL);
    await refused(lab, `echo none now >${path('x/filter')}`, EINVAL);
    expect(read('x/filter')).toBe('none');
    expect((await events('x')).map((line) => line.replace(/ monotonic.*/, ''))).toEqual([
      'refused file=filter errno=2 reason="x: no filter is attached"',
      'refused file=filter errno=2 reason="there is no filter `blktrap`; known are blksnap, log-writes, and none for none"',
      'refused file=filter errno=22 reason="blksnap takes no arguments, found `now`: write `blksnap` alone"',
      'refused file=filter errno=22 reason="filter: found `now` after none"',
    ]);
  });
});
