/** `dmfuse clone`, and the control files of a clone over a mount. */
import { openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { constants } from 'node:os';
import { gunzipSync } from 'node:zlib';
import { describe, expect } from 'vitest';
import {
  cloneTable,
  hydratedOnDevice,
  hydratedRegions,
  hydrationOf,
  makeTargetFiles,
  setHydration,
} from './clone-work.js';
import { createTarget, endMount, mountWith } from './fs-work.js';
import { type Lab, type Mount, mountTest, type Running, suspend, until } from './harness.js';

const FIXTURES = ['fresh-64m-r8', 'scattered-64m-r8', 'odd-r128'] as const;

interface Fixture {
  readonly region_sectors: number;
  readonly target_sectors: number;
  readonly nr_regions: number;
  readonly hydrated_count: number;
  readonly hydrated_ranges: readonly [number, number][];
  readonly live_metadata_blocks: number;
  readonly space_map_blocks: number;
}

function fixtureUrl(name: string): URL {
  return new URL(`../fixtures/dm-clone/${name}`, import.meta.url);
}

/** Metadata that a kernel has written, in file `meta` of the lab, and what it holds. */
function layFixture(lab: Lab, name: (typeof FIXTURES)[number], file = 'meta'): Fixture {
  writeFileSync(lab.path(file), gunzipSync(readFileSync(fixtureUrl(`${name}.meta.gz`))));
  return JSON.parse(readFileSync(fixtureUrl(`${name}.json`), 'utf8'));
}

describe('dmfuse clone dump, check', () => {
  for (const name of FIXTURES) {
    mountTest(`${name}: as the kernel that wrote it has it`, async (lab) => {
      const fixture = layFixture(lab, name);
      const before = await lab.sha256('meta');
      const { region_sectors: region, target_sectors: sectors, nr_regions: regions } = fixture;
      const { live_metadata_blocks: used, space_map_blocks: total } = fixture;
      expect(JSON.parse(await lab.dmfuseOk('clone', 'dump', '--json', 'meta'))).toEqual({
        output_version: 1,
        regionSize: region,
        targetSize: sectors,
        nrRegions: regions,
        hydrated: fixture.hydrated_ranges,
      });
      const [sizes, blocks, count, ...runs] = (await lab.dmfuseOk('clone', 'dump', 'meta'))
        .trimEnd()
        .split('\n');
      expect(sizes).toBe(`region size ${region} sectors, target size ${sectors} sectors, ${regions} regions`);
      expect(blocks).toMatch(
        new RegExp(
          `^metadata blocks: ${used} of ${total} in use, index \\d+, overflow root \\d+, bitset root \\d+$`,
        ),
      );
      expect(count).toBe(`hydrated: ${fixture.hydrated_count} regions`);
      expect(runs).toEqual(fixture.hydrated_ranges.map(([first, many]) => `  ${first} ${many}`));
      expect(await lab.dmfuse('clone', 'check', 'meta')).toEqual({
        code: 0,
        signal: null,
        stdout: `sound: ${used} of ${total} metadata blocks in use, all verified\n`,
        stderr: '',
      });
      expect(JSON.parse(await lab.dmfuseOk('clone', 'check', '--json', 'meta'))).toEqual({
        output_version: 1,
        state: 'sound',
        regionSectors: region,
        targetSectors: sectors,
        usedBlocks: used,
        totalBlocks: total,
        blockBytes: 4096,
        damagedTotal: 0,
        damaged: [],
      });
      expect(await lab.sha256('meta')).toBe(before);
    });
  }

  mountTest('a clone that a kernel began goes on here', async (lab) => {
    const { hydrated_ranges, nr_regions: total } = layFixture(lab, 'odd-r128');
    await lab.sh(
      'head -c 50M /dev/urandom >source.img; head -c 50M /dev/urandom >dest.img; cp source.img expected',
    );
    const sectors = 100_003;
    for (const [first, count] of hydrated_ranges) {
      const place = `bs=64K seek=${first} skip=${first} count=${count} conv=notrunc status=none`;
      await lab.sh(`dd if=dest.img of=expected ${place}`);
    }
    const mount = await mountWith(lab, [['x', cloneTable(lab, { region: 128, options: '1 no_hydration' })]]);
    expect(mount.read('x/size')).toBe(`${sectors}`);
    expect(hydrationOf(mount)).toEqual({ regions: 38, total, inFlight: 0 });
    const runs = hydrated_ranges.flatMap(([first, count]) =>
      Array.from({ length: count }, (_, i) => first + i),
    );
    expect([...hydratedRegions(mount)]).toEqual(runs);
    await lab.sh(`cmp -n ${sectors * 512} expected ${mount.path('x/device')}`);
    setHydration(mount, true);
    await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
    await endMount(lab, mount);
    await lab.sh(`cmp -n ${sectors * 512} expected dest.img`);
    expect(await hydratedOnDevice(lab)).toBe(total);
  });

  mountTest('damage: check exits 2 and names every block; dump refuses; nothing is changed', async (lab) => {
    layFixture(lab, 'scattered-64m-r8');
    const text = await lab.dmfuseOk('clone', 'dump', 'meta');
    const [index, overflow, bitset] = ['index', 'overflow root', 'bitset root'].map((what) =>
      Number(new RegExp(`${what} (\\d+)`).exec(text)![1]),
    ) as [number, number, number];
    for (const damaged of [[0], [index], [overflow, bitset]]) {
      await lab.ok('cp', 'meta', 'bad');
      const fd = openSync(lab.path('bad'), 'r+');
      for (const block of damaged) writeSync(fd, '\x41\x41', 4096 * block + 100);
      const before = await lab.sha256('bad');
      const { code, stdout, stderr } = await lab.dmfuse('clone', 'check', 'bad');
      expect({ code, stderr }).toEqual({ code: 2, stderr: '' });
      const [head, ...lines] = stdout.trimEnd().split('\n');
      expect(head).toBe('damaged:');
      for (const block of damaged)
        expect(lines).toContainEqual(expect.stringMatching(new RegExp(`^block ${block}: `)));
      const json = await lab.dmfuse('clone', 'check', '--json', 'bad');
      expect(json.code).toBe(2);
      const { state, damaged: found, damagedTotal } = JSON.parse(json.stdout);
      expect(state).toBe('damaged');
      expect(damagedTotal).toBe(lines.length);
      expect(
        found.map(({ block, problem }: { block: number; problem: string }) => `block ${block}: ${problem}`),
      ).toEqual(lines);
      expect(await lab.dmfuse('clone', 'dump', 'bad')).toMatchObject({
        code: 2,
        stdout: '',
        stderr: expect.stringMatching(
          new RegExp(`^dmfuse: bad: metadata block (${damaged.join('|')}): .+\\n$`),
        ),
      });
      expect(await lab.sha256('bad')).toBe(before);
    }
  });

  mountTest('what no clone has used: exit 3; what cannot be looked at: exit 1', async (lab) => {
    await lab.sh('truncate -s 1M meta; truncate -s 100 short; mkdir folder');
    expect(await lab.dmfuse('clone', 'check', 'meta')).toMatchObject({
      code: 3,
      stdout: 'no metadata: block 0 is zero, a clone would format it\n',
      stderr: '',
    });
    const json = await lab.dmfuse('clone', 'check', '--json', 'meta');
    expect([json.code, JSON.parse(json.stdout)]).toEqual([
      3,
      { output_version: 1, state: 'no-metadata', blockBytes: 4096, damagedTotal: 0, damaged: [] },
    ]);
    expect(await lab.dmfuse('clone', 'dump', 'meta')).toMatchObject({
      code: 3,
      stdout: 'no metadata: block 0 is zero, a clone would format it\n',
      stderr: '',
    });
    for (const verb of ['check', 'dump']) {
      expect(await lab.refusal('clone', verb, 'none')).toBe('none: no such file or device');
      expect(await lab.refusal('clone', verb, 'folder')).toBe(
        'folder: neither a regular file nor a block device',
      );
      expect(await lab.refusal('clone', verb, 'short')).toMatch(
        /^short: has 100 bytes: metadata needs 4096 at least/,
      );
    }
  });

  mountTest('metadata of a live clone is its mount`s: exit 1', async (lab) => {
    await lab.sh('head -c 4M /dev/urandom >source.img');
    await makeTargetFiles(lab, 4);
    const mount = await mountWith(lab, [['x', cloneTable(lab)]]);
    const refusals = await Promise.all(['check', 'dump'].map((verb) => lab.refusal('clone', verb, 'meta')));
    for (const reason of refusals)
      expect(reason).toBe('meta: in use by another process, which holds a lock on it');
    await endMount(lab, mount);
    await lab.dmfuseOk('clone', 'check', 'meta');
  });
});

/** A clone of a source that stands still as soon as `stop` is called: it is served by another daemon. */
class Held {
  private constructor(
    readonly lab: Lab,
    readonly low: Mount,
    readonly mount: Mount,
  ) {}

  static async make(lab: Lab, { files = ['source.img'] } = {}): Promise<Held> {
    await lab.sh('head -c 8M /dev/urandom >source.img');
    await makeTargetFiles(lab, 8);
    const paths = ['meta', 'dest.img', 'source.img'].map((name) => lab.path(name));
    const low = await mountWith(
      lab,
      files.map((name) => [name, `linear ${lab.path(name)} 0 1 no_passthrough`] as const),
      'low',
    );
    lab.onClose(async () => void process.kill(low.pid, 'SIGCONT'));
    const devices = paths.map((path) => {
      const name = path.split('/').at(-1)!;
      return files.includes(name) ? low.path(name, 'device') : path;
    });
    const table = `clone ${devices.join(' ')} 128 1 no_hydration`;
    return new Held(lab, low, await mountWith(lab, [['x', table]]));
  }

  async stop(): Promise<void> {
    await suspend(this.low.pid);
  }

  goOn(): void {
    process.kill(this.low.pid, 'SIGCONT');
  }
}

/** Starts `clone wait`, and returns when it has told of its progress: it waits. */
async function startWaiting(lab: Lab, mount: Mount): Promise<Running> {
  const waiting = lab.startDmfuse('clone', 'wait', mount.point, 'x');
  await until(() => {
    if (!waiting.isRunning) throw new Error(`it did not wait: ${waiting.stdout}${waiting.stderr}`);
    // Node itself takes the first ones, before the command is that far; who comes before Node would kill it.
    const caught = /^SigCgt:\s*(\S+)/m.exec(readFileSync(`/proc/${waiting.pid}/status`, 'utf8'));
    if ((BigInt(`0x${caught![1]}`) >> BigInt(constants.signals.SIGUSR1 - 1)) & 1n) waiting.signal('SIGUSR1');
    return /^hydration: /m.test(waiting.stderr);
  }, 'a line of progress');
  return waiting;
}

describe('dmfuse clone wait', () => {
  mountTest('waits; tells how far it is on SIGUSR1; SIGINT ends it, and hydration goes on', async (lab) => {
    const held = await Held.make(lab);
    const { mount } = held;
    await held.stop();
    // A quarter by whole regions, for which nobody asks the source.
    await lab.sh(`dd if=/dev/zero of=${mount.path('x/device')} bs=1M count=2 conv=notrunc status=none`);
    expect(hydrationOf(mount)).toMatchObject({ regions: 32, total: 128 });
    setHydration(mount, true);
    await until(() => hydrationOf(mount).inFlight === 1, 'a region to be copied');
    const [first, second, third] = await Promise.all([1, 2, 3].map(() => startWaiting(lab, mount)));
    expect(first!.stderr).toMatch(/^hydration: 25%, 2\.0 MiB of 8\.0 MiB, 0 B\/s$/m);
    first!.signal('SIGINT');
    expect(await first!.ended).toMatchObject({ code: 130, signal: null, stdout: '' });
    second!.signal('SIGTERM');
    expect(await second!.ended).toMatchObject({ code: 143, signal: null, stdout: '' });
    expect(hydrationOf(mount)).toEqual({ regions: 32, total: 128, inFlight: 1 });
    expect(mount.read('x/hydration')).toBe('1');
    expect(third!.isRunning).toBe(true);
    held.goOn();
    expect(await third!.ended).toMatchObject({ code: 0, signal: null, stdout: '' });
    expect(hydrationOf(mount).regions).toBe(128);
    expect(await lab.dmfuse('clone', 'wait', mount.point, 'x')).toEqual({
      code: 0,
      signal: null,
      stdout: '',
      stderr: '',
    });
    // Whether it would go on is no question any more.
    setHydration(mount, false);
    expect((await lab.dmfuse('clone', 'wait', mount.point, 'x')).code).toBe(0);
    await endMount(lab, mount);
    await lab.sh('cmp -n 2M dest.img /dev/zero; cmp -i 2M source.img dest.img');
  });

  mountTest('says what keeps it from the end, and how it goes on', async (lab) => {
    await lab.sh('head -c 8M /dev/urandom >source.img; truncate -s 1M l.img');
    await makeTargetFiles(lab, 8);
    const mount = await mountWith(lab, [
      ['x', cloneTable(lab, { options: '1 no_hydration' })],
      ['l', `linear ${lab.path('l.img')} 0`],
    ]);
    const write = (file: string, text: string) => writeFileSync(mount.path('x', file), text);
    const wait = (name = 'x', point = mount.point) => lab.refusal('clone', 'wait', point, name);
    expect(await wait()).toBe(
      `wait x: hydration is off; \`echo 1 > ${mount.path('x')}/hydration\` starts it`,
    );
    write('hydration_threshold', '0');
    setHydration(mount, true);
    const isHeld = 'wait x: its hydration_threshold or hydration_batch_size is 0; 1 or more lets it go on';
    expect(await wait()).toBe(isHeld);
    setHydration(mount, false);
    write('hydration_threshold', '1');
    write('hydration_batch_size', '0');
    setHydration(mount, true);
    expect(await wait()).toBe(isHeld);
    expect(hydrationOf(mount)).toEqual({ regions: 0, total: 2048, inFlight: 0 });

    expect(await wait('l')).toBe('wait l: not a clone: 0 2048 linear');
    expect(await wait('none')).toBe('wait none: there is no target of that name');
    await lab.sh(`mkdir ${mount.path('empty')}`);
    expect(await wait('empty')).toMatch(/^wait empty: not a clone: no table$/);
    expect(await wait('x', lab.folder)).toMatch(/mount/);
    // As told.
    write('hydration_batch_size', '1');
    await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
    expect(hydrationOf(mount).regions).toBe(2048);
  });

  mountTest('a target that is removed, and hydration that is switched off meanwhile, end it', async (lab) => {
    const held = await Held.make(lab);
    const { mount } = held;
    await held.stop();
    setHydration(mount, true);
    await until(() => hydrationOf(mount).inFlight === 1, 'a region to be copied');
    const first = await startWaiting(lab, mount);
    setHydration(mount, false);
    expect(await first.ended).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^dmfuse: wait x: hydration is off/m),
    });
    setHydration(mount, true);
    const second = await startWaiting(lab, mount);
    // The last step waits for the source: so does its end.
    const removing = lab.dmfuse('remove', mount.point, 'x');
    expect((await second.ended).code).toBe(1);
    held.goOn();
    expect(await removing).toMatchObject({ code: 0, stderr: '' });
    await lab.sh('for file in meta dest.img; do flock -nx $file true; done');
    await endMount(lab, mount);
    await endMount(lab, held.low);
    await lab.sh('flock -nx source.img true');
  });
});

