/**
 * Real threads on one target with a tiny stage: each writes sectors of its own, beside others' in the same groups, reads
 * everybody's, and flushes; the main thread commits and scrubs meanwhile. A sector says who it is, and which version.
 *
 *   threads-P1  A read gives, of each sector, one version, none older than what was written before it began and none newer
 *               than what was begun when it ended. No read fails.
 *   threads-P2  What was written before a flush began is there after a power cut at any instant after its end; of the rest
 *               each sector is one of its versions, and nothing is called corrupt.
 *   threads-P3  At the end it is clean, and all of it is there.
 *
 * The schedule is the machine's and is not repeated by the seed.
 */
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.js';
import { FileDevice } from '../../../src/device/file.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SharedDisk, type SharedDiskBuffers, sharedDiskBuffers, traced } from '../../device/shared-disk.js';
import { useThreads } from '../../threads.js';
import { contentOf, readBytes } from '../harness.js';
import { Images } from './images.js';
import { attach, attachImages, formatted, type Layout } from './rig.js';

const THREADS = 4;
const SECTORS = 290;

/** What the threads and this file have in common. */
const STAMPS = `
export function stamp(rel, version, into) {
  const words = new Uint32Array(128);
  words[0] = rel;
  words[1] = version;
  for (let i = 2; i < 128; i++) words[i] = Math.imul(words[i - 1] ^ (words[i - 2] + i), 0x9e3779b1) ^ rel;
  into.set(new Uint8Array(words.buffer));
}
export function versionOf(rel, sector) {
  const bytes = sector.slice();
  const words = new Uint32Array(bytes.buffer, 0, 2);
  const expected = new Uint8Array(512);
  stamp(rel, words[1], expected);
  if (words[0] !== rel || Buffer.compare(bytes, expected) !== 0) return -1;
  return words[1];
}
`;
const { stamp, versionOf } = (await import(`data:text/javascript,${encodeURIComponent(STAMPS)}`)) as {
  stamp: (rel: number, version: number, into: Uint8Array) => void;
  versionOf: (rel: number, sector: Uint8Array) => number;
};

const WORKER = `
import { workerData } from 'node:worker_threads';
import { FileDevice } from './src/device/file.js';
import { Prng } from './src/device/prng.js';
import { CsumTarget } from './src/targets/csum/target.js';
import { SharedDisk } from './test/device/shared-disk.js';
${STAMPS}
const { descriptor, disks, files, seed, index, threads, sectors, steps, versions, flushes, counts } = workerData;
const devices = disks ? disks.map((disk) => new SharedDisk(disk, seed)) : files.map((file) => new FileDevice(file));
const entries = () => (disks ? new Int32Array(disks[0].words)[1] : 0);
const target = new CsumTarget(descriptor, {
  device: ({ path }) => devices[path === 'imd' ? 1 : 0],
  raise: (event) => { throw new Error('threads-P1: ' + event); },
});
const rng = new Prng(seed);
// Of each sector: the version that was begun, and the one that is done.
const begun = new Int32Array(versions, 0, sectors);
const done = new Int32Array(versions, 4 * sectors, sectors);
// Rows: operations when a flush had ended, and all versions that were done when it began.
const rows = new Float64Array(flushes);
const width = 1 + sectors;
const buffer = new Uint8Array(512 * 130);
// Runs of 4 sectors belong to one thread.
const ownerOf = (rel) => (rel >> 2) % threads;
function check(rel, version, least, what) {
  const most = Atomics.load(begun, rel);
  if (version < least || version > most) {
    throw new Error(what + ': sector ' + rel + ' is version ' + version + ', of ' + least + ' to ' + most);
  }
}
for (let step = 0; step < steps; step++) {
  const kind = rng.below(10);
  if (kind < 5) {
    let rel = rng.below(sectors);
    while (ownerOf(rel) !== index) rel = (rel + 1) % sectors;
    let count = 1;
    while (count < 4 && rel + count < sectors && ownerOf(rel + count) === index && rng.chance(0.6)) count++;
    for (let i = 0; i < count; i++) {
      stamp(rel + i, begun[rel + i] + 1, buffer.subarray(512 * i, 512 * i + 512));
      Atomics.add(begun, rel + i, 1);
    }
    if (count === 1 && rng.chance(0.3)) {
      // In two parts, of which the second completes it; what it keeps of the sector is written again. Nobody reads here.
      target.write(rel * 512, buffer.subarray(0, 512));
      target.write(rel * 512 + 100, buffer.subarray(100, 300));
    } else target.write(rel * 512, buffer.subarray(0, 512 * count));
    for (let i = 0; i < count; i++) Atomics.add(done, rel + i, 1);
  } else if (kind < 9) {
    const rel = rng.below(sectors);
    const count = Math.min(sectors - rel, 1 + rng.below(rng.pick([1, 4, 100])));
    const least = Array.from({ length: count }, (_, i) => Atomics.load(done, rel + i));
    target.read(rel * 512, buffer.subarray(0, 512 * count));
    for (let i = 0; i < count; i++) {
      check(rel + i, versionOf(rel + i, buffer.subarray(512 * i, 512 * i + 512)), least[i], 'threads-P1');
    }
  } else {
    const before = Array.from({ length: sectors }, (_, rel) => Atomics.load(done, rel));
    target.flush();
    const row = Atomics.add(new Int32Array(counts), 0, 1);
    rows[row * width] = entries();
    rows.set(before, row * width + 1);
  }
}
`;

