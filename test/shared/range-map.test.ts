import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DmError } from '../../src/errors.js';
import { MAX_RANGE_BLOCKS, RANGE_TYPES, RangeMap } from '../../src/shared/range-map.js';

/** The naive map: one byte per unit; a unit is `scale` blocks, so that keys can be wide while the model is small. */
class Model {
  readonly types: Uint8Array;
  readonly scale: number;

  constructor(units: number, scale: number, type: number) {
    this.types = new Uint8Array(units).fill(type);
    this.scale = scale;
  }

  ranges(): [start: number, end: number, type: number][] {
    const ranges: [number, number, number][] = [];
    for (let unit = 0; unit < this.types.length; unit++) {
      const last = ranges.at(-1);
      if (last?.[2] === this.types[unit]) last[1] += this.scale;
      else ranges.push([unit * this.scale, (unit + 1) * this.scale, this.types[unit]]);
    }
    return ranges;
  }
}

function rangesOf(map: RangeMap): [number, number, number][] {
  const ranges: [number, number, number][] = [];
  map.forEach((start, end, type) => {
    ranges.push([start, end, type]);
  });
  return ranges;
}

/** Everything the map can be asked, against the model. */
function expectEqual(map: RangeMap, model: Model): void {
  map.check();
  const ranges = model.ranges();
  expect(rangesOf(map)).toEqual(ranges);
  expect(map.rangeCount).toBe(ranges.length);
  expect(map.room()).toBe(map.capacity - ranges.length);
  for (let type = 0; type < RANGE_TYPES; type++) {
    const own = ranges.filter((range) => range[2] === type);
    expect(map.blocksOf(type)).toBe(own.reduce((sum, [start, end]) => sum + end - start, 0));
  }
}

function expectSameAnswers(map: RangeMap, model: Model, block: number): void {
  const ranges = model.ranges();
  const holder = ranges.find((range) => range[1] > block)!;
  expect([map.find(block), map.start, map.end, map.type]).toEqual([holder[2], ...holder]);
  for (let type = 0; type < RANGE_TYPES; type++) {
    const first = ranges.find((range) => range[1] > block && range[2] === type);
    const found = map.firstOf(type, block);
    expect(found).toBe(first !== undefined);
    if (first) expect([map.start, map.end, map.type]).toEqual([Math.max(first[0], block), first[1], type]);
  }
}

interface Op {
  readonly at: number;
  readonly length: number;
  readonly type: number;
}

/** Mostly short spans and few types, so that maps get many ranges; sometimes a span that swallows them. */
const op: fc.Arbitrary<Op> = fc.record({
  at: fc.nat({ max: 1 << 20 }),
  length: fc.oneof(
    { weight: 12, arbitrary: fc.integer({ min: 1, max: 3 }) },
    { weight: 2, arbitrary: fc.integer({ min: 1, max: 40 }) },
    { weight: 1, arbitrary: fc.integer({ min: 1, max: 1 << 20 }) },
  ),
  type: fc.oneof({ weight: 4, arbitrary: fc.nat({ max: 2 }) }, fc.nat({ max: RANGE_TYPES - 1 })),
});

const scale = fc.constantFrom(1, 3, 2 ** 31, 2 ** 32 - 1, 2 ** 35);
const leafEntries = fc.integer({ min: 4, max: 9 });

/** The op's span in units of the model. */
function spanOf({ at, length }: Op, model: Model): [start: number, end: number] {
  const start = at % model.types.length;
  return [start, Math.min(start + length, model.types.length)];
}

function apply(map: RangeMap, model: Model, op: Op): void {
  const [start, end] = spanOf(op, model);
  map.set(start * model.scale, end * model.scale, op.type);
  model.types.fill(op.type, start, end);
}

/** A small repeatable generator (xorshift32) of integers below `limit`, for the big maps. */
function numbers(seed: number): (limit: number) => number {
  let x = seed;
  return (limit) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return Math.floor(((x >>> 0) / 2 ** 32) * limit);
  };
}

