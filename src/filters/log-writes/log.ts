/**
 * The log that the views of one filter append to.
 *
 *   shared   bytes 0..15    the mutex; a word that is 1 when the log has failed
 *            bytes 16..31   two doubles: entries so far, the byte of the log that the next one goes to
 *
 * logw-I1  Entries and end are changed with the mutex held, and together: when all entries of a request are written. So what
 *          they count is whole requests.
 * logw-I2  The super block on the log counts only entries that are durable: entries, flush, super block, flush.
 * logw-I3  A log that has failed gets no more entries, for its end may be torn. What it counts stays readable.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { messageOf } from '../../errors.js';
import { encodeEntry, encodeSuper, LogFlag } from '../../formats/log-writes.js';
import { RwLock } from '../../shared/rwlock.js';
import { SECTOR_BYTES } from '../../units.js';

// Words of the shared memory.
const FAILED = RwLock.WORDS;
const COUNTS_BYTE = 16;
// Doubles from COUNTS_BYTE on.
const ENTRIES = 0;
const END = 1;
const SHARED_BYTES = COUNTS_BYTE + 8 * 2;

/** Bytes of data in one entry, at most: a replay takes each into memory as a whole. */
const DATA_BYTES_MAX = 1 << 20;
/**
 * Bytes of one DISCARD entry, at most. replay-log zeroes a range itself where what it writes to knows no BLKDISCARD, a regular
 * file, but leaves out one of more than 128 MiB.
 */
const DISCARD_BYTES_MAX = 128 << 20;
const ZEROES = new Uint8Array(DATA_BYTES_MAX);

/** Starts a log: it has no entries. Gives the shared state. */
export function startLog(device: BlockDevice): SharedArrayBuffer {
  device.write(0, encodeSuper(0));
  device.flush();
  const shared = new SharedArrayBuffer(SHARED_BYTES);
  new Float64Array(shared, COUNTS_BYTE)[END] = SECTOR_BYTES;
  return shared;
}

/** One thread's view of the log. */
export class WriteLog {
  private readonly words: Int32Array;
  private readonly counts: Float64Array;
  private readonly mutex: RwLock;

  constructor(
    private readonly device: BlockDevice,
    shared: SharedArrayBuffer,
    private readonly raise: (event: string) => void,
  ) {
    this.words = new Int32Array(shared);
    this.counts = new Float64Array(shared, COUNTS_BYTE);
    this.mutex = new RwLock(this.words);
  }

  /** It is written no more: once true, true for ever. */
  get hasFailed(): boolean {
    return Atomics.load(this.words, FAILED) === 1;
  }

  /** Runs `work` while no other thread is in here. Not recursive. */
  alone<T>(work: () => T): T {
    return this.mutex.exclusively(work);
  }

  /**
   * Appends the entries that `write` makes, all or none of them. To be called alone. Never throws: the log may fail instead,
   * also by what `write` throws.
   */
  append(write: (entries: Appender) => void): void {
    if (this.hasFailed) return;
    const appender = new Appender(this.device, this.counts[END]!);
    try {
      write(appender);
    } catch (error) {
      this.fail(error);
      // What came before is whole: let it count. Should that not work, the super block counts what it did.
      ignoringErrors(() => this.writeSuper());
      return;
    }
    this.counts[ENTRIES]! += appender.count;
    this.counts[END] = appender.end;
  }

  /** Makes all entries durable, and the super block that counts them (logw-I2). To be called alone. Never throws. */
  commit(): void {
    if (this.hasFailed) return;
    try {
      this.writeSuper();
    } catch (error) {
      // Not again: the kernel tells of lost writes once, and the next flush would promise entries that are not there.
      this.fail(error);
    }
  }

  private writeSuper(): void {
    this.device.flush();
    this.device.write(0, encodeSuper(this.counts[ENTRIES]!));
    this.device.flush();
  }

  private fail(error: unknown): void {
    Atomics.store(this.words, FAILED, 1);
    this.raise(`log_failed reason=${JSON.stringify(messageOf(error))}`);
  }
}

function ignoringErrors(work: () => void): void {
  try {
    work();
  } catch {}
}

/** Writes entries behind the end of a log. Offsets and lengths are bytes of whole sectors. */
export class Appender {
  count = 0;

  constructor(
    private readonly device: BlockDevice,
    /** Byte of the log that the next entry goes to. */
    public end: number,
  ) {}

  /** `bytes` were written at `offset`. */
  data(offset: number, bytes: Uint8Array): void {
    this.inPieces(offset, bytes.length, DATA_BYTES_MAX, (at, length) =>
      this.entry(at, length, 0, bytes.subarray(at - offset, at - offset + length)),
    );
  }

  /** The range was filled with zeros. */
  zeroes(offset: number, length: number): void {
    this.inPieces(offset, length, DATA_BYTES_MAX, (at, size) =>
      this.entry(at, size, 0, ZEROES.subarray(0, size)),
    );
  }

  /** What `device` has in the range was written. */
  contentOf(device: BlockDevice, offset: number, length: number): void {
    const buffer = new Uint8Array(Math.min(length, DATA_BYTES_MAX));
    this.inPieces(offset, length, DATA_BYTES_MAX, (at, size) => {
      const bytes = buffer.subarray(0, size);
      device.read(at, bytes);
      this.entry(at, size, 0, bytes);
    });
  }

  discard(offset: number, length: number): void {
    this.inPieces(offset, length, DISCARD_BYTES_MAX, (at, size) => this.entry(at, size, LogFlag.DISCARD));
  }

  flush(): void {
    this.entry(0, 0, LogFlag.FLUSH);
  }

  mark(text: Uint8Array): void {
    this.write(encodeEntry({ flags: LogFlag.MARK, mark: text }));
    this.count++;
  }

  private entry(offset: number, length: number, flags: number, data?: Uint8Array): void {
    this.write(encodeEntry({ sector: offset / SECTOR_BYTES, sectors: length / SECTOR_BYTES, flags }));
    if (data !== undefined) this.write(data);
    this.count++;
  }

  private write(bytes: Uint8Array): void {
    this.device.write(this.end, bytes);
    this.end += bytes.length;
  }

  private inPieces(
    offset: number,
    length: number,
    most: number,
    each: (offset: number, length: number) => void,
  ): void {
    for (let done = 0; done < length; done += most) each(offset + done, Math.min(most, length - done));
  }
}
