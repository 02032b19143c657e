/** `dmfuse wait`: until a target has had an event. */
import { closeSync, constants, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { DmError } from '../../src/errors.js';
import { explain, readControl, requireTarget } from './control.js';
import { parseEvent } from './event-line.js';
import { requireMount } from './find-mount.js';
import { printJson } from './output.js';

const BUFFER_BYTES = 65_536;

/** Without `eventNr`: the next event from now on. Throws ENOENT when the target is removed meanwhile. */
export function wait(
  mountArgument: string,
  name: string,
  eventNr: number | undefined,
  { json }: { json: boolean },
): void {
  const folder = requireTarget(requireMount(mountArgument), name);
  const after = eventNr ?? eventCount(folder);
  const { line, number } = eventAfter(folder, after);
  if (json) printJson({ eventNr: number, ...parseEvent(line) });
  else process.stdout.write(`${line}\n`);
}

/** The last event there is, once there are more than `after`. */
function eventAfter(folder: string, after: number): { line: string; number: number } {
  const file = join(folder, 'events');
  const polling = openEvents(file, constants.O_NONBLOCK);
  const waiting = openEvents(file, 0);
  try {
    let last = '';
    for (;;) {
      // Before the number is asked for: an event that comes in between is still in the stream.
      last = drain(polling).at(-1) ?? last;
      const number = eventCount(folder);
      if (number > after && last !== '') return { line: last, number };
      if (readSync(waiting, Buffer.alloc(BUFFER_BYTES)) === 0) {
        throw new DmError('ENOENT', `${folder}: the target was removed`);
      }
    }
  } finally {
    closeSync(polling);
    closeSync(waiting);
  }
}

function openEvents(file: string, flags: number): number {
  try {
    return openSync(file, constants.O_RDONLY | flags);
  } catch (error) {
    throw explain(error, file, {});
  }
}

/** The lines that can be read now. */
function drain(fd: number): string[] {
  const buffer = Buffer.alloc(BUFFER_BYTES);
  let text = '';
  try {
    for (let length: number; (length = readSync(fd, buffer)) > 0; )
      text += buffer.toString('utf8', 0, length);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
  }
  return text.split('\n').filter(Boolean);
}

function eventCount(folder: string): number {
  return Number(/^event_nr (\d+)$/m.exec(readControl(folder, 'info'))![1]);
}
