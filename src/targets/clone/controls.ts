/** The control files of a clone target: `hydration`, `hydration_threshold`, `hydration_batch_size`, `regions`. */
import { DmError } from '../../errors.js';
import type { ControlFile } from '../target.js';
import { parseSetting } from './options.js';
import type { CloneTarget } from './target.js';

function settingFile(name: string, key: 'threshold' | 'batchSize'): ControlFile<CloneTarget> {
  return {
    name,
    read: ({ state }) => `${state.settings[key]}\n`,
    write({ state }, text) {
      state.settings = { ...state.settings, [key]: parseSetting(text, name) };
    },
  };
}

export const cloneFiles: readonly ControlFile<CloneTarget>[] = [
  {
    name: 'hydration',
    read: ({ state }) => `${state.settings.hydration ? 1 : 0}\n`,
    write({ state }, text) {
      if (text !== '0' && text !== '1') {
        throw new DmError('EINVAL', `hydration: takes 0 (off) or 1 (on), not \`${text}\``);
      }
      state.settings = { ...state.settings, hydration: text === '1' };
    },
  },
  settingFile('hydration_threshold', 'threshold'),
  settingFile('hydration_batch_size', 'batchSize'),
  {
    // Bit r mod 8 of byte r div 8: region r is hydrated.
    name: 'regions',
    bytes: ({ state, descriptor }) =>
      new Uint8Array(state.hydrated.buffer, 0, Math.ceil(descriptor.regions / 8)),
  },
];