describe('control files', () => {
  mountTest(
    'hydration, hydration_threshold, hydration_batch_size: what they take, and what not',
    async (lab) => {
      await lab.sh('head -c 8M /dev/urandom >source.img');
      await makeTargetFiles(lab, 8);
      const options = '2 no_hydration no_discard_passdown 4 hydration_threshold 3 hydration_batch_size 2';
      const mount = await mountWith(lab, [['x', cloneTable(lab, { options })]]);
      const { read, path } = mount;
      const status = (middle: string) =>
        expect(read('x/status')).toMatch(new RegExp(`^0 16384 clone 8 6/256 8 ${middle}$`));
      status('0/2048 0 2 no_hydration no_discard_passdown 4 hydration_threshold 3 hydration_batch_size 2 rw');
      expect(read('x/table')).toBe(`0 16384 ${cloneTable(lab, { options })}`);
      expect(read('x/size')).toBe('16384');
      const values = () =>
        ['hydration', 'hydration_threshold', 'hydration_batch_size'].map((file) => read(`x/${file}`));
      expect(values()).toEqual(['0', '3', '2']);
      const bad: Record<string, string[]> = {
        hydration: ['', '2', '-1', 'on', '01', '1 1'],
        hydration_threshold: ['', '-1', '1.5', 'x', '1 2', '4294967296', '99999999999999999999', '0x10'],
        hydration_batch_size: ['', '-1', 'many', '4294967296'],
      };
      for (const [file, texts] of Object.entries(bad)) {
        for (const text of texts) {
          expect(await lab.shell(`echo '${text}' >${path('x', file)}`), `${file} ${text}`).toMatchObject({
            code: 1,
            stderr: expect.stringContaining('Invalid argument'),
          });
          expect((await mount.events('x')).at(-1)).toMatch(
            new RegExp(`^refused file=${file} errno=22 reason="[^ ]*${file}`),
          );
        }
      }
      expect(values()).toEqual(['0', '3', '2']);
      for (const [file, text] of [
        ['hydration_threshold', '4294967295'],
        ['hydration_threshold', '0'],
        ['hydration_batch_size', '4294967295'],
        ['hydration', '1'],
      ]) {
        await lab.sh(`echo '${text}' >${path('x', file!)}`);
        expect(read(`x/${file}`)).toBe(text);
      }
      // A threshold of 0 lets nothing happen.
      status('0/2048 0 1 no_discard_passdown 4 hydration_threshold 0 hydration_batch_size 4294967295 rw');
      await lab.sh(`printf 7 >${path('x/hydration_threshold')}`);
      await until(() => hydrationOf(mount).regions === 2048, 'hydration');
      expect(read('x/table')).toBe(`0 16384 ${cloneTable(lab, { options })}`);
      await mount.umount();
      await lab.sh('cmp source.img dest.img');
    },
  );

  mountTest('regions: a bit a region, to be read from anywhere, and by nobody to be written', async (lab) => {
    await lab.sh('head -c 8M /dev/urandom >source.img');
    await makeTargetFiles(lab, 8);
    // 2045 regions: 255 bytes and five bits.
    const table = `0 16353 ${cloneTable(lab, { options: '1 no_hydration' })}`;
    const mount = await mountWith(lab, [['x', table]]);
    const file = mount.path('x/regions');
    const stats = statSync(file);
    expect([stats.size, stats.mode & 0o777]).toEqual([256, 0o400]);
    expect(readFileSync(file)).toEqual(Buffer.alloc(256));
    const write = (region: number, count = 1) =>
      lab.sh(
        `dd if=source.img of=${mount.path('x/device')} bs=4K skip=${region} seek=${region} count=${count} conv=notrunc status=none`,
      );
    const expected = Buffer.alloc(256);
    for (const [region, count] of [
      [0, 1],
      [7, 2],
      [1000, 20],
      [2043, 1],
    ] as const) {
      await write(region, count);
      for (let i = region; i < region + count; i++) expected[i >> 3]! |= 1 << (i & 7);
    }
    // A sector of the short last one.
    await lab.sh(
      `dd if=source.img of=${mount.path('x/device')} bs=512 skip=16352 seek=16352 count=1 conv=notrunc status=none`,
    );
    expected[255]! |= 1 << 4;
    expect(readFileSync(file)).toEqual(expected);
    writeFileSync(lab.path('expected'), expected);
    await lab.sh(`cmp ${file} expected
      for skip in 0 1 124 125 126 127 128 254 255; do
        dd if=${file} bs=1 skip=$skip status=none | cmp - <(tail -c +$((skip + 1)) expected)
        dd if=${file} bs=2 skip=$skip iflag=skip_bytes count=1 status=none | cmp - <(tail -c +$((skip + 1)) expected | head -c 2)
      done
      [[ $(dd if=${file} bs=1 skip=256 status=none | wc -c) == 0 ]]
      cp ${file} copy; cmp copy expected`);
    expect(statSync(file).size).toBe(256);
    expect((await lab.shell(`echo x >${file}`)).code).not.toBe(0);
    await lab.shell(`truncate -s 0 ${file}`);
    expect(readFileSync(file)).toEqual(expected);

    setHydration(mount, true);
    await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
    expected.fill(0xff, 0, 255);
    expected[255] = 0b11111;
    expect(readFileSync(file)).toEqual(expected);
    await lab.sh(`rmdir ${mount.path('x')}`);
    // Without a target there is no such file.
    await lab.sh(`mkdir ${mount.path('y')}; ! cat ${mount.path('y/regions')} 2>/dev/null`);
    await createTarget(lab, mount, 'x', table);
    expect(readFileSync(file)).toEqual(expected);
  });

  mountTest('they answer while a flush waits for the metadata, and while the source waits', async (lab) => {
    const held = await Held.make(lab, { files: ['meta', 'source.img'] });
    const { mount } = held;
    const device = mount.path('x/device');
    await lab.sh(`dd if=/dev/zero of=${device} bs=1M count=2 conv=notrunc status=none`);
    await held.stop();
    // Of a region that is hydrated: none but the flush waits for anybody.
    const flushing = lab.start(
      'dd',
      `if=/dev/zero of=${device} bs=64K count=1 conv=notrunc,fsync`.split(' '),
    );
    await until(async () => {
      const fsync = await lab.python(
        'import os, platform; print({"x86_64": 74, "aarch64": 82}[platform.machine()])',
      );
      return readFileSync(`/proc/${flushing.pid}/syscall`, 'utf8').startsWith(`${fsync} `);
    }, 'the flush');
    setHydration(mount, true);
    await until(() => hydrationOf(mount).inFlight === 1, 'a region to be copied');
    expect(hydrationOf(mount)).toEqual({ regions: 32, total: 128, inFlight: 1 });
    expect(mount.read('x/status')).toMatch(/ rw$/);
    for (const [file, text] of [
      ['hydration_threshold', '5'],
      ['hydration_batch_size', '6'],
      ['hydration', '0'],
    ]) {
      writeFileSync(mount.path('x', file!), text!);
      expect(mount.read(`x/${file}`)).toBe(text);
    }
    expect(hydratedRegions(mount).size).toBe(32);
    expect(mount.read('x/size')).toBe('16384');
    expect(mount.stats('x').writes).toBeGreaterThan(0);
    expect(await mount.events('x')).toEqual([]);
    // (The kernel lets nobody write to a file while it is flushed.)
    await lab.sh(`cmp -n 2M ${device} /dev/zero; echo '${12 * 1024} 256' >${mount.path('x/discard')}`);
    expect(hydrationOf(mount).regions).toBe(32 + 2);
    expect(flushing.isRunning).toBe(true);
    held.goOn();
    expect((await flushing.ended).code).toBe(0);
    setHydration(mount, true);
    await lab.dmfuseOk('clone', 'wait', mount.point, 'x');
    await endMount(lab, mount);
    await endMount(lab, held.low);
    expect(await hydratedOnDevice(lab)).toBe(128);
  });

  mountTest('a table that is wrong names the word, and touches nothing', async (lab) => {
    await lab.sh('truncate -s 8M source.img dest.img; truncate -s 1M meta; truncate -s 4M small.img');
    const mount = await mountWith(lab);
    const [meta, dest, source, small] = ['meta', 'dest.img', 'source.img', 'small.img'].map((name) =>
      lab.path(name),
    );
    const three = `${meta} ${dest} ${source}`;
    for (const [args, reason] of [
      [`${three}`, /^clone needs three devices and a region size, found 3 words: clone <metadata dev>/],
      [`${three} 7`, /^clone: .*7/],
      [`${three} 12`, /^clone: .*12/],
      [`${three} 4194304`, /^clone: .*4194304/],
      [`${three} x`, /the region size \(sectors\)/],
      [
        `${three} 8 1 fast`,
        /^clone: there is no feature `fast`: known are no_hydration, no_discard_passdown$/,
      ],
      [`${three} 8 2 no_hydration`, /promises 2/],
      [`${three} 8 0 2 hydration_threshold x`, /hydration_threshold \(regions\)/],
      [`${three} 8 0 1 hydration_threshold`, /they come in pairs/],
      [`${three} 8 0 0 behind`, /`behind` is behind the last argument/],
      [`${meta} ${small} ${source} 8`, /small\.img has 8192 sectors, the clone has 16384$/],
      [`${meta} ${meta} ${source} 8`, /meta: in use by another target of this mount$/],
      [`${meta} ${dest} ${dest} 8`, /dest\.img: in use by another target of this mount$/],
      [`${meta} ${dest} ${lab.path('none')} 8`, /none: no such file or device$/],
    ] as const) {
      const folder = mount.path('refused');
      expect(await lab.shell(`mkdir ${folder}; echo 'clone ${args}' >${folder}/table`), args).toMatchObject({
        code: 1,
      });
      expect(mount.read('refused/status').replace(/^failed: /, '')).toMatch(reason);
      await lab.sh(`rmdir ${folder}`);
    }
    await lab.sh('cmp -n 1M meta /dev/zero');
    // What was formatted is of one size.
    await createTarget(lab, mount, 'x', `clone ${three} 8 1 no_hydration`);
    await lab.sh(`rmdir ${mount.path('x')}`);
    for (const [table, reason] of [
      [`clone ${three} 16`, /meta: is of a clone with regions of 8 sectors, the table says 16$/m],
      [`0 8192 clone ${three} 8`, /meta: is of a clone of 16384 sectors, the table says 8192$/m],
    ] as const) {
      expect(await lab.dmfuse('create', mount.point, 'x', table)).toMatchObject({
        code: 1,
        stderr: expect.stringMatching(reason),
      });
    }
  });
});
