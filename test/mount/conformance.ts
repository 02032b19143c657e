/**
 * What a mount promises, whatever transport carries it: one battery, run for each way to mount. Everything is done by a user of
 * that mount, with the shell, Python and dmfuse itself; what a transport cannot carry has to fail in the way that is promised for it.
 */
import { describe, expect } from 'vitest';
import { type Lab, mountTest } from './harness.js';
import { type RunAsOptions, runAs, type User } from './users.js';

export interface Way {
  readonly user: User;
  /** For `dmfuse mount`. */
  readonly mountOptions?: string;
  /** What .dmfuse says of it. */
  readonly transport: string;
  readonly lacks: readonly string[];
  readonly requestBytesMax: number;
  /**
   * With every target and a file system, too: what these do depends on who serves requests, lanes or the main thread, and on who may
   * what. Two of four ways have all of that between them.
   */
  readonly withTargets: boolean;
}

const SIZE = 4 << 20;

/** A device against a model of it; what is lacking is refused. Arguments: the device, what is lacking, a seed. */
const BYTES = `
import ctypes, errno, os, random, sys
path, lacks, seed = sys.argv[1], sys.argv[2].split(), int(sys.argv[3])
rng = random.Random(seed)
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(path, os.O_RDWR)
size = os.fstat(fd).st_size
assert size == ${SIZE} - 24 * 512, size
def fails(code, work):
    try:
        done = work()
    except OSError as e:
        assert e.errno == code, e
    else:
        raise AssertionError(('no error', code, done))
def fallocate(mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), 'fallocate')
model = bytearray(os.pread(fd, size, 0))
assert len(model) == size
def span():
    length = rng.choice([1, 511, 512, 513, 4095, 4096, 4097, 65536, 131072, 131073, rng.randrange(1, 1500000)])
    offset = rng.choice([rng.randrange(size), rng.randrange(size) // 512 * 512, rng.randrange(5000), size - rng.randrange(1, 5000)])
    return offset, min(length, size - offset)
for i in range(250):
    offset, length = span()
    what = rng.choice(['read', 'read', 'write', 'write', 'punch', 'zero', 'sync', 'trim'])
    if what == 'read':
        assert os.pread(fd, length, offset) == model[offset:offset + length], (seed, i, what, offset, length)
    elif what == 'write':
        data = rng.randbytes(length)
        assert os.pwrite(fd, data, offset) == length, (seed, i, what, offset, length)
        model[offset:offset + length] = data
    elif what == 'trim':
        first, count = offset // 512, length // 512
        if count == 0: continue
        with open(os.path.dirname(path) + '/discard', 'w') as discard: discard.write('%d %d' % (first, count))
        model[first * 512:(first + count) * 512] = bytes(count * 512)
    elif what == 'sync':
        os.fsync(fd)
    else:
        mode = 3 if what == 'punch' else 17
        if 'trim' in lacks:
            fails(errno.EOPNOTSUPP, lambda: fallocate(mode, offset, length))
        else:
            fallocate(mode, offset, length)
            model[offset:offset + length] = bytes(length)
assert os.pread(fd, size, 0) == model, (seed, 'at the end')

# The size is fixed: reads end there, a write that crosses the end is cut, one past it is ENOSPC, truncation is ignored.
for offset in (size, size + 1, 1 << 40):
    fails(errno.ENOSPC, lambda: os.pwrite(fd, b'x', offset))
    assert os.pread(fd, 10, offset) == b''
assert os.pwrite(fd, b'y' * 1000, size - 700) == 700
model[size - 700:] = b'y' * 700
assert os.pread(fd, 1000, size - 701)[1:] == b'y' * 700
os.ftruncate(fd, 5)
os.truncate(path, 1 << 30)
os.close(os.open(path, os.O_RDWR | os.O_TRUNC))
assert os.stat(path).st_size == size
assert os.pread(fd, size, 0) == model, (seed, 'after the truncations')

# Holes, where they are seen; elsewhere all is data.
first, count = 2048, 2048
with open(os.path.dirname(path) + '/discard', 'w') as discard: discard.write('%d %d' % (first, count))
model[first * 512:(first + count) * 512] = bytes(count * 512)
os.pwrite(fd, b'z' * 4096, 1 << 19)
model[1 << 19:(1 << 19) + 4096] = b'z' * 4096
hole = os.lseek(fd, 1 << 19, os.SEEK_HOLE)
if 'seek_hole' in lacks:
    assert hole == size, hole
else:
    assert (1 << 19) < hole <= 1 << 20, hole
    assert (1 << 20) < os.lseek(fd, 1 << 20, os.SEEK_DATA)
fails(errno.ENXIO, lambda: os.lseek(fd, size, os.SEEK_DATA))
os.close(fd)

# What a write with O_DSYNC promises is flushed.
def stat(name):
    return dict(line.split() for line in open(os.path.dirname(path) + '/stats'))[name]
flushes = int(stat('flushes'))
with open(path, 'r+b', buffering=0, opener=lambda p, f: os.open(p, os.O_RDWR | os.O_DSYNC)) as device:
    device.write(b'd' * 512)
    model[:512] = b'd' * 512
assert int(stat('flushes')) == flushes + 1
assert int(stat('errors')) >= 3
assert open(path, 'rb').read() == model
open('model', 'wb').write(model)
print('same')
`;

