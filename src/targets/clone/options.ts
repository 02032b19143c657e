/** What follows the devices in a clone's table: the region size, features and core arguments, as the kernel takes them. */
import { DmError } from '../../errors.js';
import { regionSizeProblem } from '../../formats/dm-clone.js';
import { parseCount, takeGroup } from '../../table.js';
import type { Settings } from './state.js';

export interface CloneOptions extends Settings {
  /** Sectors. */
  readonly regionSectors: number;
  readonly discardPassdown: boolean;
  /** All behind the region size, word for word. */
  readonly words: readonly string[];
}

/** The kernel keeps them in 32 bits. */
const SETTING_MAX = 2 ** 32 - 1;

/** Throws EINVAL naming the word that is wrong. */
export function parseOptions(regionSize: string, words: readonly string[]): CloneOptions {
  const regionSectors = parseCount(regionSize, 'the region size (sectors)');
  const problem = regionSizeProblem(regionSectors);
  if (problem !== undefined) throw new DmError('EINVAL', `clone: ${problem}`);

  const { group: features, rest } = takeGroup(words, 'features');
  let [hydration, discardPassdown] = [true, true];
  for (const feature of features) {
    const name = feature.toLowerCase();
    if (name === 'no_hydration') hydration = false;
    else if (name === 'no_discard_passdown') discardPassdown = false;
    else throw unknown(feature, 'feature', 'no_hydration, no_discard_passdown');
  }
  const { group: core, rest: behind } = takeGroup(rest, 'core arguments');
  if (behind.length > 0) {
    throw new DmError('EINVAL', `clone: \`${behind[0]}\` is behind the last argument: check the counts`);
  }
  if (core.length % 2 === 1) {
    throw new DmError(
      'EINVAL',
      `clone: ${core.length} core arguments: they come in pairs, a name and its value`,
    );
  }
  let [threshold, batchSize] = [1, 1];
  for (let i = 0; i < core.length; i += 2) {
    const name = core[i]!.toLowerCase();
    if (name === 'hydration_threshold') threshold = parseSetting(core[i + 1]!, name);
    else if (name === 'hydration_batch_size') batchSize = parseSetting(core[i + 1]!, name);
    else throw unknown(core[i]!, 'core argument', 'hydration_threshold, hydration_batch_size');
  }
  return { regionSectors, hydration, discardPassdown, threshold, batchSize, words };
}

/** A number of regions; 0, as in the kernel, lets no background hydration happen. Throws EINVAL. */
export function parseSetting(text: string, name: string): number {
  const value = parseCount(text, `${name} (regions)`);
  if (value > SETTING_MAX) throw new DmError('EINVAL', `${name} is ${value}: ${SETTING_MAX} at most`);
  return value;
}

function unknown(word: string, what: string, known: string): DmError {
  return new DmError('EINVAL', `clone: there is no ${what} \`${word}\`: known are ${known}`);
}
