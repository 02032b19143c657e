/**
 * Filters as they are meant to be used: they come and go before devices that are at work, whatever the device is, and see all
 * that is written, whoever writes it.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { mkdir, readFile, rmdir } from 'node:fs/promises';
import { describe, expect } from 'vitest';
import { entriesOf, nameOf, replay } from '../filters/naive-replay.js';
import { cloneTable, makeTargetFiles, setHydration } from './clone-work.js';
import { changesOf, Load, refusal, refusedLine, SnapshotFolder, setFile, track } from './filter-work.js';
import { changeTree, endMount, mountWith } from './fs-work.js';
import { type Lab, type Mount, mountTest, until } from './harness.js';

const MIB = 1 << 20;
const LOG = 'log.img';

/** The tracking blocks of a device that have changed since it is tracked, by a snapshot that is gone again. */
async function changedSoFar(lab: Lab, mount: Mount, device: string): Promise<number[]> {
  await lab.sh('touch store');
  const snapshot = await SnapshotFolder.take(mount, 'look', [device], `${lab.path('store')} 0 40960`);
  const { map } = await changesOf(mount, device);
  await snapshot.remove();
  return [...map.keys()].filter((block) => map[block]! > 0);
}

/** Numbers from `first` up to, not including, `end`. */
function range(first: number, end: number): number[] {
  return Array.from({ length: end - first }, (_, i) => first + i);
}

/** One write of noise, so many KiB, to a file, from one of its KiB on. */
async function writeKib(lab: Lab, file: string, at: number, count: number): Promise<void> {
  await lab.sh(`dd if=/dev/urandom of=${file} bs=${count}K count=1 iflag=fullblock oflag=seek_bytes seek=${at * 1024} \
    conv=notrunc status=none`);
}

mountTest('filters come and go 100 times while devices of every type are at work', async (lab) => {
  await lab.sh(`for name in linear csum bow source.img; do head -c 16M /dev/urandom >$name; done
    truncate -s 16M base layer; truncate -s 128K bitmap; touch {linear,csum,cow,clone,bow}.log`);
  await lab.dmfuseOk('csum', 'format', lab.path('csum'));
  await makeTargetFiles(lab, 16);
  const mount = await mountWith(lab, [
    ['linear', `linear ${lab.path('linear')} 0 1 no_passthrough`],
    ['csum', `csum ${lab.path('csum')} 0`],
    ['cow', `cow ${lab.path('base')} 0 ${lab.path('bitmap')} ${lab.path('layer')} 0`],
    ['clone', cloneTable(lab, { options: '1 no_hydration' })],
    ['bow', `bow ${lab.path('bow')}`],
  ]);
  // State 1 is that in which all of bow's requests are served by lanes.
  await lab.sh(`cd ${mount.path('bow')}; echo '16384 16384' >discard; echo 1 >state`);
  const names = ['linear', 'csum', 'cow', 'clone', 'bow'];
  const loops = [];
  for (const name of names) loops.push(await lab.loop(mount.path(name, 'device')));
  const load = Load.start(lab, loops, 4);
  await load.rounds(1);
  const filter = (name: string) => mount.path(name, 'filter');
  for (let round = 1; round <= 100; round++) {
    if (round === 50) setHydration(mount, true, 'clone');
    for (const name of names) {
      const isLog = round % 10 === 0;
      const line = isLog ? `log-writes ${lab.path(`${name}.log`)}` : 'blksnap';
      await setFile(filter(name), line);
      expect(mount.read(`${name}/filter`)).toBe(line);
      if (round % 25 === 7) {
        expect(await refusedLine(filter(name), line)).toBe('EALREADY');
        expect(await refusedLine(filter(name), `log-writes ${lab.path('base')}`)).toBe('EBUSY');
        expect(await refusedLine(filter(name), 'blktrap')).toBe('ENOENT');
        expect(mount.read(`${name}/filter`)).toBe(line);
      }
    }
    if (round % 25 === 0) await load.another();
    for (const name of names) {
      await setFile(filter(name), 'none');
      expect(mount.read(`${name}/filter`)).toBe('none');
      if (round % 25 === 7) expect(await refusedLine(filter(name), 'none')).toBe('ENOENT');
    }
  }
  await load.stop();
  for (const name of names) {
    expect([name, mount.stats(name).errors]).toEqual([name, 0]);
    expect((await mount.events(name)).filter((event) => !/^(refused|hydrated|state) /.test(event))).toEqual(
      [],
    );
    expect(entriesOf(readFileSync(lab.path(`${name}.log`))).length).toBeGreaterThan(1);
  }
  await lab.unloop(...loops);
  await endMount(lab, mount);
  await lab.dmfuseOk('csum', 'check', lab.path('csum'));
  await lab.dmfuseOk('bow', 'check', lab.path('bow'));
});