describe('RangeMap against an array with one type per block', () => {
  it('map-I1..I5 and every answer, after each of a few sets', () => {
    const units = fc.integer({ min: 1, max: 60 });
    const type = fc.nat({ max: RANGE_TYPES - 1 });
    const ops = fc.array(op, { maxLength: 60, size: 'max' });
    fc.assert(
      fc.property(units, scale, leafEntries, type, ops, (units, scale, leafEntries, initialType, ops) => {
        const map = RangeMap.create(units * scale, { initialType, leafEntries, capacity: units });
        const model = new Model(units, scale, initialType);
        for (const op of ops) {
          apply(map, model, op);
          expectEqual(map, model);
          const edge = Math.min(spanOf(op, model)[1], units - 1) * scale;
          for (const block of [0, edge, Math.max(0, edge - 1), units * scale - 1]) {
            expectSameAnswers(map, model, block);
          }
        }
        for (let unit = 0; unit < units; unit++) expectSameAnswers(map, model, unit * scale);
        expect(map.firstOf(initialType, units * scale)).toBe(false);
      }),
      { numRuns: 150 },
    );
  });

  it('map-I1..I5 through the growth and decay of many small leaves, seen by two views', () => {
    const ops = fc.array(op, { minLength: 300, maxLength: 600, size: 'max' });
    fc.assert(
      fc.property(scale, leafEntries, ops, (scale, leafEntries, ops) => {
        const units = 700;
        const one = RangeMap.create(units * scale, { initialType: 0, leafEntries });
        const two = new RangeMap(one.buffer);
        const model = new Model(units, scale, 0);
        ops.forEach((op, i) => {
          apply(i % 3 === 0 ? two : one, model, op);
          (i % 2 === 0 ? two : one).check();
          if (i % 50 === 0) expectEqual(i % 100 === 0 ? two : one, model);
        });
        expectEqual(one, model);
        expectEqual(two, model);
        for (let unit = 0; unit < units; unit += 7) expectSameAnswers(two, model, unit * scale);
      }),
      { numRuns: 40 },
    );
  });

  it('ranges of one block come and go in runs, upwards and downwards', () => {
    const run = fc.record({
      at: fc.nat({ max: 499 }),
      length: fc.integer({ min: 1, max: 250 }),
      step: fc.constantFrom(1, 2, -1, -2),
      type: fc.nat({ max: 3 }),
    });
    fc.assert(
      fc.property(leafEntries, fc.array(run, { maxLength: 12, size: 'max' }), (leafEntries, runs) => {
        const map = RangeMap.create(500, { initialType: 0, leafEntries });
        const model = new Model(500, 1, 0);
        for (const { at, length, step, type } of runs) {
          for (let i = 0, block = at; i < length && block >= 0 && block < 500; i++, block += step) {
            apply(map, model, { at: block, length: 1, type: (type + i) % 4 });
            map.check();
          }
          expectEqual(map, model);
        }
      }),
      { numRuns: 60 },
    );
  });
});

describe('RangeMap at its capacity', () => {
  it('throws ENOSPC when a set would take more ranges, and then changes nothing', () => {
    const capacity = fc.integer({ min: 1, max: 30 });
    const ops = fc.array(op, { maxLength: 120, size: 'max' });
    fc.assert(
      fc.property(capacity, leafEntries, ops, (capacity, leafEntries, ops) => {
        const map = RangeMap.create(200, { initialType: 0, leafEntries, capacity });
        const model = new Model(200, 1, 0);
        for (const op of ops) {
          const after = new Model(200, 1, 0);
          after.types.set(model.types);
          after.types.fill(op.type, ...spanOf(op, model));
          if (after.ranges().length <= capacity) {
            apply(map, model, op);
          } else {
            const before = new Uint8Array(map.buffer.slice(0));
            expect(() => apply(map, model, op)).toThrow(expect.objectContaining({ code: 'ENOSPC' }));
            expect(new Uint8Array(map.buffer.slice(0))).toEqual(before);
            expect(map.room()).toBeLessThan(2);
          }
          expectEqual(map, model);
        }
      }),
      { numRuns: 100 },
    );
  });

  it('names the limit in its sentence', () => {
    const map = RangeMap.create(10, { initialType: 0, capacity: 2 });
    map.set(9, 10, 1);
    expect(() => map.set(3, 4, 1)).toThrow(DmError);
    expect(() => map.set(3, 4, 1)).toThrow('2 ranges');
    map.set(3, 4, 0);
    map.set(8, 9, 1);
    expect(rangesOf(map)).toEqual([
      [0, 8, 0],
      [8, 10, 1],
    ]);
  });
});