/** The events of a target. Arguments: its folder, what is lacking. */
const EVENTS = `
import errno, os, select, signal, subprocess, sys, threading, time
folder, lacks = sys.argv[1], sys.argv[2].split()
def fail_write(word):
    try:
        with open(folder + '/discard', 'wb', buffering=0) as discard: discard.write(word.encode())
    except OSError as e:
        assert e.errno == errno.EINVAL, e
        return
    raise AssertionError('accepted')
fd = os.open(folder + '/events', os.O_RDONLY | os.O_NONBLOCK)
try:
    os.read(fd, 100)
    raise AssertionError('read nothing')
except BlockingIOError:
    pass
poll = select.poll()
poll.register(fd, select.POLLIN)
assert bool(poll.poll(0)) == ('poll' in lacks)
# A read waits, longer than any transport lets one wait in one go.
lines = []
def wait():
    with open(folder + '/events', 'rb', buffering=0) as events:
        lines.append(events.read(65536))
reader = threading.Thread(target=wait)
reader.start()
time.sleep(1.3)
assert reader.is_alive() and not lines
fail_write('one')
reader.join()
assert b'found \`one\`' in lines[0], lines
assert poll.poll() == [(fd, select.POLLIN)]
assert os.read(fd, 65536) == lines[0]
# Who waits can be ended, and does not keep a target from going.
for end in (signal.SIGINT, signal.SIGKILL, None):
    cat = subprocess.Popen(['cat', folder + '/events'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert cat.stdout.readline() in lines[0]
    if end is None:
        os.close(fd)
        os.rmdir(folder)
        cat.wait()
    else:
        cat.send_signal(end)
        assert cat.wait() == -end, cat.returncode
assert not os.path.exists(folder)
print('done')
`;

