/** The control files of a bow target: `state`, `free`, `ranges`. */
import { SECTOR_BYTES } from '../../units.js';
import type { ControlFile } from '../target.js';
import { changeState } from './checkpoint.js';
import { type BowState, BlockType as T } from './state.js';
import type { BowTarget } from './target.js';

/** The names that users of the seed's status table parse (formats document, section 7). */
const TYPE_NAMES: Readonly<Record<number, string>> = {
  [T.SECTOR0]: 'Sector0',
  [T.SECTOR0_CURRENT]: 'Sector0_current',
  [T.UNCHANGED]: 'Unchanged',
  [T.TRIMMED]: 'Unchanged',
  [T.FREE]: 'Free',
  [T.AWAITED]: 'Changed',
  [T.CHANGED]: 'Changed',
  [T.BACKUP]: 'Backup',
};

export const bowFiles: readonly ControlFile<BowTarget>[] = [
  {
    name: 'state',
    read: ({ state }) => `${state.state}\n`,
    write: ({ state }, text) => changeState(state, text),
  },
  { name: 'free', read: ({ state }) => `${state.freeBytes}\n` },
  { name: 'ranges', read: ({ state }) => rangeTable(state) },
];

/** One line a range, `Name: first_sector`, ascending, neighbours of one name merged; the last is `Top: <sectors>`. */
function rangeTable(state: BowState): string {
  const lines: string[] = [];
  let last = '';
  state.lock.lockShared();
  try {
    state.ranges.forEach((start, _end, type) => {
      const name = TYPE_NAMES[type]!;
      if (name !== last) lines.push(`${name}: ${(start * state.blockSize) / SECTOR_BYTES}\n`);
      last = name;
    });
  } finally {
    state.lock.unlockShared();
  }
  lines.push(`Top: ${state.size / SECTOR_BYTES}\n`);
  return lines.join('');
}
