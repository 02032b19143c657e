/**
 * Devices, snapshots and a storage that fills, on one thread, against a naive model that knows the rules only by the format
 * document: whole copies of the devices, and accounts that are kept chunk by chunk.
 */
import { afterAll, beforeAll, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { DmError } from '../../../src/errors.js';
import { blksnap } from '../../../src/filters/blksnap/tracker.js';
import { codeOf, expectSameBytes, hooked, readBytes, seeds, underSeed } from '../../targets/harness.js';
import { FakeMount, refusalOf, setParams } from './rig.js';

const ROUNDS = Number(process.env.DMFUSE_ROUNDS ?? 1000);
const STEPS = 60;
const CHUNK = 4096;
const BLOCK = 1024;
const BATCH = 3;
/** Sectors. */
const M = 96;
const T = 48;
const CHUNK_SECTORS = 8;
const SIZES = { a: 11 * CHUNK + 1536, b: 5 * CHUNK, c: 7 * CHUNK + 512 };
const NAMES = ['a', 'b', 'c'] as const;
type Name = keyof typeof SIZES;
const SNAPSHOTS = ['s', 't'];
const STORE_SECTORS = 4096;

let restore: () => void;
beforeAll(() => {
  restore = setParams({
    chunk_minimum_shift: 12,
    tracking_block_minimum_shift: 10,
    chunk_maximum_in_queue: BATCH,
    diff_storage_minimum: M,
  });
});
afterAll(() => restore());

/** What the next operation meets. */
type Fault = 'none' | 'origin' | 'storage';

class NaiveStorage {
  readonly rooms: number[] = [];
  capacity = 0;
  filled = 0;
  requested = M;
  isAsking = true;
  isFull = false;

  append(sectors: number[]): void {
    this.rooms.push(...sectors);
    for (const count of sectors) this.capacity += count;
    if (this.capacity - this.filled > T) this.isAsking = false;
  }

  /** One chunk; whether there was room. */
  take(events: string[]): boolean {
    while (!this.isFull && this.rooms.length > 0 && this.rooms[0]! < CHUNK_SECTORS) {
      this.filled += this.rooms.shift()!;
    }
    if (this.rooms.length === 0) this.isFull = true;
    if (this.isFull) return false;
    this.rooms[0]! -= CHUNK_SECTORS;
    this.filled += CHUNK_SECTORS;
    if (this.capacity - this.filled <= T && !this.isAsking) {
      this.isAsking = true;
      this.requested += M;
      events.push(`low_free_space requested_nr_sect=${M}`);
    }
    return true;
  }
}

class NaiveSnapshot {
  readonly members: NaiveDevice[] = [];
  readonly storage = new NaiveStorage();
  readonly events = [`low_free_space requested_nr_sect=${M}`];
  isTaken = false;

  constructor(readonly name: string) {}

  get state(): string {
    if (!this.isTaken) return 'created';
    return this.members.some(({ error }) => error !== 0) ? 'corrupted' : 'taken';
  }
}

class NaiveDevice {
  readonly content: Uint8Array;
  image = new Uint8Array();
  readonly copied = new Set<number>();
  snapshot: NaiveSnapshot | undefined;
  error = 0;
  writeMap: number[];
  readMap: number[];
  active = 1;
  previous = 0;
  generation = 0;

  constructor(
    readonly name: Name,
    content: Uint8Array,
  ) {
    this.content = content.slice();
    this.writeMap = new Array(Math.ceil(content.length / BLOCK)).fill(0);
    this.readMap = [...this.writeMap];
  }

  mark(map: 'writeMap' | 'readMap', number: number, offset: number, length: number): void {
    for (let block = 0; block < this[map].length; block++) {
      const isTouched = block * BLOCK < offset + length && (block + 1) * BLOCK > offset;
      if (isTouched) this[map][block] = Math.max(this[map][block]!, number);
    }
  }

  take(): void {
    if (this.active === 255) {
      this.generation++;
      this.writeMap.fill(0);
      this.active = 1;
    }
    this.previous = this.active++;
    this.readMap = [...this.writeMap];
    this.image = this.content.slice();
    this.copied.clear();
  }

  /** Copies before a change, in runs of new chunks. */
  copy(offset: number, length: number, fault: Fault): void {
    const snapshot = this.snapshot!;
    const last = Math.floor((offset + length - 1) / CHUNK);
    for (let chunk = Math.floor(offset / CHUNK); chunk <= last && this.error === 0; ) {
      let run = 0;
      while (run < BATCH && chunk + run <= last && !this.copied.has(chunk + run)) run++;
      if (run > 0 && fault === 'origin') this.fail(5);
      for (let i = 0; i < run && this.error === 0; ) {
        const isFirst = snapshot.storage.take(snapshot.events);
        if (!isFirst) {
          this.fail(28);
          break;
        }
        let together = 1;
        while (i + together < run && snapshot.storage.rooms[0]! >= CHUNK_SECTORS) {
          snapshot.storage.take(snapshot.events);
          together++;
        }
        if (fault === 'storage') this.fail(5);
        else for (let k = 0; k < together; k++) this.copied.add(chunk + i + k);
        i += together;
      }
      chunk += Math.max(1, run);
    }
  }

  private fail(errno: number): void {
    this.error = errno;
    this.snapshot!.events.push(`corrupted device=${this.name} err=${errno}`);
  }
}

class Round {
  private readonly mount = new FakeMount();
  private readonly rng: Prng;
  private readonly media = new Map<Name, MemoryDevice>();
  private readonly devices = new Map<Name, NaiveDevice>();
  private readonly snapshots = new Map<string, NaiveSnapshot>();
  private readonly generations = new Map<Name, [number, string]>();
  private fault: Fault = 'none';
  private appended = 0;

  constructor(seed: number) {
    this.rng = new Prng(seed);
    for (const name of NAMES) {
      const content = this.rng.bytes(SIZES[name]);
      const medium = new MemoryDevice(content.slice());
      this.media.set(name, medium);
      this.mount.device(
        name,
        hooked(medium, (op) => this.meet(op === 'read' && this.fault === 'origin')),
      );
      this.devices.set(name, new NaiveDevice(name, content));
    }
    for (const snapshot of SNAPSHOTS) {
      const store = new MemoryDevice(STORE_SECTORS * 512);
      const hook = (op: string) => this.meet(op !== 'read' && this.fault === 'storage');
      this.mount.file(`/${snapshot}`, hooked(store, hook));
    }
    // Near the end of a generation, now and then.
    const takes = this.rng.pick([0, 0, 250, 253]);
    for (let take = 0; take < takes; take++) {
      for (const name of NAMES) {
        this.mount.filter(name).map.switch();
        this.devices.get(name)!.take();
      }
    }
  }

  async run(): Promise<void> {
    for (let step = 0; step < STEPS; step++) {
      await this.step();
      if (step % 6 === 5) this.compare();
    }
    this.compare();
  }

  private async step(): Promise<void> {
    const { rng } = this;
    const kind = rng.below(100);
    if (kind < 35) this.changeDevice();
    else if (kind < 50) this.changeImage();
    else if (kind < 56) this.markDirty();
    else if (kind < 66) await this.create();
    else if (kind < 78) await this.append();
    else if (kind < 86) await this.take();
    else if (kind < 90) await this.destroy();
    else this.readImage();
  }

  private changeDevice(): void {
    const device = this.devices.get(this.rng.pick(NAMES))!;
    const [offset, length] = this.range(device.content.length);
    const how = this.rng.below(4);
    const data = how < 2 ? this.rng.bytes(length) : new Uint8Array(length);
    this.fault = this.rng.pick(['none', 'none', 'none', 'none', 'none', 'origin', 'storage']);
    const filter = this.mount.filter(device.name);
    if (how < 2) filter.write(offset, data);
    else if (how === 2) filter.discard(offset, length);
    else filter.writeZeroes(offset, length, { unmap: this.rng.chance(0.5) });
    if (device.snapshot?.isTaken) device.copy(offset, length, this.fault);
    this.fault = 'none';
    device.content.set(data, offset);
    device.mark('writeMap', device.active, offset, length);
  }

  private changeImage(): void {
    const device = this.rng.pick([...this.devices.values()]);
    const { snapshot } = device;
    if (!snapshot?.isTaken) return;
    const [offset, length] = this.range(device.content.length);
    const isZeroes = this.rng.chance(0.3);
    const data = isZeroes ? new Uint8Array(length) : this.rng.bytes(length);
    const fault = (this.fault = this.rng.pick<Fault>(['none', 'none', 'none', 'origin', 'storage']));
    const image = this.mount.image(snapshot.name, device.name);
    const code = codeOf(() => (isZeroes ? image.writeZeroes(offset, length) : image.write(offset, data)));
    this.fault = 'none';
    let expected = 'EIO';
    if (device.error === 0) {
      device.mark('writeMap', device.active, offset, length);
      device.mark('readMap', device.previous, offset, length);
      device.copy(offset, length, fault);
      // What is not copied anew is written to the storage as well.
      if (device.error === 0 && fault !== 'storage') {
        expected = 'none';
        device.image.set(data, offset);
      }
    }
    expect(code).toBe(expected);
  }

  private markDirty(): void {
    const device = this.devices.get(this.rng.pick(NAMES))!;
    const sectors = device.content.length / 512;
    const first = this.rng.below(sectors);
    const count = this.rng.below(Math.min(9, sectors - first + 1));
    const file = blksnap.files.find(({ name }) => name === 'cbtdirty')!;
    void file.write!(this.mount.filter(device.name), `${first} ${count}`);
    if (count === 0) return;
    device.mark('writeMap', device.active, first * 512, count * 512);
    device.mark('readMap', device.previous, first * 512, count * 512);
  }

  private async create(): Promise<void> {
    const name = this.rng.pick(SNAPSHOTS);
    if (!this.snapshots.has(name)) {
      this.mount.snapshots.create(name);
      this.snapshots.set(name, new NaiveSnapshot(name));
    }
    const snapshot = this.snapshots.get(name)!;
    const device = this.devices.get(this.rng.pick(NAMES))!;
    const expected =
      device.snapshot === snapshot ? 'EALREADY' : snapshot.isTaken || device.snapshot ? 'EBUSY' : 'none';
    expect(await refusalOf(this.mount.snapshots.get(name)!.add(device.name))).toBe(expected);
    if (expected !== 'none') return;
    snapshot.members.push(device);
    device.snapshot = snapshot;
    device.error = 0;
  }

  private async append(): Promise<void> {
    const snapshot = this.snapshots.get(this.rng.pick(SNAPSHOTS));
    if (!snapshot) return;
    const counts = Array.from({ length: 1 + this.rng.below(3) }, () => 1 + this.rng.below(60));
    const lines = counts.map((count) => {
      this.appended += count + this.rng.below(4);
      return `/${snapshot.name} ${this.appended - count} ${count}`;
    });
    if (this.appended > STORE_SECTORS) return;
    await this.mount.snapshots.get(snapshot.name)!.append(lines.join('\n'));
    snapshot.storage.append(counts);
  }

  private async take(): Promise<void> {
    const snapshot = this.snapshots.get(this.rng.pick(SNAPSHOTS));
    if (!snapshot) return;
    let expected = 'none';
    if (snapshot.isTaken) expected = 'EALREADY';
    else if (snapshot.members.length === 0) expected = 'ENODEV';
    else if (snapshot.storage.capacity === 0) expected = 'EFAULT';
    expect(await refusalOf(this.mount.snapshots.get(snapshot.name)!.take())).toBe(expected);
    if (expected !== 'none') return;
    snapshot.isTaken = true;
    for (const device of snapshot.members) device.take();
  }

  private async destroy(): Promise<void> {
    const snapshot = this.snapshots.get(this.rng.pick(SNAPSHOTS));
    if (!snapshot) return;
    this.compare();
    await this.mount.snapshots.destroy(snapshot.name);
    for (const device of snapshot.members) device.snapshot = undefined;
    this.snapshots.delete(snapshot.name);
  }

  private readImage(): void {
    const device = this.rng.pick([...this.devices.values()]);
    if (!device.snapshot?.isTaken) return;
    const [offset, length] = this.range(device.content.length);
    const image = this.mount.image(device.snapshot.name, device.name);
    if (device.error !== 0) {
      expect(codeOf(() => readBytes(image, offset, length))).toBe('EIO');
      return;
    }
    const expected = device.image.subarray(offset, offset + length);
    expectSameBytes(readBytes(image, offset, length), expected, `image of ${device.name} from ${offset}`);
  }

  private compare(): void {
    for (const device of this.devices.values()) {
      const { name } = device;
      expectSameBytes(this.media.get(name)!.bytes, device.content, name);
      const { map } = this.mount.filter(name);
      expect([...map.saveState().writeMap]).toEqual(device.writeMap);
      expect([...map.readMap]).toEqual(device.readMap);
      const { changesNumber, generation } = map.info();
      expect(changesNumber).toBe(device.previous);
      const [before, text] = this.generations.get(name) ?? [device.generation, generation];
      expect(generation === text).toBe(device.generation === before);
      this.generations.set(name, [device.generation, generation]);
      const { errorCode } = this.mount.snapshots.deviceInfo(this.mount.idOf(name));
      expect(errorCode).toBe(device.error === 0 ? 0 : -device.error);
      if (!device.snapshot?.isTaken) continue;
      const image = this.mount.image(device.snapshot.name, name);
      if (device.error !== 0) expect(codeOf(() => readBytes(image, 0, 1))).toBe('EIO');
      else expectSameBytes(readBytes(image, 0, image.size), device.image, `image of ${name}`);
    }
    for (const { name, state, storage, members, events } of this.snapshots.values()) {
      const snapshot = this.mount.snapshots.get(name)!;
      const { capacity, filled, requested } = storage;
      const lines = members.map((device) =>
        device.error === 0 ? `device ${device.name} ok\n` : `device ${device.name} error -${device.error}\n`,
      );
      expect(snapshot.stateText().replace(/^refused .*\n/m, '')).toBe(
        `${state}\ncapacity ${capacity}\nfilled ${filled}\nrequested ${requested}\n${lines.join('')}`,
      );
      expect(this.mount.events(snapshot).map((line) => line.replace(/ reason=.*/, ''))).toEqual(events);
    }
  }

  private meet(isFault: boolean): void {
    if (isFault) throw new DmError('EIO', 'broken for the moment');
  }

  /** A part of a device, not empty: some chunks long, mostly. */
  private range(size: number): [offset: number, length: number] {
    const offset = this.rng.below(size);
    return [offset, 1 + this.rng.below(Math.min(size - offset, this.rng.pick([10, CHUNK, 6 * CHUNK])))];
  }
}

it(`does as the model does, in ${ROUNDS} rounds`, async () => {
  for (const seed of seeds((done) => done >= ROUNDS)) {
    await underSeed(seed, () => new Round(seed).run());
  }
}, 300_000);
