/**
 * The requests that a lane hands to the main thread: taken apart here, served by the tree, answered whenever the answer
 * is there. Any thread may write a reply, so a read that waits for an event costs nobody a lane.
 */
import { writeSync } from 'node:fs';
import { DmError, errnoOf } from '../../src/errors.js';
import { isNonBlocking, type NodeAttributes, type OpenResult, type Tree } from '../tree/tree.js';
import { Opcode } from './opcodes.js';
import {
  attrOut,
  direntsOut,
  encodePollWakeup,
  encodeReply,
  entryOut,
  FATTR_GID,
  FATTR_MODE,
  FATTR_UID,
  FOPEN_DIRECT_IO,
  FOPEN_NONSEEKABLE,
  FOPEN_PARALLEL_DIRECT_WRITES,
  FOPEN_PASSTHROUGH,
  FOPEN_STREAM,
  openOut,
  POLL_SCHEDULE_NOTIFY,
  pollOut,
  Request,
  statfsOut,
  writeOut,
} from './wire.js';

// Names and attributes change by requests of this mount alone, which the kernel sees: a second is plenty.
const VALID_SECONDS = 1;

// <poll.h>
const POLLIN = 0x001;
const POLLOUT = 0x004;
const POLLRDNORM = 0x040;
const POLLWRNORM = 0x100;

// <linux/fs.h>; nothing is ever replaced.
const RENAME_NOREPLACE = 1;

/** Interrupts that came before their request; more than a few at a time never do. */
const EARLY_INTERRUPTS_MAX = 64;

type Body = Uint8Array;
const EMPTY: Body = new Uint8Array(0);

export class MainRequests {
  private readonly waiting = new Map<number, AbortController>();
  private readonly earlyInterrupts = new Set<number>();

  constructor(
    private readonly fuseFd: number,
    private readonly tree: Tree,
  ) {}

  /** Serves one request that a lane has checked against the opcode table, and sees to its reply. */
  handle(bytes: Uint8Array): void {
    const request = Request.of(bytes);
    if (request.opcode === Opcode.INTERRUPT) {
      this.interrupt(request.bodyU64(0));
      return;
    }
    const { unique } = request;
    const abort = new AbortController();
    if (this.earlyInterrupts.delete(unique)) abort.abort();
    try {
      const body = this.serve(request, abort.signal);
      if (!(body instanceof Promise)) {
        this.reply(unique, 0, body);
        return;
      }
      this.waiting.set(unique, abort);
      body.then(
        (late) => this.replyLate(unique, 0, late),
        (error) => this.replyLate(unique, errnoOf(error)),
      );
    } catch (error) {
      this.reply(unique, errnoOf(error));
    }
  }

  private serve(request: Request, signal: AbortSignal): Body | Promise<Body> {
    const { tree } = this;
    const { node } = request;
    switch (request.opcode) {
      case Opcode.LOOKUP:
        return entryOut(tree.lookup(node, request.name(0)), VALID_SECONDS);
      case Opcode.GETATTR:
        return attrOut(tree.attributes(node), VALID_SECONDS);
      case Opcode.SETATTR:
        return attrOut(this.setAttributes(request), VALID_SECONDS);
      case Opcode.MKDIR:
        return entryOut(tree.makeDirectory(node, request.name(8)), VALID_SECONDS);
      case Opcode.RMDIR:
        return tree.removeDirectory(node, request.name(0)).then(() => EMPTY);
      case Opcode.RENAME:
        tree.rename(node, request.name(8), request.bodyU64(0), request.secondName(8));
        return EMPTY;
      case Opcode.RENAME2:
        if (request.bodyU32(8) & ~RENAME_NOREPLACE) throw new DmError('EINVAL', 'rename: an exchange');
        tree.rename(node, request.name(16), request.bodyU64(0), request.secondName(16));
        return EMPTY;
      case Opcode.OPEN:
        return openReply(tree.open(node, request.bodyU32(0)));
      case Opcode.FLUSH:
        tree.flush(request.bodyU64(0));
        return EMPTY;
      case Opcode.RELEASE:
      case Opcode.RELEASEDIR:
        tree.release(request.bodyU64(0));
        return EMPTY;
      case Opcode.OPENDIR:
        return openOut(tree.openDirectory(node), 0);
      case Opcode.READDIR:
        return direntsOut(tree.directoryEntries(request.bodyU64(0)), request.bodyU64(8), request.bodyU32(16));
      case Opcode.READ:
        return tree.read(request.bodyU64(0), request.bodyU64(8), request.bodyU32(16), {
          nonBlocking: isNonBlocking(request.bodyU32(32)),
          signal,
        });
      case Opcode.WRITE:
        return this.write(request);
      case Opcode.POLL:
        return this.poll(request);
      case Opcode.STATFS:
        return statfsOut(tree.granularity(node));
      case Opcode.FSYNC:
        tree.sync(request.bodyU64(0));
        return EMPTY;
      case Opcode.DESTROY:
        return EMPTY;
      case Opcode.IOCTL:
        throw new DmError('ENOTTY', 'no ioctl is known');
      case Opcode.FALLOCATE:
      case Opcode.LSEEK:
        tree.sync(request.bodyU64(0));
        throw new DmError('EOPNOTSUPP', 'not for a control file');
      default:
        throw new DmError('EOPNOTSUPP', 'not for a control file');
    }
  }

