/** Many at once: what one target, one request or one reader does must never be felt as an error by another. */
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect } from 'vitest';
import { type Lab, mountTest } from './harness.js';

const FIO = [
  'fio --ioengine=psync --direct=0 --verify=crc32c --verify_fatal=1 --do_verify=1',
  '--thread=0 --group_reporting=1 --output=/dev/null --allow_file_create=0 --fallocate=none --randrepeat=0',
].join(' ');

const REGION_BYTES = 3 << 20;
/** Small ones take their time. */
const REQUESTS_MAX = 1500;

/** Four jobs on regions of their own: request sizes of all kinds, one of them unaligned. */
function fio(file: string, { rw = 'randwrite', loops = 1 } = {}): string {
  const jobs = [512, 4096, 65536, 12 << 10].map((requestBytes, i) => {
    const offset = i * REGION_BYTES + (i === 3 ? 512 : 0);
    const requests = Math.min(REQUESTS_MAX, Math.floor((REGION_BYTES - 512) / requestBytes));
    return `--name=job${i} --filename=${file} --offset=${offset} --size=${requests * requestBytes} --bs=${requestBytes} --rw=${rw} --loops=${loops}`;
  });
  return `${FIO} ${jobs.join(' ')}`;
}

for (const lanes of [1, 8]) {
  mountTest(`targets come and go while others carry I/O, ${lanes} lanes`, async (lab) => {
    const { point, create, stats } = await lab.mount({ args: ['--lanes', String(lanes)] });
    await lab.sh('for name in a b c; do head -c 32M /dev/urandom >$name.img; done');
    await create('a', `linear ${lab.path('a.img')} 0 1 no_passthrough`);
    await create('b', `bow ${lab.path('b.img')} 1 block_size:1024`);
    await lab.sh(`cd ${point}/b; echo '32768 32768' >discard; echo 1 >state`);
    const fios = ['a', 'b'].map((name) =>
      lab.start('bash', ['-c', fio(`${point}/${name}/device`, { loops: 2 })]),
    );
    const coming = lab.start('bash', [
      '-c',
      `set -e
      cd ${point}
      for ((i = 0; ; i++)); do
        mkdir c d
        echo 'bow ${lab.path('c.img')}' >c/table
        echo 'linear @c 8' >d/table
        head -c 100000 /dev/urandom >${lab.path('data')}
        dd if=${lab.path('data')} of=d/device bs=10000 conv=notrunc status=none
        cmp -n 100000 d/device ${lab.path('data')}
        cat status d/stats 2>/dev/null || true
        rmdir d c
        echo done $i
      done`,
    ]);
    for (const one of fios) expect(await one.ended).toMatchObject({ code: 0, stderr: '' });
    expect([coming.isRunning, coming.stderr]).toEqual([true, '']);
    await coming.prints(/done 3/);
    coming.kill();
    expect([stats('a').errors, stats('b').errors]).toEqual([0, 0]);
  });
}

for (const blockSize of [512, 4096]) {
  mountTest(
    `four writers in state 1 of bow, block size ${blockSize}: restore gives the original back`,
    async (lab) => {
      const { point, create, umount } = await lab.mount({ args: ['--lanes', '8'] });
      await lab.sh('head -c 32M /dev/urandom >original; cp original disk.img');
      const image = lab.path('disk.img');
      await create('x', `bow ${image} 1 block_size:${blockSize}`);
      // The first 13 MiB are the writers', the next 3 nobody's, the rest is free.
      await lab.sh(`cd ${point}/x; echo '32768 32768' >discard; echo 1 >state`);
      await lab.sh(fio(`${point}/x/device`));
      await lab.sh(fio(`${point}/x/device`, { rw: 'randrw' }));
      await lab.sh(`! cmp -s -n 12582912 ${point}/x/device original
      cmp -n 3145728 ${point}/x/device original 13631488 13631488`);
      await umount();
      await lab.dmfuseOk('bow', 'check', image);
      await lab.dmfuseOk('bow', 'restore', image);
      await lab.sh('cmp -n 16777216 original disk.img');
    },
  );
}

