/**
 * An attendant: a thread that does one kind of background work of all targets, so that neither a lane nor the main thread waits
 * for it. Main tells it of targets as it tells the lanes.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { Outputs } from '../outputs.js';
import type { AttendantData, FromAttendant, ToAttendant } from './protocol.js';
import { markIoFlusher } from './reclaim.js';

const { duty } = workerData as AttendantData;
const outputs = new Outputs((id, line) => send({ kind: 'event', id, line }));
/** What ends the work of a target. */
const dismissals = new Map<number, () => void>();

markIoFlusher();
parentPort!.on('message', (message: ToAttendant) => {
  const { kind } = message;
  if (kind === 'add') {
    const dismiss = outputs.addTarget(message.device).target[duty]?.();
    if (dismiss) dismissals.set(message.device.id, dismiss);
  } else if (kind === 'filter') {
    outputs.setFilter(message.id, message.filter);
  } else {
    dismissals.get(message.id)?.();
    dismissals.delete(message.id);
    outputs.remove(message.id);
  }
  send({ kind: 'heard' });
});

function send(message: FromAttendant): void {
  parentPort!.postMessage(message);
}
