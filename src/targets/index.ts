/** The target types there are. A new one is a folder beside these and a line here. */
import { DmError } from '../errors.js';
import { bow } from './bow/index.js';
import { clone } from './clone/index.js';
import { cow } from './cow/index.js';
import { csum } from './csum/index.js';
import { linear } from './linear/index.js';
import type { TargetType } from './target.js';

// A type's own descriptor and target meet again only in its own functions, so the list need not know them.
const types = [linear, bow, csum, cow, clone] as unknown as readonly TargetType[];

/** The target type of a table line. Throws EINVAL naming the types there are. */
export function targetType(name: string): TargetType {
  const type = types.find((candidate) => candidate.name === name);
  if (type) return type;
  const known = types.map((candidate) => candidate.name).join(', ');
  throw new DmError('EINVAL', `there is no target type \`${name}\`: known are ${known}`);
}

/** All target types. */
export function targetTypes(): readonly TargetType[] {
  return types;
}
