/** Tables for people. */

/**
 * Rows as lines, each column as wide as its widest cell. `alignment` has a letter a column: `l` or `r`. Control characters, which the
 * name of a snapshot may have, are shown as `?`.
 */
export function columns(rows: readonly (readonly string[])[], alignment: string): string[] {
  const cells = rows.map((row) => row.map((cell) => cell.replace(/\p{Cc}/gu, '?')));
  const widths = [...alignment].map((_, i) => Math.max(0, ...cells.map((row) => row[i]!.length)));
  const pad = (cell: string, i: number) =>
    alignment[i] === 'l' ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!);
  return cells.map((row) => row.map(pad).join('  ').trimEnd());
}

/** A time in microseconds, in three digits or so: `750us`, `1.5ms`, `67s`; `>67s` for what is over the last bound. */
export function shortTime(microseconds: number | undefined): string {
  if (microseconds === undefined) return '-';
  if (microseconds === Infinity) return '>67s';
  if (microseconds < 1000) return `${microseconds}us`;
  const isMilliseconds = microseconds < 1e6;
  const value = microseconds / (isMilliseconds ? 1e3 : 1e6);
  return `${value < 10 ? value.toFixed(1) : Math.round(value)}${isMilliseconds ? 'ms' : 's'}`;
}
