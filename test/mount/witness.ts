/**
 * A witness of what a device held at a moment that nobody can stop: a Python program whose threads write stamped slots and
 * record when each write was issued and answered, and the judgement of an image by that record.
 */
import { expect } from 'vitest';

const SECTOR_BYTES = 512;

/** Of bytes: [start, end). */
export type Range = readonly [start: number, end: number];

/**
 * Threads that write their slots, each sector stamped with the number of the write, and record when each write was
 * issued and answered. A write is one request: it is done or not, except for the one that the kill meets.
 */
export const WITNESS = `
import errno, json, os, random, struct, sys, threading, time
device, seed, slots = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
THREADS = 3
fd = os.open(device, os.O_RDWR)
records = [[] for _ in range(THREADS)]
barrier = threading.Barrier(THREADS + 1)
def write(thread, slot):
    start, end = slots[slot]
    number = len(records[thread])
    data = b''.join(struct.pack('<QII', number, slot, i) * 32 for i in range((end - start) // 512))
    record = [slot, time.monotonic_ns(), None, 0]
    records[thread].append(record)
    try:
        if os.pwrite(fd, data, start) != len(data):
            sys.exit('a short write')
    except OSError as e:
        if e.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return False
        if e.errno != errno.ENOSPC:
            raise
        record[3] = e.errno
    record[2] = time.monotonic_ns()
    return True
def work(thread):
    rng = random.Random(seed + thread)
    own = range(thread, len(slots), THREADS)
    for slot in own:
        write(thread, slot)
    barrier.wait()
    while write(thread, rng.choice(own)):
        if rng.random() < 0.5:
            time.sleep(rng.random() * 0.002)
threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
for t in threads: t.start()
barrier.wait()
print('ready', flush=True)
for t in threads: t.join()
print(json.dumps(records))
`;

interface Write {
  readonly slot: number;
  readonly issued: number;
  /** When it was answered; null: the kill came first. */
  readonly done: number | null;
  readonly errno: number;
}

/** The writes of each thread of the witness, in order. */
export class Witness {
  private readonly threads: Write[][];

  constructor(
    readonly slots: readonly Range[],
    stdout: string,
  ) {
    const records = JSON.parse(stdout.replace(/^ready\n/, '')) as [number, number, number | null, number][][];
    this.threads = records.map((thread) =>
      thread.map(([slot, issued, done, errno]) => ({ slot, issued, done, errno })),
    );
  }

  get writes(): number {
    return this.threads.reduce((sum, thread) => sum + thread.length, 0);
  }

  get metNoSpace(): boolean {
    return this.threads.some((thread) => thread.some(({ errno }) => errno !== 0));
  }

  /** The image is the device as it read at one moment of [from, to]: a prefix of each thread's writes. */
  expectCut(image: Buffer, from: number, to: number): void {
    this.threads.forEach((thread, t) => {
      let least = thread.filter(({ done }) => done !== null && done < from).length;
      let most = thread.filter(({ issued }) => issued < to).length;
      const seen: string[] = [`${least} to ${most} by time`];
      this.slotsOf(t).forEach((slot) => {
        const found = [...new Set(this.stampsIn(image, slot))];
        expect(found, `the writes in slot ${slot}`).toHaveLength(1);
        const number = found[0]!;
        this.expectMayBe(thread, number, slot);
        const next = thread.findIndex((write, i) => i > number && write.slot === slot && write.errno === 0);
        seen.push(`slot ${slot}: ${number + 1} to ${next < 0 ? 'the end' : next}`);
        least = Math.max(least, number + 1);
        most = Math.min(most, next < 0 ? most : next);
      });
      expect(most, `no one moment of thread ${t} fits: ${seen.join(', ')}`).toBeGreaterThanOrEqual(least);
    });
  }

  /** Each slot holds its last acknowledged write, or, sector by sector, the one that the kill met. */
  expectLatest(image: Buffer): void {
    this.threads.forEach((thread, t) => {
      this.slotsOf(t).forEach((slot) => {
        const open = thread.findIndex((write) => write.slot === slot && write.done === null);
        const acknowledged = thread.findLastIndex(
          (write) => write.slot === slot && write.done !== null && write.errno === 0,
        );
        for (const number of this.stampsIn(image, slot)) {
          expect([acknowledged, open], `the writes that slot ${slot} may hold`).toContain(number);
        }
      });
    });
  }

  private slotsOf(thread: number): number[] {
    return [...this.slots.keys()].filter((slot) => slot % this.threads.length === thread);
  }

  private expectMayBe(thread: readonly Write[], number: number, slot: number): void {
    expect(thread[number], `write ${number}, found in slot ${slot}`).toMatchObject({ slot, errno: 0 });
  }

  /** The number of the write that each sector of a slot holds. */
  private stampsIn(image: Buffer, slot: number): number[] {
    const [start, end] = this.slots[slot]!;
    const stamps: number[] = [];
    for (let at = start; at < end; at += SECTOR_BYTES) {
      const sector = image.subarray(at, at + SECTOR_BYTES);
      const index = (at - start) / SECTOR_BYTES;
      const whole = sector.subarray(16).equals(sector.subarray(0, -16));
      const stamped = [sector.readUInt32LE(8), sector.readUInt32LE(12), whole];
      expect(stamped, `sector ${index} of slot ${slot} at byte ${at}`).toEqual([slot, index, true]);
      stamps.push(Number(sector.readBigUInt64LE(0)));
    }
    return stamps;
  }
}
