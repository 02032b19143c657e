/** What the battery and the model do not see: which requests a stack makes, tables it refuses, its control file, big stacks. */
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { BlockDevice, Extent } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { DmError } from '../../../src/errors.js';
import { bitmapLayout, encodeMagicBlock } from '../../../src/formats/cow-bitmap.js';
import { cow } from '../../../src/targets/cow/index.js';
import { codeOf, contentOf, expectSameBytes, hooked, makeRig, readBytes, withoutUnmap } from '../harness.js';
import { bitmapSize, type CowRig, fillLayers, makeCow, memoryFor, offsetOf } from './rig.js';

const filled = (sectors: number, value: number) => new Uint8Array(sectors * 512).fill(value);

/** A device that notes requests: `read 3+5` is sectors 3 to 7. */
function noting(device: BlockDevice, start: number, requests: string[]): BlockDevice {
  return hooked(device, (op, offset, length) => {
    if (op === 'discard') expect.fail('a discard of a member');
    const kind = op === 'unmap' ? 'punch' : op;
    if (op !== 'flush') requests.push(`${kind} ${offset / 512 - start}+${length / 512}`);
  });
}

/** A stack of two layers that notes what it asks of base, lower and top. */
async function noted(sectors: number, fill: (rig: CowRig, layer: number) => void) {
  const memory = memoryFor(2, sectors, new Prng(5));
  await fillLayers(2, sectors, memory, fill);
  const requests = { base: [] as string[], lower: [] as string[], top: [] as string[] };
  const { target } = await makeCow(2, sectors, {
    ...memory,
    base: noting(memory.base!, offsetOf(0), requests.base),
    data1: noting(memory.data1!, offsetOf(1), requests.lower),
    data2: noting(memory.data2!, offsetOf(2), requests.top),
  });
  return { memory, requests, target };
}

