/**
 * Snapshots under real threads.
 *
 *   P1  While four threads write to a device at random, what two others read of its image never changes; a thread that writes
 *       the image in between reads what it wrote (area-I1).
 *   P2  A device and storage that fail while four threads write: one event a device, the device has what was written, and its
 *       image is EIO or, when a read had come to its end before, right (area-I2).
 *   P3  A take is one moment for two devices that are written in turn, while requests never stop.
 *   P4  Two threads that come to a new chunk at the same instant copy it once.
 */
import { BroadcastChannel } from 'node:worker_threads';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { SnapshotImage } from '../../../src/filters/blksnap/image.js';
import { expectSameBytes } from '../../targets/harness.js';
import { until, useThreads } from '../../threads.js';
import { FakeMount, setParams } from './rig.js';

const CHUNK = 4096;
const SIZE = 64 * CHUNK + 1024;
/** Bytes at the end of the image that its writer has for itself. */
const OWN = 3 * CHUNK;
const STORE = 1 << 20;

// Words that all share.
const STARTED = 0;
const STOP = 1;
const EVENTS = 2;
const READS = 3;
const ERRORS = 4;
const VERSION = 5;
const HEARD = 6;
const WRITES = 7;
const ROAMED = 8;
const MET = 9;
const WORDS = 10;

const start = useThreads(
  `
import { BroadcastChannel, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { MemoryDevice } from './src/device/memory.js';
import { Prng } from './src/device/prng.js';
import { SnapshotImage } from './src/filters/blksnap/image.js';
import { blksnap } from './src/filters/blksnap/tracker.js';
import { SlowMemory } from './test/filters/blksnap/slow-memory.js';
const { task, id, words, media, store, tracker, image, before, steps, failsFrom, isSound, SIZE, CHUNK, OWN } = workerData;
const shared = new Int32Array(words);
const rng = new Prng(id * 977 + 1);
const origin = media && new SlowMemory(media[0], id + 1, 30);
const device = () => {
  const slow = new SlowMemory(store, id + 100, 30);
  const write = slow.write.bind(slow);
  slow.write = (offset, from) => {
    if (offset >= failsFrom) throw Object.assign(new Error('broken'), { code: 'EIO' });
    write(offset, from);
  };
  return slow;
};
const raiseAt = (at, event) => {
  if (event.startsWith('corrupted ')) Atomics.add(shared, ${EVENTS}, 1);
};
const fail = (what) => {
  throw new Error(what);
};
const range = () => {
  const offset = rng.below(SIZE);
  return [offset, 1 + rng.below(Math.min(SIZE - offset, rng.pick([64, CHUNK, 5 * CHUNK])))];
};
const tasks = {
  /** Writes to the device at random, and in the end each thread every fourth sector, so that it is known what must be there. */
  write() {
    const filter = blksnap.open(tracker, { below: origin, device, raiseAt });
    for (let step = 0; step < steps; step++) {
      const [offset, length] = rng.below(25) === 0 ? range() : [512 * rng.below(SIZE / 512), 512];
      if (rng.below(4) > 0) filter.write(offset, new Uint8Array(length).fill(step));
      else filter.writeZeroes(offset, length);
    }
    Atomics.add(shared, ${ROAMED}, 1);
    while (Atomics.load(shared, ${ROAMED}) < 4);
    for (let sector = id; sector < SIZE / 512; sector += 4) {
      filter.write(512 * sector, new Uint8Array(512).fill(id + 1));
    }
    Atomics.add(shared, ${WRITES}, 1);
  },
  read() {
    const view = new SnapshotImage(image, { origin, device, raiseAt });
    for (let isLast = false; !isLast; ) {
      isLast = Atomics.load(shared, ${WRITES}) === 4;
      const [offset, length] = isLast || rng.below(9) === 0 ? [0, SIZE - OWN] : range();
      const bytes = new Uint8Array(Math.max(0, Math.min(length, SIZE - OWN - offset)));
      try {
        view.read(offset, bytes);
      } catch (error) {
        if (isSound || error.code !== 'EIO') throw error;
        Atomics.add(shared, ${ERRORS}, 1);
        continue;
      }
      Atomics.add(shared, ${READS}, 1);
      const at = bytes.findIndex((byte, i) => byte !== before[offset + i]);
      if (at >= 0) fail('the image has changed at byte ' + (offset + at) + ' in a read from ' + offset);
    }
  },
  writeImage() {
    const view = new SnapshotImage(image, { origin, device, raiseAt });
    const mine = before.slice(SIZE - OWN);
    while (Atomics.load(shared, ${WRITES}) < 4) {
      const offset = rng.below(OWN);
      const data = rng.bytes(1 + rng.below(Math.min(OWN - offset, 700)));
      view.write(SIZE - OWN + offset, data);
      mine.set(data, offset);
      const found = new Uint8Array(OWN);
      view.read(SIZE - OWN, found);
      const at = found.findIndex((byte, i) => byte !== mine[i]);
      if (at >= 0) fail('the image has lost what was written at byte ' + at);
    }
  },
  /** Two threads come to one new chunk after another at the same instant. */
  meet() {
    const filter = blksnap.open(tracker, { below: new MemoryDevice(new Uint8Array(media[0])), device: () => new MemoryDevice(new Uint8Array(store)), raiseAt });
    const byte = Uint8Array.of(1);
    for (let chunk = 0; chunk < steps; chunk++) {
      Atomics.add(shared, ${MET}, 1);
      while (Atomics.load(shared, ${MET}) < 2 * (chunk + 1));
      filter.write(chunk * CHUNK + id, byte);
    }
  },
  /** A counter on two devices in turn, while trackers come and go. */
  count() {
    const below = media.map((medium) => new MemoryDevice(new Uint8Array(medium)));
    let filters = [];
    let heard = 0;
    for (let count = 1; Atomics.load(shared, ${STOP}) === 0; count++) {
      while (heard < Atomics.load(shared, ${VERSION})) {
        const received = receiveMessageOnPort(channel);
        if (!received) continue;
        const { index, descriptor } = received.message;
        filters[index] = blksnap.open(descriptor, { below: below[index], device: () => new MemoryDevice(new Uint8Array(store)), raiseAt });
        Atomics.store(shared, ${HEARD}, ++heard);
      }
      if (filters.length < 2) continue;
      for (const filter of filters) filter.write(CHUNK, new Uint8Array(new Float64Array([count]).buffer));
      Atomics.store(shared, ${WRITES}, count);
    }
    channel.close();
  },
};
// Before anybody hears that this runs: what is said then must be heard.
const channel = task === 'count' ? new BroadcastChannel('blksnap-threads') : undefined;
Atomics.add(shared, ${STARTED}, 1);
tasks[task]();
`,
  ['test/filters/blksnap/slow-memory.ts'],
);

