/**
 * Looks at the log of a dm-bow device and writes nothing: the first pass of a roll back (`undo.ts` holds its rules,
 * bow-R1…), `check` and `dump`.
 *
 * The walk goes as the roll back will go, newest entry first. Instead of copying dest to source it notes in a map
 * "block → block that holds its bytes at this point" and reads everything through that map, so it sees exactly the
 * bytes that the second pass will read. A finding that leaves the next step without meaning ends the walk: a field out
 * of range, a saved log with a wrong checksum. A wrong checksum of other data does not; all of those are found.
 */
import type { BlockDevice } from '../../device/block-device.js';
import {
  BOW_MAGIC,
  BOW_MAGIC_RESTORING,
  bowChecksum,
  headerProblem,
  type LogEntry,
  type LogHeader,
  MAX_BLOCK_BYTES,
  parseEntries,
  parseHeader,
  sniffMagic,
} from '../../formats/bow-log.js';
import { SECTOR_BYTES } from '../../units.js';

/** Bytes read or copied at once. */
export const CHUNK_BYTES = 1 << 20;
/** Something wrong with a log. */
export interface Finding {
  /** The sequence of the log block it was found in. */
  readonly sequence: number;
  /** Index of the entry; left out where the header is meant. */
  readonly entry?: number;
  /** The field, what was found, what was expected. */
  readonly what: string;
}

export interface UndoProgress {
  readonly phase: 'check' | 'restore';
  /** Log blocks done, of `logsTotal`. */
  readonly logs: number;
  readonly logsTotal: number;
  /** Bytes checked or copied so far. */
  readonly bytes: number;
  /**
   * Bytes of all entries. While the log is being checked an estimate: as if the logs that are still to come had as many as those
   * that were read.
   */
  readonly bytesTotal: number;
}

/** Work that yields how far it is, after each read or copy of at most 1 MiB. */
export type UndoSteps<T> = Generator<UndoProgress, T>;

export interface UndoOptions {
  /** Called after each read or copy of at most 1 MiB. */
  readonly onProgress?: (progress: UndoProgress) => void;
}

export interface FindingLimit {
  /** The walk ends after so many findings. Default 100. */
  readonly maxFindings?: number;
}

export interface InspectOptions extends UndoOptions, FindingLimit {}

/** What there is to undo. Where there are findings, the totals are those of the part that could be followed. */
export interface LogReport {
  /** A restore has begun and must be finished. */
  readonly restoring: boolean;
  /** Bytes. */
  readonly blockSize: number;
  /** Log blocks; the newest has sequence `logs - 1`. */
  readonly logs: number;
  /** Entries still to be undone. */
  readonly entries: number;
  /** Bytes that these entries put back. */
  readonly bytes: number;
  /** Empty: the log is sound. */
  readonly findings: readonly Finding[];
}

/** A log for `--json`: what is there, right or wrong, newest block first. */
export interface LogDump {
  readonly logs: readonly DumpedLog[];
  readonly findings: readonly Finding[];
}

export interface DumpedLog {
  readonly sequence: number;
  /** Where this log block lies now. */
  readonly sector: number;
  /** BOW or WOB; anything else as eight hexadecimal digits. */
  readonly magic: string;
  readonly headerVersion: number;
  /** Bytes. */
  readonly headerSize: number;
  /** Bytes. */
  readonly blockSize: number;
  readonly count: number;
  readonly sector0: number;
  readonly entries: readonly DumpedEntry[];
}

export interface DumpedEntry {
  readonly sourceSector: number;
  readonly destSector: number;
  readonly sizeBytes: number;
  /** Eight hexadecimal digits; 00000000 = not checked. */
  readonly checksum: string;
}

/** Follows the whole log and checks it; undefined when the device has none. Errors are those of reading the device. */
export function inspectLog(device: BlockDevice, options: InspectOptions = {}): LogReport | undefined {
  return allSteps(inspectSteps(device, options), options);
}

/** As inspectLog, in steps. */
export function* inspectSteps(
  device: BlockDevice,
  options: FindingLimit = {},
): UndoSteps<LogReport | undefined> {
  const walk = openWalk(device, options);
  if (walk === undefined) return undefined;
  yield* walk.run();
  return walk.report();
}

