import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect } from 'vitest';
import { Prng } from '../../src/device/prng.js';
import { decodeSuperblock, type Superblock } from '../../src/formats/csum.js';
import { NaiveVolume, naiveDataSector } from '../targets/csum/naive-volume.js';
import { type Lab, MAIN, mountTest, type Running } from './harness.js';

/** The superblock of a file; undefined while there is none. */
function superblock(file: string): Superblock | undefined {
  const bytes = new Uint8Array(512);
  const fd = openSync(file, 'r');
  readSync(fd, bytes, 0, 512, 0);
  closeSync(fd);
  return decodeSuperblock('data', bytes);
}

function overwrite(file: string, offset: number, bytes: Uint8Array): void {
  const fd = openSync(file, 'r+');
  writeSync(fd, bytes, 0, bytes.length, offset);
  closeSync(fd);
}

/**
 * Starts a format and calls `stop` when it is somewhere in the middle, again until that was before its end. Returns how it
 * ended.
 */
async function interruptedFormat(
  lab: Lab,
  args: readonly string[],
  file: string,
  stop: (running: Running) => Promise<void>,
) {
  for (;;) {
    // Of an earlier try, which ended before it was stopped: it would be taken for the progress of this one.
    overwrite(file, 0, new Uint8Array(512));
    const running = lab.startDmfuse('csum', 'format', '--force', ...args);
    while (running.isRunning && (superblock(file)?.groupsFormatted ?? 0) === 0) await sleep(2);
    await stop(running);
    const outcome = await running.ended;
    if (superblock(file)!.state === 'formatting') return outcome;
  }
}