/** The battery. */
export function conformance(name: string, way: Way): void {
  const { user, mountOptions = '' } = way;
  const run = (lab: Lab, script: string, options: RunAsOptions = {}) =>
    runAs(lab, user, script, { mountOptions, ...options });
  const lacks = way.lacks.join(' ');
  const owner = user === 'root' ? 'root root' : 'nobody nogroup';

  describe(`conformance: ${name}`, () => {
    mountTest('the tree: what there is, what it says, what it refuses', async (lab) => {
      const said = await run(lab, treeScript(way));
      expect(said.trimEnd().split('\n')).toEqual([
        `mnt 700 ${owner} directory`,
        `mnt/x 700 ${owner} directory`,
        `mnt/x/device 600 ${owner} regular file`,
        `mnt/x/status 400 ${owner} regular empty file`,
        `mnt/x/discard 200 ${owner} regular empty file`,
        `${SIZE}`,
        'deps device discard events filter info latency message removal size stats status suspended table',
        'x y',
        '0 8192 linear',
        '8192',
        'x  linear  8192 sectors',
        'y  linear  8 sectors',
        'ok',
      ]);
    });

    mountTest('the bytes of a device, of any alignment, to its end and not past it', async (lab) => {
      const seed = String(Math.floor(Math.random() * 1e9));
      await run(
        lab,
        `cat >bytes.py <<'END'\n${BYTES}\nEND
        mount_dmfuse --create "x linear $PWD/disk.img 24"
        cp disk.img before
        python3 bytes.py mnt/x/device '${lacks}' ${seed}
        cmp -n 12288 before disk.img
        dmfuse umount mnt
        tail -c +12289 disk.img | cmp - model
        mount_dmfuse --create "x linear $PWD/disk.img 24"
        cmp model mnt/x/device
        dmfuse umount mnt`,
      );
    });

    mountTest('events: they wake who waits, and who waits holds up nothing', async (lab) => {
      expect(
        await run(
          lab,
          `cat >events.py <<'END'\n${EVENTS}\nEND
          mount_dmfuse --create "x linear $PWD/disk.img 0"
          python3 events.py mnt/x '${lacks}'
          dmfuse umount mnt`,
        ),
      ).toBe('done\n');
    });

    const targetTest: typeof mountTest = way.withTargets ? mountTest : () => {};

    targetTest('bow and csum: checkpoint, rollback, commit; damage is EIO and an event', async (lab) => {
      await run(lab, BOW_AND_CSUM);
    });

    targetTest('cow and clone: layers, and a copy that is in use while it is made', async (lab) => {
      await run(lab, COW_AND_CLONE);
    });

    targetTest('blksnap: an image stays as it was, maps tell what has changed', async (lab) => {
      await run(lab, SNAPSHOTS);
    });

    targetTest('mkfs, debugfs, fsck and qemu-img take the file itself', async (lab) => {
      await run(lab, FILE_SYSTEM);
    });

    mountTest(
      'every end flushes and ends the daemon: umount, SIGTERM, a signal while it is open',
      async (lab) => {
        await run(lab, ENDS);
      },
    );

    mountTest('nobody else gets in; with --allow-other files are still the owner`s', async (lab) => {
      await run(lab, STRANGERS, { byRoot: true, userAllowOther: true });
    });
  });
}