const startThread = useThreads(WORKER, ['test/device/shared-disk.ts']);
let folder: string | undefined;
let descriptors: number[] = [];
afterEach(() => {
  for (const fd of descriptors) closeSync(fd);
  if (folder !== undefined) rmSync(folder, { recursive: true });
  [folder, descriptors] = [undefined, []];
});

/** The superblock of a volume that was not closed. */
function inUse(layout: Layout): Uint8Array {
  const images = new Images({ layout, sectors: SECTORS });
  images.setState('in-use');
  return images.bytes[0]!.subarray(0, 512);
}

function firstVersions(): Uint8Array {
  const content = new Uint8Array(512 * SECTORS);
  for (let rel = 0; rel < SECTORS; rel++) stamp(rel, 0, content.subarray(rel * 512, rel * 512 + 512));
  return content;
}

interface Medium {
  readonly devices: BlockDevice[];
  readonly disks?: SharedDiskBuffers[];
  readonly files?: { fd: number; size: number; path: string }[];
}

function sharedDisks(images: readonly Uint8Array[]): Medium {
  const disks = images.map((image) => sharedDiskBuffers(image, { most: 60_000, traceBytes: 96 << 20 }));
  return { disks, devices: disks.map((disk) => new SharedDisk(disk, 0)) };
}

function realFiles(images: readonly Uint8Array[]): Medium {
  folder = mkdtempSync(join(tmpdir(), 'dmfuse-csum-'));
  const files = images.map((image, index) => {
    const path = join(folder!, `${index}`);
    writeFileSync(path, image);
    const fd = openSync(path, 'r+');
    descriptors.push(fd);
    return { fd, size: image.length, path };
  });
  return { files, devices: files.map((file) => new FileDevice(file)) };
}

