/** One device, one snapshot: what is copied when, with how many requests, and what happens when something fails. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { DmError } from '../../../src/errors.js';
import { AreaStatus } from '../../../src/filters/blksnap/area.js';
import { SnapshotImage } from '../../../src/filters/blksnap/image.js';
import { blksnap } from '../../../src/filters/blksnap/tracker.js';
import type { AttachContext } from '../../../src/filters/filter.js';
import {
  codeOf,
  contentOf,
  expectSameBytes,
  type Hook,
  hooked,
  readBytes,
  withHoles,
} from '../../targets/harness.js';
import { FakeMount, setParams } from './rig.js';

const CHUNK = 4096;
const SIZE = 20 * CHUNK + 1536;

let restore: () => void;
beforeEach(() => {
  restore = setParams({
    chunk_minimum_shift: 12,
    tracking_block_minimum_shift: 12,
    chunk_maximum_in_queue: 4,
    diff_storage_minimum: 64,
  });
});
afterEach(() => restore());

function pattern(size: number): Uint8Array {
  return Uint8Array.from({ length: size }, (_, i) => (i * 31 + (i >> 9) * 7) & 255);
}

/** A device `disk` that is in snapshot `s`, with what is asked of it and of its storage. */
async function makeRig({ storage = '/store 8 400', size = SIZE } = {}) {
  const mount = new FakeMount();
  const medium = new MemoryDevice(pattern(size));
  const log: string[] = [];
  let fault: Hook = () => {};
  const watch =
    (name: string): Hook =>
    (op, offset, length) => {
      log.push(`${name} ${op} ${offset} ${length}`);
      fault(`${name} ${op}`, offset, length);
    };
  mount.device('disk', hooked(medium, watch('disk')));
  const store = new MemoryDevice(Math.max(1 << 19, 2 * size));
  mount.file('/store', hooked(store, watch('store')));
  const snapshot = await mount.taken('s', ['disk'], storage);
  return {
    ...{ mount, medium, store, log, snapshot },
    before: medium.bytes.slice(),
    disk: mount.filter('disk'),
    image: mount.image('s', 'disk'),
    events: () => mount.events(snapshot).slice(1),
    /** What fails from now on: an operation such as `store write`. */
    fail(...operations: string[]) {
      fault = (op) => {
        if (operations.includes(op)) throw new DmError('EIO', `${op} fails`);
      };
    },
  };
}

const ones = (length: number) => new Uint8Array(length).fill(1);

