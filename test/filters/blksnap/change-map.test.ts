/** The change map: the worked example of the document, and that no backup misses a change, over several generations. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ChangeMap, createMap, restoreMap } from '../../../src/filters/blksnap/change-map.js';

const BLOCK = 512;

function makeMap(blocks: number): ChangeMap {
  return new ChangeMap(createMap(blocks * BLOCK, 9));
}

/** previous/active, write map, read map. */
function pictureOf(map: ChangeMap): string {
  const { previous, active, writeMap, readMap } = map.saveState();
  return `${previous}/${active} ${[...writeMap].join(' ')} | ${[...readMap].join(' ')}`;
}

describe('ChangeMap', () => {
  it('goes through the worked example [4]', () => {
    const map = makeMap(3);
    expect(pictureOf(map)).toBe('0/1 0 0 0 | 0 0 0');
    map.mark(0, 1);
    expect(pictureOf(map)).toBe('0/1 1 0 0 | 0 0 0');
    map.switch();
    expect(pictureOf(map)).toBe('1/2 1 0 0 | 1 0 0');
    map.mark(BLOCK, BLOCK);
    expect(pictureOf(map)).toBe('1/2 1 2 0 | 1 0 0');
    map.markBoth(3 * BLOCK - 1, 1);
    expect(pictureOf(map)).toBe('1/2 1 2 2 | 1 0 1');
    map.switch();
    expect(pictureOf(map)).toBe('2/3 1 2 2 | 1 2 2');
  });

  it('starts a new generation at the 255th take, with nothing in it', () => {
    const map = makeMap(2);
    const { generation } = map.info();
    for (let take = 1; take <= 254; take++) {
      map.mark(0, 1);
      map.switch();
      expect(map.info()).toMatchObject({ generation, changesNumber: take });
    }
    expect(pictureOf(map)).toBe('254/255 254 0 | 254 0');
    map.mark(0, 2 * BLOCK);
    map.switch();
    expect(pictureOf(map)).toBe('1/2 0 0 | 0 0');
    expect(map.info().generation).not.toBe(generation);
    expect(map.info().generation).toMatch(/^[\da-f]{8}-[\da-f]{4}-4[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/);
  });

  it('never lets a backup client miss a change, in 300 takes', () => {
    const change = fc.record({
      kind: fc.constantFrom('write', 'image', 'dirty'),
      offset: fc.nat(20 * BLOCK - 1),
      length: fc.integer({ min: 1, max: 3 * BLOCK }),
    });
    const take = fc.record({ changes: fc.array(change, { maxLength: 4 }), isBackedUp: fc.boolean() });
    fc.assert(
      fc.property(fc.array(take, { minLength: 300, maxLength: 300 }), (takes) => {
        const map = makeMap(20);
        let version = 0;
        const device = new Array<number>(20).fill(0);
        // What the client has: a full backup at first.
        const backup = new Array<number>(20).fill(0);
        let kept = { generation: '', number: 0 };
        for (const { changes, isBackedUp } of takes) {
          for (const { kind, offset, length } of changes) {
            if (kind !== 'write') continue;
            map.mark(offset, Math.min(length, map.size - offset));
            const end = Math.min(20, Math.ceil((offset + length) / BLOCK));
            device.fill(++version, Math.floor(offset / BLOCK), end);
          }
          map.switch();
          const image = [...device];
          for (const { kind, offset, length } of changes) {
            if (kind === 'write') continue;
            map.markBoth(offset, Math.min(length, map.size - offset));
            const end = Math.min(20, Math.ceil((offset + length) / BLOCK));
            image.fill(++version, Math.floor(offset / BLOCK), end);
          }
          if (!isBackedUp) continue;
          const { generation, changesNumber } = map.info();
          for (const [block, number] of map.readMap.entries()) {
            if (generation !== kept.generation || number > kept.number) backup[block] = image[block]!;
          }
          kept = { generation, number: changesNumber };
          expect(backup).toEqual(image);
        }
      }),
      { numRuns: 30 },
    );
  });

  it('marks exactly the blocks that a range touches, and copies no more than those', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 40 * BLOCK }),
        fc.nat(1_000_000),
        fc.nat(1_000_000),
        (size, from, to) => {
          const map = new ChangeMap(createMap(size, 9));
          const [offset, last] = [from % size, to % size].sort((a, b) => a - b) as [number, number];
          map.mark(offset, last - offset + 1);
          map.switch();
          const expected = Array.from(
            { length: map.info().blockCount },
            (_, block) => +(block >= Math.floor(offset / BLOCK) && block <= Math.floor(last / BLOCK)),
          );
          expect([...map.readMap]).toEqual(expected);
        },
      ),
    );
  });

  it('is the same map again from its state', () => {
    const map = makeMap(5);
    map.mark(0, 3 * BLOCK);
    map.switch();
    map.markBoth(4 * BLOCK, 1);
    const again = new ChangeMap(restoreMap(map.saveState()));
    expect(again.saveState()).toEqual(map.saveState());
    expect(again.info()).toEqual(map.info());
    again.mark(0, 1);
    expect(pictureOf(map)).toBe('1/2 1 1 1 0 2 | 1 1 1 0 1');
  });
});