mountTest('a device that is passed through is refused, and has its filter once it is closed', async (lab) => {
  await lab.sh('truncate -s 4M a.img b.img; mkfifo go');
  const mount = await mountWith(lab, [
    ['a', `linear ${lab.path('a.img')} 0`],
    ['b', `linear ${lab.path('b.img')} 0 1 no_passthrough`],
  ]);
  const holder = lab.start('bash', ['-c', `exec 3<>${mount.path('a/device')}; echo open; sleep 1000`]);
  const beside = lab.start('bash', ['-c', `exec 3<>${mount.path('b/device')}; echo open; sleep 1000`]);
  await Promise.all([holder.prints(/open/), beside.prints(/open/)]);
  await setFile(mount.path('b/filter'), 'blksnap');
  expect(await refusedLine(mount.path('a/filter'), 'blksnap')).toBe('EBUSY');
  expect(mount.read('a/filter')).toBe('none');
  expect((await mount.events('a')).at(-1)).toMatch(
    /^refused file=filter errno=16 reason=".*passthrough.*no_passthrough"/,
  );
  holder.kill();
  await holder.ended;
  await until(
    async () => (await refusedLine(mount.path('a/filter'), 'blksnap')) === 'not refused',
    'the close',
  );
  // What is opened from now on is not passed through: the filter sees what is written.
  const { writes } = mount.stats('a');
  await writeKib(lab, mount.path('a/device'), 64, 1);
  expect(mount.stats('a').writes).toBeGreaterThan(writes!);
  expect(await changedSoFar(lab, mount, 'a')).toEqual([1]);
  // And when it is gone, new opens are passed through again, with no filter any more.
  const late = lab.start('bash', [
    '-c',
    `exec 3<>${mount.path('a/device')}; echo open; read -r <go; dd if=/dev/urandom bs=1K count=1 >&3 status=none`,
  ]);
  await late.prints(/open/);
  await setFile(mount.path('a/filter'), 'none');
  await lab.sh('echo now >go');
  expect(await late.ended).toMatchObject({ code: 0 });
  expect(mount.stats('a').errors).toBe(0);
  await setFile(mount.path('a/filter'), 'blksnap');
  await setFile(mount.path('a/filter'), 'none');
  beside.kill();
  await beside.ended;
  await endMount(lab, mount);
});

describe('a filter sees what is written by a target that stands on its device', () => {
  mountTest('by its users, at once when it is attached, and not after it is detached', async (lab) => {
    await lab.sh('truncate -s 4M low.img; touch log.img');
    const mount = await mountWith(lab, [
      ['low', `linear ${lab.path('low.img')} 0`],
      ['up', 'linear @low 8 1 no_passthrough'],
    ]);
    const up = mount.path('up/device');
    await track(mount, 'low');
    await writeKib(lab, up, 60, 1);
    await setFile(mount.path('up/discard'), '2560 128');
    expect(await changedSoFar(lab, mount, 'low')).toEqual([1, 20, 21]);
    await setFile(mount.path('low/filter'), 'none');
    await setFile(mount.path('low/filter'), `log-writes ${lab.path(LOG)}`);
    await writeKib(lab, up, 200, 4);
    await setFile(mount.path('low/filter'), 'none');
    await writeKib(lab, up, 300, 4);
    const entries = entriesOf(readFileSync(lab.path(LOG)));
    expect(entries.map(nameOf).filter((name) => name.startsWith('write'))).toEqual(['write 408+8']);
    await endMount(lab, mount);
  });

  mountTest('in the background: hydration, and what is committed regularly', async (lab) => {
    await lab.sh(`head -c 8M /dev/urandom >source.img; head -c 8M /dev/urandom >dest.img
      truncate -s 1M meta; truncate -s 4M data.img; truncate -s 1M imd.img`);
    await lab.dmfuseOk('csum', 'format', lab.path('data.img'), lab.path('imd.img'));
    const plain = (name: string) => `linear ${lab.path(`${name}.img`)} 0`;
    const mount = await mountWith(lab, [
      ['dest', plain('dest')],
      ['data', plain('data')],
      ['imd', plain('imd')],
      ['x', `clone ${lab.path('meta')} @dest ${lab.path('source.img')} 8 1 no_hydration`],
      ['y', 'csum @data 0 @imd 0'],
    ]);
    await track(mount, 'dest', 'imd');
    expect(await changedSoFar(lab, mount, 'dest')).toEqual([]);
    setHydration(mount, true);
    await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
    expect(await changedSoFar(lab, mount, 'dest')).toEqual(range(0, 128));
    const before = await changedSoFar(lab, mount, 'imd');
    await lab.sh(
      `dd if=/dev/urandom of=${mount.path('y/device')} bs=1M count=3 oflag=direct conv=notrunc status=none`,
    );
    await until(
      async () => (await changedSoFar(lab, mount, 'imd')).length > before.length,
      'a commit that nobody asks for',
    );
    await lab.sh(`cmp source.img ${mount.path('x/device')}`);
    await endMount(lab, mount);
    await lab.dmfuseOk('csum', 'check', lab.path('data.img'), lab.path('imd.img'));
  });
});