let restore: () => void;
let words: Int32Array;
beforeEach(() => {
  restore = setParams({ chunk_minimum_shift: 12, tracking_block_minimum_shift: 12 });
  words = new Int32Array(new SharedArrayBuffer(4 * WORDS));
});
afterEach(() => restore());

const word = (index: number) => Atomics.load(words, index);

/** A device in a snapshot, in shared memory, for threads to work on. */
async function makeShared(storage: string) {
  const before = new Prng(5).bytes(SIZE);
  const medium = new SharedArrayBuffer(SIZE);
  new Uint8Array(medium).set(before);
  const store = new SharedArrayBuffer(STORE);
  const mount = new FakeMount();
  mount.device('disk', new MemoryDevice(new Uint8Array(medium)));
  mount.file('/store', new MemoryDevice(new Uint8Array(store)));
  const snapshot = await mount.taken('s', ['disk'], storage);
  const workerData = (task: string, id: number, { isSound = true, failsFrom = STORE } = {}) => ({
    ...{ task, id, isSound, failsFrom, steps: 600, SIZE, CHUNK, OWN },
    ...{ words: words.buffer, media: [medium], store, before },
    ...{ tracker: mount.descriptor('disk'), image: mount.announcement('s', 'disk').descriptor },
  });
  return { before, content: new Uint8Array(medium), mount, snapshot, workerData };
}

/** What the four writers have left behind: sectors of each in turn. */
function writtenBy4(): Uint8Array {
  return Uint8Array.from({ length: SIZE }, (_, i) => (Math.floor(i / 512) % 4) + 1);
}

it('P1: an image does not change while threads write to the device', async () => {
  for (let round = 0; round < 6; round++) {
    words.fill(0);
    const { before, content, mount, snapshot, workerData } = await makeShared(`/store 0 ${STORE / 512}`);
    const writers = [0, 1, 2, 3].map((id) => start(workerData('write', id)));
    const others = ['read', 'read', 'writeImage'].map((task, i) =>
      start(workerData(task, 4 + i + 10 * round)),
    );
    expect(await Promise.all([...writers, ...others])).toEqual([0, 0, 0, 0, 0, 0, 0]);
    expect(word(READS)).toBeGreaterThan(1);
    expectSameBytes(content, writtenBy4(), 'the device');
    const image = new Uint8Array(SIZE - OWN);
    mount.image('s', 'disk').read(0, image);
    expectSameBytes(image, before.subarray(0, SIZE - OWN), 'the image');
    expect([word(EVENTS), snapshot.stateText().split('\n')[0]]).toEqual([0, 'taken']);
    expect(snapshot.stateText()).toContain(`filled ${65 * 8}\n`);
  }
}, 60_000);

