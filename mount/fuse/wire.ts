/**
 * The FUSE wire: what the kernel and we write to each other over /dev/fuse, little endian as the machines we run on.
 * Layouts from <linux/fuse.h>, protocol 7.40 and later, checked against Linux 6.18. Offsets in bytes; a request's own
 * struct starts at IN_HEADER_BYTES. Node ids, file handles and `unique` are 64 bits wide, and far below 2^53: we make
 * the first two, and the kernel counts the third up from 2.
 */
import { DmError } from '../../src/errors.js';

export const KERNEL_VERSION = 7;
export const KERNEL_MINOR_MIN = 31;
export const KERNEL_MINOR = 40;

/** Bytes of the largest READ and WRITE: 256 pages. */
export const MAX_IO_BYTES = 1 << 20;
export const MAX_PAGES = MAX_IO_BYTES / 4096;
/** The kernel refuses to hand a request to a smaller buffer: one WRITE and its headers. */
export const REQUEST_BUFFER_BYTES = MAX_IO_BYTES + 4096;

// struct fuse_in_header { u32 len; u32 opcode; u64 unique; u64 nodeid; u32 uid; u32 gid; u32 pid; u32 extra }
export const IN_HEADER_BYTES = 40;
// struct fuse_out_header { u32 len; s32 error; u64 unique }
export const OUT_HEADER_BYTES = 16;

/** Bytes of the request structs that come in different places of the code; the others stand in the opcode table. */
export const WRITE_IN_BYTES = 40;

// INIT flags, and those of flags2 (bit 32 up in the kernel's numbering).
export const INIT_ASYNC_READ = 1 << 0;
export const INIT_BIG_WRITES = 1 << 5;
export const INIT_ASYNC_DIO = 1 << 15;
export const INIT_PARALLEL_DIROPS = 1 << 18;
export const INIT_MAX_PAGES = 1 << 22;
export const INIT_EXT = 1 << 30;
export const INIT2_PASSTHROUGH = 1 << (37 - 32);

export const FOPEN_DIRECT_IO = 1 << 0;
export const FOPEN_NONSEEKABLE = 1 << 2;
export const FOPEN_STREAM = 1 << 4;
export const FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6;
export const FOPEN_PASSTHROUGH = 1 << 7;

export const FATTR_MODE = 1 << 0;
export const FATTR_UID = 1 << 1;
export const FATTR_GID = 1 << 2;

export const FALLOC_KEEP_SIZE = 0x01;
export const FALLOC_PUNCH_HOLE = 0x02;
export const FALLOC_ZERO_RANGE = 0x10;

export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

export const POLL_SCHEDULE_NOTIFY = 1 << 0;
export const NOTIFY_POLL = 1;
const NOTIFY_INVAL_INODE = 2;
const NOTIFY_INVAL_ENTRY = 3;

// ioctls of /dev/fuse: _IOW(229, 1, struct fuse_backing_map), _IOW(229, 2, u32)
export const DEV_IOC_BACKING_OPEN = 0x4010e501;
export const DEV_IOC_BACKING_CLOSE = 0x4004e502;

const names = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** One request as it was read: a cheap view, which a lane points at its buffer again and again. */
export class Request {
  private view: DataView;
  length = 0;

