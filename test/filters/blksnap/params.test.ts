/** Sizes of tracking blocks and chunks against the tables of the format document, and the parameters' own checks. */
import { describe, expect, it } from 'vitest';
import { blocksOf, chunkShift, Params, trackingShift } from '../../../src/filters/blksnap/params.js';
import { codeOf } from '../../targets/harness.js';

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;
const TiB = 1024 * GiB;

describe('sizes [3]', () => {
  it.each([
    [64 * MiB, 64 * KiB, 1024],
    [100 * MiB + 512, 64 * KiB, 1601],
    [128 * GiB, 64 * KiB, 2_097_152],
    [128 * GiB + 512, 128 * KiB, 1_048_577],
    [TiB, 512 * KiB, 2_097_152],
    [8 * TiB, 4 * MiB, 2_097_152],
    [128 * TiB, 64 * MiB, 2_097_152],
    [256 * TiB, 64 * MiB, 4_194_304],
  ])('a device of %d bytes has tracking blocks of %d bytes, %d of them', (capacity, block, blocks) => {
    const shift = trackingShift(capacity, new Params());
    expect([2 ** shift, blocksOf(capacity, shift)]).toEqual([block, blocks]);
  });

  it.each([
    [100 * MiB + 512, 256 * KiB, 401],
    [64 * TiB, 256 * KiB, 2 ** 28],
    [64 * TiB + 512, 512 * KiB, 2 ** 27 + 1],
    [16384 * TiB, 64 * MiB, 2 ** 28],
  ])('a device of %d bytes has chunks of %d bytes, %d of them', (capacity, chunk, chunks) => {
    const shift = chunkShift(capacity, new Params());
    expect([2 ** shift, blocksOf(capacity, shift)]).toEqual([chunk, chunks]);
  });

  it('refuses a device with too many chunks of the largest size', () => {
    const values = new Params();
    expect(codeOf(() => chunkShift(16384 * TiB + 512, values))).toBe('EFAULT');
    values.set('chunk_maximum_shift', '18');
    expect(codeOf(() => chunkShift(64 * TiB, values))).toBe('none');
    expect(codeOf(() => chunkShift(64 * TiB + 512, values))).toBe('EFAULT');
  });

  it('takes a maximum below its minimum for the minimum', () => {
    const values = new Params();
    values.set('tracking_block_minimum_shift', '20');
    values.set('tracking_block_maximum_shift', '9');
    values.set('chunk_minimum_shift', '22');
    values.set('chunk_maximum_shift', '12');
    expect(trackingShift(512 * TiB, values)).toBe(20);
    expect(chunkShift(64 * MiB, values)).toBe(22);
    expect(codeOf(() => chunkShift(1025 * TiB, values))).toBe('EFAULT');
  });
});

describe('Params', () => {
  it('has the defaults of the document [2]', () => {
    const values = new Params();
    expect(Object.fromEntries(values.names.map((name) => [name, values.get(name)]))).toEqual({
      tracking_block_minimum_shift: 16,
      tracking_block_maximum_count: 2_097_152,
      tracking_block_maximum_shift: 26,
      chunk_minimum_shift: 18,
      chunk_maximum_shift: 26,
      chunk_maximum_in_queue: 16,
      diff_storage_minimum: 2_097_152,
    });
  });

  it.each([
    ['tracking_block_minimum_shift', 9, 30],
    ['tracking_block_maximum_shift', 9, 30],
    ['tracking_block_maximum_count', 1, 2 ** 28],
    ['chunk_minimum_shift', 12, 30],
    ['chunk_maximum_shift', 12, 30],
    ['chunk_maximum_in_queue', 1, 4096],
    ['diff_storage_minimum', 8, 2 ** 40],
  ] as const)('%s goes from %d to %d, and a refusal says so and changes nothing', (name, least, most) => {
    const values = new Params();
    for (const good of [least, most]) {
      values.set(name, `${good}`);
      expect(values.get(name)).toBe(good);
    }
    for (const bad of [`${least - 1}`, `${most + 1}`, '-1', 'x', '', '1e3', '9.5']) {
      expect(() => values.set(name, bad)).toThrow(name);
      expect(codeOf(() => values.set(name, bad))).toBe('EINVAL');
      expect(() => values.set(name, bad)).toThrow(`${most}`);
    }
    expect(values.get(name)).toBe(most);
  });
});
