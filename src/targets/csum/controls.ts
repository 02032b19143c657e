/** The control files of a csum target: `scrub`, `errors`. */
import type { ControlFile } from '../target.js';
import type { CsumTarget } from './target.js';

export const csumFiles: readonly ControlFile<CsumTarget>[] = [
  {
    name: 'scrub',
    read: ({ scrub }) => scrub.report(),
    write: ({ scrub }, text) => scrub.command(text.trim()),
  },
  { name: 'errors', read: ({ state }) => errorTable(state.bad) },
];

/** How many were found, then what is bad still: `sector N`, and `group N` where a table is damaged. */
function errorTable(bad: CsumTarget['state']['bad']): string {
  const { sectors, groups } = bad.list();
  const lines = [...sectors.map((sector) => `sector ${sector}`), ...groups.map((group) => `group ${group}`)];
  return [`count ${bad.count}`, ...lines, ''].join('\n');
}
