/**
 * clone as it is meant to be used: a file system on a source that stays as it is, attached through a loop device on
 * MNT/NAME/device at once, at work while it is hydrated, and in the end on the destination alone.
 */
import { existsSync, readFileSync, rmSync, statSync } from 'node:fs';
import { describe, expect } from 'vitest';
import {
  cloneTable,
  expectHydratedOnce,
  expectMetadataSound,
  hydrateAPart,
  hydratedOnDevice,
  hydratedRegions,
  hydrationOf,
  makeTargetFiles,
  setHydration,
} from './clone-work.js';
import {
  changeTree,
  createTarget,
  endMount,
  expectKept,
  killUnderFsyncs,
  mountWith,
  refusedTable,
  sectorOf,
} from './fs-work.js';
import { type Lab, type Mount, mountTest, until } from './harness.js';

const SIZE_MIB = 32;
const SECTORS = SIZE_MIB * 2048;
const REGION_8 = SECTORS / 8;
const EIO = 'Input/output error';
const EBUSY = 'Device or resource busy';

/** A file system in `source.img` with some files. `isDense`: no byte of the image is a hole. */
class Source {
  private constructor(
    readonly lab: Lab,
    readonly hash: string,
    /** Names and checksums of its files. */
    readonly contents: string,
  ) {}

  static async make(lab: Lab, { isDense = true, mebibytes = SIZE_MIB } = {}): Promise<Source> {
    const image = isDense ? 'head -c $size /dev/urandom >source.img' : 'truncate -s $size source.img';
    await lab.sh(`size=${mebibytes}M; ${image}
      mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0 -b 4096 source.img ${SIZE_MIB}M`);
    const loop = await lab.loop(lab.path('source.img'));
    const fs = await lab.mountFs(loop);
    await changeTree(lab, fs, 1);
    await lab.sh(`head -c 6M /dev/urandom >${fs}/big; mkdir reference; cp -a ${fs}/. reference`);
    const contents = await contentsOf(lab, fs);
    await lab.sh(`umount ${fs}`);
    await lab.unloop(loop);
    return new Source(lab, await lab.sha256('source.img'), contents);
  }

  async expectUntouched(): Promise<void> {
    expect(await this.lab.sha256('source.img')).toBe(this.hash);
  }
}

/** Names and checksums of the files of a tree. */
async function contentsOf(lab: Lab, folder: string): Promise<string> {
  return await lab.sh(`cd '${folder}'; find . -type f -print0 | sort -z | xargs -0r sha256sum`);
}

/** The same work on the file system and on a plain folder that had the same files: what it must have come to. */
async function changeBoth(lab: Lab, fs: string, seed: number): Promise<void> {
  await changeTree(lab, fs, seed);
  await changeTree(lab, lab.path('reference'), seed);
}

/** Attaches the device of a target and mounts its file system. */
async function attach(lab: Lab, mount: Mount, target = 'x', between = '') {
  const loop = await lab.loop(mount.path(target, 'device'));
  await lab.sh(`loop=${loop}\n${between}`);
  const fs = await lab.mountFs(loop, { name: `fs-${target}` });
  const detach = async () => {
    await lab.sh(`umount ${fs}; e2fsck -fn ${loop}`);
    await lab.unloop(loop);
  };
  return { loop, fs, detach };
}

/** The files of the file system that an image holds by itself; the file system is sound. */
async function contentsOfImage(lab: Lab, image: string): Promise<string> {
  await lab.sh(`e2fsck -fn ${image}`);
  const loop = await lab.loop(lab.path(image), '-r');
  const fs = await lab.mountFs(loop, { name: 'raw' });
  const contents = await contentsOf(lab, fs);
  await lab.sh(`umount ${fs}`);
  await lab.unloop(loop);
  return contents;
}

/** Whether the I/O of a new open of a device is the kernel's: nobody counts it. */
async function isPassedThrough(lab: Lab, mount: Mount, name = 'x'): Promise<boolean> {
  const before = mount.stats(name).reads!;
  await lab.sh(`dd if=${mount.path(name, 'device')} of=/dev/null bs=1M count=1 status=none`);
  return mount.stats(name).reads === before;
}

