/** The rules of the dm-cow stack format's section 5, most of them defects of the reference: each with what is wanted. */
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk } from '../../../src/device/simulated.js';
import { parseTableLine } from '../../../src/table.js';
import { cow } from '../../../src/targets/cow/index.js';
import { codeOf, contentOf, expectSameBytes, FaultyDisk, makeRig, readBytes } from '../harness.js';
import { argsOf, bitsOf, type Devices, fillLayers, makeCow, memoryFor, offsetOf } from './rig.js';

const SECTORS = 20_000;
const filled = (sectors: number, value: number) => new Uint8Array(sectors * 512).fill(value);
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, index) => from + index);

async function made(layers = 1, seed = 1) {
  const devices = memoryFor(layers, SECTORS, new Prng(seed));
  await fillLayers(layers - 1, SECTORS, devices, ({ target }, layer) =>
    target.write(layer * 100 * 512, filled(50, layer)),
  );
  const rig = await makeCow(layers, SECTORS, devices);
  return { devices, rig, target: rig.target };
}

describe('the rules of the format', () => {
  it('section 4: bits are linear, at every distance at which the reference shares one', async () => {
    const { devices, target } = await made();
    const before = contentOf(target);
    const sectors = [0, 511, 4095, 8193, 12_800];
    for (const sector of sectors) target.write(sector * 512, filled(1, 7));
    target.flush();
    expect(bitsOf(devices.bm1!.bytes, SECTORS)).toEqual(sectors);
    for (const sector of sectors) before.fill(7, sector * 512, (sector + 1) * 512);
    expectSameBytes(contentOf(target), before, 'all others');
  });

  it('rule 1: all sectors of a write get their bit, also when the first has one', async () => {
    const { devices, target } = await made();
    target.write(100 * 512, filled(1, 1));
    target.write(100 * 512, filled(40, 2));
    target.write(139 * 512, filled(30, 3));
    target.flush();
    expect(bitsOf(devices.bm1!.bytes, SECTORS)).toEqual(range(100, 169));
    expectSameBytes(readBytes(target, 100 * 512, 39 * 512), filled(39, 2), 'the second write');
    expectSameBytes(readBytes(target, 139 * 512, 30 * 512), filled(30, 3), 'the third write');
  });

  it('rules 2, 4: a flush makes the data durable, then its bits, and is accepted at any time', async () => {
    const { data, bitmap, order, target } = await watched();
    target.flush();
    expect(order).toEqual(['data flush']);
    order.length = 0;
    target.write(0, filled(3, 1));
    target.write(5000 * 512, filled(1, 1));
    expect(order).toEqual(['data write', 'data write']);
    order.length = 0;
    target.flush();
    expect(order).toEqual(['data flush', 'bitmap write', 'bitmap flush']);
    order.length = 0;
    target.write(0, filled(3, 2));
    target.flush();
    expect(order).toEqual(['data write', 'data flush']);
    expect([data, bitmap].map((disk) => disk.unflushedAt(disk.operations))).toEqual([0, 0]);
  });

  it('rule 3: without a flush a sector reads as the layers below, never as what the top data device held', async () => {
    const { devices, rig, target } = await made(2);
    const before = contentOf(target);
    target.write(90 * 512, filled(100, 9));
    const again = await makeCow(2, SECTORS, devices);
    expectSameBytes(contentOf(again.target), before, 'the bits were not flushed');
    rig.target.flush();
    before.fill(9, 90 * 512, 190 * 512);
    expectSameBytes(contentOf((await makeCow(2, SECTORS, devices)).target), before, 'now they are');
  });

  it('rule 5: each piece of a read comes from its own place', async () => {
    const { devices, target } = await made(3);
    for (const sector of [110, 205, 207, 240]) target.write(sector * 512, filled(1, 9));
    const found = readBytes(target, 90 * 512, 200 * 512);
    for (const sector of range(90, 290)) {
      const member = [110, 205, 207, 240].includes(sector)
        ? 3
        : sector >= 200 && sector < 250
          ? 2
          : sector >= 100 && sector < 150
            ? 1
            : 0;
      const at = (offsetOf(member) + sector) * 512;
      const { bytes } = devices[member === 0 ? 'base' : `data${member}`]!;
      const there = found.subarray((sector - 90) * 512, (sector - 89) * 512);
      expectSameBytes(there, bytes.subarray(at, at + 512), `sector ${sector} of member ${member}`);
    }
  });

  it('rule 6: a write of a part of a sector keeps the rest, from whichever member holds it', async () => {
    for (const [offset, length] of [
      [7 * 512 + 5, 1],
      [7 * 512, 511],
      [7 * 512 + 1, 511],
      [7 * 512 + 500, 24],
      [149 * 512 + 10, 1024],
      [99 * 512 + 511, 2],
    ] as const) {
      const { devices, target } = await made(2);
      const expected = contentOf(target);
      expected.fill(0xab, offset, offset + length);
      target.write(offset, new Uint8Array(length).fill(0xab));
      expectSameBytes(contentOf(target), expected, `${length} bytes at ${offset}`);
      target.flush();
      expect(bitsOf(devices.bm2!.bytes, SECTORS)).toEqual(
        range(Math.floor(offset / 512), Math.ceil((offset + length) / 512)),
      );
      expectSameBytes(contentOf((await makeCow(2, SECTORS, devices)).target), expected, 'reopened');
    }
  });

  it('rule 7: another stored length is an error, whichever layer has it', async () => {
    for (const bitmap of ['bm1', 'bm2']) {
      const { devices, target } = await made(2);
      target.flush();
      const { bytes } = devices[bitmap]!;
      bytes[98_304 + 8]! += 1;
      const before = bytes.slice();
      await expect(makeCow(2, SECTORS, devices)).rejects.toThrow(
        `${bitmap}: length mismatch: the magic block at byte 98304 has the stored length 6`,
      );
      expectSameBytes(bytes, before, 'the refused bitmap');
    }
  });

  it('rule 8: an error of a member is EIO for its request, and the stack goes on', async () => {
    const { data, bitmap, target } = await watched();
    target.write(0, filled(2, 1));
    bitmap.injectError({ op: 'write', at: 1 });
    expect(codeOf(() => target.flush())).toBe('EIO');
    data.injectError({ op: 'write', at: 1 });
    expect(codeOf(() => target.write(512, filled(2, 2)))).toBe('EIO');
    data.injectError({ op: 'read', at: 1 });
    expect(codeOf(() => readBytes(target, 0, 512))).toBe('EIO');
    expectSameBytes(readBytes(target, 0, 1024), filled(2, 1), 'a read');
    target.write(512, filled(2, 3));
    target.flush();
    expect(bitsOf(bitmap.content(), SECTORS)).toEqual([0, 1, 2]);
    const last = SECTORS - 1;
    target.write(last * 512, filled(1, 4));
    expectSameBytes(readBytes(target, last * 512, 512), filled(1, 4), 'the last sector');
  });

  it('rule 9: a frozen layer without a magic block is an error, and gets none', async () => {
    const { devices, target } = await made(3);
    target.flush();
    const { bytes } = devices.bm2!;
    bytes.fill(0);
    const top = devices.bm3!;
    top.bytes.fill(0);
    const opened: string[] = [];
    const devicesReadOnly: Devices = { ...devices, bm2: new FaultyDisk(new SimulatedDisk(bytes)) };
    await expect(makeRig(cow, argsOf(3), devicesReadOnly, { length: SECTORS, opened })).rejects.toMatchObject(
      {
        code: 'EINVAL',
        message:
          "bm2: all zero, without a magic block at byte 98304: only the last layer's bitmap may be new",
      },
    );
    expect((devicesReadOnly.bm2 as FaultyDisk).disk.operations).toBe(0);
    expect(
      top.bytes.every((byte) => byte === 0),
      'cow-I6: the top of a refused stack is not made a bitmap',
    ).toBe(true);
  });

  it.each([
    ['', 'found 0: cow <base> <offset> {<bitmap> <dev> <offset>}…'],
    ['base', 'so 2, 5, 8… words, found 1'],
    ['base 0 bm1', 'found 3'],
    ['base 0 bm1 data1', 'found 4'],
    ['base 0 bm1 data1 0 bm2', 'found 6'],
    ['base 0 bm1 data1 0 bm2 data2', 'found 7'],
  ])('rule 10: refuses `cow %s` by its number of words', async (args, message) => {
    const opened: string[] = [];
    const made = makeRig(cow, args, {}, { opened });
    await expect(made).rejects.toMatchObject({ code: 'EINVAL', message: expect.stringContaining(message) });
    expect(opened).toEqual([]);
  });

  it('rule 10: 64 layers at most, and names of any length', async () => {
    const layers = (count: number) => Array.from({ length: count }, () => 'x y 0').join(' ');
    const opened: string[] = [];
    const tooMany = makeRig(cow, `base 0 ${layers(65)}`, {}, { opened });
    await expect(tooMany).rejects.toThrow('cow takes 64 layers at most, found 65');
    expect(opened).toEqual([]);
    const name = 'n'.repeat(4000);
    const rig = await makeRig(cow, `${name} 0`, { [name]: new MemoryDevice(5120) });
    expect(rig.target.tableArgs()).toBe(`${name} 0`);
  });

  it('rule 11: the reported parameters are accepted back, base first', async () => {
    const devices = {
      'the base': new MemoryDevice(100 * 512),
      'a\\bitmap': new MemoryDevice(100_000),
      'some data': new MemoryDevice(110 * 512),
    };
    const args = 'the\\ base 3 a\\\\bitmap some\\ data 5';
    const { target } = await makeRig(cow, args, devices);
    expect(target.tableArgs()).toBe(args);
    expect(parseTableLine(`cow ${target.tableArgs()}`).args).toEqual([
      'the base',
      '3',
      'a\\bitmap',
      'some data',
      '5',
    ]);
    expect((await makeRig(cow, target.tableArgs(), devices)).target.size).toBe(97 * 512);
  });

  it('rule 12: what is trimmed reads as zeros from then on, and uncovers nothing', async () => {
    for (const trim of ['discard', 'unmap', 'zeroes'] as const) {
      const { devices, target } = await made(2);
      target.write(120 * 512, filled(10, 9));
      const expected = contentOf(target);
      const [offset, length] = [99 * 512 + 100, 60 * 512];
      if (trim === 'discard') target.discard(offset, length);
      else target.writeZeroes(offset, length, { unmap: trim === 'unmap' });
      expected.fill(0, offset, offset + length);
      expectSameBytes(contentOf(target), expected, trim);
      target.flush();
      expectSameBytes(contentOf((await makeCow(2, SECTORS, devices)).target), expected, `${trim}, reopened`);
      expect(bitsOf(devices.bm2!.bytes, SECTORS)).toEqual(range(99, 160));
    }
  });
});

/** A stack of one layer whose top devices tell in which order they are used. */
async function watched() {
  const order: string[] = [];
  const memory = memoryFor(1, SECTORS, new Prng(2));
  const [data, bitmap] = [new SimulatedDisk(memory.data1!.bytes), new SimulatedDisk(memory.bm1!.bytes)];
  const watch = (name: string, disk: SimulatedDisk) => ({
    size: disk.size,
    read: (offset: number, into: Uint8Array) => disk.read(offset, into),
    write(offset: number, from: Uint8Array) {
      order.push(`${name} write`);
      disk.write(offset, from);
    },
    flush() {
      order.push(`${name} flush`);
      disk.flush();
    },
    discard: () => expect.fail('a discard of a member'),
    writeZeroes: (offset: number, length: number) => disk.writeZeroes(offset, length),
  });
  const devices = { base: memory.base!, data1: watch('data', data), bm1: watch('bitmap', bitmap) };
  const { target } = await makeCow(1, SECTORS, devices);
  order.length = 0;
  return { data, bitmap, order, target };
}