function treeScript({ transport, lacks, requestBytesMax }: Way): string {
  const facts = { name: transport, lacks, requestBytesMax };
  return `
    mount_dmfuse
    diff <(tail -n 3 mnt/.dmfuse) - <<'END'
transport ${transport}
${`lacks ${lacks.join(' ')}`.trimEnd()}
request_bytes_max ${requestBytesMax}
END
    mkdir mnt/x
    echo "linear $PWD/disk.img 0 1 no_passthrough" >mnt/x/table
    truncate -s 4096 small.img
    dmfuse create mnt y "linear $PWD/small.img 0"
    stat -c '%n %a %U %G %F' mnt mnt/x mnt/x/device mnt/x/status mnt/x/discard
    stat -c %s mnt/x/device
    echo $(ls mnt/x)
    echo $(ls mnt)
    [[ $(find mnt -printf '%i\\n' | sort | uniq -d) == '' ]]
    cat mnt/x/status mnt/x/size
    dmfuse ls mnt
    dmfuse status mnt --json | python3 -c '
import json, sys
status = json.load(sys.stdin)
assert status["transport"] == json.loads(sys.argv[1]), status
assert [t["name"] for t in status["targets"]] == ["x", "y"], status' '${JSON.stringify(facts)}'
    dmfuse status mnt >status
    [[ $(grep -c '^transport: ' status) == ${lacks.length === 0 ? 0 : 1} ]]
    grep -qx 'x: 0 8192 linear' status

    refused 'in use' dmfuse create mnt z "linear $PWD/disk.img 0"
    refused 'there is a target of that name' dmfuse create mnt x "linear $PWD/disk.img 0"
    mkdir mnt/z
    ! (echo 'linear nowhere 0' >mnt/z/table) 2>/dev/null
    grep -q '^failed: ' mnt/z/status
    rmdir mnt/z
    for command in 'mkdir mnt/x/sub' 'touch mnt/new' 'rm -f mnt/x/size' 'rmdir mnt/none' 'cat mnt/x/discard-' 'mkdir mnt/.dot'; do
      ! $command 2>/dev/null || { echo "$command does"; exit 9; }
    done
    touch mnt/x/status

    exec 3<mnt/x/device
    refused 'in use' dmfuse remove mnt x
    ! rmdir mnt/x 2>err
    grep -q busy err
    exec 3<&-
    dmfuse remove mnt x
    [[ ! -e mnt/x ]]

    chmod 640 mnt/y/device
    chgrp $(id -g) mnt/y/device
    chmod 750 mnt/y
    [[ $(stat -c %a mnt/y mnt/y/device | xargs) == '750 640' ]]
    if [[ $(id -u) == 0 ]]; then
      chown 1234:99 mnt/y/status
      [[ $(stat -c %u:%g mnt/y/status) == 1234:99 ]]
      chown 55 mnt/y/status
      [[ $(stat -c %u:%g mnt/y/status) == 55:99 ]]
    fi
    pid=$(daemon)
    dmfuse umount mnt
    ! mounted
    gone $pid
    echo ok`;
}

const BOW_AND_CSUM = `
    cp disk.img original
    head -c 1M /dev/urandom >data
    truncate -s 4M safe.img
    dmfuse csum format safe.img >/dev/null
    mount_dmfuse --create "sys bow $PWD/disk.img" --create "safe csum $PWD/safe.img 0"
    write() { dd if=data of=mnt/sys/device bs=64K seek=4 conv=notrunc,fsync status=none; }
    echo '4096 4096' >mnt/sys/discard
    echo 1 >mnt/sys/state
    write
    cmp -n 1M data mnt/sys/device 0 262144
    dd if=data of=mnt/safe/device bs=100000 seek=7 oflag=seek_bytes conv=notrunc,fsync status=none
    cmp -n 1M data mnt/safe/device 0 7
    dmfuse umount mnt
    refused 'dmfuse bow restore' dmfuse mount mnt --create "sys bow $PWD/disk.img"
    dmfuse bow check disk.img >/dev/null
    dmfuse bow restore disk.img >/dev/null
    cmp -n 2M disk.img original
    dmfuse csum check safe.img >/dev/null
    # A sector of ours, wherever the layout has put it.
    python3 -c '
image, data = open("safe.img", "r+b"), open("data", "rb").read()
at = image.read().index(data[300000:300064])
image.seek(at)
image.write(bytes([data[300000] ^ 1]))'

    mount_dmfuse --create "sys bow $PWD/disk.img" --create "safe csum $PWD/safe.img 0"
    echo '4096 4096' >mnt/sys/discard
    echo 1 >mnt/sys/state
    write
    echo 2 >mnt/sys/state
    cmp -n 1M data mnt/sys/device 0 262144
    ! dd if=mnt/safe/device of=/dev/null bs=512 skip=$((300000 / 512)) count=2 status=none 2>err
    grep -q 'Input/output error' err
    [[ $(xargs <mnt/safe/errors) == "count 1 sector $((300000 / 512))" ]]
    until dd if=mnt/safe/events of=event bs=64K iflag=nonblock status=none 2>/dev/null; grep -q 'io_error op=read sector=' event; do
      sleep 0.05
    done
    dmfuse umount mnt
    cmp -n 1M data disk.img 0 262144
    [[ $(dmfuse bow restore disk.img) == 'no log' ]]`;

