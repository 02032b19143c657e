/** The control file of a cow target: `layers`. */
import type { ControlFile } from '../target.js';
import type { CowTarget } from './target.js';

export const cowFiles: readonly ControlFile<CowTarget>[] = [
  { name: 'layers', read: (target) => target.describeLayers() },
];
