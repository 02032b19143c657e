/** The engine of the power cuts finds what is wrong, and nothing else: targets with a fault that is known. */
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../src/device/block-device.js';
import { MemoryDevice } from '../../src/device/memory.js';
import { SimulatedDisk } from '../../src/device/simulated.js';
import { contentOf, underSeed } from './harness.js';
import { cutOneRun, type PowerCutTest, testPowerCuts } from './power-cuts.js';

const SECTORS = 24;

/** Runs of seeds from 1 on, whatever DMFUSE_SEED says. */
async function cutRuns(test: PowerCutTest, runs = 12): Promise<void> {
  for (let seed = 1; seed <= runs; seed++)
    await underSeed(seed, async () => void (await cutOneRun(test, seed)));
}

const failureOf = (test: PowerCutTest) =>
  cutRuns(test).then(
    () => 'nothing found',
    (error: Error) => error.message,
  );

describe('one disk', () => {
  /** A disk, seen through `change`. */
  const over = (name: string, change: (disk: SimulatedDisk) => Partial<BlockDevice>): PowerCutTest => ({
    name,
    cuts: 1,
    make(rng, power) {
      const disk = new SimulatedDisk(rng.bytes(SECTORS * 512), { power });
      const plain: BlockDevice = {
        size: disk.size,
        read: (offset, into) => disk.read(offset, into),
        write: (offset, from) => disk.write(offset, from),
        discard: (offset, length) => disk.discard(offset, length),
        writeZeroes: (offset, length) => disk.writeZeroes(offset, length),
        flush: () => disk.flush(),
      };
      return {
        target: { ...plain, ...change(disk) },
        unit: 2048,
        check: ([image], cut, { ordinary }) => ordinary.check(image!, cut),
      };
    },
  });

  it('a plain one keeps the promise', () => cutRuns(over('plain', () => ({}))));

  it('cuts-P3: finds a flush that is forgotten, and says how to repeat it', async () => {
    expect(await failureOf(over('forgetful', () => ({ flush: () => {} })))).toMatch(
      /^DMFUSE_SEED=\d+ repeats this: forgetful, cut \d+ of \d+ .*, landed: .*: cuts-P5: .* byte \d+/,
    );
  });

  it('finds zeros that are written over a little more', async () => {
    const zeroMore = (disk: SimulatedDisk) => ({
      writeZeroes: (offset: number, length: number) =>
        disk.writeZeroes(offset, Math.min(disk.size - offset, length + 1)),
    });
    expect(await failureOf(over('generous', zeroMore))).toMatch(/cuts-P5/);
  });

  it('finds a write that is torn where it was promised whole: the image of a random choice', async () => {
    const test = over('whole', () => ({}));
    const message = await failureOf({
      ...test,
      async make(rng, power) {
        const subject = await test.make(rng, power);
        const block = (value: number) => new Uint8Array(4 * 512).fill(value);
        return {
          ...subject,
          run() {
            for (const value of [1, 2, 3]) subject.target.write(0, block(value));
          },
          check([image]) {
            const found = new Set([0, 1, 2, 3].map((sector) => image![sector * 512]));
            expect(found.size === 4 || found.size === 1, 'four sectors at once').toBe(true);
          },
        };
      },
    });
    expect(message).toMatch(
      /in a write of 2048 bytes at 0 of disk 0 \(before the first step\), landed: a random/,
    );
  });
});

/**
 * Sectors on one disk, each with two places; a map on another tells which of them holds the sector. A write goes to the
 * place that the durable map does not name; a flush makes the data durable, then the map.
 */
class TwoPlaces implements BlockDevice {
  readonly size = SECTORS * 512;
  private readonly durable = new Uint8Array(512);
  private readonly map = new Uint8Array(512);

  constructor(
    private readonly data: BlockDevice,
    private readonly mapDisk: BlockDevice,
    private readonly mapFirst = false,
  ) {
    mapDisk.read(0, this.map);
    this.durable.set(this.map);
  }

  read(offset: number, into: Uint8Array): void {
    for (let done = 0; done < into.length; ) {
      const at = offset + done;
      const part = Math.min(512 - (at % 512), into.length - done);
      this.data.read(this.placeOf(Math.floor(at / 512)) + (at % 512), into.subarray(done, done + part));
      done += part;
    }
  }

  write(offset: number, from: Uint8Array): void {
    const first = Math.floor(offset / 512);
    const end = Math.ceil((offset + from.length) / 512);
    const whole = new Uint8Array((end - first) * 512);
    this.read(first * 512, whole);
    whole.set(from, offset - first * 512);
    for (let sector = first; sector < end; sector++) {
      this.map[sector] = 1 - this.durable[sector]!;
      this.data.write(
        this.placeOf(sector),
        whole.subarray((sector - first) * 512, (sector - first + 1) * 512),
      );
    }
  }

  writeZeroes(offset: number, length: number): void {
    this.write(offset, new Uint8Array(length));
  }

  discard(): void {}

  flush(): void {
    if (!this.mapFirst) this.data.flush();
    this.mapDisk.write(0, this.map);
    this.mapDisk.flush();
    if (this.mapFirst) this.data.flush();
    this.durable.set(this.map);
  }

  private placeOf(sector: number): number {
    return (2 * sector + this.map[sector]!) * 512;
  }
}

describe('cuts-P2: two disks', () => {
  const twoPlaces = (name: string, mapFirst: boolean): PowerCutTest => ({
    name,
    cuts: 1,
    make(rng, power) {
      const data = new SimulatedDisk(rng.bytes(2 * SECTORS * 512), { power });
      const map = new SimulatedDisk(512, { power });
      return {
        target: new TwoPlaces(data, map, mapFirst),
        unit: 512,
        check([data, map], cut, { ordinary }) {
          ordinary.check(contentOf(new TwoPlaces(new MemoryDevice(data!), new MemoryDevice(map!))), cut);
        },
      };
    },
  });

  it('passes a device that flushes them in the right order', () => cutRuns(twoPlaces('right order', false)));

  it('finds one that flushes them in the wrong order', async () => {
    expect(await failureOf(twoPlaces('wrong order', true))).toMatch(/of disk 1 \(step \d+: flush.*cuts-P5/);
  });
});

describe('cuts-P4', () => {
  it('a counter that was never raised fails the test', async () => {
    const seen = { often: 0, never: 0 };
    const test: PowerCutTest = {
      name: 'bored',
      cuts: 20,
      seen,
      make: (_rng, power) => ({
        target: new SimulatedDisk(4096, { power }),
        unit: 512,
        check: () => void seen.often++,
      }),
    };
    const given = { ...process.env };
    delete process.env.DMFUSE_SEED;
    delete process.env.DMFUSE_CUTS;
    try {
      await expect(testPowerCuts(test)).rejects.toThrow('cuts-P4: bored: never');
      expect(seen.often).toBeGreaterThanOrEqual(20);
    } finally {
      Object.assign(process.env, given);
    }
  });
});
