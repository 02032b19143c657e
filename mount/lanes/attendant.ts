/**
 * The attendant: the one thread that does the background work of all targets (`attend`), so that neither a lane nor the main
 * thread waits when it flushes what a busy second has written. Main tells it of targets as it tells the lanes.
 */
import { parentPort } from 'node:worker_threads';
import type { Target } from '../../src/targets/target.js';
import { openTarget } from '../open-target.js';
import type { FromAttendant, ToLane } from './protocol.js';
import { markIoFlusher } from './reclaim.js';

interface Attended {
  readonly target: Target;
  readonly dismiss: () => void;
}

const attended = new Map<number, Attended>();

markIoFlusher();
parentPort!.on('message', (message: ToLane) => {
  if (message.kind === 'add') {
    const { id } = message.device;
    const raise = (line: string) => send({ kind: 'event', id, line });
    const target = openTarget(message.device, (other) => attended.get(other)?.target, raise);
    attended.set(id, { target, dismiss: target.attend?.() ?? (() => {}) });
  } else {
    attended.get(message.id)?.dismiss();
    attended.delete(message.id);
    send({ kind: 'dismissed', id: message.id });
  }
});

function send(message: FromAttendant): void {
  parentPort!.postMessage(message);
}
