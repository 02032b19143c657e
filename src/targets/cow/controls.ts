/** The control files of a cow target: `layers`, `owners`. */
import type { ControlFile } from '../target.js';
import type { CowTarget } from './target.js';

export const cowFiles: readonly ControlFile<CowTarget>[] = [
  { name: 'layers', read: (target) => target.describeLayers() },
  { name: 'owners', bytes: (target) => target.owners },
];
