/** Whose bitmap is it? Every answer to a device that a stranger made, and that nothing is written by asking. */
import { describe, expect, it } from 'vitest';
import type { BlockDevice, Extent } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SimulatedDisk } from '../../../src/device/simulated.js';
import { DmError } from '../../../src/errors.js';
import { bitmapLayout, encodeMagicBlock } from '../../../src/formats/cow-bitmap.js';
import { initialiseBitmap, inspectBitmap } from '../../../src/targets/cow/bitmap-device.js';
import { expectSameBytes } from '../harness.js';

const SECTORS = 204_800;
const GIB = 2_097_152;
const layout = bitmapLayout(SECTORS);

function madeFor(sectors: number, size = bitmapLayout(sectors).minimumBytes): MemoryDevice {
  const device = new MemoryDevice(size);
  initialiseBitmap(device, bitmapLayout(sectors));
  return device;
}

function put(device: MemoryDevice, at: number, ...bytes: number[]): MemoryDevice {
  device.bytes.set(bytes, at);
  return device;
}

describe('inspectBitmap', () => {
  it('tells a new one from one in use', () => {
    const device = new SimulatedDisk(layout.minimumBytes);
    expect(inspectBitmap(device, 'bm', SECTORS)).toBe('new');
    expect(device.operations).toBe(0);
    initialiseBitmap(device, layout);
    expect(device.trace.map(({ kind, offset }) => [kind, offset])).toEqual([
      ['write', layout.magicOffset],
      ['flush', 0],
    ]);
    expect(inspectBitmap(device, 'bm', SECTORS)).toBe('existing');
    const expected = new Uint8Array(layout.minimumBytes);
    expected.set(Buffer.from('11bebaaa0ebeba003300000000000000', 'hex'), 98_304);
    expectSameBytes(device.content(), expected, 'what was written');
  });

  it('takes bits of any value below a right magic block', () => {
    const device = madeFor(SECTORS);
    device.bytes.fill(0xff, 0, layout.magicOffset);
    expect(inspectBitmap(device, 'bm', SECTORS)).toBe('existing');
  });

  it.each<[string, MemoryDevice, number, string]>([
    [
      'too small',
      new MemoryDevice(layout.minimumBytes - 1),
      SECTORS,
      'has 98319 bytes, the bitmap of a stack of 204800 sectors needs 98320',
    ],
    [
      'another magic value',
      put(madeFor(SECTORS), 98_304, 0x12),
      SECTORS,
      'byte 98304 has no magic block of a cow bitmap: the magic is 0x00babe0eaababe12, expected 0x00babe0eaababe11',
    ],
    [
      'a length without a magic',
      put(madeFor(SECTORS), 98_304, 0, 0, 0, 0, 0, 0, 0, 0),
      SECTORS,
      'the magic is 0x0000000000000000, expected 0x00babe0eaababe11',
    ],
    [
      'a length beyond 2^53',
      put(madeFor(SECTORS), 98_304 + 15, 1),
      SECTORS,
      'the stored length is 72057594037927987 sectors, expected 1..2^53 - 1',
    ],
    [
      'another stored length at the same place',
      madeFor(SECTORS + 4096),
      SECTORS,
      'length mismatch: the magic block at byte 98304 has the stored length 52, that of a stack of 208896 to 212991 ' +
        'sectors; one of 204800 sectors has 51, at byte 98304',
    ],
    [
      'that of a longer stack',
      madeFor(GIB),
      SECTORS,
      'length mismatch: the magic block at byte 360448 has the stored length 513, that of a stack of 2097152 to 2101247 ' +
        'sectors; one of 204800 sectors has 51, at byte 98304',
    ],
    [
      'that of a shorter stack, where a longer one has bits',
      madeFor(SECTORS, bitmapLayout(GIB).minimumBytes),
      GIB,
      'length mismatch: the magic block at byte 98304 has the stored length 51',
    ],
    [
      'the first bit set and no magic block',
      put(new MemoryDevice(layout.minimumBytes), 0, 1),
      SECTORS,
      'length mismatch: byte 98304 has no magic block, as for a new bitmap of a stack of 204800 sectors, but byte 0 is not zero',
    ],
    [
      'the last bit set and no magic block',
      put(new MemoryDevice(layout.minimumBytes), SECTORS / 8 - 1, 0x80),
      SECTORS,
      'but byte 25599 is not zero',
    ],
    [
      'something between the bits and the magic block',
      put(new MemoryDevice(layout.minimumBytes), layout.magicOffset - 1, 1),
      SECTORS,
      'but byte 98303 is not zero',
    ],
  ])('refuses %s', (_name, device, sectors, problem) => {
    const before = device.bytes.slice();
    let error: unknown;
    try {
      inspectBitmap(device, 'bm', sectors);
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(DmError);
    expect(error).toMatchObject({ code: 'EINVAL', message: expect.stringContaining(problem) });
    expect((error as Error).message).toMatch(/^bm: /);
    expectSameBytes(device.bytes, before, 'a refused device');
  });

  it('finds a magic block at every place, also the last of a device', () => {
    const size = 98_304 + 40 * 32_768 + 16;
    for (let place = 1; place <= 40; place++) {
      const device = new MemoryDevice(size);
      device.write(98_304 + place * 32_768, encodeMagicBlock({ storedLength: 64 * place }));
      expect(() => inspectBitmap(device, 'bm', 8)).toThrow(
        `length mismatch: the magic block at byte ${98_304 + place * 32_768} `,
      );
    }
  });

  it('reads nothing of holes: a sparse device of 64 TiB is quick', () => {
    const far = 2 ** 46 - 32_768;
    for (const [islands, answer] of [
      [[], 'new'],
      [[far + 100], 'new'],
      [[98_304 + 32_768 * 1001 + 5], 'new'],
    ] as [number[], string][]) {
      const device = new Islands(2 ** 46, islands);
      expect(inspectBitmap(device, 'bm', 2 ** 30)).toBe(answer);
      expect(device.reads).toBeLessThan(10);
    }
    const device = new Islands(2 ** 46, [far, 5 * 32_768]);
    device.magicAt = far;
    expect(() => inspectBitmap(device, 'bm', 2 ** 30)).toThrow(
      `length mismatch: the magic block at byte ${far} has`,
    );
  });

  it('10,000 random images: an answer or a refusal, and nothing written', () => {
    const rng = new Prng(3);
    const answers = { new: 0, existing: 0, refused: 0 };
    const pristine = new Uint8Array(360_448 + 600);
    const device = new MemoryDevice(pristine.slice());
    for (let round = 0; round < 10_000; round++) {
      const size = rng.chance(0.1) ? rng.below(pristine.length + 1) : pristine.length - rng.below(600);
      const image = new MemoryDevice(device.bytes.subarray(0, size));
      const sectors = rng.pick([
        1,
        8,
        4095,
        4096,
        SECTORS,
        258_047,
        258_048,
        262_144,
        GIB,
        GIB + 5000,
        2 ** 40,
      ]);
      const touched: [number, number][] = [];
      const scribble = (at: number, bytes: Uint8Array) => {
        if (at < 0 || at + bytes.length > size) return;
        image.bytes.set(bytes, at);
        touched.push([at, at + bytes.length]);
      };
      for (let times = rng.below(4); times > 0; times--) {
        const place = rng.pick([98_304, 131_072, 360_448, bitmapLayout(sectors).magicOffset]);
        const stored = rng.pick([bitmapLayout(sectors).storedLength, 1, 51, 513, 1 + rng.below(2 ** 31)]);
        if (rng.chance(0.8)) scribble(place, encodeMagicBlock({ storedLength: stored }));
        if (rng.chance(0.3)) scribble(place + rng.below(16), rng.bytes(1 + rng.below(8)));
        if (rng.chance(0.3)) scribble(rng.below(size + 1), rng.bytes(1 + rng.below(40)));
      }
      const before = touched.map(([from, to]) => Buffer.from(image.bytes.slice(from, to)).toString('hex'));
      try {
        answers[inspectBitmap(image, 'bm', sectors)]++;
      } catch (error) {
        expect(error).toMatchObject({ name: 'DmError', code: 'EINVAL' });
        answers.refused++;
      }
      expect(touched.map(([from, to]) => Buffer.from(image.bytes.slice(from, to)).toString('hex'))).toEqual(
        before,
      );
      for (const [from, to] of touched) device.bytes.fill(0, from, to);
      if (round % 1000 === 0)
        expectSameBytes(device.bytes, pristine, `round ${round}: nothing else was written`);
    }
    expect(Math.min(...Object.values(answers))).toBeGreaterThan(100);
  }, 60_000);
});

/** A huge device that is a hole but for 4096 bytes of zeros at some places. */
class Islands implements BlockDevice {
  reads = 0;
  magicAt: number | undefined;

  constructor(
    readonly size: number,
    private readonly islands: readonly number[],
  ) {}

  read(offset: number, into: Uint8Array): void {
    this.reads++;
    into.fill(0);
    if (offset === this.magicAt) into.set(encodeMagicBlock({ storedLength: 9 }));
  }

  extentAt(offset: number): Extent {
    for (const start of [...this.islands].sort((a, b) => a - b)) {
      if (offset < start) return { data: false, end: start };
      if (offset < start + 4096) return { data: true, end: start + 4096 };
    }
    return { data: false, end: this.size };
  }

  write(): void {
    throw new Error('written');
  }

  flush(): void {}
  discard(): void {}
  writeZeroes(): void {}
}