describe('a file system is at work while its device is hydrated', () => {
  const combinations: Record<string, { region: number; options?: string; isDense?: boolean }> = {
    'regions of 4 KiB': { region: 8 },
    'regions of 64 KiB, hydration off and then on': { region: 128, options: '1 no_hydration' },
    'regions of 1 MiB, several at a time, no_discard_passdown': {
      region: 2048,
      options: '1 no_discard_passdown 4 hydration_threshold 16 hydration_batch_size 4',
    },
    'a source with holes, regions of 1 MiB': { region: 2048, isDense: false },
  };
  for (const [title, { region, options = '', isDense = true }] of Object.entries(combinations)) {
    mountTest(title, async (lab) => {
      const source = await Source.make(lab, { isDense });
      await makeTargetFiles(lab, SIZE_MIB);
      const isOff = options.includes('no_hydration');
      const mount = await mountWith(lab, [['x', cloneTable(lab, { region, options })]]);
      const { fs, detach } = await attach(lab, mount);
      expect(await contentsOf(lab, fs)).toBe(source.contents);
      await changeBoth(lab, fs, 2);
      if (isOff) {
        const { regions, total } = hydrationOf(mount);
        expect(regions).toBeLessThan(total);
        expect(existsSync(mount.path('x/hydration'))).toBe(true);
        setHydration(mount, true);
      }
      const waiting = lab.dmfuse('clone', 'wait', mount.point, 'x');
      await changeBoth(lab, fs, 3);
      expect(await waiting).toEqual({ code: 0, signal: null, stdout: '', stderr: '' });
      await expectHydratedOnce(mount);
      // Also on what is hydrated, by the open from before.
      await changeBoth(lab, fs, 4);
      await lab.sh(`rm -r ${fs}/objects/1* reference/objects/1*; sync -f ${fs}; fstrim ${fs}`);
      const contents = await contentsOf(lab, fs);
      expect(contents).toBe(await contentsOf(lab, lab.path('reference')));
      expect((await mount.events('x')).filter((event) => !event.startsWith('hydrated '))).toEqual([]);
      await detach();
      await lab.sh(`rmdir ${mount.path('x')}`);
      expect(await contentsOfImage(lab, 'dest.img')).toBe(contents);
      await expectMetadataSound(lab);
      expect(await hydratedOnDevice(lab)).toBe(SECTORS / region);
      await source.expectUntouched();
      if (!isDense) expect(statSync(lab.path('dest.img')).blocks).toBeLessThan(SECTORS * 0.75);
      await endMount(lab, mount);
    });
  }
});

describe('kill -9 under load while it is hydrated', () => {
  for (const region of [8, 2048]) {
    mountTest(`regions of ${region} sectors: what was fsynced is there, hydration goes on`, async (lab) => {
      // The second half, behind the file system, is taken away while hydration runs: it does not come to its end.
      const source = await Source.make(lab, { mebibytes: 2 * SIZE_MIB });
      await makeTargetFiles(lab, 2 * SIZE_MIB);
      await lab.sh(`tail -c ${SIZE_MIB}M source.img >tail`);
      const total = (2 * SECTORS) / region;
      const table = cloneTable(lab, { region, options: '1 no_hydration' });
      const kept = [];
      let mount = await mountWith(lab, [['x', table]]);
      let { fs, loop } = await attach(lab, mount);
      for (let seed = 1; seed <= 2; seed++) {
        await lab.sh(`truncate -s ${SIZE_MIB}M source.img`);
        setHydration(mount, true);
        kept.push(await killUnderFsyncs(lab, mount, { fs, loop, seed }));
        await lab.sh('cat tail >>source.img');
        await source.expectUntouched();
        await expectMetadataSound(lab);
        const recorded = await hydratedOnDevice(lab);
        expect(recorded).toBeGreaterThan(0);
        expect(recorded).toBeLessThanOrEqual(total / 2);

        mount = await mountWith(lab, [['x', table]]);
        // Nothing has been written, and nothing is hydrated: where it was.
        expect(hydrationOf(mount)).toEqual({ regions: recorded, total, inFlight: 0 });
        ({ fs, loop } = await attach(lab, mount));
        for (const promises of kept) await expectKept(lab, fs, promises);
        await lab.sh(`umount ${fs}; e2fsck -fn ${loop}; mount ${loop} ${fs}`);
        expect(hydrationOf(mount).regions).toBeGreaterThanOrEqual(recorded);
      }
      setHydration(mount, true);
      await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
      for (const promises of kept) await expectKept(lab, fs, promises);
      const contents = await contentsOf(lab, fs);
      await lab.sh(`umount ${fs}; e2fsck -fn ${loop}`);
      await lab.unloop(loop);
      await endMount(lab, mount);
      expect(await contentsOfImage(lab, 'dest.img')).toBe(contents);
      await lab.sh(`cmp -i ${SIZE_MIB}M source.img dest.img`);
      const before = source.contents.split('\n');
      expect(contents.split('\n')).toEqual(expect.arrayContaining(before));
      await expectMetadataSound(lab);
      expect(await hydratedOnDevice(lab)).toBe(total);
      await source.expectUntouched();
    });
  }

  mountTest(
    'again and again, with nothing else going on: it comes to the end, and never back',
    async (lab) => {
      await lab.sh(`head -c ${SIZE_MIB}M /dev/urandom >source.img`);
      await makeTargetFiles(lab, SIZE_MIB);
      const table = cloneTable(lab);
      let recorded = 0;
      for (let life = 0; life < 2; life++) {
        const mount = await mountWith(lab, [['x', table]]);
        await until(() => {
          const { regions } = hydrationOf(mount);
          return regions > recorded || regions === REGION_8;
        }, 'hydration to go on');
        // A commit, without a write.
        await lab.sh(`sync ${mount.path('x/device')}`);
        await mount.killDaemon();
        await lab.ok('umount', mount.point);
        await expectMetadataSound(lab);
        const now = await hydratedOnDevice(lab);
        if (now < REGION_8) expect(now).toBeGreaterThan(recorded);
        recorded = now;
      }
      const mount = await mountWith(lab, [['x', table]]);
      expect(hydrationOf(mount).regions).toBeGreaterThanOrEqual(recorded);
      await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
      await endMount(lab, mount);
      await lab.sh('cmp source.img dest.img');
      expect(await hydratedOnDevice(lab)).toBe(REGION_8);
    },
  );
});