const COW_AND_CLONE = `
    cp disk.img original
    dmfuse cow create disk.img vm1
    head -c 1M /dev/urandom >data
    stack="$PWD/disk.img 0 $PWD/vm1.bitmap $PWD/vm1 0"
    truncate -s 4M meta copy.img
    mount_dmfuse --create "vm1 cow $stack" --create "copy clone $PWD/meta $PWD/copy.img $PWD/disk.img 8 1 no_hydration"
    dd if=data of=mnt/vm1/device bs=1000 seek=99 conv=notrunc,fsync status=none
    cp mnt/vm1/device expected
    cmp -n 1M data mnt/vm1/device 0 99000
    cmp -n 99000 original mnt/vm1/device
    cmp original mnt/copy/device
    dd if=data of=mnt/copy/device bs=3000 seek=111 conv=notrunc,fsync status=none
    cp mnt/copy/device copied
    echo 1 >mnt/copy/hydration
    dmfuse clone wait mnt copy >/dev/null 2>&1
    cmp copied mnt/copy/device
    dmfuse umount mnt
    cmp original disk.img
    cmp copied copy.img
    dmfuse clone check meta >/dev/null
    mount_dmfuse --create "vm1 cow $stack"
    cmp expected mnt/vm1/device
    dmfuse umount mnt
    dmfuse cow flatten disk.img vm1 out.img >/dev/null
    cmp expected out.img`;

const SNAPSHOTS = `
    cp disk.img original
    head -c 1M /dev/urandom >data
    mount_dmfuse --create "sys linear $PWD/disk.img 0 1 no_passthrough"
    cat >backup <<'END'
set -e
cmp "$DMFUSE_IMAGE" original
dd if=data of=mnt/sys/device bs=64K seek=5 conv=notrunc,fsync status=none
cmp "$DMFUSE_IMAGE" original
cmp -n 1M data mnt/sys/device 0 327680
printf image | dd of="$DMFUSE_IMAGE" conv=notrunc status=none
[[ $(head -c 5 "$DMFUSE_IMAGE") == image ]]
cmp -n 5 mnt/sys/device original
cat "$DMFUSE_SNAPSHOT/state" >state
END
    mkdir store
    dmfuse snapshot run mnt nightly --device sys --storage store/diff --no-freeze --grow 1M -- bash backup
    [[ $(head -n 1 state) == taken ]]
    [[ ! -e mnt/snapshots/nightly && ! -e store/diff ]]

    # By hand: a snapshot that watches, and is destroyed while it is watched.
    dmfuse snapshot create mnt two --device sys >id
    dmfuse snapshot watch mnt two >watched & watcher=$!
    dmfuse snapshot append mnt two store/two 0 8192
    dmfuse snapshot take mnt two --no-freeze
    cp mnt/sys/device expected
    dd if=/dev/zero of=mnt/sys/device bs=64K count=3 seek=1 conv=notrunc,fsync status=none
    cmp expected mnt/snapshots/two/images/sys
    dmfuse snapshot show mnt two --json | grep -q '"state": "taken"'
    dmfuse snapshot list mnt | grep -q '^two  taken'
    dmfuse cbt info mnt sys | grep -q '^changes_number '
    until grep -q low_free_space watched; do sleep 0.05; done
    dmfuse snapshot destroy mnt two
    wait $watcher
    cmp -n 65536 mnt/sys/device original
    cmp -n 196608 mnt/sys/device /dev/zero 65536
    echo none >mnt/sys/filter
    dmfuse umount mnt`;

