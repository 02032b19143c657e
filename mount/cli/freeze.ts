/**
 * File systems that are still while something is done: all that is written is on their devices, and their journals are empty.
 * They go on whatever happens: a process of its own freezes each, and lets it go when this one has done, or is no more.
 */
import { spawn } from 'node:child_process';
import { DmError } from '../../src/errors.js';
import type { FileSystem } from './file-systems.js';
import type { HeldSignals } from './signals.js';

/** Its input ends with this process, also where that is killed. */
const GUARD = `fsfreeze -f -- "$1" || exit 1; echo frozen; read -r _; exec fsfreeze -u -- "$1"`;
const PATH = `${process.env.PATH ?? ''}:/usr/sbin:/sbin`;

const NO_FREEZE = '--no-freeze takes images as a power cut leaves them';

/**
 * Does `work` while the file systems are frozen, those that are read-only or frozen already left alone. A signal ends the wait
 * for `work`: what that does by then is not waited for.
 */
export async function whileFrozen(
  fileSystems: readonly FileSystem[],
  signals: HeldSignals,
  work: () => Promise<void>,
): Promise<void> {
  const frozen: Frozen[] = [];
  let failure: unknown;
  try {
    for (const fileSystem of fileSystems.filter(({ isReadOnly }) => !isReadOnly)) {
      signals.check();
      const one = await freeze(fileSystem);
      if (one) frozen.push(one);
    }
    signals.check();
    await Promise.race([work(), signals.interrupted]);
  } catch (error) {
    failure = error;
  }
  // All of them, whatever one says; the first that fails is told.
  const thaws = await Promise.allSettled(frozen.map(({ thaw }) => thaw()));
  for (const thaw of thaws) if (thaw.status === 'rejected') failure ??= thaw.reason;
  if (failure) throw failure;
}

interface Frozen {
  thaw(): Promise<void>;
}

/** Undefined: somebody else has frozen it. */
async function freeze({ mountPoint, type, source }: FileSystem): Promise<Frozen | undefined> {
  if (mountPoint === undefined) {
    throw new DmError(
      'EBUSY',
      `the ${type} on ${source} cannot be frozen: others are mounted over it; ${NO_FREEZE}`,
    );
  }
  // A session of its own: Ctrl-C is for this process, which ends it.
  const guard = spawn('/bin/sh', ['-c', GUARD, 'sh', mountPoint], {
    detached: true,
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, PATH, LC_ALL: 'C' },
  });
  let complaint = '';
  guard.stderr.on('data', (chunk) => {
    complaint += chunk;
  });
  guard.stdin.on('error', () => {});
  const ended = new Promise<number | null>((resolve) => {
    guard.once('error', (error) => {
      complaint += error.message;
      resolve(1);
    });
    guard.once('close', resolve);
  });
  const isFrozen = await Promise.race([
    new Promise<true>((resolve) => guard.stdout.once('data', () => resolve(true))),
    ended.then(() => false),
  ]);
  if (!isFrozen) {
    if (/resource busy/i.test(complaint)) return undefined;
    throw new DmError(
      'EPERM',
      `${mountPoint}: this ${type} cannot be frozen for the take (${oneLine(complaint)}): ` +
        `that needs root, fsfreeze of util-linux and a file system that can; ${NO_FREEZE}`,
    );
  }
  return {
    thaw: async () => {
      guard.stdin.end();
      if ((await ended) === 0) return;
      throw new DmError(
        'EIO',
        `${mountPoint}: was frozen, and cannot be let go (${oneLine(complaint)}): try \`fsfreeze -u ${mountPoint}\``,
      );
    },
  };
}

function oneLine(text: string): string {
  return text.trim().replaceAll('\n', '; ');
}