describe('when all is hydrated', () => {
  mountTest(
    'a new open is passed through, one from before goes on; and so after remove and create',
    async (lab) => {
      await lab.sh('head -c 16M /dev/urandom >source.img');
      await makeTargetFiles(lab, 16);
      const table = cloneTable(lab, { options: '1 no_hydration' });
      const mount = await mountWith(lab, [['x', table]]);
      const device = mount.path('x/device');
      expect(await isPassedThrough(lab, mount)).toBe(false);
      // It copies a line of its stdin, the number of a MiB, from `data` to the device, and says so.
      await lab.sh('head -c 16M /dev/urandom >data');
      const writer = lab.start('python3', [
        '-c',
        `
import os, sys, time
fd, data = os.open(sys.argv[1], os.O_RDWR), open(sys.argv[2], 'rb').read()
for i in range(3):
    while not os.path.exists('go-%d' % i): time.sleep(0.01)
    os.pwrite(fd, data[i << 20:(i + 1) << 20], i << 20)
    assert os.pread(fd, 1 << 20, i << 20) == data[i << 20:(i + 1) << 20]
    os.fsync(fd)
    print('written', i, flush=True)`,
        device,
        lab.path('data'),
      ]);
      await lab.sh('touch go-0');
      await writer.prints(/written 0/);
      setHydration(mount, true);
      await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
      await expectHydratedOnce(mount);
      expect(await isPassedThrough(lab, mount)).toBe(true);
      await lab.sh('touch go-1');
      await writer.prints(/written 1/);
      const { writes } = mount.stats('x');
      // A write by the kernel and one by the old open, next to each other: both see both.
      await lab.sh(`dd if=data of=${device} bs=1M skip=4 seek=4 count=1 conv=notrunc status=none
      cmp -n 2M data ${device}; cmp -n 1M -i 4M data ${device}`);
      expect(mount.stats('x').writes).toBe(writes);
      await lab.sh('touch go-2');
      await writer.prints(/written 2/);
      expect((await writer.ended).code).toBe(0);
      expect(mount.stats('x').writes).toBeGreaterThan(writes!);
      await lab.sh(`cmp -n 3M data ${device}; cmp -n 1M -i 3M source.img ${device}
      cmp -n 11M -i 5M source.img ${device}; cmp ${device} dest.img`);
      await expectHydratedOnce(mount);
      const hash = await lab.sha256('dest.img');

      await lab.sh(`rmdir ${mount.path('x')}`);
      await createTarget(lab, mount, 'x', table);
      expect(hydrationOf(mount)).toEqual({ regions: 4096, total: 4096, inFlight: 0 });
      expect(await isPassedThrough(lab, mount)).toBe(true);
      expect(await lab.sha256(device)).toBe(hash);
      expect((await mount.events('x')).filter((event) => event.startsWith('hydrated '))).toEqual([]);
      await mount.umount();
      await expectMetadataSound(lab);
    },
  );

  mountTest(
    'a clone smaller than its destination stays in the lanes, and the rest of it stays as it is',
    async (lab) => {
      await lab.sh(
        'head -c 8M /dev/urandom >source.img; head -c 16M /dev/urandom >dest.img; cp dest.img before; truncate -s 1M meta',
      );
      const mount = await mountWith(lab, [['x', `0 10001 ${cloneTable(lab, { region: 128 })}`]]);
      await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
      await expectHydratedOnce(mount);
      expect(hydrationOf(mount)).toEqual({ regions: 79, total: 79, inFlight: 0 });
      expect(await isPassedThrough(lab, mount)).toBe(false);
      const bytes = 10001 * 512;
      expect(statSync(mount.path('x/device')).size).toBe(bytes);
      await lab.sh(`cmp -n ${bytes} source.img ${mount.path('x/device')}; cmp -n ${bytes} source.img dest.img
      cmp -i ${bytes} before dest.img`);
      await endMount(lab, mount);
    },
  );
});

