/**
 * Mounting as an ordinary user: fusermount3 (set-uid root) mounts and sends the descriptor of /dev/fuse back over a
 * socket whose number stands in _FUSE_COMMFD (SCM_RIGHTS, see unix(7)); libfuse's util/fusermount.c is the other end.
 */
import { spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import koffi from 'koffi';
import { DmError } from '../../src/errors.js';
import { libcFunction } from '../../src/libc.js';
import { MAX_IO_BYTES } from './wire.js';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const MSG_DONTWAIT = 0x40;
const MSG_CMSG_CLOEXEC = 0x40000000;
const SCM_RIGHTS = 1;

const socketpair = libcFunction<[number, number, number, Int32Array]>(
  'int socketpair(int domain, int type, int protocol, int *pair)',
);

// 64-bit Linux: msghdr is 56 bytes with pointers at 0, 16 and 32; a cmsghdr is 16 bytes, then its data.
const iovec = koffi.struct('iovec', { base: 'void *', length: 'size_t' });
koffi.struct('msghdr', {
  name: 'void *',
  nameLength: 'uint32_t',
  iov: koffi.pointer(iovec),
  iovLength: 'size_t',
  control: 'void *',
  controlLength: 'size_t',
  flags: 'int',
});
const CMSG_HEADER_BYTES = 16;

/** Mounts `mountPoint` with the help of fusermount3: the descriptor of /dev/fuse. */
export async function fusermountMount(
  mountPoint: string,
  { source, allowOther }: { source: string; allowOther: boolean },
): Promise<number> {
  const pair = new Int32Array(2);
  socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
  const [ours, theirs] = pair as unknown as [number, number];
  try {
    const options = [
      `fsname=${source.replace(/[,\\]/g, '\\$&')}`,
      'subtype=dmfuse',
      'nosuid',
      'nodev',
      'default_permissions',
      `max_read=${MAX_IO_BYTES}`,
      ...(allowOther ? ['allow_other'] : []),
    ];
    await runFusermount(['-o', options.join(','), '--', mountPoint], theirs);
    try {
      return receiveDescriptor(ours);
    } catch (error) {
      await fusermountUnmount(mountPoint, true);
      throw error;
    }
  } finally {
    closeSync(ours);
    closeSync(theirs);
  }
}

export async function fusermountUnmount(mountPoint: string, lazy: boolean): Promise<void> {
  await runFusermount(['-u', ...(lazy ? ['-z'] : []), '--', mountPoint]);
}

/** Never waits synchronously: an unmount may ask this very mount something before it is gone. */
function runFusermount(args: string[], commFd?: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn('fusermount3', args, {
      env: { ...process.env, ...(commFd === undefined ? {} : { _FUSE_COMMFD: '3' }) },
      stdio: ['ignore', 'ignore', 'pipe', ...(commFd === undefined ? [] : [commFd])],
    });
    let complaint = '';
    child.stderr!.on('data', (chunk) => {
      complaint += chunk;
    });
    child.on('error', (error) => {
      reject(
        new DmError('ENOENT', `fusermount3: ${error.message}: install the package fuse3, or run as root`),
      );
    });
    child.on('close', (status) => {
      if (status === 0) resolve();
      const code = /busy/i.test(complaint) ? 'EBUSY' : 'EPERM';
      reject(new DmError(code, complaint.trim() || `fusermount3 exits with ${status}`));
    });
  });
}

function receiveDescriptor(socket: number): number {
  const recvmsg = libcFunction<[number, unknown, number]>(
    'int64_t recvmsg(int fd, _Inout_ msghdr *message, int flags)',
  );
  const data = Buffer.alloc(1);
  const control = Buffer.alloc(CMSG_HEADER_BYTES + 8);
  const message = {
    name: null,
    nameLength: 0,
    iov: [{ base: data, length: data.length }],
    iovLength: 1,
    control,
    controlLength: control.length,
    flags: 0,
  };
  // fusermount3 has ended: what it sent is there, or will never come.
  recvmsg(socket, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (control.readUInt32LE(12) !== SCM_RIGHTS) {
    throw new DmError('EIO', 'fusermount3 mounted but sent no descriptor');
  }
  return control.readInt32LE(CMSG_HEADER_BYTES);
}
