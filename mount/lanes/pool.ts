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
  /** The other ends of those whose lane is yet to be started; what it is told meanwhile waits in them. */
  private readonly spare: MessagePort[] = [];
  private readonly regulars: number;
  private nextLane = 0;
  private running = 0;

  /** Starts those that always serve. */
  constructor(private readonly options: LanePoolOptions) {
    const { lanes } = options;
    this.crew = new Int32Array(new SharedArrayBuffer(Crew.words(lanes) * Int32Array.BYTES_PER_ELEMENT));
    this.regulars = Math.max(1, Math.min(lanes, availableParallelism() >> 1));
    for (let lane = 0; lane < lanes; lane++) {
      const { port1, port2 } = new MessageChannel();
      port1.unref();
      this.ports.push(port1);
      this.spare.push(port2);
    }
    this.start(this.regulars);
  }

  /** Starts those that serve when others are held up: a tenth of a second of processor each, which no mount needs to wait for. */
  startSpares(): void {
    if (this.running > 0) this.start(this.spare.length);
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

  private start(count: number): void {
    for (const port of this.spare.splice(0, count)) this.startLane(this.nextLane++, port);
  }

  private startLane(lane: number, port: MessagePort): void {
    const { options } = this;
    const workerData: LaneData = {
      ...{ lane, port, fuseFd: options.fuseFd, debug: options.debug, regulars: this.regulars },
      control: this.control.buffer as SharedArrayBuffer,
      crew: this.crew.buffer as SharedArrayBuffer,
    };
    const worker = new Worker(new URL('./lane.js', import.meta.url), {
      workerData,
      transferList: [port],
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MEBIBYTES },
    });
    this.running++;
    worker.on('message', options.onMessage);
    worker.on('error', options.onFailure);
    worker.on('exit', () => {
      this.ports[lane]!.close();
      if (--this.running === 0) options.onEnd();
    });
  }
}
