/**
 * bow: backup on write. Take a checkpoint of a disk in use, go on writing, then commit or roll back. As dm-bow.
 *
 *     bow <dev> [<#opts> block_size:<bytes>]               block_size 512 to 4096, default 4096
 *
 * The file system's trims tell which blocks are free; what a write would destroy is copied there first, and a log in
 * block 0 says what was copied where. `dmfuse bow restore` reads it and puts everything back.
 *
 * States: 0 collects trims, 1 backs up, 2 is committed and passes everything through. `echo N > state` goes up one.
 *
 *   type              before a write in state 1       then                 a trim in state 1 makes it
 *   UNCHANGED         copied to a free D, logged      CHANGED, D BACKUP    TRIMMED
 *   TRIMMED           the same                        AWAITED, D BACKUP    -
 *   BACKUP            the same                        AWAITED, D BACKUP    -
 *   SECTOR0_CURRENT   the same, and the log says so   AWAITED, D current   -
 *   AWAITED           nothing                         CHANGED              FREE
 *   FREE              nothing                         CHANGED              -
 *   CHANGED           nothing                         CHANGED              FREE
 *   SECTOR0           nothing; lives in current       -                    -
 *
 * FREE, BACKUP, SECTOR0_CURRENT, TRIMMED and AWAITED blocks read as zeros: for the user they are trimmed. AWAITED is what
 * a write is about to fill, so that no backup goes there meanwhile.
 *
 *   bow-I1  A block that was not FREE at the checkpoint is, at any instant, on the medium either in its place or in a
 *           place that the durable log names.
 *   bow-I2  Requests hold the lock across their I/O; a change of type or state has it alone (defects 8, 9, 10). Backups
 *           are made in rounds, one at a time, without the lock: what a round copies, only a later one lets be written.
 *   bow-I3  Order: backup, flush, log, flush, and only then the data. All requests of a round share its flushes.
 *   bow-I4  A failed change of state changes nothing and can be tried again.
 *   bow-I5  A write that finds no space fails before anything is written; everything else goes on.
 *   bow-I6  The log's image in memory is what the medium holds; where a failed write left that open, every later write
 *           makes it so first (`heal`).
 *   bow-I7  Each commit of the log is one 512-byte write. A log that has grown past its first sector always finds one
 *           free block to overflow to, so that a full device can still commit.
 *
 * A crash in state 0 leaves an ordinary disk, in state 1 the checkpoint and all that was flushed since (restore undoes
 * that), in state 2 an ordinary disk. Left out: logs with a `sector0` of 4 bytes (32-bit kernels).
 *
 * Where to read: target.ts the requests, backup.ts the first touch (a round), log.ts the log block, checkpoint.ts the changes of
 * state, undo.ts the roll back, formats/bow-log.ts the bytes. Format and defects: the dm-bow log document.
 */
import { DmError } from '../../errors.js';
import { sniffMagic } from '../../formats/bow-log.js';
import { commandWord, parseCount, takeGroup } from '../../table.js';
import { isPowerOfTwo, SECTOR_BYTES } from '../../units.js';
import type { CreateContext, TargetType } from '../target.js';
import { bowFiles } from './controls.js';
import { type BowDescriptor, createShared } from './state.js';
import { BowTarget } from './target.js';

const DEFAULT_BLOCK_BYTES = 4096;

export const bow: TargetType<BowDescriptor, BowTarget> = {
  name: 'bow',
  usage: '<dev> [<#opts> block_size:<bytes>]',
  files: bowFiles,

  async create(args, context) {
    const [device, ...options] = args;
    if (device === undefined) throw new DmError('EINVAL', `bow needs a device: bow ${this.usage}`);
    const blockSize = parseBlockSize(options);
    const backing = await context.openBacking(device, 'write');
    const size = sizeInBytes(device, backing.size, context);
    if (size < 2 * blockSize) {
      throw new DmError(
        'EINVAL',
        `${device} has ${size} bytes: bow needs 2 blocks of ${blockSize} bytes at least`,
      );
    }

    const start = new Uint8Array(SECTOR_BYTES);
    context.device(backing).read(0, start);
    if (sniffMagic(start) !== 'none') {
      throw new DmError(
        'EBUSY',
        `${device} holds the log of a checkpoint that was neither committed nor rolled back: run ` +
          `\`dmfuse bow restore ${commandWord(device)}\` first`,
      );
    }
    return { backing, size, blockSize, ...createShared(size, blockSize) };
  },

  open(descriptor, context) {
    return new BowTarget(descriptor, context);
  },
};

function parseBlockSize(options: readonly string[]): number {
  const { group, rest } = takeGroup(options, 'options');
  let blockSize = DEFAULT_BLOCK_BYTES;
  for (const option of [...group, ...rest]) {
    const value = /^block_size:(.*)$/.exec(option)?.[1];
    if (value === undefined || rest.includes(option)) {
      throw new DmError('EINVAL', `bow does not know \`${option}\`: bow ${bow.usage}`);
    }
    blockSize = parseCount(value, 'block_size');
    if (!isPowerOfTwo(blockSize) || blockSize < 512 || blockSize > 4096) {
      throw new DmError('EINVAL', `block_size is ${value} bytes: it must be 512, 1024, 2048 or 4096`);
    }
  }
  return blockSize;
}

function sizeInBytes(device: string, available: number, { length }: CreateContext): number {
  const sectors = Math.floor(available / SECTOR_BYTES);
  if (length !== undefined && length > sectors) {
    throw new DmError('EINVAL', `${device} has ${sectors} sectors, the table wants ${length}`);
  }
  return (length ?? sectors) * SECTOR_BYTES;
}