  // struct fuse_setattr_in: valid at 0, mode at 68, uid at 76, gid at 80
  private setAttributes(request: Request): NodeAttributes {
    const valid = request.bodyU32(0);
    return this.tree.setAttributes(request.node, {
      ...(valid & FATTR_MODE ? { mode: request.bodyU32(68) } : {}),
      ...(valid & FATTR_UID ? { uid: request.bodyU32(76) } : {}),
      ...(valid & FATTR_GID ? { gid: request.bodyU32(80) } : {}),
    });
  }

  private async write(request: Request): Promise<Body> {
    const data = request.writeData();
    await this.tree.write(request.bodyU64(0), data);
    return writeOut(data.length);
  }

  // struct fuse_poll_in { u64 fh; u64 kh; u32 flags; u32 events }
  private poll(request: Request): Body {
    const kernelHandle = request.bodyU64(8);
    const notify = (request.bodyU32(16) & POLL_SCHEDULE_NOTIFY) !== 0;
    const wake = notify ? () => this.send(encodePollWakeup(kernelHandle)) : undefined;
    const ready = this.tree.poll(request.bodyU64(0), wake);
    return pollOut((ready ? POLLIN | POLLRDNORM : 0) | POLLOUT | POLLWRNORM);
  }

  private interrupt(unique: number): void {
    const waiting = this.waiting.get(unique);
    if (waiting) waiting.abort();
    // Lanes hand requests over in no order: it may still be on its way. Data requests are never interrupted.
    else if (this.earlyInterrupts.size < EARLY_INTERRUPTS_MAX) this.earlyInterrupts.add(unique);
    else this.earlyInterrupts.clear();
  }

  private replyLate(unique: number, errno: number, body?: Body): void {
    this.waiting.delete(unique);
    this.reply(unique, errno, body);
  }

  /** The answer to a request that was served elsewhere. */
  reply(unique: number, errno: number, body?: Body): void {
    this.send(encodeReply(unique, errno, body));
  }

  private send(bytes: Uint8Array): void {
    try {
      writeSync(this.fuseFd, bytes);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      // ENOENT: the caller is gone, or nobody polls any more. ENODEV: the mount is gone.
      if (code !== 'ENOENT' && code !== 'ENODEV') throw error;
    }
  }
}

function openReply({ handle, kind, backingId }: OpenResult): Body {
  if (backingId !== undefined) return openOut(handle, FOPEN_PASSTHROUGH, backingId);
  // Direct I/O: no stale second cache of a device, and control files have no size to read up to.
  const extra = {
    device: FOPEN_PARALLEL_DIRECT_WRITES,
    events: FOPEN_STREAM | FOPEN_NONSEEKABLE,
    text: 0,
  }[kind];
  return openOut(handle, FOPEN_DIRECT_IO | extra);
}