describe('few large requests', () => {
  it('one holder is one request, whatever the alignment', async () => {
    const { requests, target } = await noted(5000, ({ target }, layer) => {
      if (layer === 2) target.write(1000 * 512, filled(2000, 2));
    });
    readBytes(target, 0, 1000 * 512);
    readBytes(target, 1000 * 512, 2000 * 512);
    readBytes(target, 1500 * 512 + 100, 1000);
    readBytes(target, 3000 * 512 + 1, 510);
    expect(requests).toEqual({
      base: ['read 0+1000', `read ${3000 + 1 / 512}+${510 / 512}`],
      lower: [],
      top: ['read 1000+2000', `read ${1500 + 100 / 512}+${1000 / 512}`],
    });
  });

  it('a request is cut at a megabyte and where the holder changes', async () => {
    const { requests, target } = await noted(5000, ({ target }, layer) => {
      if (layer === 1) target.write(100 * 512, filled(100, 1));
      else target.write(150 * 512, filled(2500, 2));
    });
    readBytes(target, 0, 5000 * 512);
    expect(requests).toEqual({
      base: ['read 0+100', 'read 2650+1446', 'read 4096+904'],
      lower: ['read 100+50'],
      top: ['read 150+1898', 'read 2048+602'],
    });
  });

  it('alternating sectors: one request a member', async () => {
    const { memory, requests, target } = await noted(2048, ({ target }, layer) => {
      for (let sector = layer; sector < 2048; sector += 3) target.write(sector * 512, filled(1, layer));
    });
    const found = readBytes(target, 0, 2048 * 512);
    expect(requests).toEqual({ base: ['read 0+2047'], lower: ['read 1+2047'], top: ['read 2+2044'] });
    for (let sector = 0; sector < 2048; sector++) {
      const at = (sector + offsetOf(0)) * 512;
      const wanted = sector % 3 === 0 ? memory.base!.bytes.subarray(at, at + 512) : filled(1, sector % 3);
      expectSameBytes(found.subarray(sector * 512, (sector + 1) * 512), wanted, `sector ${sector}`);
    }
  });

  it('gaps below 16 KiB are read over, others not', async () => {
    const { requests, target } = await noted(1000, ({ target }, layer) => {
      if (layer === 1) return;
      for (const sector of [100, 132, 165]) target.write(sector * 512, filled(1, 2));
    });
    const found = readBytes(target, 0, 1000 * 512);
    expect(requests.top).toEqual(['read 100+33', 'read 165+1']);
    expect(requests.base).toEqual(['read 0+1000']);
    expect([99, 100, 101, 131, 132, 133].map((sector) => found[sector * 512 + 9] === 2)).toEqual([
      false,
      true,
      false,
      false,
      true,
      false,
    ]);
  });

  it('a gap that cannot be read fails nobody who did not ask for it', async () => {
    const memory = memoryFor(2, 300, new Prng(6));
    await fillLayers(2, 300, memory, ({ target }, layer) => {
      if (layer === 1) for (const sector of [20, 30, 40]) target.write(sector * 512, filled(1, 1));
      else for (const sector of [10, 35]) target.write(sector * 512, filled(1, 2));
    });
    const { target } = await makeCow(2, 300, {
      ...memory,
      base: withBadSectors(
        memory.base!,
        [20, 35].map((sector) => sector + offsetOf(0)),
      ),
      data1: withBadSectors(
        memory.data1!,
        [25, 35].map((sector) => sector + offsetOf(1)),
      ),
    });
    const expected = contentOf((await makeCow(2, 300, memory)).target);
    expectSameBytes(contentOf(target), expected, 'all of it');
    expectSameBytes(
      readBytes(target, 5 * 512 + 7, 60 * 512),
      expected.subarray(5 * 512 + 7, 65 * 512 + 7),
      'a part',
    );
    const worse = await makeCow(2, 300, {
      ...memory,
      data1: withBadSectors(memory.data1!, [30 + offsetOf(1)]),
    });
    expect(codeOf(() => readBytes(worse.target, 25 * 512, 10 * 512))).toBe('EIO');
  });

  it('cow-I2: a bit that is set while a read is under way does not count for it', async () => {
    for (const during of ['base', 'data1'] as const) {
      const memory = memoryFor(1, 300, new Prng(7));
      let meanwhile = () => {};
      const hooked = {
        ...noting(memory[during]!, 0, []),
        read(offset: number, into: Uint8Array) {
          memory[during]!.read(offset, into);
          meanwhile();
        },
      };
      const rig = await makeCow(1, 300, { ...memory, [during]: hooked });
      for (const sector of [10, 12, 14]) rig.target.write(sector * 512, filled(1, 1));
      const before = contentOf(rig.target);
      const other = rig.openView();
      // In a gap, before it, and behind it.
      meanwhile = () => {
        for (const sector of [9, 11, 13, 15, 100]) other.write(sector * 512, filled(1, 2));
      };
      expectSameBytes(contentOf(rig.target), before, `during a read of ${during}`);
    }
  });

  it('whole sectors are written in one request and read nothing; parts read what is missing', async () => {
    const { requests, target } = await noted(1000, ({ target }, layer) =>
      target.write(500 * 512, filled(10, layer)),
    );
    target.write(100 * 512, filled(300, 1));
    target.write(505 * 512 + 10, new Uint8Array(100));
    expect(requests).toEqual({
      base: [],
      lower: [],
      top: ['write 100+300', `write ${505 + 10 / 512}+${100 / 512}`],
    });
    requests.top.length = 0;
    target.write(90 * 512 + 256, filled(2, 3));
    expect(requests).toEqual({
      base: ['read 90+0.5', 'read 92.5+0.5'],
      lower: [],
      top: ['write 90+0.5', 'write 92.5+0.5', 'write 90.5+2'],
    });
  });

  it('a trim is a punch, in steps; zeros are zeros', async () => {
    const bytes = 300_000 * 512;
    const requests: string[] = [];
    const data = noting(new Sparse(bytes), 0, requests);
    const bitmap = new Sparse(bitmapSize(300_000));
    const { target } = await makeRig(
      cow,
      'base 0 bitmap data 0',
      { base: new Sparse(bytes), bitmap, data },
      {},
    );
    target.writeZeroes(512, 200_000 * 512, { unmap: true });
    target.writeZeroes(10 * 512, 512);
    expect(requests).toEqual(['punch 1+131071', 'punch 131072+68929', 'zeroes 10+1']);
    expect(target.statusArgs()).toBe('1 200000/300000');
  });

  it('an unmap that the medium cannot do is EOPNOTSUPP and changes nothing, a discard writes zeros out', async () => {
    const memory = memoryFor(1, 300, new Prng(6));
    const { target } = await makeCow(1, 300, { ...memory, data1: withoutUnmap(memory.data1!) });
    const before = contentOf(target);
    expect(codeOf(() => target.writeZeroes(700, 5000, { unmap: true }))).toBe('EOPNOTSUPP');
    expectSameBytes(contentOf(target), before, 'refused');
    expect(target.statusArgs()).toBe('1 0/300');
    target.discard(700, 5000);
    before.fill(0, 700, 5700);
    expectSameBytes(contentOf(target), before, 'discarded');
    expect(target.statusArgs()).toBe('1 11/300');
  });
});

