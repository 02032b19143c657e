import { statSync } from 'node:fs';
import { describe, expect } from 'vitest';
import { type Lab, type Mount, mountTest } from './harness.js';

const SIZE = 4 << 20;

interface Way {
  /** For the backing device. */
  readonly table: (device: string) => string;
  readonly prepare?: string;
  /** The backing is a block device with sectors of so many bytes. */
  readonly sectorBytes?: number;
}

/** Ways that bytes can take from a `device` file: what a test of the device as such is run with. */
const WAYS: Record<string, Way> = {
  'linear, through lanes': { table: (file) => `linear ${file} 0 1 no_passthrough` },
  'linear, passthrough': { table: (file) => `linear ${file} 0` },
  'linear at an offset': { table: (file) => `0 8192 linear ${file} 24` },
  'bow, state 0': { table: (file) => `bow ${file} 1 block_size:1024`, prepare: `echo '2000 6000' >discard` },
  'bow, state 1': {
    table: (file) => `bow ${file} 1 block_size:1024`,
    prepare: `echo '100 4000' >discard; echo 1 >state`,
  },
  'bow, state 2': {
    table: (file) => `bow ${file}`,
    prepare: `echo '4000 100' >discard; echo 1 >state; echo 2 >state`,
  },
  'linear on a block device': { table: (device) => `linear ${device} 0`, sectorBytes: 512 },
  'linear on a block device of 4 KiB sectors': { table: (device) => `linear ${device} 0`, sectorBytes: 4096 },
  'bow, state 0, on a block device of 4 KiB sectors': {
    table: (device) => `bow ${device} 1 block_size:512`,
    prepare: `echo '2000 6000' >discard`,
    sectorBytes: 4096,
  },
  'bow, state 1, on a block device': {
    table: (device) => `bow ${device} 1 block_size:1024`,
    prepare: `echo '100 4000' >discard; echo 1 >state`,
    sectorBytes: 512,
  },
};

async function mountWay(lab: Lab, { table, prepare = '', sectorBytes }: Way): Promise<Mount> {
  // A little more than the device where its table says how much.
  const size = /^0 8192/.test(table('')) ? SIZE + 100 * 512 : SIZE;
  await lab.sh(`truncate -s ${size} disk.img`);
  const file = lab.path('disk.img');
  const device = sectorBytes ? await lab.loop(file, `--sector-size=${sectorBytes}`) : file;
  const mount = await lab.mount();
  await mount.create('x', table(device));
  await lab.sh(`cd ${mount.path('x')}\n${prepare}`);
  return mount;
}

/** Does random things to a device and to a model of it, and compares. */
const FUZZ = `
import ctypes, os, random, sys
path, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(path, os.O_RDWR)
size = os.fstat(fd).st_size
model = bytearray(os.pread(fd, size, 0))
assert len(model) == size
limit = int(sys.argv[4]) # writes stay below
def span():
    length = rng.choice([1, 2, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 65536, rng.randrange(1, 200000)])
    offset = rng.choice([rng.randrange(limit), rng.randrange(limit) // 512 * 512, rng.randrange(limit) // 4096 * 4096, rng.randrange(5000)])
    return offset, min(length, limit - offset)
for i in range(rounds):
    offset, length = span()
    what = rng.choice(['read', 'read', 'write', 'write', 'write', 'punch', 'zero', 'sync'])
    if what == 'read':
        got = os.pread(fd, length, offset)
        assert got == model[offset:offset + length], (seed, i, what, offset, length)
    elif what == 'write':
        data = rng.randbytes(length)
        done = os.pwrite(fd, data, offset)
        assert done == length, (seed, i, done, offset, length)
        model[offset:offset + length] = data
    elif what in ('punch', 'zero'):
        mode = 3 if what == 'punch' else 17
        if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
            raise OSError(ctypes.get_errno(), what, (seed, i, offset, length))
        model[offset:offset + length] = bytes(length)
    else:
        os.fsync(fd)
got = os.pread(fd, size, 0)
if got != model:
    at = next(k for k in range(size) if got[k] != model[k])
    raise AssertionError((seed, 'at the end', at))
os.close(fd)
print('same')
`;

