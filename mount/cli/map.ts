/** `dmfuse map`: a picture of what is where on a live target. */
import { join } from 'node:path';
import { DmError } from '../../src/errors.js';
import { CELLS_MAX } from '../../src/shared/cells.js';
import { parseTableLine } from '../../src/table.js';
import { SECTOR_BYTES } from '../../src/units.js';
import { isThere, readControl, requireTarget } from './control.js';
import { requireMount } from './find-mount.js';
import { printJson } from './output.js';
import { layOut } from './picture/layout.js';
import { changesPanel, type Looked, ownPanel, type Panel, type Subject } from './picture/sources.js';
import { TEXT_CELLS_MAX, textOf } from './picture/text.js';
import { withProgress } from './progress.js';
import { replaceFile } from './replace-file.js';

export interface MapOptions {
  readonly output?: string;
  readonly format?: 'svg' | 'png';
  /** Pixels. */
  readonly width: number;
  readonly quiet: boolean;
  readonly json: boolean;
}

/** Throws ENOENT and ENODEV where there is no such target, and EOPNOTSUPP for one that has no picture. */
export async function drawMap(mountArgument: string, name: string, options: MapOptions): Promise<void> {
  const { output, format, quiet, json } = options;
  const mountPoint = requireMount(mountArgument);
  const subject = subjectOf(requireTarget(mountPoint, name), name);
  const isPicture = format !== undefined;
  const cellsMax = isPicture || json ? CELLS_MAX : TEXT_CELLS_MAX;
  const bytesTotal = subject.sectors * SECTOR_BYTES;
  const panels = await withProgress('map', { quiet, json, interruptible: false }, async (update) => {
    const looked: Looked = (sectors) => update({ bytes: sectors * SECTOR_BYTES, bytesTotal });
    const panel = await ownPanel(subject, cellsMax, looked);
    const isTracked = isThere(join(subject.folder, 'cbtmap'), mountPoint);
    return isTracked ? [panel, changesPanel(subject.folder, subject.sectors, cellsMax)] : [panel];
  });
  const heading = { name, type: subject.type, sectors: subject.sectors };
  if (json) {
    printJson({ name, type: subject.type, lengthSectors: subject.sectors, panels: panels.map(asJson) });
  } else if (format === undefined) {
    process.stdout.write(textOf(heading, panels));
  } else {
    const { picture } = layOut(heading, panels, options.width);
    // Each brings its own library, or none.
    const content =
      format === 'svg'
        ? (await import('./picture/svg.js')).paintSvg(picture)
        : (await import('./picture/png.js')).paintPng(picture);
    if (output === undefined || output === '-') process.stdout.write(content);
    else await replaceFile(output, content);
  }
}

function subjectOf(folder: string, name: string): Subject {
  const table = readControl(folder, 'table');
  if (table === '') throw new DmError('ENODEV', `map ${name}: no table is loaded`);
  const { type, args } = parseTableLine(table);
  return { folder, type, args, sectors: Number(readControl(folder, 'size')) };
}

/** The cells as runs of the same: what most of them is, and what else matters there. */
function asJson({ title, note, grid }: Panel): object {
  const totals = grid.totals();
  const runs: { firstCell: number; cells: number; class: number; mark?: number }[] = [];
  for (let index = 0; index < grid.cellCount; index++) {
    const { main, mark } = grid.cell(index);
    const last = runs.at(-1);
    if (last && last.class === main && last.mark === mark) last.cells++;
    else runs.push({ firstCell: index, cells: 1, class: main, ...(mark !== undefined && { mark }) });
  }
  return {
    title,
    note,
    cellSectors: grid.cellSectors,
    cells: grid.cellCount,
    classes: grid.classes.map(({ name, color }, i) => ({ name, color, sectors: totals[i]! })),
    runs,
  };
}
