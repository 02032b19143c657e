/**
 * The data path: requests for a `device` file, from the lane's request buffer to the target and back. What a request does
 * to a device, whatever transport it came by, stands in mount/device-io.ts.
 */
import { type BlockDevice, extentOf } from '../../src/device/block-device.js';
import { DmError } from '../../src/errors.js';
import { clampLength, readDevice, type ServedDevice, syncDevice, writeDevice } from '../device-io.js';
import { Opcode } from '../fuse/opcodes.js';
import {
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  MAX_IO_BYTES,
  putU64,
  type Request,
  SEEK_DATA,
  SEEK_HOLE,
} from '../fuse/wire.js';
import type { TimedOp } from './stats.js';

/** Serves one request for a device. The reply's body goes into `body`; returns its length in bytes. Throws the error. */
export function serveDevice(device: ServedDevice, request: Request, body: Uint8Array): number {
  switch (request.opcode) {
    case Opcode.READ:
      return serveRead(device, request, body);
    case Opcode.WRITE:
      return serveWrite(device, request, body);
    case Opcode.FSYNC:
      syncDevice(device);
      return 0;
    case Opcode.FALLOCATE:
      return serveFallocate(device, request);
    case Opcode.LSEEK:
      putU64(viewOf(body), 0, seek(device.output, request.bodyU64(8), request.bodyU32(16)));
      return 8;
    default:
      throw new DmError('ENOSYS', `opcode ${request.opcode} is not for a device`);
  }
}

/** Counts what a request took; one that only asks is not timed. */
export function countTime({ stats }: ServedDevice, request: Request, milliseconds: number): void {
  const op = timedOpOf(request);
  if (op) stats.time(op, milliseconds);
}

function timedOpOf(request: Request): TimedOp | undefined {
  switch (request.opcode) {
    case Opcode.READ:
      return 'read';
    case Opcode.WRITE:
      return 'write';
    case Opcode.FSYNC:
      return 'flush';
    case Opcode.FALLOCATE: {
      const mode = request.bodyU32(24);
      if (mode & FALLOC_PUNCH_HOLE) return 'discard';
      return mode & FALLOC_ZERO_RANGE ? 'zeroes' : undefined;
    }
    default:
      return undefined;
  }
}

// struct fuse_read_in { u64 fh; u64 offset; u32 size; … }
function serveRead(device: ServedDevice, request: Request, body: Uint8Array): number {
  return readDevice(
    device,
    request.bodyU64(8),
    body.subarray(0, Math.min(request.bodyU32(16), MAX_IO_BYTES)),
  );
}

// struct fuse_write_in { u64 fh; u64 offset; u32 size; u32 write_flags; u64 lock_owner; u32 flags; u32 padding }
function serveWrite(device: ServedDevice, request: Request, body: Uint8Array): number {
  const length = writeDevice(device, request.bodyU64(8), request.writeData(), request.bodyU32(32));
  const view = viewOf(body);
  view.setUint32(0, length, true);
  view.setUint32(4, 0, true);
  return 8;
}

// struct fuse_fallocate_in { u64 fh; u64 offset; u64 length; u32 mode; u32 padding }
function serveFallocate({ output, stats }: ServedDevice, request: Request): number {
  const offset = request.bodyU64(8);
  const mode = request.bodyU32(24);
  const length = clampLength(output.size, offset, request.bodyU64(16));
  // Past the end there is nothing to zero, and with KEEP_SIZE nothing to make.
  switch (mode) {
    case FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE:
      if (length > 0) output.writeZeroes(offset, length, { unmap: true });
      stats.add('discards', 1);
      stats.add('discarded_bytes', length);
      return 0;
    case FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE:
    case FALLOC_ZERO_RANGE:
      if (length < request.bodyU64(16)) throw new DmError('ENOSPC', 'ZERO_RANGE: the device ends before it');
      output.writeZeroes(offset, length);
      stats.add('zeroes', 1);
      stats.add('zeroed_bytes', length);
      return 0;
    case 0:
    case FALLOC_KEEP_SIZE:
      // A device has all its space: asking for some of it again is done already.
      if (length < request.bodyU64(16)) throw new DmError('ENOSPC', 'fallocate: the device ends before it');
      return 0;
    default:
      throw new DmError('EOPNOTSUPP', `fallocate mode ${mode}: a device can only be punched and zeroed`);
  }
}

/** SEEK_DATA and SEEK_HOLE from byte `offset` on; the end of the device is a hole. Throws ENXIO past it. */
function seek(device: BlockDevice, offset: number, whence: number): number {
  if (whence !== SEEK_DATA && whence !== SEEK_HOLE) throw new DmError('EINVAL', `LSEEK: whence ${whence}`);
  if (offset >= device.size) throw new DmError('ENXIO', `LSEEK: ${offset} is past the end`);
  for (let at = offset; at < device.size; ) {
    const extent = extentOf(device, at);
    if (extent.data === (whence === SEEK_DATA)) return at;
    at = extent.end;
  }
  if (whence === SEEK_HOLE) return device.size;
  throw new DmError('ENXIO', 'LSEEK: no data to the end of the device');
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
