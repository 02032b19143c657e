/**
 * Tells the service manager how the daemon is: sd_notify(3), one datagram to the Unix socket that NOTIFY_SOCKET names. Node
 * has no Unix datagram sockets.
 */
import { closeSync } from 'node:fs';
import { DmError, messageOf } from '../../src/errors.js';
import { libcFunction } from '../../src/libc.js';

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0x80000;
const MSG_NOSIGNAL = 0x4000;
/** sun_path of struct sockaddr_un: unix(7). */
const PATH_BYTES_MAX = 108;

/** Sends lines `NAME=VALUE`. Where no manager listens, nothing; one that cannot be told is no reason to fail. */
export function notifyManager(lines: string, log: (line: string) => void): void {
  const address = process.env.NOTIFY_SOCKET;
  if (!address) return;
  try {
    send(socketAddress(address), Buffer.from(lines));
  } catch (error) {
    log(`the service manager at ${address} is not told: ${messageOf(error)}`);
  }
}

function send(address: Buffer, message: Buffer): void {
  const socket = libcFunction<[number, number, number]>('int socket(int domain, int type, int protocol)');
  const sendto = libcFunction<[number, Buffer, number, number, Buffer, number]>(
    'int64_t sendto(int fd, const void *data, size_t length, int flags, const void *address, uint32_t addressLength)',
  );
  const fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  try {
    sendto(fd, message, message.length, MSG_NOSIGNAL, address, address.length);
  } finally {
    closeSync(fd);
  }
}

/** struct sockaddr_un of a path, or of an abstract name: `@NAME`, whose first byte is 0 and whose end is the length's. */
function socketAddress(name: string): Buffer {
  const isAbstract = name.startsWith('@');
  const path = Buffer.from(isAbstract ? `\0${name.slice(1)}` : `${name}\0`);
  if (!/^[@/]/.test(name) || path.length > PATH_BYTES_MAX) {
    throw new DmError('EINVAL', 'NOTIFY_SOCKET must be an absolute path or @NAME, of 107 bytes at most');
  }
  const family = Buffer.alloc(2);
  family.writeUInt16LE(AF_UNIX);
  return Buffer.concat([family, path]);
}
