/**
 * The attendants as the main thread sees them: one for each duty, started with the first target that has it. Two, because what
 * one waits for, the flush of a busy second, must not keep the other from its work.
 */
import { Worker } from 'node:worker_threads';
import type { Target } from '../../src/targets/target.js';
import type { DeviceDescription, Duty, FromAttendant, ToLane } from './protocol.js';

export interface AttendanceOptions {
  readonly onEvent: (id: number, line: string) => void;
  /** An attendant died of an error of ours; it may have held a lock. */
  readonly onFailure: (error: Error) => void;
}

const DUTIES: readonly Duty[] = ['commitRegularly', 'workInBackground'];

export class Attendance {
  private readonly devices = new Map<number, DeviceDescription>();
  private readonly attendants = new Map<Duty, Attendant>();

  constructor(private readonly options: AttendanceOptions) {}

  /** From now on a target's work in the background is done. `target` is main's own view of it. */
  attend(device: DeviceDescription, target: Target): void {
    // An attendant knows of all, for targets stand on each other.
    for (const attendant of this.attendants.values()) attendant.add(device);
    this.devices.set(device.id, device);
    for (const duty of DUTIES) {
      if (!target[duty] || this.attendants.has(duty)) continue;
      const attendant = new Attendant(duty, this.options);
      this.attendants.set(duty, attendant);
      for (const known of this.devices.values()) attendant.add(known);
    }
  }

  /** Resolves when no more work of a target is done, and none of its backings is touched any more. */
  async dismiss(id: number): Promise<void> {
    this.devices.delete(id);
    await Promise.all([...this.attendants.values()].map((attendant) => attendant.remove(id)));
  }
}

class Attendant {
  private readonly worker: Worker;
  /** Those who wait for a target to be left alone. */
  private readonly waiting = new Map<number, () => void>();

  constructor(duty: Duty, { onEvent, onFailure }: AttendanceOptions) {
    this.worker = new Worker(new URL('./attendant.js', import.meta.url), { workerData: { duty } });
    this.worker.unref();
    this.worker.on('error', onFailure);
    this.worker.on('message', (message: FromAttendant) => {
      if (message.kind === 'event') onEvent(message.id, message.line);
      else this.waiting.get(message.id)?.();
    });
  }

  add(device: DeviceDescription): void {
    this.send({ kind: 'add', device });
  }

  async remove(id: number): Promise<void> {
    // Or the process might end before the answer is there.
    this.worker.ref();
    await new Promise<void>((resolve) => {
      this.waiting.set(id, resolve);
      this.send({ kind: 'remove', id });
    });
    this.waiting.delete(id);
    if (this.waiting.size === 0) this.worker.unref();
  }

  private send(message: ToLane): void {
    this.worker.postMessage(message);
  }
}