/** Threads that each have a stretch of the device and a model of it; the stretches end in the middle of blocks. */
const NEIGHBOURS = `
import ctypes, os, random, sys, threading
path, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(path, os.O_RDWR)
failures = []
def work(n):
    try:
        rng = random.Random(seed + n)
        first, end = n * 30011, (n + 1) * 30011
        model = bytearray(os.pread(fd, end - first, first))
        for i in range(rounds):
            at = rng.choice([0, end - first - 700, rng.randrange(end - first)])
            length = min(rng.choice([1, 100, 700, 512, 3000, 5000]), end - first - at)
            what = rng.choice(['read', 'write', 'write', 'punch', 'zero'])
            if what == 'read':
                assert os.pread(fd, length, first + at) == model[at:at + length], (seed, n, i, at, length)
            elif what == 'write':
                data = rng.randbytes(length)
                assert os.pwrite(fd, data, first + at) == length
                model[at:at + length] = data
            else:
                mode = 3 if what == 'punch' else 17
                assert libc.fallocate(fd, mode, ctypes.c_long(first + at), ctypes.c_long(length)) == 0, ctypes.get_errno()
                model[at:at + length] = bytes(length)
        got = os.pread(fd, end - first, first)
        assert got == model, (seed, n, 'at the end', [k for k in range(len(got)) if got[k] != model[k]][:3])
    except BaseException as e:
        failures.append(e)
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert not failures, failures
`;

for (const blockSize of [512, 4096]) {
  mountTest(
    `neighbours in one block do not touch each other, bow of ${blockSize} in all states`,
    async (lab) => {
      const { path, create, umount } = await lab.mount({ args: ['--lanes', '8'] });
      await lab.sh('head -c 2M /dev/urandom >disk.img; mkdir checkpoint');
      await create('x', `bow ${lab.path('disk.img')} 1 block_size:${blockSize}`);
      const seed = Math.floor(Math.random() * 1e9);
      const neighbours = () => lab.python(NEIGHBOURS, path('x/device'), String(seed), '150');
      await lab.sh(`echo '100 200' >${path('x/discard')}`);
      await neighbours();
      await lab.sh(`cd ${path('x')}; echo '1000 3096' >discard
        cp ranges ${lab.path('disk.img')} ${lab.path('checkpoint')}; echo 1 >state`);
      await neighbours();
      await neighbours();
      await lab.sh('cp disk.img interrupted');
      await lab.sh(`echo 2 >${path('x/state')}`);
      await neighbours();
      await umount();
      await lab.dmfuseOk('bow', 'restore', lab.path('interrupted'));
      // All that was not free comes back.
      await lab.python(`
lines = [line.split(': ') for line in open('checkpoint/ranges')]
before, after = open('checkpoint/disk.img', 'rb').read(), open('interrupted', 'rb').read()
compared = 0
for (name, start), (_, end) in zip(lines, lines[1:]):
    if name != 'Free':
        start, end = int(start) * 512, int(end) * 512
        assert before[start:end] == after[start:end], (name, start, end)
        compared += end - start
assert compared > 300000, compared`);
    },
  );
}

mountTest('a checkpoint is taken and committed under I/O', async (lab) => {
  const { point, create, umount } = await lab.mount({ args: ['--lanes', '8'] });
  await lab.sh('head -c 40M /dev/urandom >disk.img');
  await create('x', `bow ${lab.path('disk.img')}`);
  await lab.sh(`echo '28672 53248' >${point}/x/discard`);
  const writers = lab.start('bash', ['-c', fio(`${point}/x/device`, { loops: 12 })]);
  await lab.sh(`cd ${point}/x
    written() { awk '/^writes/ { print $2 }' stats; }
    while (($(written) < 2000)); do sleep 0.02; done
    echo 1 >state
    while (($(written) < 6000)); do sleep 0.02; done
    echo 2 >state`);
  expect(await writers.ended).toMatchObject({ code: 0, stderr: '' });
  await umount();
  expect((await lab.dmfuse('bow', 'check', lab.path('disk.img'))).code).toBe(3);
});

