/**
 * An attendant: a thread that does one kind of background work of all targets, so that neither a lane nor the main thread waits
 * for it. Main tells it of targets as it tells the lanes.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { Target } from '../../src/targets/target.js';
import { openTarget } from '../open-target.js';
import type { AttendantData, FromAttendant, ToLane } from './protocol.js';
import { markIoFlusher } from './reclaim.js';

interface Attended {
  readonly target: Target;
  readonly dismiss: () => void;
}

const { duty } = workerData as AttendantData;
const attended = new Map<number, Attended>();

markIoFlusher();
parentPort!.on('message', (message: ToLane) => {
  if (message.kind === 'add') {
    const { id } = message.device;
    const raise = (line: string) => send({ kind: 'event', id, line });
    const target = openTarget(message.device, (other) => attended.get(other)?.target, raise);
    attended.set(id, { target, dismiss: target[duty]?.() ?? (() => {}) });
  } else {
    attended.get(message.id)?.dismiss();
    attended.delete(message.id);
    send({ kind: 'dismissed', id: message.id });
  }
});

function send(message: FromAttendant): void {
  parentPort!.postMessage(message);
}