/** Everything that can be read of the log, sound or not; undefined when the device has none. */
export function dumpLog(device: BlockDevice, options: InspectOptions = {}): LogDump | undefined {
  return allSteps(dumpSteps(device, options), options);
}

/** As dumpLog, in steps. */
export function* dumpSteps(device: BlockDevice, options: FindingLimit = {}): UndoSteps<LogDump | undefined> {
  const walk = openWalk(device, options);
  if (walk === undefined) return undefined;
  const logs: DumpedLog[] = [];
  yield* walk.run((sector, header, entries) => logs.push(dumped(sector, header, entries)));
  return { logs, findings: walk.findings };
}

/** Does all of the steps at once. */
export function allSteps<T>(steps: UndoSteps<T>, { onProgress }: UndoOptions): T {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
    onProgress?.(value);
  }
}

/** A finding as one line. */
export function describeFinding({ sequence, entry, what }: Finding): string {
  return `log ${sequence}${entry === undefined ? '' : `, entry ${entry}`}: ${what}`;
}

function openWalk(device: BlockDevice, options: FindingLimit): LogWalk | undefined {
  // No block is smaller than a sector: a device that is has no room for a log.
  if (device.size < SECTOR_BYTES) return undefined;
  const start = new Uint8Array(Math.min(MAX_BLOCK_BYTES, device.size));
  device.read(0, start);
  return sniffMagic(start) === 'none' ? undefined : new LogWalk(device, start, options);
}

function dumped(sector: number, header: LogHeader, entries: readonly LogEntry[]): DumpedLog {
  const { magic, sequence, headerVersion, headerSize, blockSize, count, sector0 } = header;
  const name = magic === BOW_MAGIC ? 'BOW' : magic === BOW_MAGIC_RESTORING ? 'WOB' : hex(magic);
  return {
    sequence,
    sector,
    magic: name,
    headerVersion,
    headerSize,
    blockSize,
    count,
    sector0,
    entries: entries.map((entry) => ({ ...entry, checksum: hex(entry.checksum) })),
  };
}

type VisitLog = (sector: number, header: LogHeader, entries: readonly LogEntry[]) => void;

class LogWalk {
  readonly findings: Finding[] = [];
  private readonly newest: LogHeader;
  private readonly map: Relocations;
  private readonly chunk: Uint8Array;
  private logs = 0;
  private entries = 0;
  private bytes = 0;
  /** Bytes of the entries of all logs read so far. */
  private bytesFound = 0;

  /** `start`: the first bytes of the device, a whole block where the device has one. */
  constructor(
    private readonly device: BlockDevice,
    private readonly start: Uint8Array,
    private readonly options: FindingLimit,
  ) {
    this.newest = parseHeader(start);
    this.map = new Relocations(device.size / SECTOR_BYTES);
    this.chunk = new Uint8Array(Math.min(CHUNK_BYTES, device.size));
  }

  report(): LogReport {
    const { logs, entries, bytes, findings } = this;
    const { blockSize, magic } = this.newest;
    return { restoring: magic === BOW_MAGIC_RESTORING, blockSize, logs, entries, bytes, findings };
  }

  /** From the newest block to the oldest, until the end or a finding that allows no further step. */
  *run(visit?: VisitLog): UndoSteps<void> {
    const { blockSize } = this.newest;
    let block = 0;
    let bytes = this.start;
    for (let sequence = this.newest.sequence; ; sequence--) {
      const header = parseHeader(bytes);
      const entries = parseEntries(bytes, header);
      visit?.((block * blockSize) / SECTOR_BYTES, header, entries);
      const what = this.headerProblem(header, sequence);
      if (what !== undefined) {
        this.findings.push({ sequence, what });
        return;
      }
      this.bytesFound = entries.reduce((sum, { sizeBytes }) => sum + sizeBytes, this.bytesFound);
      for (let index = header.count - 1; index >= 0; index--) {
        if (!(yield* this.undoEntry(sequence, index, entries[index]!))) return;
      }
      this.logs++;
      if (sequence === 0) return;
      block = this.map.holder(0);
      bytes = new Uint8Array(blockSize);
      this.device.read(block * blockSize, bytes);
    }
  }