function withBadSectors(device: BlockDevice, sectors: number[]): BlockDevice {
  return {
    size: device.size,
    read(offset, into) {
      if (sectors.some((bad) => (bad + 1) * 512 > offset && bad * 512 < offset + into.length))
        throw new DmError('EIO', 'a bad sector');
      device.read(offset, into);
    },
    write: (offset, from) => device.write(offset, from),
    flush: () => device.flush(),
    discard: (offset, length) => device.discard(offset, length),
    writeZeroes: (offset, length) => device.writeZeroes(offset, length),
  };
}

describe('create', () => {
  const device = (sectors: number) => new MemoryDevice(sectors * 512);
  const devices = () => ({
    base: device(1000),
    bm1: new MemoryDevice(bitmapSize(1000)),
    data1: device(1000),
    bm2: new MemoryDevice(bitmapSize(1000)),
    data2: device(900),
    small: new MemoryDevice(98_319),
  });

  it('takes the length of the base from its offset on', async () => {
    const size = async (args: string, length?: number) =>
      (await makeRig(cow, args, devices(), length === undefined ? {} : { length })).target.size / 512;
    expect(await size('base 0')).toBe(1000);
    expect(await size('base 100 bm2 data2 0')).toBe(900);
    expect(await size('base 0 bm2 data2 0', 900)).toBe(900);
    expect(await size('base 999')).toBe(1);
  });

  it.each([
    ['base x', undefined, 'the offset (sectors) on base must be a decimal number, found `x`'],
    ['base 0 bm1 data1 -1', undefined, 'the offset (sectors) on data1 must be a decimal number, found `-1`'],
    ['base 1000', undefined, 'base has 0 sectors from sector 1000 on, the stack needs at least 1'],
    ['base 9007199254740991', undefined, 'base has 0 sectors from sector 9007199254740991 on'],
    ['base 1', 1000, 'base has 999 sectors from sector 1 on, the stack needs 1000'],
    ['base 0 bm1 data1 1', undefined, 'data1 has 999 sectors from sector 1 on, the stack needs 1000'],
    ['base 0 bm2 data2 0', undefined, 'data2 has 900 sectors from sector 0 on, the stack needs 1000'],
    [
      'base 0 small data1 0',
      undefined,
      'small: has 98319 bytes, the bitmap of a stack of 1000 sectors needs 98320',
    ],
    ['base 0 bm1 data1 0 bm2 data2 0', 900, 'bm1: all zero, without a magic block at byte 98304'],
  ])('refuses `cow %s` of length %s', async (args, length, message) => {
    const all = devices();
    const made = makeRig(cow, args, all, length === undefined ? {} : { length });
    await expect(made).rejects.toMatchObject({ code: 'EINVAL', message: expect.stringContaining(message) });
    for (const [name, { bytes }] of Object.entries(all)) {
      expectSameBytes(bytes, new Uint8Array(bytes.length), `cow-I6: ${name}`);
    }
  });

  it('opens what it writes for writing and all else for reading', async () => {
    const memory = { ...devices(), data2: device(1000), '@base': device(1000) };
    await fillLayers(1, 1000, { ...memory, base: device(1100), data1: device(1100) }, () => {});
    const accesses: string[] = [];
    const create = (args: string) =>
      cow.create(args.split(' '), {
        length: undefined,
        device: ({ path }) => memory[path as keyof typeof memory],
        raise: () => {},
        openBacking: async (path, access) => {
          accesses.push(`${path} ${access}`);
          return { kind: 'file', fd: -1, path, size: memory[path as keyof typeof memory].size };
        },
      });
    await create('base 0');
    expect(accesses.splice(0)).toEqual(['base write']);
    await create('@base 0 bm1 data1 0 bm2 data2 0');
    expect(accesses).toEqual(['@base read', 'bm1 read', 'data1 read', 'bm2 write', 'data2 write']);
  });

  it('a bitmap that cannot be read is an error of create', async () => {
    const all = { ...devices(), bm1: withBadSectors(new MemoryDevice(bitmapSize(1000)), [192]) };
    await expect(makeRig(cow, 'base 0 bm1 data1 0', all)).rejects.toMatchObject({ code: 'EIO' });
  });

  it('cow-I7: bits behind the end of the stack count for nothing and stay', async () => {
    const sectors = 1003;
    const memory = memoryFor(1, sectors, new Prng(8));
    const { bytes } = memory.bm1!;
    bytes.set(encodeMagicBlock(bitmapLayout(sectors)), 98_304);
    bytes[125] = 0b1111_1010;
    bytes.fill(0xff, 126, 600);
    const rig = await makeCow(1, sectors, memory);
    expect(rig.target.statusArgs()).toBe('1 1/1003');
    rig.target.write(0, filled(1, 1));
    rig.target.flush();
    const expected = new Uint8Array(bytes.length);
    expected.fill(0xff, 126, 600);
    expected[125] = 0b1111_1010;
    expected[0] = 1;
    expected.set(encodeMagicBlock(bitmapLayout(sectors)), 98_304);
    // Behind the 512 bytes that stacks of this stored length have bits in, nothing was written either.
    expectSameBytes(bytes, expected, 'the bitmap device');
    expect(rig.target.statusArgs()).toBe('1 2/1003');
  });

  it('hostile bitmaps with a right magic block: any bits are bits, and nothing is written outside them', async () => {
    const rng = new Prng(9);
    for (let round = 0; round < 300; round++) {
      const sectors = rng.pick([1, 7, 8, 9, 31, 32, 33, 1000, 4095, 4096, 40_000]);
      const image = rng.bytes(bitmapSize(sectors));
      const layout = bitmapLayout(sectors);
      image.set(encodeMagicBlock(layout), layout.magicOffset);
      const bm1 = new MemoryDevice(image.slice());
      const rig = await makeCow(1, sectors, {
        base: new MemoryDevice(sectors * 512 + 6000),
        data1: new MemoryDevice(sectors * 512 + 6000),
        bm1,
      });
      const first = rng.below(sectors);
      rig.target.write(first * 512, filled(rng.below(sectors - first) + 1, 1));
      rig.target.flush();
      expectSameBytes(
        bm1.bytes.subarray(layout.bitsBytes),
        image.subarray(layout.bitsBytes),
        'outside the bits',
      );
      for (let at = 0; at < layout.bitsBytes; at++) {
        if ((image[at]! & ~bm1.bytes[at]!) !== 0) expect.fail(`a bit of byte ${at} was taken away`);
      }
    }
  });
});

