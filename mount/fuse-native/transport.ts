/**
 * The portable transport: the package fuse-native mounts and reads requests on threads of libfuse 2, and the main thread
 * serves them all. There are no lanes; targets do their work in the background on attendants as ever.
 */
import { closeSync, readdirSync, readlinkSync } from 'node:fs';
import { DmError, messageOf } from '../../src/errors.js';
import { libcFunction } from '../../src/libc.js';
import { MainDevices } from '../main-devices.js';
import { factsOf, type Transport, type TransportOptions } from '../transport.js';
import { nativeHandlers } from './handlers.js';
import { loadFuseNative, type NativeHandlers } from './package.js';

const END_POLL_MS = 50;
const F_DUPFD_CLOEXEC = 1030;
const POLLERR = 0x008;

const fcntl = libcFunction<[number, number, number]>('int fcntl(int fd, int command, int argument)');
const poll = libcFunction<[Uint8Array, number, number]>(
  'int poll(void *fds, unsigned long count, int timeout)',
);

/** Throws ENOSYS where the package is missing. */
export function openNativeTransport(options: TransportOptions): Transport {
  const FuseNative = loadFuseNative();
  return {
    facts: factsOf('fuse-native', { passthrough: false }),
    statRows: 1,
    backingIds: undefined,
    async start(served) {
      const devices = new MainDevices(served.outputOf, 0);
      const handlers = nativeHandlers({ ...served, deviceAt: (node) => devices.at(node) });
      const before = fuseDescriptors();
      await mount((traced) => new FuseNative(options.mountPoint, traced, settings(options)), options, {
        ...served,
        handlers,
      });
      watchForEnd(fuseDescriptors().find((fd) => !before.includes(fd))!, served.onEnd);
      return {
        announce: (message) => devices.announce(message),
        // A request is served in one go on this very thread: none is ever under way here.
        settle: async () => {},
        inFlight: () => 0,
        startSpares: () => {},
        // libfuse 2 forgets by itself, after a second.
        attributesChanged: async () => {},
        nameGone: () => {},
      };
    },
  };
}

function settings({ source, allowOther }: TransportOptions): { fsname: string; timeout: false } {
  const libfuse = [
    // libfuse takes a backslash before a comma.
    source.replace(/[\\,]/g, '\\$&'),
    'subtype=dmfuse',
    'default_permissions',
    ...(allowOther ? ['allow_other'] : []),
    // As our own connection does it: no second cache of a device, and the tree's own inode numbers.
    'direct_io',
    'big_writes',
    'use_ino',
    // Or libfuse would rename what is open when it is removed.
    'hard_remove',
  ];
  // The package knows few options; those of libfuse ride along with one of them. Its time limit would end slow requests.
  return { fsname: libfuse.join(','), timeout: false };
}

async function mount(
  make: (handlers: NativeHandlers) => { mount(done: (error?: Error | null) => void): void },
  { mountPoint, allowOther, debug }: TransportOptions,
  { handlers, log }: { handlers: NativeHandlers; log: (line: string) => void },
): Promise<void> {
  const connection = make(debug ? traced(handlers, log) : handlers);
  try {
    await new Promise<void>((resolve, reject) =>
      connection.mount((error) => (error ? reject(error) : resolve())),
    );
  } catch (error) {
    const mayOthers = allowOther && process.getuid!() !== 0;
    const remedy = mayOthers
      ? '--allow-other takes user_allow_other in /etc/fuse.conf'
      : 'with -f libfuse says on stderr what it minds';
    throw new DmError(
      'EIO',
      `cannot mount at ${mountPoint} with fuse-native (${messageOf(error)}): ${remedy}`,
    );
  }
}

/** The same handlers, with a line for each call. */
function traced(handlers: NativeHandlers, log: (line: string) => void): NativeHandlers {
  const entries = Object.entries(handlers as unknown as Record<string, (...args: unknown[]) => void>);
  const wrapped = entries.map(([name, handler]) => [
    name,
    (...args: unknown[]) => {
      log(`main: ${name} ${args.filter((arg) => ['string', 'number'].includes(typeof arg)).join(' ')}`);
      handler(...args);
    },
  ]);
  return Object.fromEntries(wrapped);
}

/** Our descriptors of /dev/fuse. */
function fuseDescriptors(): number[] {
  return readdirSync('/proc/self/fd')
    .filter((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`) === '/dev/fuse';
      } catch {
        return false; // that of this very look
      }
    })
    .map(Number);
}

/** The package tells nobody that its mount is gone; the kernel does, by an error on the descriptor. */
function watchForEnd(fuseFd: number, onEnd: () => void): void {
  // libfuse closes its own at the end, and the number would be anybody's.
  const fd = fcntl(fuseFd, F_DUPFD_CLOEXEC, 0);
  const request = new Uint8Array(8); // struct pollfd { int fd; short events; short revents }
  const view = new DataView(request.buffer);
  view.setInt32(0, fd, true);
  const timer = setInterval(() => {
    poll(request, 1, 0);
    if (!(view.getInt16(6, true) & POLLERR)) return;
    clearInterval(timer);
    closeSync(fd);
    onEnd();
  }, END_POLL_MS);
}