describe('a device in a snapshot', () => {
  it('copies the chunks that a change touches, once, in as few requests as it can', async () => {
    const { disk, image, log, before, medium } = await makeRig();
    disk.write(CHUNK + 100, ones(2 * CHUNK));
    expect(log).toEqual([
      `disk read ${CHUNK} ${3 * CHUNK}`,
      `store write 4096 ${3 * CHUNK}`,
      `disk write ${CHUNK + 100} ${2 * CHUNK}`,
    ]);
    log.length = 0;
    disk.write(CHUNK, ones(CHUNK));
    expect(log).toEqual([`disk write ${CHUNK} ${CHUNK}`]);
    log.length = 0;
    // Four at a time, and none of those that are stored.
    disk.discard(0, 9 * CHUNK);
    expect(log).toEqual([
      `disk read 0 ${CHUNK}`,
      `store write ${4096 + 3 * CHUNK} ${CHUNK}`,
      `disk read ${4 * CHUNK} ${4 * CHUNK}`,
      `store write ${4096 + 4 * CHUNK} ${4 * CHUNK}`,
      `disk read ${8 * CHUNK} ${CHUNK}`,
      `store write ${4096 + 8 * CHUNK} ${CHUNK}`,
      `disk discard 0 ${9 * CHUNK}`,
    ]);
    expectSameBytes(contentOf(image), before, 'the image');
    expect(medium.bytes.subarray(0, 9 * CHUNK).every((byte) => byte === 0)).toBe(true);
  });

  it('reads and stores only the sectors of a short last chunk, and takes a whole slot for it', async () => {
    const { disk, image, log, before, mount, snapshot } = await makeRig();
    disk.writeZeroes(SIZE - 1, 1);
    expect(log).toEqual([
      `disk read ${20 * CHUNK} 1536`,
      'store write 4096 1536',
      `disk zeroes ${SIZE - 1} 1`,
    ]);
    expect(snapshot.stateText()).toContain('filled 8\n');
    expectSameBytes(contentOf(image), before, 'the image');
    expect(mount.events(snapshot)).toEqual(['low_free_space requested_nr_sect=64']);
  });

  it('reads an image in as few requests as it can', async () => {
    const { disk, image, log } = await makeRig();
    disk.write(2 * CHUNK, ones(3 * CHUNK));
    disk.write(8 * CHUNK, ones(1));
    disk.write(7 * CHUNK, ones(1));
    log.length = 0;
    readBytes(image, 5, 10 * CHUNK);
    expect(log).toEqual([
      `disk read 5 ${2 * CHUNK - 5}`,
      `store read 4096 ${3 * CHUNK}`,
      `disk read ${5 * CHUNK} ${2 * CHUNK}`,
      // Stored in the other order.
      `store read ${4096 + 4 * CHUNK} ${CHUNK}`,
      `store read ${4096 + 3 * CHUNK} ${CHUNK}`,
      `disk read ${9 * CHUNK} ${CHUNK + 5}`,
    ]);
  });

  it('reads, flushes and tells extents as the device, and does nothing for nothing', async () => {
    const { disk, log, image } = await makeRig();
    readBytes(disk, 100, 200);
    disk.flush();
    disk.write(5, new Uint8Array());
    disk.discard(5, 0);
    disk.writeZeroes(SIZE, 0);
    image.write(5, new Uint8Array());
    image.discard();
    expect(log).toEqual(['disk read 100 200', 'disk flush 0 0']);
    expect(disk.extentAt(4)).toEqual({ data: true, end: SIZE });
    expect(disk.map.info().changesNumber).toBe(1);
    expect(disk.map.saveState().writeMap.every((byte) => byte === 0)).toBe(true);
  });

  it('copies chunks that are larger than the buffer in pieces', async () => {
    restore();
    restore = setParams({ chunk_minimum_shift: 22 });
    const size = (4 << 20) + (3 << 20);
    const { disk, image, log, before } = await makeRig({ size, storage: '/store 0 20000' });
    disk.write(3 << 20, ones(2 << 20));
    expect(log).toEqual([
      `disk read 0 ${2 << 20}`,
      `store write 0 ${2 << 20}`,
      `disk read ${2 << 20} ${2 << 20}`,
      `store write ${2 << 20} ${2 << 20}`,
      `disk read ${4 << 20} ${2 << 20}`,
      `store write ${4 << 20} ${2 << 20}`,
      `disk read ${6 << 20} ${1 << 20}`,
      `store write ${6 << 20} ${1 << 20}`,
      `disk write ${3 << 20} ${2 << 20}`,
    ]);
    expectSameBytes(contentOf(image), before, 'the image');
  });

  it('puts slots where the ranges are, and one request ends with its range', async () => {
    const { disk, image, before, log } = await makeRig({ storage: '/store 100 20\n/store 8 50' });
    disk.write(0, ones(4 * CHUNK));
    expect(log.slice(1, 3)).toEqual([`store write 51200 ${2 * CHUNK}`, `store write 4096 ${2 * CHUNK}`]);
    expectSameBytes(contentOf(image), before, 'the image');
  });

  it('keeps two buffers where the device stands on one whose chunks are copied meanwhile', async () => {
    const mount = new FakeMount();
    const lower = new MemoryDevice(pattern(SIZE));
    mount.device('lower', lower);
    // As one that heals what it reads.
    const healing: BlockDevice = {
      ...hooked(lower, () => {}),
      write: (offset, from) => mount.filter('lower').write(offset, from),
      read(offset, into) {
        for (let at = 0; at < into.length; at += 512) {
          lower.read(offset + at, into.subarray(at, at + 512));
          mount.filter('lower').write(SIZE - 1024, into.subarray(at, at + 512));
        }
      },
    };
    mount.device('upper', healing);
    mount.file('/store', new MemoryDevice(1 << 20));
    await mount.taken('s', ['lower', 'upper'], '/store 0 2048');
    const before = lower.bytes.slice();
    mount.filter('upper').write(0, ones(CHUNK));
    expectSameBytes(readBytes(mount.image('s', 'upper'), 0, CHUNK), before.subarray(0, CHUNK), 'upper');
    expectSameBytes(contentOf(mount.image('s', 'lower')), before, 'lower');
  });
});

