/**
 * Requests that lanes hand to main because their device is suspended: served here, on the main thread, when it is resumed. They are
 * few, and one after the other is soon enough; those that come later are served by the lanes again.
 */
import { errnoOf } from '../src/errors.js';
import { MAX_IO_BYTES, Request } from './fuse/wire.js';
import { failureLine, type ServedDevice, serveDevice } from './lanes/device-requests.js';
import { LaneStats } from './lanes/stats.js';
import type { Registry } from './registry.js';
import { folderIdOf } from './tree/nodes.js';

export interface HeldRequestsOptions {
  readonly registry: Registry;
  /** Main's own row of the counters. */
  readonly row: number;
  readonly reply: (unique: number, errno: number, body: Uint8Array) => void;
  /** For what is no device any more. */
  readonly handOver: (bytes: Uint8Array) => void;
}

export class HeldRequests {
  private readonly body = new Uint8Array(MAX_IO_BYTES);

  constructor(private readonly options: HeldRequestsOptions) {}

  /** Serves the request as soon as its device is not held. */
  async handle(bytes: Uint8Array): Promise<void> {
    const { registry, handOver } = this.options;
    const request = Request.of(bytes);
    const id = folderIdOf(request.node);
    // Again: it may have been suspended once more when this goes on.
    for (let free = registry.whenFree(id); free; free = registry.whenFree(id)) await free;
    const slot = registry.byId(id);
    if (!slot?.live) {
      handOver(bytes);
      return;
    }
    const { output, stats } = slot.live;
    const line = this.serve(request, { id, output, stats: new LaneStats(stats, this.options.row) });
    if (line !== undefined) slot.events.raise(line);
  }

  /** Returns a line for the device's events where there is something to tell. */
  private serve(request: Request, device: ServedDevice): string | undefined {
    let errno = 0;
    let length = 0;
    let line: string | undefined;
    try {
      length = serveDevice(device, request, this.body);
    } catch (error) {
      device.stats.add('errors', 1);
      errno = errnoOf(error);
      line = failureLine(request, error);
    }
    this.options.reply(request.unique, errno, this.body.subarray(0, length));
    return line;
  }
}
