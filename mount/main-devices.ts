/** What has a `device` file, as the main thread serves it: all requests of fuse-native, and those that lanes hand over. */
import type { ServedDevice } from './device-io.js';
import type { ToLane } from './lanes/protocol.js';
import { LaneStats } from './lanes/stats.js';
import type { Served } from './transport.js';

export class MainDevices {
  private readonly byNode = new Map<number, ServedDevice>();

  /** `row`: main's own in every device's statistics. */
  constructor(
    private readonly outputOf: Served['outputOf'],
    private readonly row: number,
  ) {}

  /** As a lane hears it. Of filters and growth the outputs know by themselves. */
  announce(message: ToLane): void {
    if (message.kind === 'add') {
      const { device } = message;
      const { id, node, stats } = device;
      this.byNode.set(node, { id, output: this.outputOf(device), stats: new LaneStats(stats, this.row) });
    } else if (message.kind === 'remove') {
      for (const [node, { id }] of this.byNode) if (id === message.id) this.byNode.delete(node);
    }
  }

  /** Undefined for anything else, and for a device that is gone. */
  at(node: number): ServedDevice | undefined {
    return this.byNode.get(node);
  }
}
