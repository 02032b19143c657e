/** The lanes as the main thread sees them: started, told of devices, heard, and missed when they end. */
import { availableParallelism } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import { Crew } from './crew.js';
import { CONTROL_WORDS, type FromLane, type LaneData, REGISTRY_VERSION, type ToLane } from './protocol.js';

/** A lane makes little garbage and at once lets go of it: more room would only be touched, and kept. */
const YOUNG_MEBIBYTES = 1;
const SETTLE_POLL_MS = 1;

export interface LanePoolOptions {
  readonly fuseFd: number;
  readonly lanes: number;
  readonly debug: boolean;
  readonly onMessage: (message: FromLane) => void;
  /** All lanes have ended because the mount is gone. */
  readonly onEnd: () => void;
  /** A lane died of an error of ours. It may have held a lock: nothing after this can be trusted. */
  readonly onFailure: (error: Error) => void;
}

export class LanePool {
  private readonly control = new Int32Array(
    new SharedArrayBuffer(CONTROL_WORDS * Int32Array.BYTES_PER_ELEMENT),
  );
  private readonly crew: Int32Array;
  private readonly ports: MessagePort[] = [];
  private running = 0;

  constructor(options: LanePoolOptions) {
    const crew = new SharedArrayBuffer(Crew.words(options.lanes) * Int32Array.BYTES_PER_ELEMENT);
    this.crew = new Int32Array(crew);
    for (let lane = 0; lane < options.lanes; lane++) this.start(lane, crew, options);
  }

  /** Tells every lane; when this returns, none serves another request before it has heard. */
  announce(message: ToLane): void {
    for (const port of this.ports) port.postMessage(message);
    // Last: a lane that sees the new version finds the message in its port.
    Atomics.add(this.control, REGISTRY_VERSION, 1);
  }

  /**
   * Resolves when every request for one of `nodes` that a lane was inside of at the call has been served. Those that come
   * later know of all that was announced before the call.
   */
  async settle(nodes: ReadonlySet<number>): Promise<void> {
    for (let lane = 0; lane < this.ports.length; lane++) {
      const { progress, node } = Crew.whereabouts(this.crew, lane);
      if (progress % 2 === 0 || !nodes.has(node)) continue;
      while (Crew.whereabouts(this.crew, lane).progress === progress) await sleep(SETTLE_POLL_MS);
    }
  }

  /** How many lanes serve a request for `node` now. */
  inFlight(node: number): number {
    const isServing = (_port: MessagePort, lane: number) => {
      const at = Crew.whereabouts(this.crew, lane);
      return at.progress % 2 !== 0 && at.node === node;
    };
    return this.ports.filter(isServing).length;
  }

  private start(lane: number, crew: SharedArrayBuffer, options: LanePoolOptions): void {
    const { port1, port2 } = new MessageChannel();
    const workerData: LaneData = {
      fuseFd: options.fuseFd,
      lane,
      control: this.control.buffer as SharedArrayBuffer,
      crew,
      regulars: Math.max(1, Math.min(options.lanes, availableParallelism() >> 1)),
      port: port2,
      debug: options.debug,
    };
    const worker = new Worker(new URL('./lane.js', import.meta.url), {
      workerData,
      transferList: [port2],
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MEBIBYTES },
    });
    this.ports.push(port1);
    port1.unref();
    this.running++;
    worker.on('message', options.onMessage);
    worker.on('error', options.onFailure);
    worker.on('exit', () => {
      port1.close();
      if (--this.running === 0) options.onEnd();
    });
  }
}