it.each([
  ['storage that fails', 40 * CHUNK, `/store 0 ${STORE / 512}`, 5],
  ['storage that is full', STORE, '/store 0 320', 28],
])(
  'P2: %s ends the image once and never the device',
  async (_, failsFrom, storage, errno) => {
    const { content, mount, snapshot, workerData } = await makeShared(storage);
    const run = (task: string, id: number) => start(workerData(task, id, { isSound: false, failsFrom }));
    const writers = [0, 1, 2, 3].map((id) => run('write', id));
    const readers = [4, 5].map((id) => run('read', id));
    expect(await Promise.all([...writers, ...readers])).toEqual([0, 0, 0, 0, 0, 0]);
    expectSameBytes(content, writtenBy4(), 'the device');
    expect(word(EVENTS)).toBe(1);
    expect(word(ERRORS)).toBeGreaterThan(0);
    expect(snapshot.stateText()).toContain(`device disk error -${errno}\n`);
    expect(() => mount.image('s', 'disk').read(0, new Uint8Array(1))).toThrow('corrupted');
  },
  60_000,
);

it('P3: a take is one moment for all its devices', async () => {
  const TAKES = 150;
  const media = [0, 1].map(() => new SharedArrayBuffer(2 * CHUNK));
  const store = new SharedArrayBuffer(STORE);
  const mount = new FakeMount();
  media.forEach((medium, i) => void mount.device(`d${i}`, new MemoryDevice(new Uint8Array(medium))));
  mount.file('/store', new MemoryDevice(new Uint8Array(store)));
  const channel = new BroadcastChannel('blksnap-threads');
  const announce = (index: number) => {
    channel.postMessage({ index, descriptor: mount.descriptor(`d${index}`) });
    Atomics.add(words, VERSION, 1);
  };
  const setTracker = mount.setTracker.bind(mount);
  mount.setTracker = (device, descriptor) => {
    setTracker(device, descriptor);
    announce(Number(device.name.slice(1)));
  };
  // The thread hears between two requests.
  mount.onSettle = () => until('the thread has heard', () => word(HEARD) === word(VERSION));
  const thread = start({ task: 'count', id: 1, words: words.buffer, media, store, SIZE, CHUNK, OWN });
  await until('it runs', () => word(STARTED) === 1);
  for (const index of [0, 1]) announce(index);

  const counts = new Set<number>();
  for (let take = 0; take < TAKES; take++) {
    const seen = word(WRITES);
    await until('it writes', () => word(WRITES) > seen);
    await mount.taken('s', ['d0', 'd1'], '/store 0 800');
    const read = (name: string) => {
      const bytes = new Uint8Array(8);
      const { descriptor } = mount.announcement('s', name);
      const medium = new MemoryDevice(new Uint8Array(media[Number(name.slice(1))]!));
      const device = () => new MemoryDevice(new Uint8Array(store));
      new SnapshotImage(descriptor, { origin: medium, device, raiseAt: () => {} }).read(CHUNK, bytes);
      return new Float64Array(bytes.buffer)[0]!;
    };
    const first = [read('d0'), read('d1')] as const;
    const now = word(WRITES);
    await until('it goes on writing', () => word(WRITES) > now + 2);
    expect([read('d0'), read('d1')]).toEqual(first);
    // The counter goes to d0 first.
    expect([0, 1]).toContain(first[0] - first[1]);
    counts.add(first[1]);
    await mount.snapshots.destroy('s');
  }
  expect(counts.size).toBe(TAKES);
  Atomics.store(words, STOP, 1);
  expect(await thread).toBe(0);
  channel.close();
}, 90_000);

it('P4: a chunk is copied once', async () => {
  const CHUNKS = 3000;
  const [medium, store] = [0, 1].map(() => new SharedArrayBuffer(CHUNKS * CHUNK)) as [
    SharedArrayBuffer,
    SharedArrayBuffer,
  ];
  const mount = new FakeMount();
  mount.device('disk', new MemoryDevice(new Uint8Array(medium)));
  mount.file('/store', new MemoryDevice(new Uint8Array(store)));
  const snapshot = await mount.taken('s', ['disk'], `/store 0 ${CHUNKS * 8}`);
  const tracker = mount.descriptor('disk');
  const run = (id: number) =>
    start({
      task: 'meet',
      id,
      words: words.buffer,
      media: [medium],
      store,
      tracker,
      steps: CHUNKS,
      SIZE,
      CHUNK,
    });
  expect(await Promise.all([run(0), run(1)])).toEqual([0, 0]);
  expect(snapshot.stateText()).toContain(`filled ${CHUNKS * 8}\n`);
  expect(snapshot.stateText()).toMatch(/^taken\n/);
  expectSameBytes(new Uint8Array(store), new Uint8Array(CHUNKS * CHUNK), 'what was copied');
}, 60_000);