for (const [way, options] of Object.entries(WAYS)) {
  describe(`device: ${way}`, () => {
    mountTest('any read, write, punch and zeroing does what it does to a file', async (lab) => {
      const { path } = await mountWay(lab, options);
      const seed = Math.floor(Math.random() * 1e9);
      // bow in state 1 needs room for backups: the last part is written by nobody.
      expect(await lab.python(FUZZ, path('x/device'), String(seed), '600', String(SIZE / 2))).toBe('same');
    });

    mountTest('has a fixed size: truncation is ignored, reads end there, writes end there', async (lab) => {
      const { path } = await mountWay(lab, options);
      const device = path('x/device');
      await lab.sh(`printf start | dd of=${device} conv=notrunc status=none
        : >${device}
        truncate -s 0 ${device}; truncate -s 100M ${device}`);
      expect(statSync(device).size).toBe(SIZE);
      expect(await lab.sh(`head -c 5 ${device}`)).toBe('start');
      expect(await lab.sh(`wc -c <${device}; dd if=${device} bs=4096 skip=1024 status=none | wc -c`)).toBe(
        `${SIZE}\n0\n`,
      );
      expect(
        await lab.python(
          `
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print(len(os.pread(fd, 100, ${SIZE - 10})), len(os.pread(fd, 100, ${SIZE})), len(os.pread(fd, 100, ${SIZE} + 5)))`,
          device,
        ),
      ).toBe('10 0 0');
    });
  });
}

for (const way of ['linear, through lanes', 'linear at an offset', 'bow, state 0', 'bow, state 1'] as const) {
  mountTest(`${way}: a write past the end is ENOSPC, one that crosses it is cut`, async (lab) => {
    const { path } = await mountWay(lab, WAYS[way]!);
    expect(
      await lab.python(
        `
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for offset in [${SIZE}, ${SIZE} + 1, ${SIZE} + 4096, 1 << 40]:
    try:
        print('wrote', os.pwrite(fd, b'x' * 10, offset))
    except OSError as e:
        print(errno.errorcode[e.errno])
print(os.pwrite(fd, b'y' * 1000, ${SIZE} - 700))
print(os.pread(fd, 1000, ${SIZE} - 701) == b'\\0' + b'y' * 700)
os.close(fd)`,
        path('x/device'),
      ),
    ).toBe('ENOSPC\nENOSPC\nENOSPC\nENOSPC\n700\nTrue');
    expect(
      await lab.shell(`dd if=/dev/zero of=${path('x/device')} bs=1M count=10 conv=notrunc status=none`),
    ).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('No space left on device'),
    });
  });
}

mountTest(
  'passthrough: a write past the end is ENOSPC at close, and the backing file keeps its size',
  async (lab) => {
    const { path, stats, events } = await mountWay(lab, WAYS['linear, passthrough']!);
    const outcome = await lab.shell(
      `dd if=/dev/urandom of=${path('x/device')} bs=1M count=6 conv=notrunc status=none`,
    );
    expect(outcome).toMatchObject({ code: 1, stderr: expect.stringContaining('No space left on device') });
    expect(statSync(lab.path('disk.img')).size).toBe(SIZE);
    expect(statSync(path('x/device')).size).toBe(SIZE);
    expect(stats('x').writes).toBe(0);
    expect((await events('x'))[0]).toMatch(/^write_past_end size=4194304 /);
  },
);