describe('the end of a device with a filter', () => {
  mountTest('rmdir and umount end both, and the log has its end', async (lab) => {
    await lab.sh('truncate -s 4M a.img b.img; touch a.log b.log');
    const tables = ['a', 'b'].map((name) => [name, `linear ${lab.path(`${name}.img`)} 0`] as const);
    const mount = await mountWith(lab, tables);
    for (const name of ['a', 'b']) {
      await setFile(mount.path(name, 'filter'), `log-writes ${lab.path(`${name}.log`)}`);
      await writeKib(lab, mount.path(name, 'device'), 4, 4);
    }
    // What a filter has is in use.
    await mkdir(mount.path('c'));
    expect(await refusedLine(mount.path('c/table'), `linear ${lab.path('a.log')} 0`)).toBe('EBUSY');
    await rmdir(mount.path('a'));
    await setFile(mount.path('c/table'), `linear ${lab.path('a.img')} 0`);
    await track(mount, 'c');
    await writeKib(lab, mount.path('c/device'), 0, 4);
    const snapshot = await SnapshotFolder.make(mount, 's', ['c']);
    expect(await refusal(rmdir(mount.path('c')))).toBe('EBUSY');
    expect(await refusedLine(mount.path('c/filter'), 'none')).toBe('EBUSY');
    await snapshot.remove();
    await rmdir(mount.path('c'));
    await mount.create('c', `linear ${lab.path('a.img')} 0`);
    expect(mount.read('c/filter')).toBe('none');
    await track(mount, 'c');
    await endMount(lab, mount);
    for (const name of ['a', 'b']) {
      const entries = entriesOf(readFileSync(lab.path(`${name}.log`))).map(nameOf);
      expect(entries.filter((entry) => entry !== 'flush')).toEqual(['write 8+8', 'mark dm-log-writes-end']);
    }
  });
});