describe('an image that is written', () => {
  it('holds what was written, and the device does not', async () => {
    const { disk, image, medium, before, log } = await makeRig();
    image.write(CHUNK - 10, ones(20));
    image.writeZeroes(3 * CHUNK + 7, 2 * CHUNK);
    before.fill(1, CHUNK - 10, CHUNK + 10).fill(0, 3 * CHUNK + 7, 5 * CHUNK + 7);
    expectSameBytes(contentOf(image), before, 'the image');
    expectSameBytes(medium.bytes, pattern(SIZE), 'the device');
    expect(log.filter((line) => /disk (write|zeroes)|unmap/.test(line))).toEqual([]);
    disk.write(0, new Uint8Array(SIZE).fill(9));
    expectSameBytes(contentOf(image), before, 'the image');
    image.write(SIZE - 5, ones(5));
    before.fill(1, SIZE - 5);
    expectSameBytes(contentOf(image), before, 'the image');
    const { writeMap, readMap } = disk.map.saveState();
    expect([...readMap]).toEqual(Array.from(writeMap, (_, i) => +[0, 1, 3, 4, 5, 20].includes(i)));
  });

  it('has nothing to unmap, and flushes the storage', async () => {
    const { image, log, disk } = await makeRig();
    expect(codeOf(() => image.writeZeroes(0, 512, { unmap: true }))).toBe('EOPNOTSUPP');
    image.discard();
    disk.write(0, ones(1));
    log.length = 0;
    image.flush();
    expect(log).toEqual(['store flush 0 0']);
  });
});

