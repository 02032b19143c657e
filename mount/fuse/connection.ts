/**
 * A FUSE connection: /dev/fuse, the mount, the INIT handshake, the unmount.
 *
 * Root mounts with mount(2). Anybody else asks fusermount3, which mounts and sends the descriptor back over a socket.
 */
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { DmError, errnoOf } from '../../src/errors.js';
import { libcFunction, SystemCallError } from '../../src/libc.js';
import { fusermountMount, fusermountUnmount } from './fusermount.js';
import { Opcode } from './opcodes.js';
import {
  DEV_IOC_BACKING_CLOSE,
  DEV_IOC_BACKING_OPEN,
  decodeInit,
  encodeReply,
  INIT_ASYNC_DIO,
  INIT_ASYNC_READ,
  INIT_BIG_WRITES,
  INIT_EXT,
  INIT_MAX_PAGES,
  INIT_PARALLEL_DIROPS,
  INIT2_PASSTHROUGH,
  initOut,
  KERNEL_MINOR_MIN,
  KERNEL_VERSION,
  MAX_IO_BYTES,
  REQUEST_BUFFER_BYTES,
  Request,
} from './wire.js';

const MS_NOSUID = 2;
const MS_NODEV = 4;
const MNT_DETACH = 2;
const S_IFDIR_OCTAL = '40000';
const FS_TYPE = 'fuse.dmfuse';

const mount2 = libcFunction<[string, string, string, number, string]>(
  'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)',
);
const umount2 = libcFunction<[string, number]>('int umount2(const char *target, int flags)');
const ioctlPointer = libcFunction<[number, number, Uint8Array]>(
  'int ioctl(int fd, unsigned long request, void *argument)',
);

export interface MountOptions {
  /** What mount(8) and df show. */
  readonly source: string;
  readonly allowOther: boolean;
}

export interface Connection {
  readonly fd: number;
  readonly mountPoint: string;
  /** The kernel can do the I/O of an open itself. */
  readonly passthrough: boolean;
}

/** Mounts at `mountPoint` and shakes hands; from then on requests can be read from `fd`. */
export async function connect(mountPoint: string, options: MountOptions): Promise<Connection> {
  const isRoot = process.getuid!() === 0;
  const fd = isRoot ? rootMount(mountPoint, options) : await fusermountMount(mountPoint, options);
  try {
    return { fd, mountPoint, passthrough: handshake(fd) };
  } catch (error) {
    await unmount(mountPoint, { lazy: true });
    closeSync(fd);
    throw error;
  }
}

/** Takes the mount away. Throws EBUSY while files are open, unless `lazy`: then it goes with the last of them. */
export async function unmount(mountPoint: string, { lazy = false } = {}): Promise<void> {
  if (process.getuid!() !== 0) await fusermountUnmount(mountPoint, lazy);
  else umount2(mountPoint, lazy ? MNT_DETACH : 0);
}

/** Lets the kernel do the I/O of opens on `fileFd` itself: a backing id for OPEN. Throws where it will not. */
export function openBacking(connectionFd: number, fileFd: number): number {
  const map = new Uint8Array(16); // struct fuse_backing_map { s32 fd; u32 flags; u64 padding }
  new DataView(map.buffer).setInt32(0, fileFd, true);
  return ioctlPointer(connectionFd, DEV_IOC_BACKING_OPEN, map);
}

export function closeBacking(connectionFd: number, backingId: number): void {
  const id = new Uint8Array(4);
  new DataView(id.buffer).setUint32(0, backingId, true);
  ioctlPointer(connectionFd, DEV_IOC_BACKING_CLOSE, id);
}

function rootMount(mountPoint: string, { source, allowOther }: MountOptions): number {
  let fd: number;
  try {
    fd = openSync('/dev/fuse', 'r+');
  } catch (error) {
    throw new DmError(
      'ENODEV',
      `/dev/fuse: ${(error as Error).message}: load the fuse module (modprobe fuse)`,
    );
  }
  const data = [
    `fd=${fd}`,
    `rootmode=${S_IFDIR_OCTAL}`,
    `user_id=${process.getuid!()}`,
    `group_id=${process.getgid!()}`,
    `max_read=${MAX_IO_BYTES}`,
    'default_permissions',
    ...(allowOther ? ['allow_other'] : []),
  ];
  try {
    mount2(source, mountPoint, FS_TYPE, MS_NOSUID | MS_NODEV, data.join(','));
  } catch (error) {
    closeSync(fd);
    if (!(error instanceof SystemCallError)) throw error;
    throw new DmError('EIO', `cannot mount at ${mountPoint}: ${error.message}`);
  }
  return fd;
}

function handshake(fd: number): boolean {
  const request = new Request(new Uint8Array(REQUEST_BUFFER_BYTES));
  request.length = readSync(fd, request.bytes, 0, REQUEST_BUFFER_BYTES, null);
  const init = decodeInit(request);
  if (request.opcode !== Opcode.INIT || init.major !== KERNEL_VERSION || init.minor < KERNEL_MINOR_MIN) {
    writeSync(fd, encodeReply(request.unique, errnoOf({ code: 'EPROTO' })));
    throw new DmError(
      'EPROTO',
      `the kernel speaks FUSE ${init.major}.${init.minor}: dmfuse needs ${KERNEL_VERSION}.${KERNEL_MINOR_MIN} ` +
        'or later (Linux 5.4)',
    );
  }
  const wanted =
    INIT_ASYNC_READ | INIT_BIG_WRITES | INIT_ASYNC_DIO | INIT_PARALLEL_DIROPS | INIT_MAX_PAGES | INIT_EXT;
  const flags = init.flags & wanted;
  // Passthrough takes CAP_SYS_ADMIN; without it the ioctl would fail at every open.
  const flags2 = process.getuid!() === 0 ? init.flags2 & INIT2_PASSTHROUGH : 0;
  writeSync(fd, encodeReply(request.unique, 0, initOut(init, { flags: flags >>> 0, flags2 })));
  return flags2 !== 0;
}