describe('trims', () => {
  /** A clone with its hydration off, of a source in another mount, which counts what is read of it. */
  async function makeCounted(lab: Lab, region: number, options = '1 no_hydration') {
    const low = await mountWith(lab, [['s', `linear ${lab.path('source.img')} 0 1 no_passthrough`]], 'low');
    await makeTargetFiles(lab, SIZE_MIB);
    const table = cloneTable(lab, { source: low.path('s/device'), region, options });
    const mount = await mountWith(lab, [['x', table]]);
    return { low, mount };
  }

  mountTest('fstrim: regions become hydrated without a look at the source', async (lab) => {
    const source = await Source.make(lab);
    const { low, mount } = await makeCounted(lab, 8);
    const { fs, detach } = await attach(lab, mount);
    await changeBoth(lab, fs, 2);
    // Where a file was that goes. Last: ext4 may give its blocks to the next file.
    const gone = await sectorOf(lab, `${fs}/big`, 3 << 20);
    await lab.sh(`rm ${fs}/big reference/big; sync -f ${fs}`);
    const before = hydratedRegions(mount);
    expect(before.size).toBe(hydrationOf(mount).regions);
    const { reads } = low.stats('s');
    await lab.sh(`fstrim ${fs}`);
    const after = hydratedRegions(mount);
    expect(after.size).toBe(hydrationOf(mount).regions);
    // The source is all data, the file system for the most part free.
    expect(after.size).toBeGreaterThan(before.size + (12 << 20) / 4096);
    expect(after.size).toBeLessThan(REGION_8);
    for (const region of before) expect(after.has(region)).toBe(true);
    expect(after.has(Math.floor(gone / 8))).toBe(true);
    // The file system itself may have read a bitmap.
    expect(low.stats('s').reads! - reads!).toBeLessThan(100);
    expect(statSync(lab.path('dest.img')).blocks).toBeLessThan(SECTORS * 0.75);
    const contents = await contentsOf(lab, fs);
    expect(contents).toBe(await contentsOf(lab, lab.path('reference')));
    await lab.sh(`cmp -n 4096 -i $((${gone} * 512)):0 ${mount.path('x/device')} /dev/zero`);
    setHydration(mount, true);
    await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
    expect(await contentsOf(lab, fs)).toBe(contents);
    await detach();
    await endMount(lab, mount);
    expect(await contentsOfImage(lab, 'dest.img')).toBe(contents);
    await endMount(lab, low);
    await source.expectUntouched();
  });

  for (const passdown of [true, false]) {
    mountTest(`blkdiscard and \`discard\`, ${passdown ? 'passed down' : 'not passed down'}`, async (lab) => {
      await lab.sh(`head -c ${SIZE_MIB}M /dev/urandom >source.img`);
      const options = passdown ? '1 no_hydration' : '2 no_hydration no_discard_passdown';
      const { low, mount } = await makeCounted(lab, 128, options);
      await lab.sh(
        `head -c ${SIZE_MIB}M /dev/urandom >dest.img; cp dest.img dest.before; cp source.img expected`,
      );
      const loop = await lab.loop(mount.path('x/device'));
      const blocks = () => statSync(lab.path('dest.img')).blocks;
      const full = blocks();
      const expectHydrated = (...runs: [first: number, end: number][]) => {
        const found = [...hydratedRegions(mount)];
        expect(found).toEqual(runs.flatMap(([first, end]) => range(first, end)));
      };
      // Whole regions by the loop device, which asks for zeros: nothing of them is read.
      await lab.sh(`blkdiscard -o 8M -l 8M ${loop}`);
      expectHydrated([128, 256]);
      await lab.unloop(loop);
      // Whoever looks at a new loop device reads a little of it.
      const { read_bytes: readBytes } = low.stats('s');
      expect(readBytes).toBeLessThan(8 << 20);
      await lab.sh('dd if=/dev/zero of=expected bs=1M seek=8 count=8 conv=notrunc status=none');
      // `discard` is advice: whole regions only, and what they hold then is the destination's affair.
      await lab.sh(`echo '${16 * 2048 + 1} ${4 * 2048}' >${mount.path('x/discard')}`);
      expectHydrated([128, 256], [257, 320]);
      expect(low.stats('s').read_bytes).toBe(readBytes);
      const image = passdown ? '/dev/zero' : 'dest.before';
      await lab.sh(`dd if=${image} of=expected bs=64K seek=257 skip=257 count=63 conv=notrunc status=none`);
      // A part of a region: nothing happens; what is zeroed in part is copied.
      await lab.sh(`echo '${22 * 2048} 127' >${mount.path('x/discard')}`);
      expectHydrated([128, 256], [257, 320]);
      await lab.sh(`fallocate -p -o $((24 << 20)) -l 4096 ${mount.path('x/device')}
        dd if=/dev/zero of=expected bs=4K seek=$((24 << 8)) count=1 conv=notrunc status=none`);
      expectHydrated([128, 256], [257, 320], [384, 385]);
      expect(low.stats('s').read_bytes).toBeGreaterThan(readBytes!);
      await lab.sh(`cmp expected ${mount.path('x/device')}`);
      if (passdown) expect(blocks()).toBeLessThan(full - 11 * 2048);
      else expect(blocks()).toBeGreaterThanOrEqual(full - 8);
      setHydration(mount, true);
      await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
      await endMount(lab, mount);
      await lab.sh('cmp expected dest.img');
      await endMount(lab, low);
    });
  }

  function range(first: number, end: number): number[] {
    return Array.from({ length: end - first }, (_, i) => first + i);
  }
});