describe('what fails', () => {
  const causes: [string, string, (rig: Awaited<ReturnType<typeof makeRig>>) => void][] = [
    ['a read of the device', 'err=5 reason="disk read fails"', ({ fail }) => fail('disk read')],
    ['a write to the storage', 'err=5 reason="store write fails"', ({ fail }) => fail('store write')],
    ['full storage', 'err=28 reason=', ({ disk }) => disk.discard(5 * CHUNK, 15 * CHUNK)],
  ];
  it.each(causes)('%s ends the image once and for all, and not the device', async (_, expected, cause) => {
    const rig = await makeRig({ storage: '/store 8 100' });
    const { disk, image, medium, events, snapshot, log } = rig;
    cause(rig);
    disk.write(CHUNK, ones(CHUNK));
    rig.fail();
    expect(medium.bytes.subarray(CHUNK, 2 * CHUNK)).toEqual(ones(CHUNK));
    const corrupted = () => events().filter((line) => line.startsWith('corrupted'));
    expect(corrupted()).toEqual([expect.stringContaining(`corrupted device=disk ${expected}`)]);
    log.length = 0;
    disk.write(0, ones(SIZE));
    expect(log).toEqual([`disk write 0 ${SIZE}`]);
    expect(disk.map.saveState().writeMap.every((byte) => byte === 2)).toBe(true);
    expect(corrupted().length).toBe(1);
    const requests: [string, () => void][] = [
      ['read', () => readBytes(image, SIZE - 1, 1)],
      ['write', () => image.write(0, ones(1))],
      ['zeroes', () => image.writeZeroes(0, 1)],
      ['flush', () => image.flush()],
      ['discard', () => image.discard()],
    ];
    for (const [what, request] of requests) expect([what, codeOf(request)]).toEqual([what, 'EIO']);
    expect(log.length).toBe(1);
    expect(snapshot.stateText()).toMatch(/^corrupted\n[\s\S]*device disk error -(5|28)\n/);
  });

  it('says that a copy has failed before it lets anybody else have the chunks', async () => {
    const { disk, fail, snapshot, mount } = await makeRig();
    const status = new AreaStatus(mount.announcement('s', 'disk').descriptor.area);
    fail('store write');
    const seen: number[] = [];
    const notify = vi.spyOn(Atomics, 'notify').mockImplementation((words, index) => {
      if (words.buffer === mount.announcement('s', 'disk').descriptor.area.shared) {
        seen.push(Number(words[index!]), status.errno);
      }
      return 0;
    });
    disk.write(0, ones(2 * CHUNK));
    notify.mockRestore();
    expect(seen).toEqual([0, 5, 0, 5]);
    expect(snapshot.stateText()).toMatch(/^corrupted\n/);
  });

  it('a failing flush of the storage ends the image', async () => {
    const { disk, image, fail, events } = await makeRig();
    disk.write(0, ones(1));
    fail('store flush');
    expect(codeOf(() => image.flush())).toBe('EIO');
    fail();
    expect(codeOf(() => readBytes(image, 0, 1))).toBe('EIO');
    expect(events()).toEqual(['corrupted device=disk err=5 reason="store flush fails"']);
  });

  it('an image write that cannot be copied for fails; a read that fails does no harm', async () => {
    const { image, fail, events, before } = await makeRig();
    fail('disk read');
    expect(codeOf(() => readBytes(image, 0, 100))).toBe('EIO');
    fail();
    expectSameBytes(contentOf(image), before, 'the image');
    fail('disk read');
    expect(codeOf(() => image.write(0, ones(1)))).toBe('EIO');
    expect(events().length).toBe(1);
  });

  it('a read that the device overtakes is read again from the storage', async () => {
    const rig = await makeRig();
    const { mount, medium, before } = rig;
    let isBetween = false;
    const racing = hooked(medium, () => {
      if (isBetween) return;
      isBetween = true;
      // Between the look at the state and the read of the device.
      rig.disk.write(0, ones(3 * CHUNK));
    });
    const { descriptor } = mount.announcement('s', 'disk');
    const image = new SnapshotImage(descriptor, {
      origin: racing,
      device: () => rig.store,
      raiseAt: () => {},
    });
    expectSameBytes(readBytes(image, 100, 5 * CHUNK), before.subarray(100, 100 + 5 * CHUNK), 'the image');
    expect(isBetween).toBe(true);
  });

  it.each([
    ['fails to copy', (rig: Awaited<ReturnType<typeof makeRig>>) => rig.fail('store write')],
    [
      'ends',
      ({ mount }: Awaited<ReturnType<typeof makeRig>>) =>
        new AreaStatus(mount.announcement('s', 'disk').descriptor.area).end(),
    ],
  ])('a read that meets a snapshot which %s in the middle is EIO', async (_, cause) => {
    const rig = await makeRig();
    const { descriptor } = rig.mount.announcement('s', 'disk');
    let isBetween = false;
    const origin = hooked(rig.medium, () => {
      if (isBetween) return;
      isBetween = true;
      cause(rig);
      rig.disk.write(0, ones(CHUNK));
    });
    const image = new SnapshotImage(descriptor, { origin, device: () => rig.store, raiseAt: () => {} });
    expect(codeOf(() => readBytes(image, 0, CHUNK))).toBe('EIO');
  });
});

