/** `owners` against a model that looks at one sector after the other. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CELLS_MAX, cellSectorsOf } from '../../../src/shared/cells.js';
import { Owners } from '../../../src/targets/cow/owners.js';
import { bitOf } from './rig.js';

/** Runs of sectors that a layer holds. */
const runs = (sectors: number) =>
  fc.array(fc.tuple(fc.nat(sectors - 1), fc.integer({ min: 1, max: 70 })), { maxLength: 12 });

const stack = fc
  .oneof(fc.integer({ min: 1, max: 200 }), fc.integer({ min: CELLS_MAX - 2, max: 3 * CELLS_MAX }))
  .chain((sectors) =>
    fc.record({
      sectors: fc.constant(sectors),
      layers: fc.array(runs(sectors), { maxLength: 4 }),
      pieces: fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1, maxLength: 5 }),
    }),
  );

function layerOf(held: readonly (readonly [number, number])[], sectors: number): Int32Array {
  const words = new Int32Array(new SharedArrayBuffer(4 * Math.ceil(sectors / 32)));
  for (const [start, count] of held) {
    // Also past the end of the stack, as the last word may have them.
    for (let s = start; s < Math.min(start + count, words.length * 32); s++) words[s >> 5]! |= 1 << (s & 31);
  }
  return words;
}

/** Of each cell, the sectors that each member shows. */
function naive(sectors: number, layers: readonly Int32Array[]): number[] {
  const cell = cellSectorsOf(sectors);
  const counts = new Array<number>(Math.ceil(sectors / cell) * (layers.length + 1)).fill(0);
  const bytes = layers.map((words) => new Uint8Array(words.buffer));
  for (let sector = 0; sector < sectors; sector++) {
    const member = bytes.findLastIndex((bits) => bitOf(bits, sector)) + 1;
    counts[Math.floor(sector / cell) * (layers.length + 1) + member]!++;
  }
  return counts;
}

describe('cow: owners', () => {
  it('says of each cell what each member shows, read in any pieces', () => {
    fc.assert(
      fc.property(stack, ({ sectors, layers: held, pieces }) => {
        const layers = held.map((each) => layerOf(each, sectors));
        const owners = new Owners(sectors, layers, () => true);
        const parts: Uint8Array[] = [];
        for (let at = 0, turn = 0; at < owners.length; turn++) {
          const part = owners.slice(at, at + pieces[turn % pieces.length]!);
          expect(part.length).toBeGreaterThan(0);
          parts.push(part);
          at += part.length;
        }
        const all = Buffer.concat(parts);
        const counts = Array.from({ length: all.length / 4 }, (_, i) => all.readUInt32LE(4 * i));
        expect(counts).toEqual(naive(sectors, layers));
        expect(owners.slice(owners.length, owners.length + 9)).toEqual(new Uint8Array(0));
      }),
      { numRuns: 25 },
    );
  });

  it('one read of a huge stack gives a part, so that it is quickly done', () => {
    const sectors = 2 ** 35;
    // Of which no bit is looked at: it holds nothing.
    const owners = new Owners(sectors, [new Int32Array(0)], () => false);
    expect(owners.length).toBe(CELLS_MAX * 8);
    expect(owners.slice(0, owners.length).length).toBe(64 * 8);
  });
});