describe('holes', () => {
  mountTest('a sparse file stays sparse: SEEK_DATA and SEEK_HOLE', async (lab) => {
    await lab.sh(`truncate -s 4M disk.img
      dd if=/dev/urandom of=disk.img bs=64K count=1 seek=16 conv=notrunc status=none
      dd if=/dev/urandom of=disk.img bs=64K count=2 seek=40 conv=notrunc status=none`);
    const { path, create } = await lab.mount();
    await create('x', `linear ${lab.path('disk.img')} 8 1 no_passthrough`);
    expect(
      await lab.python(
        `
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(fd).st_size
at, extents = 0, []
while True:
    try:
        data = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as e:
        assert e.errno == 6, e
        break
    at = os.lseek(fd, data, os.SEEK_HOLE)
    extents.append((data, at))
print(extents)
for offset in (size, size + 1):
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        try:
            os.lseek(fd, offset, whence)
            print('no error')
        except OSError as e:
            assert e.errno == 6, e
print(os.lseek(fd, 5, os.SEEK_HOLE), os.lseek(fd, (1 << 20) + 5, os.SEEK_DATA))
print(os.lseek(fd, 0, os.SEEK_END) == size)`,
        path('x/device'),
      ),
    ).toBe(
      `[(${(16 << 16) - 4096}, ${(17 << 16) - 4096}), (${(40 << 16) - 4096}, ${(42 << 16) - 4096})]\n5 ${(1 << 20) + 5}\nTrue`,
    );
  });

  mountTest('in state 1 of bow what was trimmed is a hole, and reads as zeros', async (lab) => {
    await lab.sh('head -c 4M /dev/urandom >disk.img');
    const { path, create } = await lab.mount();
    await create('x', `bow ${lab.path('disk.img')}`);
    await lab.sh(`cd ${path('x')}; echo '1024 1024' >discard; echo 1 >state
      cmp -n 524288 device /dev/zero 524288
      cmp -n 524288 device ${lab.path('disk.img')} 1048576 1048576`);
    expect(
      await lab.python(
        `
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print(os.lseek(fd, 0, os.SEEK_HOLE), os.lseek(fd, 600000, os.SEEK_DATA))`,
        path('x/device'),
      ),
    ).toBe('524288 1048576');
  });

  mountTest(
    'punching makes zeros and a hole in the backing file; zeroing makes zeros; the rest is refused',
    async (lab) => {
      await lab.sh('head -c 4M /dev/urandom >disk.img; sync disk.img');
      const { path, create, stats } = await lab.mount();
      await create('x', `linear ${lab.path('disk.img')} 0 1 no_passthrough`);
      const blocks = () => statSync(lab.path('disk.img')).blocks;
      const before = blocks();
      await lab.sh(`cd ${path('x')}
      fallocate -p -o 1M -l 1M device; cmp -n 1048576 device /dev/zero 1048576
      fallocate -z -n -o 3M -l 64K device; cmp -n 65536 device /dev/zero 3145728
      fallocate -p -o 4194000 -l 100000 device
      fallocate -l 4M device`);
      expect(blocks()).toBeLessThanOrEqual(before - 2000);
      expect(statSync(lab.path('disk.img')).size).toBe(SIZE);
      expect(stats('x')).toMatchObject({
        discards: 2,
        discarded_bytes: 1048576 + 304,
        zeroes: 1,
        zeroed_bytes: 65536,
        errors: 0,
      });
      for (const [options, words] of [
        ['-z -o 4M -l 4K', 'No space left on device'],
        ['-l 5M', 'No space left on device'],
        ['-c -o 1M -l 1M', 'Operation not supported'],
        ['-i -o 1M -l 1M', 'Operation not supported'],
      ]) {
        expect(await lab.shell(`fallocate ${options} ${path('x/device')}`)).toMatchObject({
          code: 1,
          stderr: expect.stringContaining(words!),
        });
      }
      expect(statSync(lab.path('disk.img')).size).toBe(SIZE);
    },
  );
});

mountTest('stats count what went through the lanes', async (lab) => {
  const { path, create, stats } = await lab.mount();
  await lab.sh('truncate -s 4M disk.img');
  await create('x', `linear ${lab.path('disk.img')} 0 1 no_passthrough`);
  await lab.sh(`cd ${path('x')}
    dd if=/dev/zero of=device bs=4096 count=10 oflag=direct conv=notrunc,fsync status=none
    dd if=device of=/dev/null bs=1M count=2 iflag=direct status=none
    dd if=/dev/zero of=device bs=4096 count=2 oflag=direct,dsync conv=notrunc status=none
    ! dd if=/dev/zero of=device bs=4096 count=1 seek=1024 oflag=direct conv=notrunc status=none 2>/dev/null`);
  expect(stats('x')).toMatchObject({
    reads: 2,
    read_bytes: 2 << 20,
    writes: 12,
    written_bytes: 12 * 4096,
    flushes: 3,
    discards: 0,
    discarded_bytes: 0,
    zeroes: 0,
    zeroed_bytes: 0,
    errors: 1,
    passed_through: 0,
  });
});