mountTest(
  'metadata that cannot be written: read-only, with what was hydrated; made anew it goes on',
  async (lab) => {
    await lab.sh(
      'head -c 16M /dev/urandom >source.img; cp source.img expected; head -c 1M /dev/urandom >data',
    );
    await makeTargetFiles(lab, 16);
    // The metadata is a file of holes where there is no room for what they are to hold.
    const small = lab.makeFolder('small');
    await lab.sh(`mount -t tmpfs -o size=256K none ${small}; truncate -s 1M small/meta`);
    const table = `clone small/meta dest.img source.img 128 1 no_hydration`.replace(
      /\S+(meta|img)/g,
      (name) => lab.path(name),
    );
    const mount = await mountWith(lab, [['x', table]]);
    const device = mount.path('x/device');
    const write = (mib: number) =>
      lab.shell(`dd if=data of=${device} bs=1M seek=${mib} count=1 conv=notrunc,fsync status=none`);
    expect(await write(1)).toMatchObject({ code: 0 });
    expect(hydrationOf(mount).regions).toBe(16);
    await lab.sh('! dd if=/dev/zero of=small/filler bs=4K 2>/dev/null');
    // What a commit has left free is room for some more of them, for they are short.
    let failed = -1;
    for (let mib = 2; failed < 0; mib++) {
      const { code, stderr } = await write(mib);
      if (code !== 0) {
        failed = mib;
        expect(stderr).toMatch(/fsync failed|No space left|Input\/output error/);
      }
      expect(mib).toBeLessThan(10);
    }
    const status = mount.read('x/status');
    expect(status).toMatch(/ ro reason=".*ENOSPC.*"$/);
    const modes = (await mount.events('x')).filter((event) => event.startsWith('metadata_mode '));
    expect(modes).toEqual([expect.stringMatching(/^metadata_mode mode=ro reason=".*ENOSPC.*"/)]);

    // What is hydrated is there to read and write; the rest to read alone.
    for (let mib = 1; mib <= failed; mib++) {
      await lab.sh(`dd if=data of=expected bs=1M seek=${mib} count=1 conv=notrunc status=none`);
    }
    await lab.sh(`cmp expected ${device}
    for i in device expected; do
      dd if=data of=$([[ $i == device ]] && echo ${device} || echo expected) bs=5000 seek=$((1 << 20)) skip=7 count=1 oflag=seek_bytes conv=notrunc status=none
    done
    cmp expected ${device}`);
    const refused = await lab.shell(
      `dd if=data of=${device} bs=4K seek=$((12 << 8)) count=1 conv=notrunc status=none`,
    );
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining(EIO) });
    await lab.sh(`cmp expected ${device}`);
    setHydration(mount, true);
    expect(await lab.dmfuse('clone', 'wait', mount.point, 'x')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('its metadata is read-only'),
    });
    expect(hydrationOf(mount).regions).toBe(16 * failed);

    // As the event says: removed, what stands on it first, and created anew.
    await createTarget(lab, mount, 'y', 'linear @x 0');
    const copy = 'dd if=data bs=1M seek=1 count=1 status=none';
    expect(await lab.shell(`${copy} of=${mount.path('y/device')} conv=notrunc,fsync`)).toMatchObject({
      code: 1,
    });
    await lab.sh(`${copy} of=expected conv=notrunc`);
    await lab.dmfuseOk('remove', mount.point, 'y');
    rmSync(lab.path('small/filler'));
    await lab.dmfuseOk('remove', mount.point, 'x');
    await expectMetadataSound(lab, 'small/');
    expect(await hydratedOnDevice(lab, 'small/')).toBe(16 * (failed - 1));
    await createTarget(lab, mount, 'x', table);
    expect(mount.read('x/status')).toMatch(/ 1 rw$/);
    // What no commit has recorded is the source's again.
    await lab.sh(`dd if=source.img of=expected bs=1M seek=${failed} skip=${failed} count=1 conv=notrunc status=none
    cmp expected ${device}`);
    expect(await write(12)).toMatchObject({ code: 0 });
    setHydration(mount, true);
    await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
    await mount.umount();
    await lab.sh(
      'dd if=data of=expected bs=1M seek=12 count=1 conv=notrunc status=none; cmp expected dest.img',
    );
    await expectMetadataSound(lab, 'small/');
  },
);

