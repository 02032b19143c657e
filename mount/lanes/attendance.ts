/** The attendant as the main thread sees it. */
import { Worker } from 'node:worker_threads';
import type { DeviceDescription, FromAttendant, ToLane } from './protocol.js';

export interface AttendanceOptions {
  readonly onEvent: (id: number, line: string) => void;
  /** It died of an error of ours; it may have held a lock. */
  readonly onFailure: (error: Error) => void;
}

export class Attendance {
  private readonly worker: Worker;
  /** Those who wait for a target to be left alone. */
  private readonly waiting = new Map<number, () => void>();

  constructor({ onEvent, onFailure }: AttendanceOptions) {
    this.worker = new Worker(new URL('./attendant.js', import.meta.url));
    this.worker.unref();
    this.worker.on('error', onFailure);
    this.worker.on('message', (message: FromAttendant) => {
      if (message.kind === 'event') onEvent(message.id, message.line);
      else this.waiting.get(message.id)?.();
    });
  }

  /** From now on it does a target's work in the background. */
  attend(device: DeviceDescription): void {
    this.send({ kind: 'add', device });
  }

  /** Resolves when it no longer does, and touches no backing of the target any more. */
  async dismiss(id: number): Promise<void> {
    await new Promise<void>((resolve) => {
      this.waiting.set(id, resolve);
      this.send({ kind: 'remove', id });
    });
    this.waiting.delete(id);
  }

  private send(message: ToLane): void {
    this.worker.postMessage(message);
  }
}