mountTest(
  'passthrough: the kernel does the I/O itself, and no_passthrough keeps it in the lanes',
  async (lab) => {
    const { path, create, stats } = await lab.mount();
    await lab.sh('truncate -s 4M a.img b.img');
    await create('fast', `linear ${lab.path('a.img')} 0`);
    await create('slow', `linear ${lab.path('b.img')} 0 1 no_passthrough`);
    for (const name of ['fast', 'slow']) {
      await lab.sh(
        `head -c 4M /dev/urandom >data; cat data >${path(name, 'device')}; cmp data ${path(name, 'device')}`,
      );
    }
    expect([stats('fast').writes, stats('fast').reads]).toEqual([0, 0]);
    expect(stats('slow').written_bytes).toBe(SIZE);
    expect(stats('slow').read_bytes).toBeGreaterThanOrEqual(SIZE);
    await lab.sh('cmp data b.img');
  },
);

describe('what people do with a device', () => {
  for (const options of ['', ' 1 no_passthrough']) {
    mountTest(
      `linear${options}: an ext4 on a loop device; what it trims is a hole in the backing file`,
      async (lab) => {
        await lab.sh('truncate -s 64M disk.img');
        const { path, create } = await lab.mount();
        await create('x', `linear ${lab.path('disk.img')} 0${options}`);
        const loop = await lab.loop(path('x/device'));
        await lab.ok('mkfs.ext4', '-q', loop);
        const fs = await lab.mountFs(loop);
        await lab.sh(`head -c 30M /dev/urandom >data; cp data ${fs}; sync -f ${fs}`);
        const full = statSync(lab.path('disk.img')).blocks;
        expect(full).toBeGreaterThanOrEqual((30 << 20) / 512);
        await lab.sh(`rm ${fs}/data; sync -f ${fs}; fstrim ${fs}`);
        expect(statSync(lab.path('disk.img')).blocks).toBeLessThan(full - (25 << 20) / 512);
        await lab.sh(`umount ${fs}; e2fsck -fn ${loop}; blkdiscard -z -o 8M -l 8M ${loop}
        cmp -n 8M ${loop} /dev/zero 8388608`);
        await lab.unloop(loop);
      },
    );
  }

  mountTest('tools that take a file take a device, and copies of all kinds arrive', async (lab) => {
    await lab.sh('truncate -s 16M disk.img; head -c 16M /dev/urandom >data');
    const { path, create } = await lab.mount();
    await create('x', `linear ${lab.path('disk.img')} 0 1 no_passthrough`);
    for (const copy of [
      'cp data',
      'cp --sparse=always data',
      'dd bs=16M status=none conv=sparse,notrunc if=data of=',
    ]) {
      await lab.sh(`: >${path('x/discard')} || true; fallocate -p -l 16M ${path('x/device')}
        ${copy}${copy.endsWith('=') ? '' : ' '}${path('x/device')}
        cmp data ${path('x/device')}; cmp data disk.img; cp ${path('x/device')} copy; cmp copy data`);
    }
    await lab.sh(`mkfs.ext4 -q -F ${path('x/device')}; e2fsck -fn ${path('x/device')}
      mkdir fs; mount -o loop ${path('x/device')} fs; cp data fs/ || true; umount fs; e2fsck -fn ${path('x/device')}`);
  });

  mountTest('8 TiB: numbers far beyond 32 bits', async (lab) => {
    await lab.sh('truncate -s 8T disk.img');
    const { path, create, read, umount } = await lab.mount();
    await create('x', `bow ${lab.path('disk.img')} 1 block_size:512`);
    await lab.sh(`echo '8 1000000' >${path('x/discard')}; echo 1 >${path('x/state')}`);
    await lab.python(
      `
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(fd).st_size
assert size == 8 << 40
offsets = [1 << 31, 1 << 32, (1 << 32) - 1000, (1 << 41) - 7, 1 << 42, (1 << 43) - 300]
for i, offset in enumerate(offsets):
    assert os.pwrite(fd, bytes([i + 1]) * 300, offset) == 300
for i, offset in enumerate(offsets):
    assert os.pread(fd, 300, offset)[100:] == bytes([i + 1]) * 200, offset`,
      path('x/device'),
    );
    expect(read('x/size')).toBe(String(2 ** 34));
    expect(read('x/ranges')).toContain(`\nChanged: ${2 ** 33}\nUnchanged: ${2 ** 33 + 1}\n`);
    await umount();
    expect(await lab.dmfuseOk('bow', 'restore', lab.path('disk.img'))).toMatch(/^restored: 7 entries/);
    expect(await lab.sh(`dd if=disk.img bs=512 skip=${2 ** 33} count=1 status=none | tr -d '\\0'`)).toBe('');
  });
});