  private headerProblem(header: LogHeader, sequence: number): string | undefined {
    const problem = headerProblem(header) ?? this.chainProblem(header, sequence);
    if (problem !== undefined) return problem;
    if (header.sector0 === 0) return 'sector0 is 0, expected a block after block 0';
    return this.rangeProblem('sector0', header.sector0, header.blockSize);
  }

  /** What is wrong with a header as the one of this sequence. */
  private chainProblem({ magic, blockSize, sequence }: LogHeader, expected: number): string | undefined {
    const { size } = this.device;
    const { newest } = this;
    if (expected === newest.sequence) {
      if (blockSize > size) return `block_size is ${blockSize} bytes, expected the device's ${size} at most`;
      // Each log of the chain lies in a block of its own (bow-R2).
      const blocks = Math.floor(size / blockSize);
      return sequence < blocks
        ? undefined
        : `sequence is ${sequence}, expected less than the ${blocks} blocks`;
    }
    if (magic !== BOW_MAGIC) return 'magic is WOB, expected BOW in a saved log';
    if (sequence !== expected) return `sequence is ${sequence}, expected ${expected}`;
    if (blockSize === newest.blockSize) return undefined;
    return `block_size is ${blockSize} bytes, expected ${newest.blockSize} as in the newest log`;
  }

  /** Checks an entry, then lets its source read as its dest; false where the walk cannot go on. */
  private *undoEntry(sequence: number, index: number, entry: LogEntry): UndoSteps<boolean> {
    const { blockSize } = this.newest;
    const { sourceSector, destSector, sizeBytes, checksum } = entry;
    const problem = this.entryProblem(index, entry);
    if (problem !== undefined) {
      this.findings.push({ sequence, entry: index, what: problem });
      return false;
    }
    const found = yield* this.relocate(
      (sourceSector * SECTOR_BYTES) / blockSize,
      (destSector * SECTOR_BYTES) / blockSize,
      sizeBytes / blockSize,
    );
    this.entries++;
    if (checksum !== 0 && found !== checksum) {
      const what = `checksum of ${sizeBytes} bytes at sector ${destSector} is ${hex(found)}, expected ${hex(checksum)}`;
      this.findings.push({ sequence, entry: index, what });
      // The numbers in a log that is not what was saved mean nothing.
      if ((index === 0 && sequence > 0) || this.findings.length >= (this.options.maxFindings ?? 100))
        return false;
    }
    return true;
  }

  private entryProblem(index: number, entry: LogEntry): string | undefined {
    const { sourceSector: source, destSector: dest, sizeBytes: size } = entry;
    const { blockSize } = this.newest;
    const sectors = size / SECTOR_BYTES;
    if (size === 0 || size % blockSize > 0) return `size is ${size} bytes, expected blocks of ${blockSize}`;
    const bad = this.rangeProblem('source', source, size) ?? this.rangeProblem('dest', dest, size);
    if (bad !== undefined) return bad;
    if (index === 0 && source !== 0) return `source is sector ${source}, expected 0 in entry 0`;
    if (index === 0 && size !== blockSize) return `size is ${size} bytes, expected ${blockSize} in entry 0`;
    if (index > 0 && source === 0) return 'source is sector 0, expected that in entry 0 only';
    if (dest === 0) return 'dest is sector 0, where the log lies';
    if (Math.abs(source - dest) < sectors) {
      return `source ${source} and dest ${dest} overlap, expected them ${sectors} sectors apart at least`;
    }
    return undefined;
  }

  /** What is wrong with `size` bytes at `sector`: not inside the device, or not aligned to blocks. */
  private rangeProblem(field: string, sector: number, size: number): string | undefined {
    const { blockSize } = this.newest;
    const { size: deviceSize } = this.device;
    if (sector > (deviceSize - size) / SECTOR_BYTES) {
      return `${field} is sector ${sector}: ${size} bytes from there on leave the device of ${deviceSize}`;
    }
    const multiple = blockSize / SECTOR_BYTES;
    return sector % multiple > 0
      ? `${field} is sector ${sector}, expected a multiple of ${multiple}`
      : undefined;
  }

