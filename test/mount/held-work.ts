/** Requests that the daemon holds: each made by a process of its own, of which the kernel says that it waits. */
import { readFileSync } from 'node:fs';
import { type Lab, type Running, until } from './harness.js';

/** System calls on the `device` of a target, in a process of its own: `fd` is open. */
export const WORK = {
  read: 'sys.stdout.buffer.write(os.pread(fd, 4096, 0).hex().encode())',
  write: "assert os.pwrite(fd, b'w' * 4096, 4096) == 4096",
  fsync: 'os.fsync(fd)',
  punch: 'fallocate(3, 8192, 4096)',
  zero: 'fallocate(17, 16384, 4096)',
  seek: 'os.lseek(fd, 0, os.SEEK_HOLE)',
};
const PRELUDE = `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def fallocate(mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), 'fallocate')
fd = os.open(sys.argv[1], os.O_RDWR)
print('open', flush=True)
`;

/** Starts it, and waits until the kernel has asked the daemon, which does not answer. */
export async function startHeld(lab: Lab, device: string, work: string): Promise<Running> {
  const running = lab.start('python3', ['-c', `${PRELUDE}${work}`, device]);
  await running.prints(/^open$/m);
  await until(
    () => readFileSync(`/proc/${running.pid}/wchan`, 'utf8') === 'request_wait_answer',
    `\`${work}\` to wait for its answer`,
  );
  return running;
}
