/**
 * A stack across power cuts, its base, lower layer, data and bitmap on disks of their own that lose power together.
 *
 *   cut-P1  Reopened, it is an ordinary disk: what was flushed is there, each later sector is old or new. Old is what the
 *           layers below have where the bit is not durable: never what the data device held before.
 *   cut-P2  The base and the frozen layer are the same to the last byte, and so is what of the top's devices is not its own.
 */
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import type { Prng } from '../../../src/device/prng.js';
import { type PowerSupply, SimulatedDisk } from '../../../src/device/simulated.js';
import { bitmapLayout } from '../../../src/formats/cow-bitmap.js';
import { contentOf, expectSameBytes } from '../harness.js';
import { type Subject, testPowerCuts, type Workload } from '../power-cuts.js';
import { type Devices, fillLayers, fragments, makeCow, memoryFor, offsetOf } from './rig.js';

const seen = { lostBits: 0, allBits: 0, frozenLayers: 0, backgroundCommits: 0 };

// Commits in the background come when the test says so.
beforeAll(() => void vi.useFakeTimers());
afterAll(() => void vi.useRealTimers());

it('cut-P1, cut-P2: a power cut at every operation', () =>
  testPowerCuts({
    name: 'cow',
    cuts: 12_000,
    seen,
    make: (rng, power) => makeSubject(rng, power),
  }));

async function makeSubject(rng: Prng, power: PowerSupply): Promise<Subject> {
  const layers = rng.pick([1, 1, 2]);
  const sectors = 30 + rng.below(rng.pick([30, 300]));
  const memory = memoryFor(layers, sectors, rng);
  await fillLayers(layers - 1, sectors, memory, ({ target }) =>
    fragments(sectors, rng, (at, count) => target.write(at * 512, rng.bytes(count * 512))),
  );
  const names = Object.keys(memory);
  const devices: Devices = Object.fromEntries(
    names.map((name) => [name, new SimulatedDisk(memory[name]!.bytes, { power })]),
  );
  const rig = await makeCow(layers, sectors, devices);
  const { target } = rig;
  fragments(sectors, rng, (at, count) => {
    if (rng.chance(0.2)) target.write(at * 512, rng.bytes(count * 512));
  });
  target.flush();
  const start = Object.fromEntries(names.map((name) => [name, (devices[name] as SimulatedDisk).content()]));
  const bits = bitmapLayout(sectors).bitsBytes;
  return {
    target,
    unit: 4096,
    operations: {
      commit: (work: Workload) => {
        const before = work.begin('a commit in the background');
        const dismiss = target.commitRegularly();
        vi.advanceTimersByTime(1000);
        dismiss();
        if (power.operations > before) seen.backgroundCommits++;
      },
    },
    async check(images, cut, { ordinary }) {
      const image = (name: string) => images[names.indexOf(name)]!;
      const own = [`bm${layers}`, `data${layers}`];
      for (const name of names) {
        if (!own.includes(name)) expectSameBytes(image(name), start[name]!, `cut-P2: ${name}`);
      }
      expectSameBytes(
        image(own[0]!).subarray(bits),
        start[own[0]!]!.subarray(bits),
        'cut-P2: behind the bits',
      );
      const [from, to] = [offsetOf(layers) * 512, (offsetOf(layers) + sectors) * 512];
      for (const outside of [image(own[1]!).subarray(0, from), image(own[1]!).subarray(to)]) {
        expect(
          outside.every((byte) => byte === 0xee),
          'cut-P2: outside the stack',
        ).toBe(true);
      }
      const inMemory = (devices[own[0]!] as SimulatedDisk).content();
      if (Buffer.compare(inMemory, image(own[0]!)) === 0) seen.allBits++;
      else seen.lostBits++;
      if (layers > 1) seen.frozenLayers++;
      const reopened = await makeCow(
        layers,
        sectors,
        Object.fromEntries(names.map((name) => [name, new MemoryDevice(image(name))])),
      );
      ordinary.check(contentOf(reopened.target), cut);
    },
  };
}
