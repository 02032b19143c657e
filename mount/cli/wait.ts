/** `dmfuse wait`: until a target has had an event. */
import { closeSync, constants, openSync } from 'node:fs';
import { join } from 'node:path';
import { DmError } from '../../src/errors.js';
import { explain, requireTarget } from './control.js';
import { parseEvent, readEvents } from './event-line.js';
import { requireMount } from './find-mount.js';
import { print, printJson } from './output.js';

const BUFFER_BYTES = 65_536;

/** Without `eventNr`: the next event from now on. Throws ENOENT when the target is removed meanwhile. */
export function wait(
  mountArgument: string,
  name: string,
  eventNr: number | undefined,
  { json }: { json: boolean },
): void {
  const folder = requireTarget(requireMount(mountArgument), name);
  const { line, number } = eventAfter(folder, eventNr);
  if (json) printJson({ eventNr: number, ...parseEvent(line) });
  else print(`${line}\n`);
}

/** The last event there is, once there are more than `after`; undefined: than there are now. */
function eventAfter(folder: string, after: number | undefined): { line: string; number: number } {
  const file = join(folder, 'events');
  const polling = new EventReader(openEvents(file, constants.O_NONBLOCK));
  const waiting = openEvents(file, 0);
  try {
    polling.drain();
    const atLeast = after ?? polling.count;
    for (; polling.count <= atLeast; polling.drain()) {
      if (readEvents(waiting, Buffer.alloc(BUFFER_BYTES)) === 0) {
        throw new DmError('ENOENT', `${folder}: the target was removed`);
      }
    }
    return { line: polling.last, number: polling.count };
  } finally {
    closeSync(polling.fd);
    closeSync(waiting);
  }
}

/** Follows a stream of events, and counts those that were dropped before they could be read too. */
class EventReader {
  /** Events so far: the number of the last one. */
  count = 0;
  last = '';

  constructor(readonly fd: number) {}

  /** Takes all that can be read now. */
  drain(): void {
    const buffer = Buffer.alloc(BUFFER_BYTES);
    let text = '';
    try {
      for (let length: number; (length = readEvents(this.fd, buffer)) > 0; )
        text += buffer.toString('utf8', 0, length);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
    for (const line of text.split('\n').filter(Boolean)) {
      const lost = /^lost count=(\d+)$/.exec(line)?.[1];
      this.count += lost === undefined ? 1 : Number(lost);
      if (lost === undefined) this.last = line;
    }
  }
}

function openEvents(file: string, flags: number): number {
  try {
    return openSync(file, constants.O_RDONLY | flags);
  } catch (error) {
    throw explain(error, file, {});
  }
}