  /**
   * Lets `count` blocks from `source` on read as those from `dest` on and returns their checksum. Entries that carry
   * none are read all the same: a sector that cannot be read is better found while nothing has been changed.
   */
  private *relocate(source: number, dest: number, count: number): UndoSteps<number> {
    let sum: number | undefined;
    for (let done = 0; done < count; ) {
      const holder = this.map.holder(dest + done);
      const run = this.map.runLength(dest + done, count - done);
      sum = yield* this.checksum(source, holder, run, sum);
      // Source and dest do not overlap, so no later look-up sees this.
      this.map.set(source + done, holder, run);
      done += run;
    }
    return sum!;
  }

  /** The checksum of blocks as they lie on the device. */
  private *checksum(
    seedPage: number,
    block: number,
    count: number,
    carry: number | undefined,
  ): UndoSteps<number> {
    const { blockSize } = this.newest;
    const most = Math.floor(this.chunk.length / blockSize);
    let sum = carry;
    for (let done = 0; done < count; ) {
      const bytes = this.chunk.subarray(0, Math.min(most, count - done) * blockSize);
      this.device.read((block + done) * blockSize, bytes);
      sum = bowChecksum(seedPage, bytes, sum);
      done += bytes.length / blockSize;
      this.bytes += bytes.length;
      yield this.progress();
    }
    return sum!;
  }

  private progress(): UndoProgress {
    const { logs, newest, bytes, bytesFound } = this;
    const logsTotal = newest.sequence + 1;
    const bytesTotal = Math.max(bytes, Math.round((bytesFound * logsTotal) / (logs + 1)));
    return { phase: 'check', logs, logsTotal, bytes, bytesTotal };
  }
}

/**
 * "block → block that holds its bytes", in pages that are made when an entry first names a block of theirs. A page
 * whose blocks are all held at one distance is that distance alone, so a huge entry costs little (bow-R2).
 */
class Relocations {
  private static readonly PAGE_BLOCKS = 512;
  /** A distance (holder - block), or a holder for each block with 0 for "itself": nothing is held in block 0. */
  private readonly pages = new Map<number, number | Uint32Array | Float64Array>();

  /** `blocks`: more than any block number. */
  constructor(private readonly blocks: number) {}

  holder(block: number): number {
    const slot = block % Relocations.PAGE_BLOCKS;
    const page = this.pages.get((block - slot) / Relocations.PAGE_BLOCKS) ?? 0;
    return typeof page === 'number' ? block + page : page[slot] || block;
  }

  /** How many blocks from `block` on, `limit` at most, are held one after the other. */
  runLength(block: number, limit: number): number {
    const distance = this.holder(block) - block;
    let length = 1;
    while (length < limit) {
      const at = block + length;
      if (this.holder(at) - at !== distance) break;
      const slot = at % Relocations.PAGE_BLOCKS;
      const page = this.pages.get((at - slot) / Relocations.PAGE_BLOCKS) ?? 0;
      length += typeof page === 'number' ? Relocations.PAGE_BLOCKS - slot : 1;
    }
    return Math.min(length, limit);
  }

  /** From now on `count` blocks from `block` on are held in those from `holder` on. */
  set(block: number, holder: number, count: number): void {
    for (let done = 0; done < count; ) {
      const slot = (block + done) % Relocations.PAGE_BLOCKS;
      const index = (block + done - slot) / Relocations.PAGE_BLOCKS;
      const length = Math.min(Relocations.PAGE_BLOCKS - slot, count - done);
      if (length === Relocations.PAGE_BLOCKS) {
        this.pages.set(index, holder - block);
      } else {
        const holders = this.holdersOf(index);
        for (let i = 0; i < length; i++) holders[slot + i] = holder + done + i;
      }
      done += length;
    }
  }

  private holdersOf(index: number): Uint32Array | Float64Array {
    const page = this.pages.get(index) ?? 0;
    if (typeof page !== 'number') return page;
    const length = Relocations.PAGE_BLOCKS;
    const holders = this.blocks < 2 ** 32 ? new Uint32Array(length) : new Float64Array(length);
    if (page !== 0) for (let i = 0; i < length; i++) holders[i] = index * length + i + page;
    this.pages.set(index, holders);
    return holders;
  }
}

function hex(value: number): string {
  return value.toString(16).padStart(8, '0');
}
