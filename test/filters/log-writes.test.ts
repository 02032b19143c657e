/**
 * The log-writes filter: what it logs is what the device held, entry by entry, by a replayer that knows only the format.
 *
 *   O1, O2, O3 and I1, I2, I3 are those of src/filters/log-writes.
 */
import { closeSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../src/device/block-device.js';
import { MemoryDevice } from '../../src/device/memory.js';
import { Prng } from '../../src/device/prng.js';
import { PowerSupply, SimulatedDisk } from '../../src/device/simulated.js';
import { DmError, type ErrnoName } from '../../src/errors.js';
import { type LogWritesFilter, logWrites } from '../../src/filters/log-writes/index.js';
import { parseTableLine } from '../../src/table.js';
import type { Backing } from '../../src/targets/target.js';
import { type SharedDiskBuffers, sharedDiskBuffers, traced } from '../device/shared-disk.js';
import {
  codeOf,
  contentOf,
  expectSameBytes,
  hooked,
  seeds,
  underSeed,
  withHoles,
  withoutUnmap,
} from '../targets/harness.js';
import { useThreads } from '../threads.js';
import { entriesOf, nameOf, type Replayed, replay } from './naive-replay.js';

/** A file that grows as it is written. */
class GrowingFile implements BlockDevice {
  readonly size = 0;
  bytes = new Uint8Array(0);
  /** `write AT+LENGTH` and `flush`, bytes. */
  readonly operations: string[] = [];
  /** Throws, for an operation to fail. */
  before = (_operation: string) => {};

  read(): void {
    throw new Error('nobody reads the log');
  }
  write(offset: number, from: Uint8Array): void {
    this.note(`write ${offset}+${from.length}`);
    if (offset + from.length > this.bytes.length) {
      const grown = new Uint8Array(offset + from.length);
      grown.set(this.bytes);
      this.bytes = grown;
    }
    this.bytes.set(from, offset);
  }
  flush(): void {
    this.note('flush');
  }
  discard(): void {
    throw new Error('nobody discards the log');
  }
  writeZeroes(): void {
    throw new Error('nobody zeroes the log');
  }
  private note(operation: string): void {
    this.before(operation);
    this.operations.push(operation);
  }
}

const fail = (code: ErrnoName, message: string) => () => {
  throw new DmError(code, message);
};

/** The filter on `below`, with its log on `log`. */
async function attached(below: BlockDevice, log: BlockDevice, args = '/log') {
  const events: string[] = [];
  const device = () => log;
  const descriptor = await logWrites.attach(parseTableLine(`log-writes ${args}`).args, {
    size: below.size,
    openBacking: async (path, access) => {
      expect(access).toBe('write');
      return { kind: 'file', fd: -1, path, size: log.size } satisfies Backing;
    },
    device,
  });
  const raise = (event: string) => events.push(event);
  const filter = logWrites.open(descriptor, { below, device, raise, raiseAt: () => {} });
  const mark = (text: string) => logWrites.files.find(({ name }) => name === 'mark')!.write!(filter, text);
  return { filter, events, mark, descriptor };
}

/** The device of `sectors` random sectors, its log and the filter. */
async function rig(sectors: number, rng = new Prng(1)) {
  const origin = rng.bytes(sectors * 512);
  const memory = new MemoryDevice(origin.slice());
  const log = new GrowingFile();
  return { origin, memory, log, ...(await attached(memory, log)) };
}

const names = (log: Uint8Array) => entriesOf(log).map(nameOf);

/** Replays all of a log on `origin`; `after` sees the content after each entry. */
function replayed(
  log: Uint8Array,
  origin: Uint8Array,
  after = (_entry: Replayed, _content: Uint8Array) => {},
) {
  const content = origin.slice();
  for (const entry of entriesOf(log)) {
    replay(entry, content);
    after(entry, content);
  }
  return content;
}

const SECTORS = 64;
const BYTES = SECTORS * 512;

/** One random request of `filter`; flushes and marks are not among them. */
function change(filter: LogWritesFilter, rng: Prng, bytes: number): void {
  const unit = rng.pick([1, 512, 4096]);
  const offset = rng.below(bytes / unit) * unit;
  const length = Math.min(bytes - offset, unit * rng.below(rng.pick([2, 5, 2000])));
  const kind = rng.below(8);
  if (kind === 0) filter.writeZeroes(offset, length);
  else if (kind === 1) filter.writeZeroes(offset, length, { unmap: true });
  else if (kind === 2) filter.discard(offset, length);
  else filter.write(offset, rng.bytes(length));
}

describe('attach', () => {
  it.each(['', '/log /other', 'log', './log', '@other'])('refuses `%s`', async (args) => {
    await expect(attached(new MemoryDevice(512), new GrowingFile(), args)).rejects.toMatchObject({
      code: 'EINVAL',
      message:
        'log-writes needs one argument, the absolute path of a file or block device: log-writes <log dev>',
    });
  });

  it('says how to make a log that is missing, and passes on other errors', async () => {
    const attach = (code: ErrnoName) =>
      logWrites.attach(['/log'], {
        size: 512,
        openBacking: async () => fail(code, '/log: it is so')(),
        device: () => new GrowingFile(),
      });
    await expect(attach('ENOENT')).rejects.toMatchObject({
      code: 'ENOENT',
      message: '/log: it is so: make an empty file there first, it grows as needed',
    });
    await expect(attach('EBUSY')).rejects.toMatchObject({ code: 'EBUSY', message: '/log: it is so' });
  });

  it('starts a new log where one was', async () => {
    const log = new GrowingFile();
    const first = await attached(new MemoryDevice(512), log);
    first.mark('old');
    log.operations.length = 0;
    await attached(new MemoryDevice(512), log);
    expect(entriesOf(log.bytes)).toEqual([]);
    expect(log.operations).toEqual(['write 0+512', 'flush']);
  });

  it('fails where no log can be started', async () => {
    const log = new GrowingFile();
    log.before = fail('ENOSPC', 'it is full');
    await expect(attached(new MemoryDevice(512), log)).rejects.toMatchObject({
      code: 'ENOSPC',
      message: '/log: no log can be started there: it is full',
    });
  });

  it('gives arguments that attach it again', async () => {
    const { filter } = await attached(new MemoryDevice(512), new GrowingFile(), '/a\\ log');
    expect(filter.args()).toBe('/a\\ log');
  });
});

describe('what a request becomes', () => {
  it.each<[string, (filter: LogWritesFilter) => void, string[]]>([
    ['whole sectors', (f) => f.write(512, new Uint8Array(1024)), ['write 1+2']],
    ['both edges', (f) => f.write(511, new Uint8Array(1026)), ['write 0+1', 'write 1+2', 'write 3+1']],
    ['the first edge', (f) => f.write(1, new Uint8Array(1023)), ['write 0+1', 'write 1+1']],
    ['the last edge', (f) => f.write(512, new Uint8Array(513)), ['write 1+1', 'write 2+1']],
    ['inside a sector', (f) => f.write(513, new Uint8Array(510)), ['write 1+1']],
    ['two halves', (f) => f.write(700, new Uint8Array(500)), ['write 1+2']],
    ['nothing', (f) => f.write(512, new Uint8Array(0)), []],
    ['zeros', (f) => f.writeZeroes(512, 1024), ['write 1+2']],
    ['a hole', (f) => f.writeZeroes(511, 1026, { unmap: true }), ['write 0+1', 'discard 1+2', 'write 3+1']],
    ['a discard', (f) => f.discard(512, 1024), ['discard 1+2']],
    ['a small discard', (f) => f.discard(513, 500), ['write 1+1']],
    ['a flush', (f) => f.flush(), ['flush']],
  ])('%s', async (_what, request, expected) => {
    const { filter, log, origin, memory } = await rig(8);
    request(filter);
    filter.close();
    expect(names(log.bytes)).toEqual([...expected, 'mark dm-log-writes-end']);
    expectSameBytes(replayed(log.bytes, origin), memory.bytes, 'replay');
  });

  it('is in pieces of 1 MiB where it has data', async () => {
    const MIB = 1 << 20;
    const { filter, log, origin, memory } = await rig(4 * 2048);
    filter.write(512, new Prng(2).bytes(2 * MIB + 512));
    filter.writeZeroes(MIB, 2 * MIB + 1024);
    filter.close();
    expect(names(log.bytes)).toEqual([
      ...['write 1+2048', 'write 2049+2048', 'write 4097+1'],
      ...['write 2048+2048', 'write 4096+2048', 'write 6144+2'],
      'mark dm-log-writes-end',
    ]);
    expectSameBytes(replayed(log.bytes, origin), memory.bytes, 'replay');
  });

  it('is in pieces of 128 MiB where it is discarded, which replay-log zeroes in a file', async () => {
    const huge = { ...hooked(new MemoryDevice(512), () => {}), size: 2 ** 40, discard: () => {} };
    const log = new GrowingFile();
    const { filter } = await attached(huge, log);
    filter.discard(512, 300 << 20);
    filter.close();
    const piece = 262_144;
    expect(names(log.bytes).slice(0, -1)).toEqual([
      ...[`discard 1+${piece}`, `discard ${1 + piece}+${piece}`],
      `discard ${1 + 2 * piece}+${(300 << 11) - 2 * piece}`,
    ]);
    expect(log.bytes.length).toBe(5 * 512);
  });

  it('is nothing where the device knows no such request', async () => {
    const log = new GrowingFile();
    const { filter, events } = await attached(withoutUnmap(new MemoryDevice(4096)), log);
    expect(codeOf(() => filter.writeZeroes(0, 4096, { unmap: true }))).toBe('EOPNOTSUPP');
    filter.close();
    expect(names(log.bytes)).toEqual(['mark dm-log-writes-end']);
    expect(events).toEqual([]);
  });

  it('is what there is then, where it failed', async () => {
    for (let seed = 1; seed <= 20; seed++) {
      for (const landed of [true, false, 'some'] as const) {
        const rng = new Prng(seed);
        const origin = rng.bytes(BYTES);
        const disk = new SimulatedDisk(origin, { rng });
        const log = new GrowingFile();
        const { filter } = await attached(disk, log);
        disk.injectError({ op: 'write', at: 1, landed });
        expect(codeOf(() => filter.write(100, rng.bytes(5000)))).toBe('EIO');
        filter.close();
        expectSameBytes(replayed(log.bytes, origin), disk.content(), `landed: ${landed}`);
      }
    }
  });

  it('is no FLUSH where a flush failed', async () => {
    const disk = new SimulatedDisk(BYTES);
    const log = new GrowingFile();
    const { filter } = await attached(disk, log);
    disk.injectError({ op: 'flush', at: 1 });
    expect(codeOf(() => filter.flush())).toBe('EIO');
    filter.flush();
    expect(names(log.bytes)).toEqual(['flush']);
  });
});

it('passes on reads, extents and flushes; a read waits for nobody', async () => {
  const below = withHoles(new MemoryDevice(3 * 4096));
  let flushes = 0;
  let filter: LogWritesFilter;
  const watched = {
    ...below,
    // Here the mutex is held.
    flush() {
      flushes++;
      const bytes = new Uint8Array(4);
      filter.read(4096, bytes);
      expect(bytes).toEqual(new Uint8Array(4).fill(7));
    },
  };
  filter = (await attached(watched, new GrowingFile())).filter;
  filter.write(4096, new Uint8Array(4096).fill(7));
  filter.flush();
  expect(flushes).toBe(1);
  expect(filter.size).toBe(3 * 4096);
  expect([0, 4096, 8192].map((at) => filter.extentAt(at))).toEqual([
    { data: false, end: 4096 },
    { data: true, end: 8192 },
    { data: false, end: 3 * 4096 },
  ]);
});

describe('a mark', () => {
  it('is its text, and counts at once', async () => {
    const { mark, log } = await rig(8);
    for (const text of ['mkfs', 'two words', 'ü'.repeat(239), 'x'.repeat(479)]) mark(text);
    expect(names(log.bytes)).toEqual([
      ...['mark mkfs', 'mark two words', `mark ${'ü'.repeat(239)}`, `mark ${'x'.repeat(479)}`],
    ]);
  });

  it.each(['', 'x'.repeat(480), 'ü'.repeat(240), 'a\0b'])('refuses a text', async (text) => {
    const { mark, log } = await rig(8);
    expect(codeOf(() => mark(text))).toBe('EINVAL');
    expect(names(log.bytes)).toEqual([]);
  });
});

it('O1: the replay is the device, at each flush and each mark', async () => {
  for (const seed of seeds((done) => done === 12)) {
    await underSeed(seed, async () => {
      const rng = new Prng(seed);
      const { origin, memory, log, filter, mark } = await rig(SECTORS, rng);
      const states: Uint8Array[] = [];
      for (let step = 0; step < 150; step++) {
        const kind = rng.below(10);
        if (kind > 1) {
          change(filter, rng, BYTES);
          continue;
        }
        if (kind === 0) filter.flush();
        else mark(`step ${step}`);
        states.push(memory.bytes.slice());
        // It counts all of it already.
        expectSameBytes(replayed(log.bytes, origin), memory.bytes, `step ${step}`);
      }
      filter.close();
      states.push(memory.bytes);
      let at = 0;
      replayed(log.bytes, origin, (entry, content) => {
        if (entry.flags === 1 || entry.flags === 8) expectSameBytes(content, states[at++]!, nameOf(entry));
      });
      expect(at).toBe(states.length);
    });
  }
});

describe('a log that fails', () => {
  const full = 'log_failed reason="memory device: 512 bytes at 4096 are outside its 4096 bytes"';

  it('ends, and the device goes on; what was whole stays readable', async () => {
    const memory = new MemoryDevice(BYTES);
    const log = new MemoryDevice(4096);
    const { filter, events, mark } = await attached(memory, log);
    filter.write(0, new Uint8Array(512).fill(1));
    // The log has room for all but the last sector: none of it counts.
    filter.write(512, new Uint8Array(2048).fill(2));
    filter.write(4096, new Uint8Array(512).fill(3));
    expect(events).toEqual([full]);
    expect(names(log.bytes)).toEqual(['write 0+1', 'write 1+4']);
    filter.writeZeroes(0, 512);
    filter.discard(512, 512);
    filter.flush();
    expect(codeOf(() => mark('late'))).toBe('EIO');
    expect(() => mark('late')).toThrow(/^\/log: the log has failed and ended/);
    filter.close();
    expect(events).toEqual([full]);
    expect(names(log.bytes)).toEqual(['write 0+1', 'write 1+4']);
    expect([0, 512, 4096].map((at) => memory.bytes[at])).toEqual([0, 0, 3]);
  });

  it('counts no request of which it has a part (I1)', async () => {
    const log = new MemoryDevice(4096);
    const { filter } = await attached(new MemoryDevice(BYTES), log);
    filter.flush();
    // Three entries; the third does not fit.
    filter.write(1, new Uint8Array(512 + 511 + 1024 + 511));
    expect(names(log.bytes)).toEqual(['flush']);
  });

  it('is told of by every view, once', async () => {
    const memory = new MemoryDevice(BYTES);
    const log = new MemoryDevice(1024);
    const { filter, events, descriptor } = await attached(memory, log);
    const context = {
      below: memory,
      device: () => log,
      raise: () => events.push('again'),
      raiseAt: () => {},
    };
    const other = logWrites.open(descriptor, context);
    filter.write(0, new Uint8Array(512));
    other.write(0, new Uint8Array(512));
    expect(() => other.mark('x')).toThrow('the log has failed');
    expect(events.length).toBe(1);
  });

  it('does so wherever it does, for good', async () => {
    for (let at = 1; at <= 20; at++) {
      const { origin, memory, log, filter, events, mark } = await rig(SECTORS);
      let operations = 0;
      log.before = () => {
        if (++operations === at) fail('EIO', 'broken')();
      };
      const rng = new Prng(at);
      const states = [origin];
      const answers: string[] = [];
      for (let step = 0; step < 4; step++) {
        for (const request of [() => change(filter, rng, BYTES), () => filter.flush()]) {
          request();
          states.push(memory.bytes.slice());
        }
        answers.push(codeOf(() => mark(`${step}`)));
      }
      expect(events).toEqual(['log_failed reason="broken"']);
      // Once EIO, always EIO.
      expect(answers.join(' ')).toMatch(/^(none ?)*(EIO ?)+$/);
      // No answer without its mark.
      const marks = names(log.bytes).filter((name) => name.startsWith('mark'));
      expect(marks.length).toBeGreaterThanOrEqual(answers.filter((code) => code === 'none').length);
      const content = Buffer.from(replayed(log.bytes, origin));
      expect(states.some((state) => content.equals(state))).toBe(true);
    }
  });

  it('makes no promise after a flush of it that failed (I2)', async () => {
    const { filter, log, events } = await rig(8);
    filter.flush();
    log.before = (operation) => {
      if (operation === 'flush') fail('EIO', 'lost')();
    };
    filter.write(0, new Uint8Array(512));
    filter.flush();
    log.before = () => {};
    filter.flush();
    filter.close();
    expect(events).toEqual(['log_failed reason="lost"']);
    expect(names(log.bytes)).toEqual(['flush']);
  });

  it('does not try that flush again, which could work (I2)', async () => {
    const { filter, log, events } = await rig(8);
    filter.write(0, new Uint8Array(512));
    // The FLUSH entry, and the flush that would let the write count.
    let failures = 0;
    log.before = () => {
      if (++failures <= 2) fail('EIO', 'lost')();
    };
    filter.flush();
    expect(failures).toBe(2);
    expect(events).toEqual(['log_failed reason="lost"']);
    expect(names(log.bytes)).toEqual([]);
  });

  it('at the detachment is told to who detaches', async () => {
    const { filter, log } = await rig(8);
    log.before = fail('ENOSPC', 'it is full');
    expect(codeOf(() => filter.close())).toBe('EIO');
  });

  it('because a sector cannot be read back, which the write does not notice', async () => {
    const below = hooked(new MemoryDevice(4096), (op) => {
      if (op === 'read') fail('EIO', 'a bad sector')();
    });
    const log = new GrowingFile();
    const { filter, events } = await attached(below, log);
    filter.write(0, new Uint8Array(512));
    filter.write(1, new Uint8Array(10));
    expect(events).toEqual(['log_failed reason="a bad sector"']);
    expect(names(log.bytes)).toEqual(['write 0+1']);
  });
});

it('I2: a flush makes the entries durable, then the super block that counts them', async () => {
  const { filter, log } = await rig(8);
  log.operations.length = 0;
  filter.write(0, new Uint8Array(1024));
  filter.flush();
  expect(log.operations).toEqual([
    ...['write 512+512', 'write 1024+1024', 'write 2048+512'],
    ...['flush', 'write 0+512', 'flush'],
  ]);
});

it('I2, O2, O3: after a power cut the log is whole up to the last flush, and so is the device', async () => {
  for (const seed of seeds((done) => done === 4)) {
    await underSeed(seed, async () => {
      const rng = new Prng(seed);
      const power = new PowerSupply();
      const origin = rng.bytes(16 * 512);
      const disk = new SimulatedDisk(origin, { power });
      // Where entries are stale if they are read too soon.
      const log = new SimulatedDisk(rng.bytes(256 << 10), { power });
      const { filter } = await attached(disk, log);
      const flushed: { operations: number; flushes: number }[] = [];
      const attachedAt = power.operations;
      for (let step = 0; step < 40; step++) {
        const kind = rng.below(10);
        if (kind < 2) {
          filter.flush();
          flushed.push({ operations: power.operations, flushes: flushed.length + 1 });
        } else if (kind < 4) filter.writeZeroes(rng.below(8) * 512, 1 + rng.below(4000));
        else filter.write(rng.below(4000), rng.bytes(1 + rng.below(4000)));
      }
      filter.close();
      const states: Uint8Array[] = [origin];
      replayed(log.content(), origin, (_entry, content) => states.push(content.slice()));
      for (let cut = attachedAt; cut <= power.operations; cut++) {
        const entries = entriesOf(log.imageAt(cut, rng));
        const acknowledged = flushed.filter(({ operations }) => operations <= cut).at(-1)?.flushes ?? 0;
        expect(entries.filter(({ flags }) => flags === 1).length).toBeGreaterThanOrEqual(acknowledged);
        // Each sector of the device is as it was after the last FLUSH of the log, or later.
        const durable = states.slice(1 + entries.findLastIndex(({ flags }) => flags === 1));
        const image = Buffer.from(disk.imageAt(cut, rng));
        for (let at = 0; at < image.length; at += 512) {
          const sector = image.subarray(at, at + 512);
          expect(durable.some((state) => sector.equals(state.subarray(at, at + 512)))).toBe(true);
        }
      }
    });
  }
});

describe('threads', () => {
  const THREADS = 4;
  const STEPS = 250;
  const file = join(tmpdir(), `dmfuse-log-writes-${process.pid}`);
  afterEach(() => rmSync(file, { force: true }));

  const start = useThreads(
    `
import { workerData } from 'node:worker_threads';
import { FileDevice } from './src/device/file.js';
import { Prng } from './src/device/prng.js';
import { logWrites } from './src/filters/log-writes/index.js';
import { SharedDisk } from './test/device/shared-disk.js';
const { id, steps, buffers, descriptor } = workerData;
const below = new SharedDisk(buffers, id);
const filter = logWrites.open(descriptor, { below, device: (backing) => new FileDevice(backing), raise: (event) => { throw new Error(event); } });
const rng = new Prng(id + 1);
for (let step = 0; step < steps; step++) {
  const kind = rng.below(12);
  const offset = rng.below(below.size);
  const length = Math.min(below.size - offset, 1 + rng.below(rng.pick([700, 6000])));
  if (kind === 0) filter.flush();
  else if (kind === 1) filter.mark(\`\${id} \${step}\`);
  else if (kind === 2) filter.writeZeroes(offset, length);
  else filter.write(offset, rng.bytes(length));
}
`,
    ['test/device/shared-disk.ts'],
  );

  it('O1, O2, O3: overlapping writes of several are in the order of the device, a flush between them', async () => {
    const origin = new Prng(9).bytes(16 * 512);
    const buffers = sharedDiskBuffers(origin, { most: 20_000, traceBytes: 32 << 20 });
    writeFileSync(file, '');
    const fd = openSync(file, 'r+');
    try {
      const backing: Backing = { kind: 'file', fd, path: file, size: 0 };
      const { FileDevice } = await import('../../src/device/file.js');
      const descriptor = await logWrites.attach([file], {
        size: origin.length,
        openBacking: async () => backing,
        device: () => new FileDevice(backing),
      });
      await Promise.all(
        Array.from({ length: THREADS }, (_, id) => start({ id, steps: STEPS, buffers, descriptor })),
      );
      const below = new MemoryDevice(new Uint8Array(buffers.content));
      const raise = (event: string) => expect.fail(event);
      const context = { below, device: () => new FileDevice(backing), raise, raiseAt: () => {} };
      logWrites.open(descriptor, context).close!();

      const disk = traced(origin, buffers as SharedDiskBuffers);
      const log = readFileSync(file);
      const marks = names(log).filter((name) => name.startsWith('mark'));
      expect(marks.length).toBeGreaterThan(STEPS / 12);

      // Each entry against the trace, in which it must come next.
      const content = origin.slice();
      const model = origin.slice();
      let at = 0;
      let durable = 0;
      for (const entry of entriesOf(log)) {
        if (entry.flags === 8) continue;
        replay(entry, content);
        if (entry.flags === 1) {
          expect(disk.trace[at]!.kind).toBe('flush');
          // What the flush covers is all that came before it.
          durable = at++;
          if (at < disk.trace.length) expect(disk.trace[at]!.durable).toBe(durable);
          continue;
        }
        const traced = disk.trace[at]!;
        expect(traced.kind).not.toBe('flush');
        expect(traced.durable).toBe(durable);
        const [from, to] = [entry.sector * 512, (entry.sector + entry.sectors) * 512];
        expect(from >= traced.offset && to <= traced.offset + traced.sectors.length).toBe(true);
        model.set(traced.sectors, traced.offset);
        expectSameBytes(content.subarray(from, to), model.subarray(from, to), nameOf(entry));
        if (to === traced.offset + traced.sectors.length) at++;
      }
      expect(at).toBe(disk.trace.length);
      expectSameBytes(content, contentOf(below), 'replay');
    } finally {
      closeSync(fd);
    }
  });
});
