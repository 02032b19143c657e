/**
 * Whole stacks against a model that has one byte array, and the document's section 2 sector by sector.
 *
 *   P1  Random requests of any alignment read back, whatever the shape of the layers.
 *   P2  The devices hold, sector by sector and bit by bit, what the stack reads as; nothing outside the stack has changed.
 *   P3  Lower members are the same to the last byte, also where two stacks share them (cow-I1).
 */
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { contentOf, expectSameBytes, readOnly, seeds, underSeed } from '../harness.js';
import {
  argsOf,
  bitmapSize,
  bitsOf,
  type CowRig,
  type Devices,
  dataBytes,
  fillLayers,
  fragments,
  makeCow,
  memoryFor,
  naiveContent,
  offsetOf,
} from './rig.js';

const bytesOf = (devices: Devices) => (name: string) => (devices[name] as MemoryDevice).bytes;

/** The devices with all but those of layer `top` read-only. */
function frozenBelow(devices: Devices, top: number): Devices {
  return Object.fromEntries(
    Object.entries(devices).map(([name, device]) => [
      name,
      name === `bm${top}` || name === `data${top}`
        ? device
        : readOnly(device, 'cow-I1: a lower member is written'),
    ]),
  );
}

function randomRequest({ target }: CowRig, model: Uint8Array, rng: Prng): string {
  const kind = rng.pick(['write', 'write', 'write', 'read', 'read', 'zeroes', 'unmap', 'discard', 'flush']);
  const unit = rng.pick([1, 512, 4096]);
  const offset = Math.min(target.size - 1, rng.below(target.size / unit) * unit);
  const longest = rng.pick([1, 8, 100, target.size / unit]);
  const length = Math.min(target.size - offset, (1 + rng.below(longest)) * unit);
  const where = `${kind} of ${length} at ${offset}`;
  if (kind === 'write') {
    const data = rng.bytes(length);
    target.write(offset, data);
    model.set(data, offset);
  } else if (kind === 'read') {
    const found = new Uint8Array(length);
    target.read(offset, found);
    expectSameBytes(found, model.subarray(offset, offset + length), where);
  } else if (kind === 'flush') {
    target.flush();
  } else {
    if (kind === 'discard') target.discard(offset, length);
    else target.writeZeroes(offset, length, { unmap: kind === 'unmap' });
    model.fill(0, offset, offset + length);
  }
  return where;
}

describe('a stack against a model', () => {
  it('P1, P2, P3: random layers, random requests', async () => {
    for (const seed of seeds((done) => done >= 60)) {
      await underSeed(seed, async () => {
        const rng = new Prng(seed);
        const sectors = 1 + rng.below(rng.pick([40, 700, 2600, 7000]));
        const layers = rng.pick([1, 1, 2, 3, 5, 9]);
        const devices = memoryFor(layers, sectors, rng);
        await fillLayers(layers - 1, sectors, devices, ({ target }) =>
          fragments(sectors, rng, (at, count) => target.write(at * 512, rng.bytes(count * 512))),
        );
        const { target: first, ...rest } = await makeCow(layers, sectors, frozenBelow(devices, layers));
        const rig: CowRig = { target: first, ...rest };
        const model = naiveContent(layers, sectors, bytesOf(devices));
        expectSameBytes(contentOf(rig.target), model, 'at first');
        const before = new Map(Object.keys(devices).map((name) => [name, bytesOf(devices)(name).slice()]));
        fragments(sectors, rng, (at, count) => {
          const data = rng.bytes(count * 512);
          rig.target.write(at * 512, data);
          model.set(data, at * 512);
        });
        for (let step = 0; step < 60; step++) {
          const where = `step ${step}: ${randomRequest(rig, model, rng)}`;
          if (step % 10 === 0) expectSameBytes(contentOf(rig.target), model, where);
        }
        expectSameBytes(contentOf(rig.target), model, 'at the end');
        rig.target.flush();
        expectSameBytes(naiveContent(layers, sectors, bytesOf(devices)), model, 'the devices');

        for (const [name, bytes] of before) {
          if (name !== `bm${layers}` && name !== `data${layers}`)
            expectSameBytes(bytesOf(devices)(name), bytes, name);
        }
        const data = bytesOf(devices)(`data${layers}`);
        const start = offsetOf(layers) * 512;
        for (const outside of [data.subarray(0, start), data.subarray(start + sectors * 512)]) {
          expect(outside.every((byte) => byte === 0xee)).toBe(true);
        }
        const owned = bitsOf(bytesOf(devices)(`bm${layers}`), sectors).length;
        expect(rig.target.statusArgs()).toBe(`${layers} ${owned}/${sectors}`);
        // What nobody wrote is as it was, also where the bits of the whole device say nothing.
        const again = await makeCow(layers, sectors, frozenBelow(devices, layers));
        expect(again.read('layers')).toBe(rig.read('layers'));
        expectSameBytes(contentOf(again.target), model, 'reopened');
      });
    }
  });

  it('P3: two stacks share all layers but their tops', async () => {
    const rng = new Prng(11);
    const sectors = 900;
    const shared = memoryFor(3, sectors, rng);
    await fillLayers(3, sectors, shared, ({ target }) =>
      fragments(sectors, rng, (at, count) => target.write(at * 512, rng.bytes(count * 512))),
    );
    const lower = frozenBelow(shared, -1);
    const stacks = [];
    for (let index = 0; index < 2; index++) {
      const own = {
        bm4: new MemoryDevice(bitmapSize(sectors)),
        data4: new MemoryDevice(dataBytes(4, sectors, rng)),
      };
      const rig = await makeCow(4, sectors, { ...lower, ...own });
      stacks.push({ rig, own, model: contentOf(rig.target) });
    }
    for (let step = 0; step < 300; step++) {
      const { rig, model } = rng.pick(stacks);
      randomRequest(rig, model, rng);
    }
    for (const { rig, own, model } of stacks) {
      expectSameBytes(contentOf(rig.target), model, 'a stack');
      rig.target.flush();
      expectSameBytes(naiveContent(4, sectors, bytesOf({ ...shared, ...own })), model, 'its devices');
    }
  });

  it('64 layers, each with a sector of its own', async () => {
    const sectors = 200;
    const rng = new Prng(64);
    const devices = memoryFor(64, sectors, rng);
    await fillLayers(64, sectors, devices, ({ target }, layer) =>
      target.write(layer * 512, new Uint8Array(512).fill(layer)),
    );
    const { target } = await makeCow(64, sectors, devices);
    const content = contentOf(target);
    for (let layer = 1; layer <= 64; layer++) expect(content[layer * 512 + 100]).toBe(layer);
    expectSameBytes(content, naiveContent(64, sectors, bytesOf(devices)), 'all of it');
    expect(argsOf(64).split(' ')).toHaveLength(2 + 3 * 64);
  });
});
