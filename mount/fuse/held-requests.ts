/**
 * Requests that lanes hand to main because their device is suspended: served here, on the main thread, when it is resumed. They are
 * few, and one after the other is soon enough; those that come later are served by the lanes again.
 */
import { failDevice } from '../device-io.js';
import { countTime, serveDevice } from '../lanes/device-requests.js';
import type { MainDevices } from '../main-devices.js';
import type { Served } from '../transport.js';
import { folderIdOf } from '../tree/nodes.js';
import { Opcode, operationOf } from './opcodes.js';
import { MAX_IO_BYTES, Request } from './wire.js';

export interface HeldRequestsOptions extends Pick<Served, 'whenFree' | 'onEvent'> {
  readonly devices: MainDevices;
  readonly reply: (unique: number, errno: number, body: Uint8Array) => void;
  /** For what is no device any more. */
  readonly handOver: (bytes: Uint8Array) => void;
}

export class HeldRequests {
  private readonly body = new Uint8Array(MAX_IO_BYTES);

  constructor(private readonly options: HeldRequestsOptions) {}

  /** Serves the request as soon as its device is not held. */
  async handle(bytes: Uint8Array): Promise<void> {
    const { whenFree, devices, handOver, reply, onEvent } = this.options;
    const request = Request.of(bytes);
    const id = folderIdOf(request.node);
    // Again: it may have been suspended once more when this goes on.
    for (let free = whenFree(id); free; free = whenFree(id)) await free;
    const device = devices.at(request.node);
    if (!device) {
      handOver(bytes);
      return;
    }
    let errno = 0;
    let length = 0;
    const began = performance.now();
    try {
      length = serveDevice(device, request, this.body);
      countTime(device, request, performance.now() - began);
    } catch (error) {
      const operation = operationOf(request.opcode)?.name ?? '';
      const offset = request.opcode === Opcode.FSYNC ? undefined : request.bodyU64(8);
      errno = failDevice(device, error, { operation, offset }, (line) => onEvent(id, line));
    }
    reply(request.unique, errno, this.body.subarray(0, length));
  }
}
