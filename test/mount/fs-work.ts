/**
 * Work on file systems that several stories share: trees that grow and change as those of git do, and a witness of what
 * fsync(2) promised when the daemon below is killed.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'vitest';
import { Prng } from '../../src/device/prng.js';
import type { Lab, Mount } from './harness.js';

/** Of targets, by name; those that stand on others come after them. */
export type Tables = readonly (readonly [name: string, table: string])[];

/** Mounts with these targets. */
export async function mountWith(lab: Lab, tables: Tables = [], name = 'mnt'): Promise<Mount> {
  const creates = tables.flatMap(([target, table]) => ['--create', `${target} ${table}`]);
  return await lab.mount({ name, args: creates });
}

/** Unmounts, and waits until the daemon has gone. */
export async function endMount(lab: Lab, mount: Mount): Promise<void> {
  await lab.ok('umount', mount.point);
  await mount.daemonEnd();
}

/** Makes a target by the shell. */
export async function createTarget(lab: Lab, mount: Mount, name: string, table: string): Promise<void> {
  await lab.sh(`mkdir ${mount.path(name)}; echo '${table}' >${mount.path(name, 'table')}`);
}

/** Why a table is refused. */
export async function refusedTable(lab: Lab, mount: Mount, table: string): Promise<string> {
  const folder = mount.path('refused');
  expect(await lab.shell(`mkdir ${folder}; echo '${table}' >${folder}/table`)).toMatchObject({ code: 1 });
  const status = mount.read('refused/status');
  expect(status).toMatch(/^failed: /);
  await lab.sh(`rmdir ${folder}`);
  return status.replace('failed: ', '');
}

/** Many small files: written beside and renamed into place, changed, moved with their folders, deleted, packed into one. */
const CHANGE = `
import os, random, shutil, sys
root, seed, commits = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
os.chdir(root)
def data():
    return rng.randbytes(rng.choice([0, 20, 300, 512, 1500, 4096, 6000, rng.randrange(60000)]))
def put(name, content):
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name + '.lock', 'wb') as f:
        f.write(content)
    os.rename(name + '.lock', name)
def below(folder):
    return sorted(os.path.join(d, f) for d, _, names in os.walk(folder) for f in names)
for commit in range(commits):
    files = below('work')
    for i in range(50):
        put('objects/%02x/%030x' % (rng.randrange(32), rng.getrandbits(120)), data())
        what = rng.random()
        if len(files) < 20 or what < 0.4:
            put('work/d%d/e%d/f%d-%d' % (rng.randrange(4), rng.randrange(4), seed, commit * 50 + i), data())
        elif what < 0.6:
            os.unlink(files.pop(rng.randrange(len(files))))
        elif what < 0.75:
            os.rename(files.pop(rng.randrange(len(files))), 'work/moved-%d-%d-%d' % (seed, commit, i))
        else:
            with open(rng.choice(files), 'r+b') as f:
                f.seek(rng.randrange(5000))
                f.write(data())
    folders = sorted(d for d in os.listdir('work') if os.path.isdir('work/' + d))
    if len(folders) > 1:
        os.rename('work/' + rng.choice(folders), 'work/d-%d-%d' % (seed, commit))
    if len(folders) > 6:
        shutil.rmtree('work/' + rng.choice(sorted(d for d in os.listdir('work') if os.path.isdir('work/' + d))))
    if rng.random() < 0.5:
        loose = 'objects/' + rng.choice(sorted(os.listdir('objects')))
        if loose != 'objects/pack':
            put('objects/pack/%d-%d' % (seed, commit), b''.join(open(f, 'rb').read() for f in below(loose)))
            shutil.rmtree(loose)
    if rng.random() < 0.3:
        os.sync()
`;

/** Changes the tree at `root`; a commit is some hundred operations and about a mebibyte. */
export async function changeTree(lab: Lab, root: string, seed: number, commits = 3): Promise<void> {
  await lab.python(CHANGE, root, String(seed), String(commits));
}

/** The sector of its file system's device at which byte `offset` of a file is. */
export async function sectorOf(lab: Lab, file: string, offset = 0): Promise<number> {
  const answer = await lab.python(
    `
import fcntl, os, struct, sys
fd, offset = os.open(sys.argv[1], os.O_RDONLY), int(sys.argv[2])
os.fsync(fd)
FIBMAP, FIGETBSZ = 1, 2
ask = lambda what, n: struct.unpack('i', fcntl.ioctl(fd, what, struct.pack('i', n)))[0]
size = ask(FIGETBSZ, 0)
block = ask(FIBMAP, offset // size)
assert block != 0
print((block * size + offset % size) // 512)`,
    file,
    String(offset),
  );
  return Number(answer);
}

/**
 * Threads that change files of their own, each change followed by the fsync that promises it, until the device below is
 * gone; then what was promised is printed. A thread stops at its first error, so that one change of each is open.
 *
 *   T-N      replaced as a whole: written beside, fsync, rename, fsync of the folder; or deleted, fsync of the folder
 *   T-log    a line more, fdatasync
 *   T-slots  slots of 5 sectors, overwritten in place, fdatasync: no journal helps here
 */