describe('dmfuse csum', () => {
  mountTest('format, check: sound; with and without an imd device, with offsets', async (lab) => {
    await lab.sh(`head -c 5M /dev/urandom >random; cp random d.img; cp random e.img
      truncate -s 64M d.img; truncate -s 1M i.img`);
    expect(await lab.dmfuse('csum', 'format', 'd.img')).toEqual({
      code: 0,
      signal: null,
      stdout: 'formatted: 126975 sectors in 2048 groups, order be\n',
      stderr: '',
    });
    expect(await lab.dmfuse('csum', 'check', 'd.img')).toEqual({
      code: 0,
      signal: null,
      stdout: 'sound: 126975 sectors in 2048 groups\n',
      stderr: '',
    });
    const separate = ['e.img', 'i.img', '--offset', '8', '--imd-offset', '16'];
    const formatted = await lab.dmfuseOk('csum', 'format', ...separate, '--size', '9000', '--order', 'le');
    expect(formatted).toBe('formatted: 9000 sectors in 146 groups, order le\n');
    expect(await lab.dmfuseOk('csum', 'check', ...separate)).toBe('sound: 9000 sectors in 146 groups\n');
    // Nothing but its reserved sector was written of the data device.
    await lab.sh('cmp -n 4096 random e.img; cmp -i 4608 random e.img');
    expect(JSON.parse(await lab.dmfuseOk('csum', 'check', '--json', ...separate))).toEqual({
      output_version: 1,
      state: 'sound',
      placement: 'separate-r',
      crcOrder: 'le',
      hasSuperblock: true,
      wasClean: true,
      volumeSectors: 9000,
      sectorsChecked: 9000,
      sectorsUnverifiable: 0,
      badSectorsTotal: 0,
      badSectors: [],
      damagedTablesTotal: 0,
      damagedTables: [],
      unorderedGroupsTotal: 0,
      unorderedGroups: [],
    });
  });

  mountTest('check of a damaged volume exits 2, says what is damaged, and changes nothing', async (lab) => {
    const shape = { placement: 'interleaved', order: 'le', sectors: 500 } as const;
    const naive = NaiveVolume.random(shape, 1, 20);
    naive.write(100, new Prng(2).bytes(512));
    naive.sector(100).fill(1);
    naive.table(3, 0)[100]! ^= 1;
    naive.write(4 * 62 + 7, new Prng(3).bytes(512));
    const newer = naive.table(4, 0)[0]! % 256 === (naive.table(4, 1)[0]! + 1) % 256 ? 0 : 1;
    naive.table(4, newer)[100]! ^= 3;
    naive.table(6, 1)[0]! = naive.table(6, 0)[0]! + 7;
    const file = lab.path('d.img');
    await lab.sh('touch d.img');
    overwrite(file, 0, naive.data);
    const before = await lab.sha256(file);
    const { code, stdout, stderr } = await lab.dmfuse('csum', 'check', 'd.img');
    expect({ code, stderr }).toEqual({ code: 2, stderr: '' });
    expect(stdout.split('\n')).toEqual([
      'damaged: 2 bad sectors, 2 groups with damaged tables, 1 group without an order, 62 sectors that cannot be ' +
        'verified; not closed in good order, so the older tables count too',
      expect.stringMatching(
        /^sector 100 \(of the device: 105\): it has CRC 0x[0-9a-f]{4}, the tables say 0x[0-9a-f]{4} \(before: 0x[0-9a-f]{4}\)$/,
      ),
      expect.stringMatching(
        /^sector 255 \(of the device: 266\): it has CRC 0x[0-9a-f]{4}, the table that is left says 0x[0-9a-f]{4}$/,
      ),
      'tables of group 3: M1 with one flipped bit, which the next write there puts right',
      `tables of group 4: M${newer + 1} lost`,
      'group 6: its brothers are in no order: never formatted, or damaged; 62 sectors not verified',
      '',
    ]);
    const json = await lab.dmfuse('csum', 'check', 'd.img', '--json');
    expect(json.code).toBe(2);
    expect(JSON.parse(json.stdout)).toMatchObject({
      state: 'damaged',
      hasSuperblock: false,
      wasClean: false,
      sectorsChecked: 438,
      sectorsUnverifiable: 62,
      badSectorsTotal: 2,
      badSectors: [
        { sector: 100, deviceSector: 105, newerCrc: expect.any(Number), dataCrc: expect.any(Number) },
        { sector: 255, deviceSector: 266 },
      ],
      damagedTables: [
        { group: 3, brothers: 'M1', state: 'corrected' },
        { group: 4, brothers: `M${newer + 1}`, state: 'lost' },
      ],
      unorderedGroups: [6],
    });
    expect(await lab.sha256(file)).toBe(before);
  });

  mountTest('a write that the disk has lost is named as such', async (lab) => {
    await lab.sh('truncate -s 1M d.img');
    await lab.dmfuseOk('csum', 'format', 'd.img');
    const naive = new NaiveVolume({ placement: 'interleaved', order: 'be', sectors: 1983 });
    naive.data.set(readFileSync(lab.path('d.img')).subarray(0, naive.data.length));
    naive.write(70, new Prng(1).bytes(512));
    const at = 512 * naiveDataSector(naive.shape, 70);
    naive.data.fill(0, at, at + 512);
    overwrite(lab.path('d.img'), 0, naive.data);
    const { code, stdout } = await lab.dmfuse('csum', 'check', 'd.img');
    expect(code).toBe(2);
    expect(stdout).toMatch(
      /^sector 70 .* it has CRC 0x0000, .*\(before: 0x0000\): its last write was lost$/m,
    );
  });

  mountTest('what is no volume: check exits 3, and 1 where it cannot look', async (lab) => {
    await lab.sh('head -c 300000 /dev/urandom >d.img; truncate -s 1M i.img');
    expect(await lab.dmfuse('csum', 'check', 'd.img', 'i.img', '--offset', '9')).toMatchObject({
      code: 3,
      stdout: 'no csum volume: `dmfuse csum format d.img i.img --offset 9` prepares one\n',
      stderr: '',
    });
    const json = await lab.dmfuse('csum', 'check', 'd.img', '--json');
    expect([json.code, JSON.parse(json.stdout)]).toEqual([3, { output_version: 1, state: 'no-volume' }]);
    expect(await lab.refusal('csum', 'check', 'd.img', '--offset', '9999')).toBe(
      'd.img: has 585 sectors, none at offset 9999',
    );
    expect(await lab.refusal('csum', 'check', 'none.img')).toBe('none.img: no such file or device');
    expect(await lab.refusal('csum', 'check', 'd.img', 'none.img')).toBe('none.img: no such file or device');
    expect(await lab.refusal('csum', 'check', 'd.img', '--imd-offset', '1')).toBe(
      '--imd-offset is of the imd device, and none is given',
    );
  });

  mountTest(
    'format refuses, and changes nothing: a volume, one device twice, one that is in use',
    async (lab) => {
      await lab.sh('head -c 300000 /dev/urandom >d.img; ln -s d.img link; truncate -s 1K small.img');
      expect(await lab.refusal('csum', 'format', 'd.img', 'link')).toBe('d.img and link are the same device');
      expect(await lab.refusal('csum', 'format', 'small.img')).toBe(
        'small.img: has 2 sectors, a volume of 1 sectors needs 4 there',
      );
      const holder = lab.start('flock', ['-x', 'd.img', 'bash', '-c', 'echo held; exec sleep 50']);
      await holder.prints(/held/);
      const before = await lab.sha256('d.img');
      expect(await lab.refusal('csum', 'format', 'd.img')).toBe(
        'd.img: in use by another process, which holds a lock on it',
      );
      holder.kill();
      await holder.ended;
      expect(await lab.sha256('d.img')).toBe(before);
      await lab.dmfuseOk('csum', 'format', 'd.img');
      const formatted = await lab.sha256('d.img');
      expect(await lab.refusal('csum', 'format', 'd.img')).toMatch(
        /^d\.img: is a csum volume of 564 sectors already\. .* --force does that$/,
      );
      expect(await lab.sha256('d.img')).toBe(formatted);
      await lab.dmfuseOk('csum', 'format', 'd.img', '--force');
      expect(await lab.sha256('d.img')).not.toBe(formatted);
      for (const args of [
        ['--size', '0'],
        ['--size', 'x'],
        ['--offset', '-1'],
        ['--order', 'middle'],
      ]) {
        expect((await lab.dmfuse('csum', 'format', 'd.img', ...args)).code).toBe(64);
      }
    },
  );

  mountTest('a format that is killed goes on with the next one', async (lab) => {
    await lab.sh(`truncate -s 300M d.img; truncate -s 400M e.img
      for name in d e; do head -c 8M /dev/urandom | dd of=$name.img bs=1M seek=200 conv=notrunc status=none; done
      truncate -s 40M i.img`);
    for (const args of [['d.img'], ['e.img', 'i.img']]) {
      const file = lab.path(args[0]!);
      await interruptedFormat(lab, args, file, async (running) => running.kill());
      const { id, groupsFormatted } = superblock(file)!;
      expect(groupsFormatted % 2048).toBe(0);
      expect(await lab.refusal('csum', 'check', ...args)).toBe(
        `${args[0]}: its format was interrupted; run \`dmfuse csum format ${args.join(' ')}\` again to go on`,
      );
      expect(await lab.dmfuseOk('csum', 'format', ...args)).toMatch(
        /^formatted, going on with what was interrupted: /,
      );
      expect(superblock(file)).toMatchObject({ id, state: 'clean' });
      expect(await lab.dmfuseOk('csum', 'check', ...args)).toMatch(/^sound: /);
    }
  });

  mountTest('SIGUSR1 prints how far it is, SIGINT ends a format and says how to go on', async (lab) => {
    await lab.sh('truncate -s 600M d.img');
    const { code, stdout, stderr } = await interruptedFormat(
      lab,
      ['d.img'],
      lab.path('d.img'),
      async (running) => {
        running.signal('SIGUSR1');
        while (running.isRunning && running.stderr === '') await sleep(2);
        running.signal('SIGINT');
      },
    );
    expect({ code, stdout }).toEqual({ code: 130, stdout: '' });
    expect(stderr).toMatch(
      /^format: \d+%, \d+ MiB of 581 MiB, [\d.]+ [MG]iB\/s, \d+:\d\d left\ndmfuse: interrupted, nothing is lost: `dmfuse csum format d\.img` goes on\n$/,
    );
    await lab.dmfuseOk('csum', 'format', 'd.img');
    expect(await lab.dmfuseOk('csum', 'check', 'd.img')).toMatch(/^sound: /);
  });

  mountTest('on a terminal there is a bar, which is gone in the end', async (lab) => {
    await lab.sh('truncate -s 600M d.img');
    const command = `${process.execPath} ${MAIN} csum format d.img`;
    const output = await lab.ok('script', '-qfec', command, '/dev/null');
    const lines = output.replaceAll('\r\x1b[K', '\r\n').split('\r\n');
    expect(lines.some((line) => /^\[#*-*\] format: \d+%, .* left$/.test(line))).toBe(true);
    expect(lines.filter(Boolean).at(-1)).toBe('formatted: 1190399 sectors in 19200 groups, order be');
  });
});