describe('control files and status', () => {
  it('`layers`: a line a member, base first', async () => {
    const memory = memoryFor(2, 1000, new Prng(1));
    await fillLayers(1, 1000, memory, ({ target }) => target.write(0, filled(7, 1)));
    const rig = await makeCow(2, 1000, memory);
    expect(rig.read('layers')).toBe('0 1000 - base 0\n1 7 bm1 data1 5\n2 0 bm2 data2 10\n');
    rig.target.write(3 * 512 + 1, filled(10, 1));
    rig.target.write(0, filled(8, 1));
    expect(rig.read('layers')).toBe('0 1000 - base 0\n1 7 bm1 data1 5\n2 14 bm2 data2 10\n');
    expect(rig.target.statusArgs()).toBe('2 14/1000');
    expect(cow.files.map(({ name, write }) => [name, write])).toEqual([
      ['layers', undefined],
      ['owners', undefined],
    ]);
  });

  it('with no layer the base holds everything', async () => {
    const rig = await makeRig(cow, 'the\\ base 1', { 'the base': new MemoryDevice(5120) });
    expect([rig.read('layers'), rig.target.statusArgs()]).toEqual(['0 9 - the\\ base 1\n', '0 9/9']);
    const dismiss = rig.target.commitRegularly();
    dismiss();
  });
});

