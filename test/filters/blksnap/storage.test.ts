/** The accounts of the difference storage: the document's numbers, a naive model, and where slots are. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { createStorage, DiffStorage, type StorageRange } from '../../../src/filters/blksnap/storage.js';
import { codeOf } from '../../targets/harness.js';

function makeStorage(minimum: number): DiffStorage {
  const device = new MemoryDevice(0);
  return new DiffStorage(createStorage(minimum), () => device);
}

/** A range of a file that has nothing else. */
function range(sectors: number, offset = 0, fd = 3): StorageRange {
  return { fd, fileSize: 0, key: `${fd}`, offset, sectors };
}

describe('DiffStorage', () => {
  it('asks at create, at 512 MiB, and 1 GiB further each time when it gets what it asks for [8]', () => {
    const M = 2_097_152;
    const storage = makeStorage(M);
    expect(storage.amounts).toEqual({ capacity: 0, filled: 0, requested: M });
    storage.setChunkBytes(256 << 10);
    storage.append([range(M)]);
    const alarms: number[] = [];
    for (let chunk = 1; chunk <= 30_000; chunk++) {
      if (!storage.allocate(1).isAlarm) continue;
      alarms.push(chunk);
      expect(storage.amounts.requested).toBe(M * (alarms.length + 1));
      storage.append([range(M, alarms.length * M * 512)]);
    }
    expect(alarms).toEqual([2048, 6144, 10_240, 14_336, 18_432, 22_528, 26_624]);
  });

  it.each([
    [2_097_152, 1_048_576],
    [262_144, 131_072],
    [65_536, 32_768],
    [65_550, 32_768],
    [8, 0],
  ])('with M = %d the alarm comes when %d sectors are free', (minimum, level) => {
    const storage = makeStorage(minimum);
    storage.setChunkBytes(4096);
    storage.append([range(minimum + 64)]);
    while (!storage.allocate(1).isAlarm);
    const { capacity, filled } = storage.amounts;
    expect(capacity - filled).toBeLessThanOrEqual(level);
    expect(capacity - filled).toBeGreaterThan(level - 8);
  });

  it('gives up what is too short for a chunk, and stays full once it was', () => {
    const storage = makeStorage(64);
    storage.append([range(7), range(20, 4096), range(3, 99 * 512)]);
    storage.setChunkBytes(4096);
    expect(storage.allocate(9)).toMatchObject({ first: 0, count: 2 });
    expect(storage.amounts.filled).toBe(7 + 16);
    expect(codeOf(() => storage.allocate(1))).toBe('ENOSPC');
    expect(storage.amounts).toMatchObject({ capacity: 30, filled: 30 });
    storage.append([range(8000, 1 << 20)]);
    expect(codeOf(() => storage.allocate(1))).toBe('ENOSPC');
    expect(storage.amounts).toMatchObject({ capacity: 8030, filled: 30 });
  });

  it('does as a naive model, slot by slot', () => {
    const step = fc.oneof(
      { weight: 3, arbitrary: fc.record({ slots: fc.integer({ min: 1, max: 9 }) }) },
      {
        weight: 1,
        arbitrary: fc.record({ append: fc.array(fc.integer({ min: 1, max: 150 }), { maxLength: 3 }) }),
      },
    );
    const chunks = fc.constantFrom(8, 16, 32);
    fc.assert(
      fc.property(
        fc.integer({ min: 8, max: 300 }),
        chunks,
        fc.nat(40),
        fc.array(step),
        (M, chunk, early, steps) => {
          const storage = makeStorage(M);
          const T = Math.floor(M / 2 / 8) * 8;
          const rooms: { offset: number; sectors: number; free: number }[] = [];
          let [end, capacity, filled, requested, isAsking, isFull] = [0, 0, 0, M, true, false];
          const append = (all: number[]) => {
            const ranges = all.map((sectors) => {
              rooms.push({ offset: end, sectors, free: sectors });
              end += sectors + 5;
              capacity += sectors;
              return range(sectors, (end - sectors - 5) * 512, 3 + (sectors % 2));
            });
            storage.append(ranges);
            if (capacity - filled > T) isAsking = false;
          };
          if (early > 0) append([early, 3]);
          storage.setChunkBytes(chunk * 512);
          for (const todo of steps) {
            if ('append' in todo) {
              append(todo.append);
            } else {
              for (let left = todo.slots; left > 0; ) {
                let got: ReturnType<DiffStorage['allocate']> | undefined;
                const code = codeOf(() => (got = storage.allocate(left)));
                let room = isFull ? undefined : rooms[0];
                while (room && room.free < chunk) {
                  filled += room.free;
                  rooms.shift();
                  room = rooms[0];
                }
                isFull ||= !room;
                expect(code).toBe(isFull ? 'ENOSPC' : 'none');
                if (!got || !room) break;
                expect(got.count).toBe(Math.min(left, Math.floor(room.free / chunk)));
                let isAlarm = false;
                for (let i = 0; i < got.count; i++) {
                  const { device: _, ...place } = storage.locate(got.first + i);
                  const offset = (room.offset + room.sectors - room.free) * 512;
                  expect(place).toEqual({ offset, slots: Math.floor(room.free / chunk) });
                  room.free -= chunk;
                  filled += chunk;
                  if (capacity - filled > T || isAsking) continue;
                  isAlarm = isAsking = true;
                  requested += M;
                }
                expect(got.isAlarm).toBe(isAlarm);
                left -= got.count;
              }
            }
            expect(storage.amounts).toEqual({ capacity, filled, requested });
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  it('opens each file once, and flushes all, also those that it has not met', () => {
    const flushed: number[] = [];
    const opened: number[] = [];
    const descriptor = createStorage(64);
    const open = () =>
      new DiffStorage(descriptor, (backing) => {
        const { fd } = backing as { fd: number };
        opened.push(fd);
        return Object.assign(new MemoryDevice(1 << 20), { flush: () => flushed.push(fd) });
      });
    const storage = open();
    const other = open();
    storage.setChunkBytes(4096);
    storage.append([range(16, 0, 5), range(16, 0, 6), range(16, 1 << 19, 5)]);
    for (let slot = 0; slot < 6; slot++) storage.locate(storage.allocate(1).first);
    expect(opened).toEqual([5, 6]);
    other.flush();
    expect(flushed).toEqual([5, 6]);
  });

  it('takes 65,536 ranges and not one more, and none of several when there are too many', () => {
    const storage = makeStorage(8);
    storage.setChunkBytes(4096);
    const many = Array.from({ length: 65_535 }, (_, i) => range(8, i * 4096));
    storage.append(many);
    expect(codeOf(() => storage.append([range(8), range(8)]))).toBe('E2BIG');
    expect(storage.amounts.capacity).toBe(8 * 65_535);
    storage.append([range(16, 77 * 4096)]);
    for (let slot = 0; slot < 65_535; slot++) storage.allocate(1);
    expect(storage.allocate(5)).toMatchObject({ first: 65_535, count: 2 });
    expect(storage.locate(65_536)).toMatchObject({ offset: 78 * 4096, slots: 1 });
    expect(storage.locate(12_345)).toMatchObject({ offset: 12_345 * 4096, slots: 1 });
    expect(codeOf(() => storage.append([range(1)]))).toBe('E2BIG');
  });
});