describe('opens and closes', () => {
  for (const options of ['', ' 1 no_passthrough']) {
    mountTest(`by many at once, of linear${options}`, async (lab) => {
      const { path, create } = await lab.mount({ args: ['--lanes', '8'] });
      await lab.sh('head -c 4M /dev/urandom >disk.img');
      await create('x', `linear ${lab.path('disk.img')} 0${options}`);
      await lab.python(
        `
import os, sys, threading
device, image = sys.argv[1:]
want = open(image, 'rb').read(4096)
failures = []
def work():
    try:
        for i in range(300):
            fd = os.open(device, os.O_RDWR)
            assert os.pread(fd, 4096, 0) == want
            assert os.pwrite(fd, want, 0) == 4096
            os.close(fd)
    except BaseException as e:
        failures.append(e)
threads = [threading.Thread(target=work) for _ in range(6)]
for t in threads: t.start()
for t in threads: t.join()
assert not failures, failures`,
        path('x/device'),
        lab.path('disk.img'),
      );
      await lab.sh(`rmdir ${path('x')}`);
    });
  }

  mountTest(
    'passed through, come and go beside an older one that is not and writes all the time',
    async (lab) => {
      const { path, create, umount } = await lab.mount({ args: ['--lanes', '8'] });
      await lab.sh('truncate -s 4M disk.img');
      await create('x', `bow ${lab.path('disk.img')}`);
      await lab.sh(`echo '4096 1024' >${path('x/discard')}; echo 1 >${path('x/state')}`);
      await lab.python(
        `
import os, sys, threading
folder = sys.argv[1]
old = os.open(folder + '/device', os.O_RDWR)
open(folder + '/state', 'w').write('2')
done, failures = False, []
def write():
    try:
        while not done:
            os.pwrite(old, b'o' * 8192, 65536)
    except BaseException as e:
        failures.append(e)
threads = [threading.Thread(target=write, daemon=True) for _ in range(3)]
for t in threads: t.start()
for i in range(500):
    new = os.open(folder + '/device', os.O_RDWR)
    assert os.pwrite(new, b'%08d' % i, 0) == 8
    assert os.pread(old, 8, 0) == b'%08d' % i
    os.close(new)
done = True
for t in threads: t.join()
assert not failures, failures`,
        path('x'),
      );
      await umount();
    },
  );

  mountTest('rmdir right after the last close, while the lanes are busy', async (lab) => {
    const { point, create } = await lab.mount({ args: ['--lanes', '8'] });
    await lab.sh('truncate -s 16M a.img b.img');
    await create('a', `linear ${lab.path('a.img')} 0 1 no_passthrough`);
    const busy = lab.start('bash', ['-c', fio(`${point}/a/device`, { loops: 1000 })]);
    await lab.python(
      `
import os, sys
os.chdir(sys.argv[1])
for i in range(300):
    os.mkdir('b')
    fd = os.open('b/table', os.O_WRONLY)
    os.write(fd, b'linear ' + sys.argv[2].encode() + b' 0 1 no_passthrough')
    os.close(fd)
    fd = os.open('b/device', os.O_RDWR)
    os.pwrite(fd, b'x', i)
    os.close(fd)
    os.rmdir('b')`,
      point,
      lab.path('b.img'),
    );
    expect([busy.isRunning, busy.stderr]).toEqual([true, '']);
    busy.kill();
  });
});

describe('short of memory', () => {
  /** A cgroup of the lab's name with so much memory; the guard takes it away. */
  function memoryCgroup(lab: Lab, bytes: number): { folder: string; limit: string; count: () => number } {
    const name = lab.folder.split('/').at(-1)!;
    const [v1, v2] = ['/sys/fs/cgroup/memory', '/sys/fs/cgroup'];
    if (existsSync(`${v1}/memory.limit_in_bytes`)) {
      const folder = `${v1}/${name}`;
      const count = () => Number(readFileSync(`${folder}/memory.failcnt`, 'utf8'));
      return { folder, limit: `echo ${bytes} >${folder}/memory.limit_in_bytes`, count };
    }
    if (/\bmemory\b/.test(readFileSync(`${v2}/cgroup.subtree_control`, 'utf8'))) {
      const folder = `${v2}/${name}`;
      const count = () => Number(/^max (\d+)/m.exec(readFileSync(`${folder}/memory.events`, 'utf8'))![1]);
      return { folder, limit: `echo ${bytes} >${folder}/memory.max`, count };
    }
    throw new Error('no memory controller of cgroups here: boot with cgroup_enable=memory');
  }

  for (const table of ['linear IMAGE 0 1 no_passthrough', 'bow IMAGE']) {
    mountTest(`an ext4 on \`${table}\` that is written until memory thrashes gets done`, async (lab) => {
      const { point, create } = await lab.mount({ args: ['--lanes', '8'] });
      await lab.sh('truncate -s 500M disk.img');
      await create('x', table.replace('IMAGE', lab.path('disk.img')));
      const loop = await lab.loop(`${point}/x/device`);
      await lab.ok('mkfs.ext4', '-q', loop);
      const fs = await lab.mountFs(loop);
      // Their space is not free: in state 1 each first write of a block is backed up.
      await lab.sh(`for i in 1 2 3 4; do fallocate -l 24M ${fs}/file$i; done; sync -f ${fs}`);
      if (table.startsWith('bow')) await lab.sh(`fstrim ${fs}; echo 1 >${point}/x/state`);
      const cgroup = memoryCgroup(lab, 16 << 20);
      await lab.sh(
        `mkdir ${cgroup.folder}; ${cgroup.limit}; echo $$ >${cgroup.folder}/cgroup.procs
          for i in 1 2 3 4; do
            (head -c 24M <(seq $i 1000000000) 1<>${fs}/file$i; cmp -n 24M ${fs}/file$i <(seq $i 1000000000)) &
          done
          wait
          for i in 1 2 3 4; do cmp -n 24M ${fs}/file$i <(seq $i 1000000000); done`,
      );
      expect(cgroup.count()).toBeGreaterThan(100);
      await lab.sh(`umount ${fs}; e2fsck -fn ${loop}`);
      await lab.unloop(loop);
    });
  }
});
