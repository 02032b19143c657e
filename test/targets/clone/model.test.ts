/**
 * Long random runs against a model that is a byte array and a set of regions.
 *
 *   P1  The clone reads as the model, and its regions are hydrated exactly as the rules have it.
 *   P2  The source is not changed, not even flushed (clone-I1).
 *   P3  Of the destination, what no request asked for and no hydration copied is never changed.
 *   P4  After a flush the metadata is whole and says what memory says; what a kill takes back is what was not committed.
 */
import { expect, it } from 'vitest';
import { Prng } from '../../../src/device/prng.js';
import { DISCARDED, SimulatedDisk } from '../../../src/device/simulated.js';
import { contentOf, expectSameBytes, seeds, underSeed, withHoles } from '../harness.js';
import {
  durableOf,
  GARBAGE,
  garbage,
  hydratedOf,
  hydratorOf,
  makeClone,
  memoryFor,
  sourceOf,
} from './rig.js';

const KINDS = ['write', 'write', 'zeroes', 'unmap', 'discard', 'flush', 'hydrate', 'commit', 'kill'];

it('P1, P2, P3, P4: random requests by several views, hydration, commits and kills', async () => {
  for (const seed of seeds((done) => done >= 100)) await underSeed(seed, () => run(new Prng(seed)));
});

async function run(rng: Prng): Promise<void> {
  const region = rng.pick([8, 8, 16, 128, 1024]);
  const sectors = 1 + rng.below(rng.pick([20, 300, 3000]));
  const size = sectors * 512;
  const bytes = region * 512;
  const regions = Math.ceil(sectors / region);
  const memory = memoryFor(sectors, rng);
  const original = memory.source!.bytes.slice();
  const destination = new SimulatedDisk(garbage(sectors + 7));
  const source = sourceOf(memory.source!);
  const devices = {
    metadata: memory.metadata!,
    destination,
    source: rng.chance(0.5) ? withHoles(source) : source,
  };
  const passdown = rng.chance(0.7);
  const batch = `4 hydration_threshold ${1 + rng.below(9)} hydration_batch_size ${1 + rng.below(9)}`;
  const shape = { region, sectors, options: `${passdown ? '0' : '1 no_discard_passdown'} ${batch}` };

  const model = original.slice();
  let hydrated = new Set<number>();
  let durable = new Set<number>();
  /** Regions that were hydrated before a kill: their place on the destination holds what was written then. */
  const stale = new Set<number>();
  let rig = await makeClone(devices, shape);
  let views = [rig.target, rig.openView(), rig.openView()];
  let hydrator = hydratorOf(rig, 4096);
  const rangeOf = (each: number): [number, number] => [each * bytes, Math.min(size, (each + 1) * bytes)];
  const kinds = KINDS.filter((kind) => rng.chance(kind === 'kill' ? 0.4 : 0.8));

  for (let step = 0; step < 150 && kinds.length > 0; step++) {
    const kind = rng.pick(kinds);
    const target = rng.pick(views);
    const unit = rng.pick([1, 512, 4096, bytes]);
    const offset = Math.min(size - 1, rng.below(Math.ceil(size / unit)) * unit);
    const length = Math.min(size - offset, rng.below(rng.pick([2, 10, 300])) * unit);
    const where = `step ${step}: ${kind} of ${length} at ${offset}`;
    if (kind === 'flush' || kind === 'commit') {
      if (kind === 'flush') target.flush();
      else target.close();
      durable = new Set(hydrated);
      expect(durableOf(devices.metadata, regions), where).toEqual([...durable].sort((a, b) => a - b));
      if (kind === 'flush') expect(destination.unflushedAt(destination.operations), where).toBe(0);
    } else if (kind === 'kill') {
      for (const each of hydrated) {
        if (durable.has(each)) continue;
        model.set(original.subarray(...rangeOf(each)), each * bytes);
        stale.add(each);
      }
      hydrated = new Set(durable);
      rig = await makeClone(devices, shape);
      views = [rig.target, rig.openView()];
      hydrator = hydratorOf(rig, 4096);
    } else if (kind === 'hydrate') {
      if (rng.chance(0.3)) hydrator = hydratorOf({ target }, rng.pick([512, 3000, 4096, 50_000]));
      hydrator.step();
      for (const each of hydratedOf(rig)) {
        if (hydrated.has(each)) continue;
        hydrated.add(each);
        const [from, to] = rangeOf(each);
        expectSameBytes(destination.content().subarray(from, to), original.subarray(from, to), where);
      }
    } else if (kind === 'discard') {
      const before = destination.content();
      target.discard(offset, length);
      for (let each = Math.ceil(offset / bytes); (each + 1) * bytes <= offset + length; each++) {
        const [from, to] = rangeOf(each);
        if (passdown) model.fill(DISCARDED, from, to);
        else if (!hydrated.has(each)) model.set(before.subarray(from, to), from);
        hydrated.add(each);
      }
    } else {
      const data = kind === 'write' ? rng.bytes(length) : new Uint8Array(length);
      if (kind === 'write') target.write(offset, data);
      else target.writeZeroes(offset, length, { unmap: kind === 'unmap' });
      model.set(data, offset);
      for (let each = Math.floor(offset / bytes); length > 0 && each * bytes < offset + length; each++) {
        hydrated.add(each);
      }
    }
    expect(hydratedOf(rig), where).toEqual([...hydrated].sort((a, b) => a - b));
    expect(rig.target.statusArgs(), where).toContain(` ${hydrated.size}/${regions} `);
    if (step % 5 === 0 || kind === 'discard') expectSameBytes(contentOf(rng.pick(views)), model, where);
  }

  for (const view of views) expectSameBytes(contentOf(view), model, 'at the end');
  rig.target.flush();
  expect(durableOf(devices.metadata, regions)).toEqual([...hydrated].sort((a, b) => a - b));
  const again = await makeClone(devices, shape);
  expectSameBytes(contentOf(again.target), model, 'opened again');
  expect(again.target.statusArgs()).toBe(rig.target.statusArgs().replace(/^(8 \S+ \S+ \S+) \d+/, '$1 0'));
  expectSameBytes(memory.source!.bytes, original, 'P2: the source');
  const held = destination.content();
  expect(
    held.subarray(size).every((byte) => byte === GARBAGE),
    'P3: behind the clone',
  ).toBe(true);
  for (let each = 0; each < regions; each++) {
    if (hydrated.has(each) || stale.has(each)) continue;
    const [from, to] = rangeOf(each);
    // Of a region that is copied in part: its first bytes, and no others.
    let copied = from;
    while (copied < to && held[copied] === original[copied]) copied++;
    const rest = held.subarray(copied, to);
    expect(
      rest.every((byte) => byte === GARBAGE),
      `P3: region ${each}`,
    ).toBe(true);
  }
}