describe('commits in the background', () => {
  afterEach(() => void vi.useRealTimers());

  it('make what was written safe from a kill, and cost nothing when there is nothing', async () => {
    vi.useFakeTimers();
    const memory = memoryFor(1, 1000, new Prng(2));
    const requests: string[] = [];
    const rig = await makeCow(1, 1000, { ...memory, bm1: noting(memory.bm1!, 0, requests) });
    requests.length = 0;
    const dismiss = rig.target.commitRegularly();
    vi.advanceTimersByTime(5000);
    expect(requests).toEqual([]);
    rig.target.write(100 * 512, filled(3, 1));
    const expected = contentOf(rig.target);
    vi.advanceTimersByTime(1000);
    expect(requests).toEqual(['write 0+1']);
    expectSameBytes(contentOf((await makeCow(1, 1000, memory)).target), expected, 'after a kill');
    vi.advanceTimersByTime(5000);
    expect(requests).toEqual(['write 0+1']);
    rig.target.write(200 * 512, filled(3, 1));
    dismiss();
    vi.advanceTimersByTime(5000);
    expect(requests).toEqual(['write 0+1']);
    expect(rig.events).toEqual([]);
  });

  it('a failure is one event until it works again; a lost flush is told to the next who flushes', async () => {
    vi.useFakeTimers();
    const memory = memoryFor(1, 1000, new Prng(2));
    let isBroken = true;
    const fail = () => {
      if (isBroken) throw new DmError('EIO', 'broken');
    };
    const rig = await makeCow(1, 1000, {
      ...memory,
      data1: { ...noting(memory.data1!, 0, []), flush: fail },
    });
    const dismiss = rig.target.commitRegularly();
    for (const sector of [1, 2]) {
      isBroken = true;
      rig.target.write(sector * 512, filled(1, 1));
      vi.advanceTimersByTime(3000);
      expect(rig.events).toEqual(Array.from({ length: sector }, () => 'commit_failed errno=5'));
      isBroken = false;
      vi.advanceTimersByTime(1000);
      expect(memory.bm1!.bytes[0]).toBe(sector === 1 ? 2 : 6);
      expect(codeOf(() => rig.target.flush())).toBe('EIO');
      expect(codeOf(() => rig.target.flush())).toBe('none');
    }
    dismiss();
  });

  it('a bitmap that cannot be written loses nothing: no flush fails for it later', async () => {
    vi.useFakeTimers();
    const memory = memoryFor(1, 1000, new Prng(2));
    let isBroken = false;
    const bm1: BlockDevice = {
      ...noting(memory.bm1!, 0, []),
      write(offset, from) {
        if (isBroken) throw new DmError('EIO', 'broken');
        memory.bm1!.write(offset, from);
      },
    };
    const rig = await makeCow(1, 1000, { ...memory, bm1 });
    isBroken = true;
    const dismiss = rig.target.commitRegularly();
    rig.target.write(0, filled(1, 1));
    vi.advanceTimersByTime(2000);
    expect([rig.events, memory.bm1!.bytes[0]]).toEqual([['commit_failed errno=5'], 0]);
    isBroken = false;
    rig.target.flush();
    expect(memory.bm1!.bytes[0]).toBe(1);
    dismiss();
  });
});

/** As big as it likes, zeros but for the pages of 4096 bytes that were written; knows its holes. */
class Sparse implements BlockDevice {
  readonly pages = new Map<number, Uint8Array>();
  reads = 0;

  constructor(readonly size: number) {}

  read(offset: number, into: Uint8Array): void {
    this.reads++;
    this.each(offset, into.length, (index, at, done, length) => {
      const page = this.pages.get(index);
      if (page) into.set(page.subarray(at, at + length), done);
      else into.fill(0, done, done + length);
    });
  }

  write(offset: number, from: Uint8Array): void {
    this.each(offset, from.length, (index, at, done, length) => {
      const page = this.pages.get(index) ?? new Uint8Array(4096);
      page.set(from.subarray(done, done + length), at);
      this.pages.set(index, page);
    });
  }

  writeZeroes(): void {}
  discard(): void {}
  flush(): void {}

  extentAt(offset: number): Extent {
    const index = Math.floor(offset / 4096);
    if (this.pages.has(index)) return { data: true, end: Math.min(this.size, (index + 1) * 4096) };
    let next = Number.POSITIVE_INFINITY;
    for (const page of this.pages.keys()) if (page > index) next = Math.min(next, page);
    return { data: false, end: Math.min(this.size, next * 4096) };
  }

