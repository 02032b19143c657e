/** The transport of our own: lanes that read a FUSE connection, however it was mounted. */
import { write } from 'node:fs';
import { LanePool } from '../lanes/pool.js';
import type { FromLane } from '../lanes/protocol.js';
import { MainDevices } from '../main-devices.js';
import { factsOf, type Transport, type TransportOptions } from '../transport.js';
import { ROOT } from '../tree/nodes.js';
import { closeBacking, connect, openBacking } from './connection.js';
import { HeldRequests } from './held-requests.js';
import { MainRequests } from './main-requests.js';
import { encodeAttributesChanged, encodeNameGone } from './wire.js';

/** Mounts; requests are answered from `start` on. */
export async function openKernelTransport(options: TransportOptions): Promise<Transport> {
  const { fd, passthrough } = await connect(options.mountPoint, options);
  return {
    facts: factsOf(process.getuid!() === 0 ? 'kernel' : 'fusermount3', { passthrough }),
    // The last one is main's, for what lanes hand over.
    statRows: options.lanes + 1,
    backingIds: passthrough
      ? { open: (fileFd) => openBacking(fd, fileFd), close: (backingId) => closeBacking(fd, backingId) }
      : undefined,
    async start({ tree, outputOf, whenFree, onEvent, log, onEnd, onFailure }) {
      const requests = new MainRequests(fd, tree);
      const devices = new MainDevices(outputOf, options.lanes);
      const held = new HeldRequests({
        ...{ devices, whenFree, onEvent },
        reply: (unique, errno, body) => requests.reply(unique, errno, body),
        handOver: (bytes) => requests.handle(bytes),
      });
      const pool = new LanePool({
        fuseFd: fd,
        lanes: options.lanes,
        debug: options.debug,
        onMessage: (message: FromLane) => {
          if (message.kind === 'request') requests.handle(message.bytes);
          else if (message.kind === 'held') void held.handle(message.bytes);
          else if (message.kind === 'event') onEvent(message.id, message.line);
          else log(message.line);
        },
        onEnd,
        onFailure: (error) => onFailure('a lane', error),
      });
      // Asynchronous: the kernel may let it wait for requests that this thread has yet to answer. Nobody needs to know of an error:
      // what the kernel forgets now it would ask anew for in a second.
      const notify = (bytes: Uint8Array) => new Promise<void>((resolve) => write(fd, bytes, () => resolve()));
      return {
        announce(message) {
          devices.announce(message);
          pool.announce(message);
        },
        startSpares: () => pool.startSpares(),
        settle: (nodes) => pool.settle(nodes),
        inFlight: (node) => pool.inFlight(node),
        attributesChanged: (node) => notify(encodeAttributesChanged(node)),
        nameGone: (name) => void notify(encodeNameGone(ROOT, name)),
      };
    },
  };
}