const FILE_SYSTEM = `
    truncate -s 32M big.img
    mount_dmfuse --create "fs linear $PWD/big.img 0 1 no_passthrough"
    PATH=$PATH:/usr/sbin:/sbin
    mkfs.ext4 -q -F mnt/fs/device
    head -c 3M /dev/urandom >data
    debugfs -w -R 'write data data' mnt/fs/device 2>/dev/null
    e2fsck -fn mnt/fs/device >/dev/null 2>&1
    debugfs -R 'dump data back' mnt/fs/device 2>/dev/null
    cmp data back
    if command -v qemu-img >/dev/null; then
      qemu-img compare -f raw -F raw mnt/fs/device big.img >/dev/null
      qemu-img convert -f raw -O qcow2 mnt/fs/device copy.qcow2
      qemu-img compare -f raw -F qcow2 mnt/fs/device copy.qcow2 >/dev/null
    fi
    dmfuse umount mnt
    e2fsck -fn big.img >/dev/null 2>&1`;

const ENDS = `
    say() { printf "$1" | dd of=mnt/x/device conv=notrunc status=none; }
    mount_dmfuse --create "x linear $PWD/disk.img 0 1 no_passthrough"
    pid=$(daemon)
    say umount
    if [[ $(id -u) == 0 ]]; then umount mnt; else fusermount3 -u mnt; fi
    gone $pid
    [[ $(head -c 6 disk.img) == umount ]]

    mount_dmfuse -f --create "x linear $PWD/disk.img 0 1 no_passthrough" 2>log & pid=$!
    until [[ -e mnt/x/device ]]; do sleep 0.05; done
    say sigterm
    kill $(daemon)
    wait $pid || { echo "SIGTERM: exit $?"; cat log; exit 2; }
    ! mounted
    [[ $(head -c 7 disk.img) == sigterm ]]

    # Open, and waited for: detached, and served until it is closed; who waits for an event sees the end.
    mount_dmfuse -f --create "x linear $PWD/disk.img 0 1 no_passthrough" 2>log & pid=$!
    until [[ -e mnt/x/device ]]; do sleep 0.05; done
    exec 3<>mnt/x/device
    timeout 60 cat mnt/x/events & reader=$!
    refused 'mnt/x/device by process' dmfuse umount mnt
    kill $(daemon)
    wait $reader
    while mounted; do sleep 0.05; done
    printf detached >&3
    exec 3<&-
    wait $pid || { echo "detached: exit $?"; cat log; exit 5; }
    grep -q detached log
    [[ $(head -c 8 disk.img) == detached ]]

    mount_dmfuse
    pid=$(daemon)
    kill -9 $pid
    gone $pid
    refused 'its daemon is dead' dmfuse ls mnt
    dmfuse umount mnt
    ! mounted`;

const STRANGERS = `
    stranger() { setpriv --reuid=1234 --regid=1234 --clear-groups "$@"; }
    denied() { ! stranger "$@" 2>err >/dev/null || { echo "a stranger may $*"; exit 9; }; grep -q 'Permission denied' err; }
    table="x linear $PWD/disk.img 0 1 no_passthrough"
    mount_dmfuse --create "$table"
    denied ls mnt
    denied cat mnt/x/status
    denied cat mnt/.dmfuse
    denied head -c 1 mnt/x/device
    dmfuse umount mnt

    mount_dmfuse --allow-other --create "$table"
    stranger ls mnt/x >/dev/null
    stranger stat mnt/x/device >/dev/null
    for file in mnt/x/device mnt/x/status mnt/x/events; do denied head -c 1 $file; done
    denied bash -c 'echo 0 8 >mnt/x/discard'
    denied mkdir mnt/y
    denied rmdir mnt/x
    denied chmod 666 mnt/x/device || grep -q 'not permitted' err
    chmod 644 mnt/x/device
    stranger cmp disk.img mnt/x/device
    denied bash -c 'printf x >mnt/x/device'
    chmod 666 mnt/x/device
    printf ours | stranger dd of=mnt/x/device conv=notrunc status=none
    [[ $(head -c 4 disk.img) == ours ]]
    dmfuse umount mnt`;