mountTest(
  'a source that loses its end: EIO and an event, no zeros; with its end again it goes on',
  async (lab) => {
    await lab.sh('head -c 8M /dev/urandom >source.img; tail -c 4M source.img >tail');
    await makeTargetFiles(lab, 8);
    const mount = await mountWith(lab, [['x', cloneTable(lab, { region: 128, options: '1 no_hydration' })]]);
    await lab.sh('truncate -s 4M source.img');
    setHydration(mount, true);
    const failures = async () =>
      (await mount.events('x')).filter((event) => event.startsWith('hydration_failed '));
    await until(async () => (await failures()).length > 0, 'an event');
    expect((await failures())[0]).toMatch(
      /^hydration_failed region=64 errno=5 reason=".*source\.img: ends before /,
    );
    await until(() => hydrationOf(mount).regions === 64, 'the first half');
    const read = await lab.shell(`dd if=${mount.path('x/device')} of=out bs=1M skip=6 count=1 status=none`);
    expect(read).toMatchObject({ code: 1, stderr: expect.stringContaining(EIO) });
    await lab.sh('cat tail >>source.img');
    await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
    await endMount(lab, mount);
    await lab.sh('cmp source.img dest.img');
  },
);

describe('stacks', () => {
  mountTest('a clone of a cow stack, another one of a linear target', async (lab) => {
    const source = await Source.make(lab);
    const { table: cow } = JSON.parse(
      await lab.dmfuseOk('cow', 'create', '--json', lab.path('source.img'), lab.path('l1')),
    );
    const first = await mountWith(lab, [['v', cow]]);
    const layer = await attach(lab, first, 'v');
    await changeBoth(lab, layer.fs, 2);
    await layer.detach();
    await endMount(lab, first);
    await source.expectUntouched();
    await lab.sh('cp source.img other.img; cp -a reference reference-before');
    await makeTargetFiles(lab, SIZE_MIB, 'c-');
    await makeTargetFiles(lab, SIZE_MIB, 'd-');
    const mount = await mountWith(lab, [
      ['v', cow],
      ['c', cloneTable(lab, { prefix: 'c-', source: '@v' })],
      ['l', `linear ${lab.path('other.img')} 0`],
      ['d', cloneTable(lab, { prefix: 'd-', source: '@l', region: 128 })],
    ]);
    const [c, d] = [await attach(lab, mount, 'c'), await attach(lab, mount, 'd')];
    expect(await contentsOf(lab, c.fs)).toBe(await contentsOf(lab, lab.path('reference')));
    expect(await contentsOf(lab, d.fs)).toBe(source.contents);
    // What is below is everybody's to read; it is neither written nor taken away.
    for (const below of ['v', 'l']) {
      expect((await lab.shell(`: <>${mount.path(below, 'device')}`)).stderr).toContain(EBUSY);
      expect((await lab.shell(`rmdir ${mount.path(below)}`)).stderr).toContain(EBUSY);
    }
    await Promise.all([changeBoth(lab, c.fs, 3), changeTree(lab, d.fs, 4)]);
    for (const name of ['c', 'd']) {
      await lab.dmfuseOk('clone', 'wait', mount.point, name);
      await expectHydratedOnce(mount, name);
    }
    const contents = await contentsOf(lab, c.fs);
    expect(contents).toBe(await contentsOf(lab, lab.path('reference')));
    const others = await contentsOf(lab, d.fs);
    await c.detach();
    await d.detach();
    expect(await isPassedThrough(lab, mount, 'c')).toBe(true);
    await lab.sh(`cd ${mount.point}; rmdir c d; rmdir v l`);
    expect(await contentsOfImage(lab, 'c-dest.img')).toBe(contents);
    expect(await contentsOfImage(lab, 'd-dest.img')).toBe(others);
    await source.expectUntouched();
    expect(await lab.sha256('other.img')).toBe(source.hash);
    await endMount(lab, mount);
  });

  mountTest('cow on a clone that is hydrated: the layer has the changes, the clone none', async (lab) => {
    const source = await Source.make(lab);
    await makeTargetFiles(lab, SIZE_MIB);
    const mount = await mountWith(lab, [['x', cloneTable(lab, { options: '1 no_hydration' })]]);
    const { table } = JSON.parse(
      await lab.dmfuseOk('cow', 'create', '--json', mount.path('x/device'), lab.path('l1')),
    );
    await createTarget(lab, mount, 'v', table.replace(mount.path('x/device'), '@x'));
    const { fs, detach } = await attach(lab, mount, 'v');
    setHydration(mount, true);
    await changeBoth(lab, fs, 2);
    expect((await lab.shell(`rmdir ${mount.path('x')}`)).stderr).toContain(EBUSY);
    await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
    await changeBoth(lab, fs, 3);
    expect(await contentsOf(lab, fs)).toBe(await contentsOf(lab, lab.path('reference')));
    await detach();
    await lab.sh(`cd ${mount.point}; rmdir v; rmdir x`);
    await endMount(lab, mount);
    await lab.sh('cmp source.img dest.img');
    await source.expectUntouched();
  });

  mountTest(
    'csum on a clone that is hydrated: every checksum is right, also of the destination alone',
    async (lab) => {
      await lab.sh(`head -c ${SIZE_MIB}M /dev/urandom >source.img`);
      await makeTargetFiles(lab, SIZE_MIB);
      const hash = await lab.sha256('source.img');
      const mount = await mountWith(lab, [
        ['x', cloneTable(lab, { region: 128, options: '1 no_hydration' })],
      ]);
      await lab.dmfuseOk('csum', 'format', mount.path('x/device'));
      // What is not hydrated is what the source reads as, and in order with its checksums.
      expect(hydrationOf(mount).regions).toBeGreaterThan(0);
      await createTarget(lab, mount, 's', 'csum @x 0');
      setHydration(mount, true);
      const { fs, detach } = await attach(lab, mount, 's', 'mkfs.ext4 -q -E nodiscard -b 4096 $loop');
      await changeTree(lab, fs, 1);
      const contents = await contentsOf(lab, fs);
      expect((await lab.shell(`rmdir ${mount.path('x')}`)).stderr).toContain(EBUSY);
      await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
      expect(await contentsOf(lab, fs)).toBe(contents);
      await detach();
      await lab.sh(`cat ${mount.path('s/device')} >/dev/null`);
      expect(mount.read('s/errors')).toBe('count 0');
      await lab.sh(`cd ${mount.point}; rmdir s; rmdir x`);
      await endMount(lab, mount);
      expect(await lab.dmfuseOk('csum', 'check', 'dest.img')).toMatch(/^sound: /);
      expect(await lab.sha256('source.img')).toBe(hash);
    },
  );

  mountTest('a clone of a clone: both come to the end, the lower one is not written to', async (lab) => {
    const source = await Source.make(lab);
    for (const prefix of ['a-', 'b-', 'c-']) await makeTargetFiles(lab, SIZE_MIB, prefix);
    const mount = await mountWith(lab, [
      ['a', cloneTable(lab, { prefix: 'a-' })],
      ['b', cloneTable(lab, { prefix: 'b-', source: '@a', region: 128 })],
      ['c', cloneTable(lab, { prefix: 'c-', source: '@b', region: 2048 })],
    ]);
    const { fs, detach } = await attach(lab, mount, 'c');
    await changeBoth(lab, fs, 2);
    expect(await refusedTable(lab, mount, cloneTable(lab, { prefix: 'c-', source: '@b' }))).toMatch(
      /in use by another target of this mount$/,
    );
    for (const name of ['a', 'b']) {
      expect((await lab.shell(`rmdir ${mount.path(name)}`)).stderr).toContain(EBUSY);
    }
    for (const name of ['c', 'a', 'b']) await lab.dmfuseOk('clone', 'wait', mount.point, name);
    const contents = await contentsOf(lab, fs);
    expect(contents).toBe(await contentsOf(lab, lab.path('reference')));
    await detach();
    // The top alone can go, then the next.
    expect((await lab.shell(`rmdir ${mount.path('b')}`)).stderr).toContain(EBUSY);
    await lab.sh(`cd ${mount.point}; rmdir c; ! rmdir a 2>/dev/null; rmdir b; rmdir a`);
    expect(await contentsOfImage(lab, 'c-dest.img')).toBe(contents);
    await lab.sh('cmp a-dest.img source.img; cmp b-dest.img source.img');
    for (const prefix of ['a-', 'b-', 'c-']) await expectMetadataSound(lab, prefix);
    await source.expectUntouched();
    await endMount(lab, mount);
  });
});

