/**
 * log-writes: records every write, flush and discard of the device with its data, in order, in the format of Linux's
 * dm-log-writes (formats/log-writes.ts), for replay-log of github.com/josefbacik/log-writes and of xfstests.
 *
 *     log-writes <log dev>        an absolute path: a regular file, which grows, or a block device
 *
 * What the log file had before is given up: a new log starts. Writing `mark` puts a MARK there, as `dmsetup message DEV 0 mark
 * NAME` does; every log that was detached in good order ends with the mark `dm-log-writes-end`.
 *
 * The order. One mutex is held from before a change is passed on until its entries are in the log, and from before a flush
 * is passed on until its FLUSH entry is. So
 *
 *   logw-O1  Overlapping changes are in the log in the order in which they reached the device. The log up to any entry that ends
 *            a request is what the device held at that instant.
 *   logw-O2  What had completed when a flush was asked for is before its FLUSH: its entries were in the log when it was answered.
 *   logw-O3  What is before a FLUSH had completed when that flush began, hence is durable by it. Nothing else comes there: a
 *            change that is asked for during the flush waits, and is logged behind it. A flush that fails is not logged.
 *
 * So all changes of a device wait for each other while it is logged; reads do not.
 *
 * Not as in the kernel: dm-log-writes holds writes back until they are flushed, so that a MARK comes before what was not flushed
 * at that time. Here a MARK is an instant of the device's content. What was certain to be on disk then is the log up to the
 * last FLUSH before it. And no entry is FUA or METADATA, for the loop device makes a flush of the one and drops the other: of
 * replay-log, `--next-flush` and `--check flush` stop, `--next-fua` and `--check fua` never do.
 *
 * What a request becomes:
 *
 *   write         the data, in entries of up to 1 MiB. A sector that it covers in part is read back, whole.
 *   writeZeroes   zeros as data
 *   the same with unmap, discard
 *                 DISCARD of up to 128 MiB each, and edges that are no whole sectors read back as data. The loop device makes a
 *                 discard of the user and an unmapping write-zeroes the same request, so the one cannot be told from the other:
 *                 both must read as zeros afterwards, and as data a discard of a whole disk would make a log as large as the
 *                 disk. replay-log zeroes these ranges in a file, and where the device's BLKDISCARD does (loop, thin). So a replay
 *                 reads the same there, but not on a disk whose discarded blocks read as something else, nor with --no-discard.
 *   a failed one  what the device has in its range afterwards, for it may be the old or the new in any sector; nothing where the
 *                 device knows no such request
 *
 * A log that cannot be written ends, with the event `log_failed`; the device goes on. A flush, a mark and the detachment make the
 * log durable, with a super block that counts its entries up to there: after a kill or a power cut it ends at the last of them.
 */
import { type BlockDevice, type Extent, extentOf, isUnsupported } from '../../device/block-device.js';
import { DmError, type ErrnoName, messageOf } from '../../errors.js';
import { MARK_BYTES_MAX } from '../../formats/log-writes.js';
import { quoteWord } from '../../table.js';
import type { Backing } from '../../targets/target.js';
import { SECTOR_BYTES } from '../../units.js';
import type { AttachContext, Filter, FilterContext, FilterType } from '../filter.js';
import { type Appender, startLog, WriteLog } from './log.js';

interface LogWritesDescriptor {
  readonly backing: Backing;
  readonly shared: SharedArrayBuffer;
}

/** Notes a range of whole sectors (bytes) in the log. */
type Note = (entries: Appender, offset: number, length: number) => void;

// No copyFrom: all data must come through `write`.
export class LogWritesFilter implements Filter {
  readonly size: number;
  private readonly below: BlockDevice;
  private readonly log: WriteLog;
  private readonly path: string;

  constructor(
    { backing, shared }: LogWritesDescriptor,
    { below, device, raise }: Pick<FilterContext, 'below' | 'device' | 'raise'>,
  ) {
    this.size = below.size;
    this.below = below;
    this.log = new WriteLog(device(backing), shared, raise);
    this.path = backing.path;
  }

  read(offset: number, into: Uint8Array): void {
    this.below.read(offset, into);
  }

  write(offset: number, from: Uint8Array): void {
    this.change(
      offset,
      from.length,
      () => this.below.write(offset, from),
      (entries, at, length) => entries.data(at, from.subarray(at - offset, at - offset + length)),
    );
  }