describe('control files', () => {
  const fileOf = (name: string) => blksnap.files.find((file) => file.name === name)!;

  it('cbtinfo, cbtmap and cbtdirty say and do what they should', async () => {
    const { disk } = await makeRig();
    const { generation } = disk.map.info();
    expect(fileOf('cbtinfo').read!(disk)).toBe(
      `device_capacity ${SIZE}\nblock_size 4096\nblock_count 21\ngeneration_id ${generation}\nchanges_number 1\n`,
    );
    await fileOf('cbtdirty').write!(disk, '8 8\n162 1\n0 0');
    expect([...fileOf('cbtmap').bytes!(disk).slice(0, 21)]).toEqual(
      Array.from({ length: 21 }, (_, i) => +[1, 20].includes(i)),
    );
  });

  const BAD = ['1', 'x 1', '1 -1', '1 2 3', '164 0', '0 164', '163 1', '9007199254740991 9007199254740991'];
  it.each(BAD)('cbtdirty refuses `%s` after a good line, names it and marks nothing', async (line) => {
    const { disk } = await makeRig();
    const write = () => fileOf('cbtdirty').write!(disk, `0 8\n${line}`);
    expect(codeOf(write)).toBe('EINVAL');
    expect(write).toThrow('line 2');
    expect(disk.map.saveState().writeMap.every((byte) => byte === 0)).toBe(true);
  });

  it('attaches without arguments only', async () => {
    const context = { size: SIZE } as AttachContext;
    await expect(blksnap.attach(['now'], context)).rejects.toThrow('now');
    const { map } = await blksnap.attach([], context);
    expect([map.size, map.shift]).toEqual([SIZE, 12]);
  });
});

describe('where the holes of an image are', () => {
  const HOLES = [3, 4, 5, 9, 10, 17];

  async function sparseRig() {
    const mount = new FakeMount();
    const bytes = pattern(SIZE).map((byte) => byte | 1);
    for (const chunk of HOLES) bytes.fill(0, chunk * CHUNK, (chunk + 1) * CHUNK);
    const medium = new MemoryDevice(bytes);
    mount.device('disk', withHoles(medium, CHUNK));
    mount.file('/store', new MemoryDevice(1 << 19));
    await mount.taken('s', ['disk'], '/store 8 400');
    return { disk: mount.filter('disk'), image: mount.image('s', 'disk') };
  }

  /** The chunks that are in holes; extents follow each other to the end. */
  function holesOf(image: SnapshotImage): number[] {
    const holes: number[] = [];
    for (let at = 0; at < SIZE; ) {
      const { data, end } = image.extentAt(at);
      expect(end).toBeGreaterThan(at);
      for (let byte = at; !data && byte < end; byte += CHUNK) holes.push(byte / CHUNK);
      at = end;
    }
    return holes;
  }

  it('those of the device, but for chunks that are stored', async () => {
    const { disk, image } = await sparseRig();
    expect(holesOf(image)).toEqual(HOLES);
    disk.write(4 * CHUNK + 7, Uint8Array.of(1));
    disk.discard(0, CHUNK);
    image.write(10 * CHUNK, Uint8Array.of(1));
    expect(holesOf(image)).toEqual([3, 5, 9, 17]);
    for (const chunk of [3, 4, 5, 9, 17]) {
      expect(readBytes(image, chunk * CHUNK, CHUNK).every((byte) => byte === 0)).toBe(true);
    }
    expect(readBytes(image, 0, CHUNK).every((byte) => byte === 0)).toBe(false);
  });

  it('a chunk that is changed while the device is asked is data', async () => {
    const { disk, image } = await sparseRig();
    vi.spyOn(disk, 'extentAt').mockImplementation(() => {
      disk.write(9 * CHUNK, Uint8Array.of(1));
      return { data: false, end: 11 * CHUNK };
    });
    expect(image.extentAt(9 * CHUNK)).toEqual({ data: true, end: 10 * CHUNK });
  });
});
