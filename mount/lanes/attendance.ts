/**
 * The attendants as the main thread sees them: one for each duty, started with the first target that has it. Two, because what
 * one waits for, the flush of a busy second, must not keep the other from its work.
 */
import { Worker } from 'node:worker_threads';
import type { Target } from '../../src/targets/target.js';
import type { Duty, FilterDescription, FromAttendant, TargetDescription, ToAttendant } from './protocol.js';

export interface AttendanceOptions {
  readonly onEvent: (id: number, line: string) => void;
  /** An attendant died of an error of ours; it may have held a lock. */
  readonly onFailure: (error: Error) => void;
}

const DUTIES: readonly Duty[] = ['commitRegularly', 'workInBackground'];

export class Attendance {
  /** What an attendant that starts has to hear, for each target in its order. */
  private readonly known = new Map<
    number,
    { device: TargetDescription; filter?: FilterDescription | undefined }
  >();
  private readonly attendants = new Map<Duty, Attendant>();

  constructor(private readonly options: AttendanceOptions) {}

  /** From now on a target's work in the background is done. `target` is main's own view of it. */
  attend(device: TargetDescription, target: Target): void {
    // An attendant knows of all, for targets stand on each other.
    this.tell({ kind: 'add', device });
    this.known.set(device.id, { device });
    for (const duty of DUTIES) {
      if (!target[duty] || this.attendants.has(duty)) continue;
      const attendant = new Attendant(duty, this.options);
      this.attendants.set(duty, attendant);
      for (const [id, { device: known, filter }] of this.known) {
        attendant.tell({ kind: 'add', device: known });
        if (filter) attendant.tell({ kind: 'filter', id, filter });
      }
    }
  }

  /** What attendants do to the target passes its new filter as soon as `settle` resolves. */
  setFilter(id: number, filter: FilterDescription | undefined): void {
    const known = this.known.get(id);
    if (!known) return;
    known.filter = filter;
    this.tell({ kind: 'filter', id, filter });
  }

  /** Resolves when no more work of a target is done, and none of its backings is touched any more. */
  async dismiss(id: number): Promise<void> {
    this.known.delete(id);
    this.tell({ kind: 'remove', id });
    await this.settle();
  }

  /** Resolves when every attendant has acted on all that it was told. */
  async settle(): Promise<void> {
    await Promise.all([...this.attendants.values()].map((attendant) => attendant.settle()));
  }

  private tell(message: ToAttendant): void {
    for (const attendant of this.attendants.values()) attendant.tell(message);
  }
}

class Attendant {
  private readonly worker: Worker;
  private told = 0;
  private heard = 0;
  /** Those who wait until so many messages are heard. */
  private waiting: { readonly for: number; readonly resolve: () => void }[] = [];

  constructor(duty: Duty, { onEvent, onFailure }: AttendanceOptions) {
    this.worker = new Worker(new URL('./attendant.js', import.meta.url), { workerData: { duty } });
    this.worker.unref();
    this.worker.on('error', onFailure);
    this.worker.on('message', (message: FromAttendant) => {
      if (message.kind === 'event') onEvent(message.id, message.line);
      else this.onHeard();
    });
  }

  tell(message: ToAttendant): void {
    this.told++;
    this.worker.postMessage(message);
  }

  async settle(): Promise<void> {
    if (this.heard === this.told) return;
    // Or the process might end before the answer is there.
    this.worker.ref();
    await new Promise<void>((resolve) => this.waiting.push({ for: this.told, resolve }));
    if (this.waiting.length === 0) this.worker.unref();
  }

  private onHeard(): void {
    this.heard++;
    const due = this.waiting.filter((waiter) => waiter.for <= this.heard);
    this.waiting = this.waiting.filter((waiter) => waiter.for > this.heard);
    for (const { resolve } of due) resolve();
  }
}