describe.each([
  { layout: 'interleaved' as Layout, medium: 'shared disks', make: sharedDisks, wasClean: true, steps: 220 },
  { layout: 'interleaved' as Layout, medium: 'shared disks', make: sharedDisks, wasClean: false, steps: 220 },
  { layout: 'separate' as Layout, medium: 'shared disks', make: sharedDisks, wasClean: true, steps: 220 },
  { layout: 'interleaved' as Layout, medium: 'files', make: realFiles, wasClean: true, steps: 1200 },
  { layout: 'separate' as Layout, medium: 'files', make: realFiles, wasClean: false, steps: 1200 },
])('$layout on $medium, clean $wasClean', ({ layout, make, wasClean, steps }) => {
  it('threads-P1, threads-P2, threads-P3', async () => {
    const origin = formatted(layout, firstVersions());
    if (!wasClean) origin[0]!.set(inUse(layout));
    const medium = make(origin);
    const rig = await attach(medium.devices, { groups: 3, slots: 90 });
    expect(rig.descriptor.wasClean).toBe(wasClean);
    const versions = new SharedArrayBuffer(8 * SECTORS);
    const flushes = new SharedArrayBuffer(8 * (1 + SECTORS) * THREADS * steps);
    const counts = new SharedArrayBuffer(4);
    const stop = rig.target.commitRegularly();
    let isRunning = true;
    const scrubs = (async () => {
      for (; isRunning; await new Promise((resolve) => setTimeout(resolve, 5))) {
        if (!rig.read('scrub').includes('state running')) rig.write('scrub', 'start');
      }
    })();
    const threads = Array.from({ length: THREADS }, (_, index) =>
      startThread({
        descriptor: rig.descriptor,
        disks: medium.disks,
        files: medium.files,
        seed: index + 1,
        index,
        threads: THREADS,
        sectors: SECTORS,
        steps,
        versions,
        flushes,
        counts,
      }),
    );
    try {
      expect(await Promise.all(threads)).toEqual(Array(THREADS).fill(0));
    } finally {
      isRunning = false;
      await scrubs;
      stop();
    }
    expect(rig.events.filter((event) => !event.startsWith('scrub_done'))).toEqual([]);
    expect(rig.read('scrub')).toContain('groups_bad 0');
    const done = new Int32Array(versions, 4 * SECTORS, SECTORS);
    expectVersions(contentOf(rig.target), done, done, 'threads-P1: at the end');
    rig.target.flush();
    rig.target.close();
    const images = medium.devices.map((device) => contentOf(device));
    const again = await attach(images.map((image) => new MemoryDevice(image)));
    // An unclean start is settled where there was a commit or a whole scrub.
    if (wasClean) expect(again.descriptor.wasClean).toBe(true);
    expectVersions(contentOf(again.target), done, done, 'threads-P3');
    // Traces of two disks do not say which of two operations came first.
    if (medium.disks?.length === 1) await cutEverywhere(origin[0]!, medium.disks[0]!, flushes, counts, done);
  });
});

async function cutEverywhere(
  origin: Uint8Array,
  buffers: SharedDiskBuffers,
  flushes: SharedArrayBuffer,
  counts: SharedArrayBuffer,
  done: Int32Array,
): Promise<void> {
  const rng = new Prng(9);
  const disk = traced(origin, buffers);
  const width = 1 + SECTORS;
  const all = new Float64Array(flushes);
  const rows = Array.from({ length: new Int32Array(counts)[0]! }, (_, row) =>
    all.subarray(row * width, (row + 1) * width),
  );
  expect(rows.length).toBeGreaterThan(10);
  const step = Math.max(1, Math.floor(disk.operations / 150));
  // From when the start is over. After the last operation the trace does not know what is durable.
  for (let cut = 3; cut < disk.operations; cut += 1 + rng.below(2 * step)) {
    const least = new Int32Array(SECTORS);
    for (const [ended, ...versions] of rows) {
      if (ended! > cut) continue;
      for (let rel = 0; rel < SECTORS; rel++) least[rel] = Math.max(least[rel]!, versions[rel]!);
    }
    const rig = await attachImages([disk.imageAt(cut, rng)]);
    expectVersions(contentOf(rig.target), least, done, `threads-P2: cut ${cut} of ${disk.operations}`);
    expect(rig.read('errors'), 'threads-P2').toBe('count 0\n');
  }
}

function expectVersions(content: Uint8Array, least: Int32Array, most: Int32Array, what: string): void {
  for (let rel = 0; rel < SECTORS; rel++) {
    const version = versionOf(rel, content.subarray(rel * 512, rel * 512 + 512));
    if (version < least[rel]! || version > most[rel]!) {
      expect.fail(`${what}: sector ${rel} is version ${version}, of ${least[rel]} to ${most[rel]}`);
    }
  }
}

it('the stamps of this test tell versions', () => {
  const sector = new Uint8Array(512);
  stamp(5, 7, sector);
  expect([versionOf(5, sector), versionOf(6, sector)]).toEqual([7, -1]);
  sector[300]! ^= 1;
  expect(versionOf(5, sector)).toBe(-1);
  expect(readBytes(new MemoryDevice(sector), 0, 4)).toEqual(Uint8Array.of(5, 0, 0, 0));
});