describe('the end of a mount or a target, in the middle of hydration', () => {
  async function make(lab: Lab): Promise<Mount> {
    await lab.sh('head -c 64M /dev/urandom >source.img');
    await makeTargetFiles(lab, 64);
    const mount = await mountWith(lab, [['x', cloneTable(lab, { options: '1 no_hydration' })]]);
    await hydrateAPart(mount);
    return mount;
  }

  /** Somebody else can have the files; what was hydrated is recorded. */
  async function expectLetGo(lab: Lab, regions: number): Promise<void> {
    await lab.sh('for file in meta dest.img source.img; do flock -nx $file true; done');
    await expectMetadataSound(lab);
    const recorded = await hydratedOnDevice(lab);
    expect(recorded).toBeGreaterThanOrEqual(regions);
    // Whatever the metadata promises is there.
    const { hydrated } = JSON.parse(await lab.dmfuseOk('clone', 'dump', '--json', 'meta'));
    const [from, to] = ['source.img', 'dest.img'].map((name) => readFileSync(lab.path(name)));
    for (const [first, count] of hydrated as [number, number][]) {
      expect(
        from!.compare(to!, first * 4096, (first + count) * 4096, first * 4096, (first + count) * 4096),
      ).toBe(0);
    }
  }

  mountTest('rmdir: the files are free at once', async (lab) => {
    const mount = await make(lab);
    const { regions } = hydrationOf(mount);
    await lab.sh(`echo 1 >${mount.path('x/hydration')}; rmdir ${mount.path('x')}
      for file in meta dest.img source.img; do flock -nx $file true; done`);
    await expectLetGo(lab, regions);
    await createTarget(lab, mount, 'x', cloneTable(lab));
    expect(hydrationOf(mount).regions).toBeGreaterThanOrEqual(regions);
    await lab.sh(`rmdir ${mount.path('x')}`);
    // Again and again: every time it begins, and is taken away.
    for (let i = 0; i < 20; i++) {
      await lab.sh(
        `mkdir ${mount.path('y')}; echo '${cloneTable(lab)}' >${mount.path('y/table')}; rmdir ${mount.path('y')}`,
      );
    }
    await expectLetGo(lab, regions);
    await endMount(lab, mount);
  });

  mountTest('umount: the daemon ends, and no process is left', async (lab) => {
    const mount = await make(lab);
    const { regions } = hydrationOf(mount);
    setHydration(mount, true);
    await lab.ok('umount', mount.point);
    await mount.daemonEnd();
    expect(lab.daemons()).toEqual([]);
    await expectLetGo(lab, regions);
  });

  mountTest('SIGTERM: the same', async (lab) => {
    const mount = await make(lab);
    const { regions } = hydrationOf(mount);
    setHydration(mount, true);
    process.kill(mount.pid, 'SIGTERM');
    await mount.daemonEnd();
    expect(lab.fuseMounts()).toEqual([]);
    await expectLetGo(lab, regions);
  });
});
