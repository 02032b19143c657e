/** A picture in letters, for terminals: one a cell, for the class that most of it is of, or a rarer one that matters. */
import { SECTOR_BYTES } from '../../../src/units.js';
import { bytesText, type Heading, offsetText, percentText } from './layout.js';
import type { Panel } from './sources.js';

const COLUMNS = 64;
const ROWS_MAX = 32;
export const TEXT_CELLS_MAX = COLUMNS * ROWS_MAX;

/** By the number of the class; there are never more. */
const LETTERS = '.123456789';
const OFFSET_CHARACTERS = 9;

export function textOf({ name, type, sectors }: Heading, panels: readonly Panel[]): string {
  const head = `${name}: ${type}, ${bytesText(sectors * SECTOR_BYTES)} (${sectors} sectors)\n`;
  return head + panels.map(panelText).join('');
}

function panelText({ title, note, grid }: Panel): string {
  const cellBytes = grid.cellSectors * SECTOR_BYTES;
  const lines = [`\n${note === '' ? title : `${title}: ${note}`}; 1 letter = ${bytesText(cellBytes)}`];
  for (let first = 0; first < grid.cellCount; first += COLUMNS) {
    let row = '';
    for (let index = first; index < Math.min(first + COLUMNS, grid.cellCount); index++) {
      const { main, mark } = grid.cell(index);
      row += LETTERS[mark ?? main];
    }
    lines.push(`${offsetText(first * cellBytes).padStart(OFFSET_CHARACTERS)} ${row}`);
  }
  const totals = grid.totals();
  const width = Math.max(...grid.classes.map((each) => each.name.length));
  for (const [i, each] of grid.classes.entries()) {
    const size = bytesText(totals[i]! * SECTOR_BYTES).padStart(10);
    const percent = percentText(totals[i]! / grid.sectors).padStart(9);
    lines.push(`  ${LETTERS[i]} ${each.name.padEnd(width)} ${size} ${percent}`);
  }
  return `${lines.join('\n')}\n`;
}
