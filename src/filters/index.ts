/** The filter types there are: a new one is one line here. */
import { DmError } from '../errors.js';
import { blksnap } from './blksnap/tracker.js';
import type { FilterType } from './filter.js';
import { logWrites } from './log-writes/index.js';

// A type's own descriptor and view meet again only in its own functions, so the list need not know them.
const types = [blksnap, logWrites] as unknown as readonly FilterType[];

/** The filter type of a name. Throws ENOENT. */
export function filterType(name: string): FilterType {
  const type = types.find((candidate) => candidate.name === name);
  if (type) return type;
  const known = types.map((candidate) => candidate.name).join(', ');
  throw new DmError('ENOENT', `there is no filter \`${name}\`; known are ${known}, and none for none`);
}

/** All filter types, in an order that stays. */
export function filterTypes(): readonly FilterType[] {
  return types;
}