  constructor(readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get declaredLength(): number {
    return this.view.getUint32(0, true);
  }
  get opcode(): number {
    return this.view.getUint32(4, true);
  }
  get unique(): number {
    return this.u64(8);
  }
  get node(): number {
    return this.u64(16);
  }
  get uid(): number {
    return this.view.getUint32(24, true);
  }
  get gid(): number {
    return this.view.getUint32(28, true);
  }

  /** A field of the request's own struct, by its offset there. */
  bodyU32(offset: number): number {
    return this.view.getUint32(IN_HEADER_BYTES + offset, true);
  }
  bodyU64(offset: number): number {
    return this.u64(IN_HEADER_BYTES + offset);
  }

  /** What follows `structBytes` of the request's own struct: the data of a WRITE, names. */
  tail(structBytes: number): Uint8Array {
    return this.bytes.subarray(IN_HEADER_BYTES + structBytes, this.length);
  }

  /**
   * The NUL-terminated name behind the struct. Throws EINVAL where it does not end, EILSEQ for one that is no UTF-8: two of those
   * would be one name for us.
   */
  name(structBytes: number): string {
    const tail = this.tail(structBytes);
    const end = tail.indexOf(0);
    if (end < 0) throw new DmError('EINVAL', 'a name without an end');
    try {
      return names.decode(tail.subarray(0, end));
    } catch {
      throw new DmError('EILSEQ', 'a name that is no UTF-8');
    }
  }

  /** The data of a WRITE. Throws EINVAL where there is more or less of it than the request says. */
  writeData(): Uint8Array {
    const data = this.tail(WRITE_IN_BYTES);
    if (data.length !== this.bodyU32(16)) throw new DmError('EINVAL', 'WRITE: size and data differ');
    return data;
  }

  /** The name behind that one. */
  secondName(structBytes: number): string {
    return this.name(structBytes + this.tail(structBytes).indexOf(0) + 1);
  }

  /** A request that outlives the lane's buffer. */
  copy(): Request {
    return Request.of(this.bytes.slice(0, this.length));
  }

  static of(bytes: Uint8Array): Request {
    const request = new Request(bytes);
    request.length = bytes.length;
    return request;
  }

  private u64(offset: number): number {
    // Above 2^53 (a hostile offset, say) the number is only nearly right, and still far outside every device.
    return this.view.getUint32(offset, true) + this.view.getUint32(offset + 4, true) * 0x1_0000_0000;
  }
}

/** Puts the header of a reply in front of `bodyBytes` that are already in `out` behind it; the reply's length. */
export function putReplyHeader(out: DataView, unique: number, errno: number, bodyBytes: number): number {
  const length = OUT_HEADER_BYTES + bodyBytes;
  out.setUint32(0, length, true);
  out.setInt32(4, -errno, true);
  putU64(out, 8, unique);
  return length;
}

export function putU64(out: DataView, offset: number, value: number): void {
  out.setUint32(offset, value % 0x1_0000_0000, true);
  out.setUint32(offset + 4, Math.floor(value / 0x1_0000_0000), true);
}

/** A whole reply; for everything but data. `body` 0 bytes for a bare success or an error. */
export function encodeReply(unique: number, errno: number, body: Uint8Array = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(OUT_HEADER_BYTES + body.length);
  putReplyHeader(new DataView(bytes.buffer), unique, errno, body.length);
  bytes.set(body, OUT_HEADER_BYTES);
  return bytes;
}

/** A notification is a reply to nobody: unique 0, its code where the error would be. */
export function encodePollWakeup(kernelHandle: number): Uint8Array {
  const body = record(8, (out) => putU64(out, 0, kernelHandle));
  return notification(NOTIFY_POLL, body);
}

/** A notification: the kernel asks anew for the attributes of a node, and keeps what it has of its content. */
export function encodeAttributesChanged(node: number): Uint8Array {
  const body = record(24, (out) => {
    putU64(out, 0, node);
    out.setBigInt64(8, -1n, true);
  });
  return notification(NOTIFY_INVAL_INODE, body);
}

/** A notification: the kernel forgets a name in a directory. It may wait for requests to that directory. */
export function encodeNameGone(parent: number, name: string): Uint8Array {
  const bytes = Buffer.from(`${name}\0`);
  const body = record(16 + bytes.length, (out) => {
    putU64(out, 0, parent);
    out.setUint32(8, bytes.length - 1, true);
  });
  body.set(bytes, 16);
  return notification(NOTIFY_INVAL_ENTRY, body);
}

function notification(code: number, body: Uint8Array): Uint8Array {
  const bytes = encodeReply(0, 0, body);
  new DataView(bytes.buffer).setInt32(4, code, true);
  return bytes;
}

export interface Attributes {
  readonly node: number;
  /** Bytes. */
  readonly size: number;
  /** S_IFMT and permission bits. */
  readonly mode: number;
  readonly links: number;
  readonly uid: number;
  readonly gid: number;
  /** Seconds since the epoch; one time serves for all three. */
  readonly time: number;
}

const ATTR_BYTES = 88;

function putAttributes(out: DataView, base: number, attributes: Attributes): void {
  const { node, size, mode, links, uid, gid, time } = attributes;
  putU64(out, base, node);
  putU64(out, base + 8, size);
  putU64(out, base + 16, Math.ceil(size / 512)); // blocks
  for (const offset of [24, 32, 40]) putU64(out, base + offset, Math.floor(time)); // atime, mtime, ctime
  out.setUint32(base + 60, mode, true);
  out.setUint32(base + 64, links, true);
  out.setUint32(base + 68, uid, true);
  out.setUint32(base + 72, gid, true);
  out.setUint32(base + 80, 4096, true); // blksize
}

/** struct fuse_entry_out: the answer to LOOKUP and MKDIR. `validSeconds` for the name and the attributes. */
export function entryOut(attributes: Attributes, validSeconds: number): Uint8Array {
  return record(40 + ATTR_BYTES, (out) => {
    putU64(out, 0, attributes.node);
    putU64(out, 16, validSeconds);
    putU64(out, 24, validSeconds);
    putAttributes(out, 40, attributes);
  });
}

/** struct fuse_attr_out. */
export function attrOut(attributes: Attributes, validSeconds: number): Uint8Array {
  return record(16 + ATTR_BYTES, (out) => {
    putU64(out, 0, validSeconds);
    putAttributes(out, 16, attributes);
  });
}

/** struct fuse_open_out. `backingId` counts with FOPEN_PASSTHROUGH only. */
export function openOut(handle: number, flags: number, backingId = 0): Uint8Array {
  return record(16, (out) => {
    putU64(out, 0, handle);
    out.setUint32(8, flags, true);
    out.setInt32(12, backingId, true);
  });
}

/** struct fuse_write_out. */
export function writeOut(size: number): Uint8Array {
  return record(8, (out) => out.setUint32(0, size, true));
}

/** struct fuse_poll_out. */
export function pollOut(events: number): Uint8Array {
  return record(8, (out) => out.setUint32(0, events, true));
}

/** struct fuse_statfs_out: no space of its own, `blockSize` is what the loop driver takes for the trim granularity. */
export function statfsOut(blockSize: number): Uint8Array {
  return record(80, (out) => {
    out.setUint32(40, blockSize, true); // bsize
    out.setUint32(44, 255, true); // namelen
    out.setUint32(48, blockSize, true); // frsize
  });
}

export interface DirectoryEntry {
  readonly name: string;
  readonly node: number;
  readonly mode: number;
}

/** struct fuse_dirent for as many of `entries`, from `from` on, as fit in `limit` bytes. */
export function direntsOut(entries: readonly DirectoryEntry[], from: number, limit: number): Uint8Array {
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for (let i = from; i < entries.length; i++) {
    const { name, node, mode } = entries[i]!;
    const nameBytes = Buffer.from(name);
    const part = record(Math.ceil((24 + nameBytes.length) / 8) * 8, (out) => {
      putU64(out, 0, node);
      putU64(out, 8, i + 1); // where the next READDIR goes on
      out.setUint32(16, nameBytes.length, true);
      out.setUint32(20, (mode >> 12) & 0o17, true);
    });
    part.set(nameBytes, 24);
    if (bytes + part.length > limit) break;
    bytes += part.length;
    parts.push(part);
  }
  return Buffer.concat(parts);
}

export interface InitRequest {
  readonly major: number;
  readonly minor: number;
  readonly maxReadahead: number;
  readonly flags: number;
  readonly flags2: number;
}

export function decodeInit(request: Request): InitRequest {
  const extended = request.length >= IN_HEADER_BYTES + 20;
  return {
    major: request.bodyU32(0),
    minor: request.bodyU32(4),
    maxReadahead: request.bodyU32(8),
    flags: request.bodyU32(12),
    flags2: extended ? request.bodyU32(16) : 0,
  };
}

/** struct fuse_init_out. `maxStackDepth` is 1 where passthrough is wanted: a backing file that is itself no stack. */
export function initOut(init: InitRequest, options: { flags: number; flags2: number }): Uint8Array {
  return record(64, (out) => {
    out.setUint32(0, KERNEL_VERSION, true);
    out.setUint32(4, Math.min(init.minor, KERNEL_MINOR), true);
    out.setUint32(8, init.maxReadahead, true);
    out.setUint32(12, options.flags, true);
    out.setUint16(16, 64, true); // max_background
    out.setUint16(18, 48, true); // congestion_threshold
    out.setUint32(20, MAX_IO_BYTES, true); // max_write
    out.setUint32(24, 1, true); // time_gran
    out.setUint16(28, MAX_PAGES, true);
    out.setUint32(32, options.flags2, true);
    out.setUint32(36, options.flags2 & INIT2_PASSTHROUGH ? 1 : 0, true); // max_stack_depth
  });
}

function record(bytes: number, fill: (out: DataView) => void): Uint8Array {
  const out = new Uint8Array(bytes);
  fill(new DataView(out.buffer));
  return out;
}