  writeZeroes(offset: number, length: number, options?: { unmap?: boolean }): void {
    this.change(
      offset,
      length,
      () => this.below.writeZeroes(offset, length, options),
      options?.unmap ? noteDiscard : (entries, at, size) => entries.zeroes(at, size),
    );
  }

  discard(offset: number, length: number): void {
    this.change(offset, length, () => this.below.discard(offset, length), noteDiscard);
  }

  flush(): void {
    if (this.log.hasFailed) {
      this.below.flush();
      return;
    }
    this.log.alone(() => {
      this.below.flush();
      this.log.append((entries) => entries.flush());
      this.log.commit();
    });
  }

  extentAt(offset: number): Extent {
    return extentOf(this.below, offset);
  }

  args(): string {
    return quoteWord(this.path);
  }

  /** Throws EINVAL for a text that no mark can have, EIO when it could not be made durable in the log. */
  mark(text: string): void {
    const bytes = new TextEncoder().encode(text);
    if (bytes.length === 0 || bytes.length > MARK_BYTES_MAX || bytes.includes(0)) {
      throw new DmError(
        'EINVAL',
        `mark: a text of ${bytes.length} bytes: expected 1..${MARK_BYTES_MAX}, none of them zero`,
      );
    }
    this.appendMark(bytes);
  }

  close(): void {
    // Of one that failed before, the events have told.
    if (this.log.hasFailed) return;
    this.appendMark(new TextEncoder().encode('dm-log-writes-end'));
  }

  private appendMark(text: Uint8Array): void {
    this.log.alone(() => {
      this.log.append((entries) => entries.mark(text));
      this.log.commit();
      if (this.log.hasFailed) throw this.ended();
    });
  }

  /** Makes a change and logs it: `note` the whole sectors, the others by what the device has there then. */
  private change(offset: number, length: number, apply: () => void, note: Note): void {
    // Nothing changes, or nobody writes it down.
    if (length === 0 || this.log.hasFailed) {
      apply();
      return;
    }
    const first = roundDown(offset);
    const end = roundUp(offset + length);
    this.log.alone(() => {
      try {
        apply();
      } catch (error) {
        if (!isUnsupported(error)) this.log.append((entries) => this.readBack(entries, first, end));
        throw error;
      }
      this.log.append((entries) => {
        const wholeFrom = roundUp(offset);
        const wholeTo = roundDown(offset + length);
        if (wholeFrom >= wholeTo) {
          this.readBack(entries, first, end);
          return;
        }
        this.readBack(entries, first, wholeFrom);
        note(entries, wholeFrom, wholeTo - wholeFrom);
        this.readBack(entries, wholeTo, end);
      });
    });
  }

  /** Logs what the device has in bytes [from, to), whole sectors, maybe none. */
  private readBack(entries: Appender, from: number, to: number): void {
    if (from < to) entries.contentOf(this.below, from, to - from);
  }

  private ended(): DmError {
    return new DmError(
      'EIO',
      `${this.path}: the log has failed and ended (\`events\` has the reason); detach the filter, attach it with a new log`,
    );
  }
}

/** Opens the log. A missing one is not made, as no `<dev>` is; the message says what to do. */
async function openLog(path: string, context: AttachContext): Promise<Backing> {
  try {
    return await context.openBacking(path, 'write');
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ENOENT') throw error;
    throw new DmError('ENOENT', `${messageOf(error)}: make an empty file there first, it grows as needed`);
  }
}

const noteDiscard: Note = (entries, offset, length) => entries.discard(offset, length);

function roundDown(offset: number): number {
  return offset - (offset % SECTOR_BYTES);
}

function roundUp(offset: number): number {
  return Math.ceil(offset / SECTOR_BYTES) * SECTOR_BYTES;
}

export const logWrites: FilterType<LogWritesDescriptor, LogWritesFilter> = {
  name: 'log-writes',
  usage: '<log dev>',
  files: [{ name: 'mark', write: (filter, text) => filter.mark(text) }],

  async attach(args, context) {
    const [path, ...rest] = args;
    if (path === undefined || rest.length > 0 || !path.startsWith('/')) {
      throw new DmError(
        'EINVAL',
        `log-writes needs one argument, the absolute path of a file or block device: log-writes ${this.usage}`,
      );
    }
    const backing = await openLog(path, context);
    try {
      return { backing, shared: startLog(context.device(backing)) };
    } catch (error) {
      const { code = 'EIO' } = error as { code?: ErrnoName };
      throw new DmError(code, `${path}: no log can be started there: ${messageOf(error)}`);
    }
  },

  open(descriptor, context) {
    return new LogWritesFilter(descriptor, context);
  },
};