const FSYNC_WITNESS = `
import json, os, random, struct, sys, threading
root, seed = sys.argv[1], int(sys.argv[2])
THREADS, NAMES, SLOTS, LEAST = 3, 12, 40, 25
os.makedirs(root)
folder = os.open(root, os.O_RDONLY)
os.sync()
barrier = threading.Barrier(THREADS + 1)
def write(fd, data, at):
    if os.pwrite(fd, data, at) != len(data):
        raise OSError('a short write')
def line(number):
    return random.Random(number).randbytes(333)
def slot(number, n):
    return b''.join(struct.pack('<QII', number, n, i) * 32 for i in range(5))
class Thread(threading.Thread):
    def __init__(self, t):
        super().__init__()
        self.t, self.rng = t, random.Random(seed * 10 + t)
        self.names, self.slots, self.lines, self.open, self.done = {}, [0] * SLOTS, 0, None, 0
        self.error = None
        self.log = os.open('%s/%d-log' % (root, t), os.O_RDWR | os.O_CREAT)
        self.slot_file = os.open('%s/%d-slots' % (root, t), os.O_RDWR | os.O_CREAT)
        write(self.slot_file, b''.join(slot(0, n) for n in range(SLOTS)), 0)
        os.fsync(self.slot_file)
        os.fsync(self.log)
        os.fsync(folder)
    def sync_folder(self):
        os.fsync(folder)
        # Of a folder ext4 says 0 also where the commit with its change has failed, if another thread was told so. This flushes
        # the device itself, which answers or is gone.
        os.fdatasync(self.slot_file)
    def replace(self, number):
        name = '%d-%d' % (self.t, self.rng.randrange(NAMES))
        path = root + '/' + name
        if self.names.get(name) and self.rng.random() < 0.3:
            self.open = ['name', name, None]
            os.unlink(path)
            self.sync_folder()
            self.names[name] = None
            return
        self.open = ['name', name, number]
        fd = os.open(path + '.new', os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            write(fd, random.Random(number).randbytes(number * 7919 % 50000), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(path + '.new', path)
        self.sync_folder()
        self.names[name] = number
    def append(self, number):
        self.open = ['log']
        write(self.log, line(self.lines), self.lines * 333)
        os.fdatasync(self.log)
        self.lines += 1
    def overwrite(self, number):
        n = self.rng.randrange(SLOTS)
        self.open = ['slot', n, number]
        write(self.slot_file, slot(number, n), n * 2560)
        os.fdatasync(self.slot_file)
        self.slots[n] = number
    def run(self):
        number = 0
        try:
            while True:
                number += 1
                self.rng.choice([self.replace, self.append, self.overwrite])(number)
                self.open = None
                self.done += 1
                if self.done == LEAST:
                    barrier.wait()
        except OSError as e:
            self.error = str(e)
            if self.done < LEAST:
                barrier.abort()
threads = [Thread(t) for t in range(THREADS)]
for t in threads: t.start()
barrier.wait()
print('ready', flush=True)
for t in threads: t.join()
print(json.dumps([{key: getattr(t, key) for key in ('names', 'slots', 'lines', 'open', 'done', 'error')} for t in threads]))
`;

/** Whether a folder holds what the witness's fsyncs promised: all of it, and nothing half. */
const JUDGE = `
import json, os, random, struct, sys
root, threads = sys.argv[1], json.load(sys.stdin)
def content(name):
    try:
        return open(root + '/' + name, 'rb').read()
    except FileNotFoundError:
        return None
def expected(number):
    return None if number is None else random.Random(number).randbytes(number * 7919 % 50000)
for t, record in enumerate(threads):
    what, *open_change = record['open'] or ['']
    names = dict(record['names'])
    if what == 'name':
        names.setdefault(open_change[0], None)
    for name, number in names.items():
        may_be = [number]
        if what == 'name' and open_change[0] == name:
            may_be.append(open_change[1])
        assert content(name) in [expected(n) for n in may_be], 'file %s is none of %s' % (name, may_be)
    log = content('%d-log' % t)
    for i in range(record['lines']):
        assert log[i * 333:i * 333 + 333] == random.Random(i).randbytes(333), 'line %d of thread %d' % (i, t)
    slots = content('%d-slots' % t)
    assert len(slots) == len(record['slots']) * 2560
    for n, number in enumerate(record['slots']):
        may_be = [number]
        if what == 'slot' and open_change[0] == n:
            may_be.append(open_change[1])
        for i in range(5):
            found = slots[n * 2560 + i * 512:n * 2560 + i * 512 + 512]
            stamps = [struct.pack('<QII', m, n, i) * 32 for m in may_be]
            assert found in stamps, 'sector %d of slot %d of thread %d: %s, not of %s' % (i, n, t, found[:16], may_be)
`;

/** What fsync promised in a folder of a file system. */
export interface Promises {
  /** Of the file system's mount point. */
  readonly folder: string;
  readonly record: string;
}

/**
 * Kills the daemon at any moment while files of the file system at `fs`, on `loop`, are being written and fsynced, and
 * clears away what is left.
 */
export async function killUnderFsyncs(
  lab: Lab,
  mount: Mount,
  { fs, loop, seed }: { fs: string; loop: string; seed: number },
): Promise<Promises> {
  const folder = `round-${seed}`;
  const witness = lab.start('python3', ['-c', FSYNC_WITNESS, `${fs}/${folder}`, String(seed)]);
  await witness.prints(/^ready$/m);
  // More changes, or none; a long one is met in its middle.
  await sleep(new Prng(seed).below(100));
  await mount.killDaemon();
  const { code, stdout, stderr } = await witness.ended;
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  // A file system that has lost its device may complain.
  await lab.shell(`umount ${fs} || umount -l ${fs}`);
  await lab.unloop(loop);
  await lab.ok('umount', mount.point);
  return { folder, record: stdout.replace(/^ready\n/, '') };
}

/** The file system at `fs` has kept what was promised. */
export async function expectKept(lab: Lab, fs: string, { folder, record }: Promises): Promise<void> {
  const { code, stderr } = await lab.run('python3', ['-c', JUDGE, `${fs}/${folder}`], { input: record });
  expect({ folder, code, stderr }).toEqual({ folder, code: 0, stderr: '' });
}
