/**
 * The roll back of a dm-bow device: puts every block back that was not free when the checkpoint began. Works on the
 * device below the target, which nothing else may use meanwhile. Blocks that were free then come back as anything.
 *
 * A log entry says "the bytes at dest belong at source". Undoing goes strictly from the newest entry to the oldest: a
 * newer entry may hold the backup of an older one's backup. Entry 0 of a log puts the next older log into block 0, in
 * sequence 0 the block 0 that the checkpoint found.
 *
 * Two passes. The first (`log-walk.ts`) checks and writes nothing. The second copies; its state is block 0 itself:
 * magic WOB and the count of entries still to be undone. Both together may be cut anywhere and started again.
 *
 * bow-R1  Nothing is written before the whole log, every entry and every checksum have been found right. A device
 *         without a log, or with a damaged one, is left byte for byte as it is.
 * bow-R2  No number is used before it is checked against the device. Sequences fall by one to exactly 0 and start
 *         below the number of blocks, so a chain cannot loop and each log moves at most capacity × half the device. (No
 *         limit for all logs together: over trims and new writes the same blocks are moved again and again.) The map holds
 *         only blocks that entries name.
 * bow-R3  After a cut, copies are repeated from the last record on. So no source is written while it meets a dest used
 *         since that record: first everything is flushed and a record says that those entries are done.
 * bow-R4  A record (magic, count) is one write of the first 512 bytes of block 0, flushed before and after. The first
 *         one (WOB) is durable before the first copy: from then on only going on is right, never a roll forward.
 * bow-R5  Before block 0 is replaced, a record puts header and entry 0 into its first 512 bytes, count 1, whatever
 *         header_size the log had. So bytes 512.. may be torn; they are flushed before the first 512 are written.
 * bow-R6  An older log goes to block 0 with magic WOB, the original block 0 as it is: a second restore finds no log.
 *         (Unless the original was a log itself: the kernel's target starts a checkpoint on one. Each restore then
 *         undoes one checkpoint.)
 * bow-R7  What this leaves at any cut, vold can finish, and the other way round: vold makes a record before each entry,
 *         which is a case of bow-R3.
 *
 * Left out: vold's "roll forward", which keeps the present data when the log is damaged. That is for people to decide.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import {
  BOW_MAGIC_RESTORING,
  decodeLog,
  encodeEntry,
  encodeHeader,
  HEADER_BYTES,
  type LogEntry,
  type LogHeader,
} from '../../formats/bow-log.js';
import { SECTOR_BYTES } from '../../units.js';
import {
  allSteps,
  CHUNK_BYTES,
  describeFinding,
  inspectSteps,
  type LogReport,
  type UndoOptions,
  type UndoProgress,
  type UndoSteps,
} from './log-walk.js';

export {
  type DumpedEntry,
  type DumpedLog,
  describeFinding,
  dumpLog,
  dumpSteps,
  type Finding,
  type InspectOptions,
  inspectLog,
  inspectSteps,
  type LogDump,
  type LogReport,
  type UndoOptions,
  type UndoProgress,
} from './log-walk.js';

export type RestoreResult =
  | { readonly state: 'no-log' }
  | {
      readonly state: 'restored';
      /** Log blocks undone. */
      readonly sequences: number;
      readonly entries: number;
      /** Bytes put back. */
      readonly bytes: number;
    };

/**
 * Rolls back. Throws EIO for a damaged log, with nothing changed (bow-R1), and whatever the device throws; after that,
 * or after a power cut, the same call goes on where it was.
 */
export function restore(device: BlockDevice, options: UndoOptions = {}): RestoreResult {
  return allSteps(restoreSteps(device), options);
}

/** As restore, in steps: what is left of them undone is a restore that was cut. */
export function* restoreSteps(device: BlockDevice): UndoSteps<RestoreResult> {
  const report = yield* inspectSteps(device, { maxFindings: 1 });
  if (report === undefined) return { state: 'no-log' };
  const { findings, logs: sequences, entries, bytes } = report;
  if (findings[0]) {
    const more = findings.length > 1 ? ` (and ${findings.length - 1} more)` : '';
    throw new DmError(
      'EIO',
      `the bow log is damaged, nothing was changed: ${describeFinding(findings[0])}${more}`,
    );
  }
  yield* new Restorer(device, report).run();
  return { state: 'restored', sequences, entries, bytes };
}

