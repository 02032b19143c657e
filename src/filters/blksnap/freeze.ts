/** The moment of a take: the gates of all its devices are held alone, something is done, and they are released. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { RwLock } from '../../shared/rwlock.js';

/** Milliseconds that the main thread waits for all gates at first, and at most: doubled each time that it was not enough. */
const PATIENCE_MS = 50;
const PATIENCE_MAX_MS = 2000;
/** Milliseconds between two attempts, in which requests go on and the main thread sees to other things. */
const REST_MS = 20;

/**
 * Does `work` while nobody is inside any of the gates, and all of that without a turn of the event loop: the main thread does
 * nothing else while it holds one. The gates of devices that stand on others come before those of the others: what goes
 * through an upper gate waits for the lower ones, so that the other order could wait for itself. Tries for as long as it takes;
 * `requireWanted` throws when nobody wants it any more.
 */
export async function whileFrozen(
  gates: readonly RwLock[],
  requireWanted: () => void,
  work: () => void,
): Promise<void> {
  for (let patience = PATIENCE_MS; ; patience = Math.min(2 * patience, PATIENCE_MAX_MS)) {
    requireWanted();
    if (tryFrozen(gates, patience, work)) return;
    await sleep(REST_MS);
  }
}

/** Whether all gates could be had within so many milliseconds. */
function tryFrozen(gates: readonly RwLock[], milliseconds: number, work: () => void): boolean {
  const deadline = performance.now() + milliseconds;
  const held: RwLock[] = [];
  try {
    for (const gate of gates) {
      if (!gate.tryLockExclusive(Math.max(0, deadline - performance.now()))) return false;
      held.push(gate);
    }
    work();
    return true;
  } finally {
    for (const gate of held) gate.unlockExclusive();
  }
}