describe('log-writes', () => {
  mountTest('a file system is replayed to each mark: sound, with the files that it had', async (lab) => {
    await lab.sh(`head -c 16M /dev/urandom >a.img; cp a.img replayed; truncate -s 0 ${LOG}`);
    const mount = await mountWith(lab, [['a', `linear ${lab.path('a.img')} 0`]]);
    await setFile(mount.path('a/filter'), `log-writes ${lab.path(LOG)}`);
    const loop = await lab.loop(mount.path('a/device'));
    await lab.sh(`mkfs.ext4 -q -E lazy_itable_init=0 ${loop}`);
    const marks: { name: string; tree: string; hash: string }[] = [];
    for (let round = 1; round <= 3; round++) {
      const fs = await lab.mountFs(loop);
      await changeTree(lab, fs, round, 2);
      if (round === 2) await lab.sh(`fstrim ${fs}`);
      const tree = await lab.treeState(fs);
      await lab.sh(`umount ${fs}; sync ${mount.path('a/device')}`);
      const name = `after round ${round}`;
      await setFile(mount.path('a/mark'), name);
      marks.push({ name, tree, hash: await lab.sha256('a.img') });
    }
    await setFile(mount.path('a/filter'), 'none');
    await lab.sh(`dd if=/dev/zero of=${loop} bs=1M count=1 oflag=direct status=none`);
    await lab.unloop(loop);
    await endMount(lab, mount);

    const entries = entriesOf(readFileSync(lab.path(LOG)));
    expect(entries.filter(({ mark }) => mark).map(({ mark }) => mark)).toEqual([
      ...marks.map(({ name }) => name),
      'dm-log-writes-end',
    ]);
    expect(entries.some((entry) => nameOf(entry).startsWith('discard'))).toBe(true);
    const content = readFileSync(lab.path('replayed'));
    for (const entry of entries) {
      if (!entry.mark) replay(entry, content);
      const mark = marks.find(({ name }) => name === entry.mark);
      if (!mark) continue;
      writeFileSync(lab.path('replayed'), content);
      expect([mark.name, await lab.sha256('replayed')]).toEqual([mark.name, mark.hash]);
      await lab.sh('e2fsck -fn replayed');
      const replayed = await lab.loop(lab.path('replayed'), '-r');
      const fs = await lab.mountFs(replayed, { name: 'again' });
      expect(await lab.treeState(fs)).toBe(mark.tree);
      await lab.sh(`umount ${fs}`);
      await lab.unloop(replayed);
    }
  });

  mountTest('the log has no room left: it ends with an event, and the device goes on', async (lab) => {
    await lab.sh('mkdir small; mount -t tmpfs -o size=3M none small; touch small/log; truncate -s 16M a.img');
    const mount = await mountWith(lab, [['a', `linear ${lab.path('a.img')} 0 1 no_passthrough`]]);
    const filter = mount.path('a/filter');
    await setFile(filter, `log-writes ${lab.path('small/log')}`);
    await writeKib(lab, mount.path('a/device'), 0, 64);
    await setFile(mount.path('a/mark'), 'early');
    const load = Load.start(lab, [mount.path('a/device')], 16);
    await load.rounds(2);
    await load.stop();
    const failed = (await mount.events('a')).filter((event) => event.startsWith('log_failed '));
    expect(failed).toEqual([expect.stringMatching(/reason=".*ENOSPC|No space/i)]);
    expect(mount.stats('a').errors).toBe(0);
    expect(await refusedLine(mount.path('a/mark'), 'late')).toBe('EIO');
    await setFile(filter, 'none');
    await setFile(filter, 'blksnap');
    await writeKib(lab, mount.path('a/device'), 64, 1);
    expect(await changedSoFar(lab, mount, 'a')).toEqual([1]);
    // What the log counts is readable, and begins with what was durable first.
    const entries = entriesOf(await readFile(lab.path('small/log')));
    expect(entries.map(({ mark }) => mark)).toContain('early');
    await endMount(lab, mount);
    await lab.sh('umount small');
  });
});

mountTest('a TRIM by the file `discard` is seen by the filter', async (lab) => {
  await lab.sh(`head -c 4M /dev/urandom >a.img; cp a.img before; touch ${LOG}`);
  const mount = await mountWith(lab, [['a', `linear ${lab.path('a.img')} 0 1 no_passthrough`]]);
  await track(mount, 'a');
  const snapshot = await SnapshotFolder.take(mount, 's', ['a'], `${lab.path(LOG)} 0 8192`);
  await setFile(mount.path('a/discard'), '128 256');
  await lab.sh(`cmp before ${snapshot.image('a')}; ! cmp -s before a.img`);
  expect(snapshot.amount('filled')).toBe(512);
  await snapshot.remove();
  expect(await changedSoFar(lab, mount, 'a')).toEqual([1, 2]);
  await setFile(mount.path('a/filter'), 'none');
  await setFile(mount.path('a/filter'), `log-writes ${lab.path(LOG)}`);
  await setFile(mount.path('a/discard'), '1024 8');
  await setFile(mount.path('a/filter'), 'none');
  expect(entriesOf(readFileSync(lab.path(LOG))).map(nameOf)).toEqual([
    'discard 1024+8',
    'mark dm-log-writes-end',
  ]);
  await endMount(lab, mount);
  await lab.sh(`cmp -n ${MIB / 2} -i ${3 * MIB} before a.img`);
});
