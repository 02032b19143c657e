import { readFileSync } from 'node:fs';

/** The package's version; this file runs from dist/mount. */
export const VERSION: string = JSON.parse(
  readFileSync(new URL('../../package.json', import.meta.url), 'utf8'),
).version;