  private each(
    offset: number,
    length: number,
    visit: (page: number, at: number, done: number, length: number) => void,
  ): void {
    for (let done = 0; done < length; ) {
      const index = Math.floor((offset + done) / 4096);
      const at = offset + done - index * 4096;
      const part = Math.min(4096 - at, length - done);
      visit(index, at, done, part);
      done += part;
    }
  }
}

describe('big stacks', () => {
  const TIB = 2 ** 40;

  it('64 layers over 5 TiB open without reading their holes, and sectors past 2^32 are found', async () => {
    const sectors = (5 * TIB) / 512;
    const bytes = bitmapLayout(sectors).minimumBytes;
    const devices: Record<string, Sparse> = { base: new Sparse(5 * TIB + 9000) };
    const words = ['base 0'];
    for (let layer = 1; layer <= 64; layer++) {
      devices[`bm${layer}`] = new Sparse(bytes);
      devices[`data${layer}`] = new Sparse(5 * TIB);
      devices[`bm${layer}`]!.write(
        bitmapLayout(sectors).magicOffset,
        encodeMagicBlock(bitmapLayout(sectors)),
      );
      words.push(`bm${layer} data${layer} 0`);
    }
    const args = words.join(' ');
    const { target } = await makeRig(cow, args, devices, { length: sectors });
    for (let layer = 1; layer <= 64; layer++) expect(devices[`bm${layer}`]!.reads).toBeLessThan(10);
    for (const sector of [0, 2 ** 31 + 5, 2 ** 32 - 1, 2 ** 32 + 77, sectors - 3]) {
      target.write(sector * 512 + 100, filled(2, 7));
      const found = readBytes(target, sector * 512, 3 * 512);
      expect([found[99], found[100], found[1123], found[1124]]).toEqual([0, 7, 7, 0]);
      expect(readBytes(target, Math.max(0, sector - 40) * 512, 512).every((byte) => byte === 0)).toBe(
        sector > 0,
      );
    }
    target.flush();
    expect(target.statusArgs()).toBe(`64 15/${sectors}`);
    const again = await makeRig(cow, args, devices, { length: sectors });
    expect(again.target.statusArgs()).toBe(`64 15/${sectors}`);
    expect(readBytes(again.target, (2 ** 32 + 77) * 512 + 100, 1)[0]).toBe(7);
  });

  it('a trim of 256 GiB sets its bits a word at a time', async () => {
    const sectors = TIB / 4 / 512;
    const bitmap = new Sparse(bitmapLayout(sectors).minimumBytes);
    const { target } = await makeRig(
      cow,
      'base 0 bm1 data1 0',
      { base: new Sparse(TIB / 4), bm1: bitmap, data1: new Sparse(TIB / 4) },
      {},
    );
    target.writeZeroes(512, TIB / 4 - 1024, { unmap: true });
    expect(target.statusArgs()).toBe(`1 ${sectors - 2}/${sectors}`);
    target.flush();
    expect([bitmap.pages.get(0)![0], bitmap.pages.get(1)![0]]).toEqual([0xfe, 0xff]);
    // Bits on 16384 pages, and the magic block.
    expect(bitmap.pages.size).toBe(16_385);
  });

  it('extents are those of the holder, cut where another holds', async () => {
    const sectors = 100_000;
    const devices = {
      base: new Sparse(sectors * 512),
      bm1: new Sparse(bitmapLayout(sectors).minimumBytes),
      data1: new Sparse(sectors * 512 + 8 * 512),
    };
    devices.base.write(4096 * 3, filled(8, 1));
    const { target } = await makeRig(cow, 'base 0 bm1 data1 8', devices, {});
    const extents = () => {
      const found: string[] = [];
      for (let at = 0; at < target.size; ) {
        const { data, end } = target.extentAt(at);
        found.push(`${data ? 'data' : 'hole'} ${at / 512}+${(end - at) / 512}`);
        at = end;
      }
      return found;
    };
    expect(extents()).toEqual(['hole 0+24', 'data 24+8', 'hole 32+99968']);
    target.write(64 * 512, filled(16, 1));
    // The base has data there, and the top a hole.
    target.writeZeroes(24 * 512, 8 * 512, { unmap: true });
    expect(extents()).toEqual([
      'hole 0+24',
      'hole 24+8',
      'hole 32+32',
      'data 64+8',
      'data 72+8',
      'hole 80+99920',
    ]);
    expect(target.extentAt(66 * 512 + 3)).toEqual({ data: true, end: 72 * 512 });
  });
});