describe('RangeMap with a million ranges', () => {
  const RANGES = 1_000_000;
  const BLOCKS = 2 ** 40;
  const empty = (): RangeMap => RangeMap.create(BLOCKS, { initialType: 0 });
  const expectSmall = (map: RangeMap, bytesPerRange: number): void => {
    map.check();
    expect(map.bytesUsed).toBeLessThanOrEqual(bytesPerRange * map.rangeCount);
  };
  /** Single blocks of type 1 at random, until there are enough ranges. */
  const scatter = (map: RangeMap, next: (limit: number) => number): void => {
    while (map.rangeCount < RANGES) {
      const block = next(2 ** 31) * 512 + 1;
      map.set(block, block + 1, 1);
    }
  };

  it('packs ascending ones', () => {
    const map = empty();
    for (let i = 1; i <= RANGES / 2; i++) map.set(i * 4, i * 4 + 1, 1);
    expect(map.rangeCount).toBe(RANGES + 1);
    expectSmall(map, 6.5);
  });

  it('takes at most 16 bytes for each in descending order', () => {
    const map = empty();
    for (let i = RANGES / 2; i >= 1; i--) map.set(i * 4, i * 4 + 1, 1);
    expect(map.rangeCount).toBe(RANGES + 1);
    expectSmall(map, 16);
  });

  it('takes at most 16 bytes for each in random order, and while they go again', () => {
    const map = empty();
    const next = numbers(4711);
    scatter(map, next);
    expectSmall(map, 16);
    for (const percent of [20, 20, 20, 50]) {
      for (let from = 0; map.firstOf(1, from); from = map.end) {
        if (next(100) < percent) map.set(map.start, map.end, 0);
      }
      expectSmall(map, 16);
    }
  });

  it('takes at most 16 bytes for each when every second leaf has nearly emptied', () => {
    const map = empty();
    for (let i = 1; i <= RANGES; i++) map.set(i * 4, i * 4 + 1, 1);
    // A leaf has 128 of the pairs; 100 of them go.
    for (let leaf = 1; leaf < RANGES / 128; leaf += 2) {
      for (let i = 14; i < 114; i++) map.set((leaf * 128 + i) * 4, (leaf * 128 + i) * 4 + 1, 0);
    }
    expectSmall(map, 16);
  });

  it('is one range after one set, and grows again into the same leaves', () => {
    const map = empty();
    const next = numbers(42);
    scatter(map, next);
    map.set(1, BLOCKS, 2);
    expect(rangesOf(map)).toEqual([
      [0, 1, 0],
      [1, BLOCKS, 2],
    ]);
    expect([0, 1, 2].map((type) => map.blocksOf(type))).toEqual([1, 0, BLOCKS - 1]);
    map.check();
    scatter(map, next);
    map.check();
    map.set(0, BLOCKS, 3);
    map.check();
    expect(rangesOf(map)).toEqual([[0, BLOCKS, 3]]);
    expect(map.blocksOf(3)).toBe(BLOCKS);
    scatter(map, next);
    expectSmall(map, 16);
  });

  it('finds the only range of a type', () => {
    const map = empty();
    scatter(map, numbers(7));
    map.set(BLOCKS - 5, BLOCKS - 3, 7);
    expect(map.firstOf(7)).toBe(true);
    expect([map.start, map.end, map.type]).toEqual([BLOCKS - 5, BLOCKS - 3, 7]);
    expect(map.firstOf(7, BLOCKS - 4)).toBe(true);
    expect([map.start, map.end]).toEqual([BLOCKS - 4, BLOCKS - 3]);
    expect(map.firstOf(7, BLOCKS - 3)).toBe(false);
    expect(map.firstOf(6)).toBe(false);
  });
});

describe('RangeMap at its edges', () => {
  it('takes keys up to 2^45', () => {
    const map = RangeMap.create(MAX_RANGE_BLOCKS, { initialType: 7 });
    map.set(MAX_RANGE_BLOCKS - 1, MAX_RANGE_BLOCKS, 1);
    expect(map.find(MAX_RANGE_BLOCKS - 1)).toBe(1);
    expect([map.start, map.end]).toEqual([MAX_RANGE_BLOCKS - 1, MAX_RANGE_BLOCKS]);
    expect(map.blocksOf(7)).toBe(MAX_RANGE_BLOCKS - 1);
    map.check();
  });

  it('refuses what is no block, span or type', () => {
    const map = RangeMap.create(10, { initialType: 0 });
    const refused: (() => unknown)[] = [
      () => map.set(-1, 3, 1),
      () => map.set(3, 3, 1),
      () => map.set(4, 3, 1),
      () => map.set(0, 11, 1),
      () => map.set(0.5, 3, 1),
      () => map.set(0, Number.NaN, 1),
      () => map.set(0, 1, 8),
      () => map.set(0, 10, -1),
      () => map.find(10),
      () => map.find(-1),
      () => map.find(1.5),
      () => map.firstOf(8),
      () => map.firstOf(0, 11),
      () => map.blocksOf(1.5),
      () => RangeMap.create(0, { initialType: 0 }),
      () => RangeMap.create(MAX_RANGE_BLOCKS + 1, { initialType: 0 }),
      () => RangeMap.create(10, { initialType: 8 }),
      () => RangeMap.create(10, { initialType: 0, capacity: 0 }),
      () => RangeMap.create(10, { initialType: 0, leafEntries: 3 }),
      () => new RangeMap(new SharedArrayBuffer(4096)),
    ];
    for (const call of refused) expect(call, call.toString()).toThrow(RangeError);
    expect(rangesOf(map)).toEqual([[0, 10, 0]]);
  });
});