/** The second pass, over a log that the first has found right. */
class Restorer {
  private readonly chunk: Uint8Array;
  private logs = 0;
  private bytes = 0;

  constructor(
    private readonly device: BlockDevice,
    private readonly report: LogReport,
  ) {
    this.chunk = new Uint8Array(Math.min(CHUNK_BYTES, device.size));
  }

  *run(): UndoSteps<void> {
    const block = new Uint8Array(this.report.blockSize);
    for (;;) {
      this.device.read(0, block);
      const { header, entries } = decodeLog(block);
      // Also where block 0 says WOB already, it may say so in a cache only, left by a process that was killed.
      if (this.logs === 0) this.record(block, header, header.count);
      yield* this.undoEntries(block, header, entries);
      yield this.replaceBlock0(header, entries[0]!);
      this.logs++;
      if (header.sequence === 0) return;
    }
  }

  /** Entries count-1..1, then the record that says that only entry 0 is left. */
  private *undoEntries(block: Uint8Array, header: LogHeader, entries: readonly LogEntry[]): UndoSteps<void> {
    let sinceRecord: LogEntry[] = [];
    for (let index = header.count - 1; index > 0; index--) {
      const entry = entries[index]!;
      if (sinceRecord.some((earlier) => sourceMeetsDest(entry, earlier))) {
        this.record(block, header, index + 1);
        sinceRecord = [];
      }
      yield* this.copy(entry);
      sinceRecord.push(entry);
    }
    encodeEntry(block, 0, entries[0]!);
    this.record(block, { ...header, headerSize: HEADER_BYTES }, 1);
  }

  /** Makes durable that the entries from `count` on are done and the others are not (bow-R4). */
  private record(block: Uint8Array, header: LogHeader, count: number): void {
    encodeHeader(block, { ...header, magic: BOW_MAGIC_RESTORING, count });
    this.device.flush();
    this.device.write(0, block.subarray(0, SECTOR_BYTES));
    this.device.flush();
  }

  private replaceBlock0(header: LogHeader, entry: LogEntry): UndoProgress {
    const block = new Uint8Array(header.blockSize);
    this.device.read(entry.destSector * SECTOR_BYTES, block);
    if (header.sequence > 0) encodeHeader(block, { ...decodeLog(block).header, magic: BOW_MAGIC_RESTORING });
    if (block.length > SECTOR_BYTES) {
      this.device.write(SECTOR_BYTES, block.subarray(SECTOR_BYTES));
      this.device.flush();
    }
    this.device.write(0, block.subarray(0, SECTOR_BYTES));
    this.device.flush();
    return this.progress(block.length);
  }

  private *copy({ sourceSector, destSector, sizeBytes }: LogEntry): UndoSteps<void> {
    for (let done = 0; done < sizeBytes; ) {
      const bytes = this.chunk.subarray(0, Math.min(this.chunk.length, sizeBytes - done));
      this.device.read(destSector * SECTOR_BYTES + done, bytes);
      this.device.write(sourceSector * SECTOR_BYTES + done, bytes);
      done += bytes.length;
      yield this.progress(bytes.length);
    }
  }

  private progress(bytes: number): UndoProgress {
    this.bytes += bytes;
    const { logs: logsTotal, bytes: bytesTotal } = this.report;
    return { phase: 'restore', logs: this.logs, logsTotal, bytes: this.bytes, bytesTotal };
  }
}

function sourceMeetsDest(
  { sourceSector, sizeBytes }: LogEntry,
  { destSector, sizeBytes: destBytes }: LogEntry,
): boolean {
  return (
    sourceSector < destSector + destBytes / SECTOR_BYTES &&
    destSector < sourceSector + sizeBytes / SECTOR_BYTES
  );
}
