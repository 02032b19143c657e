/**
 * How a picture looks: what is drawn where, in pixels, as rectangles and texts in the order in which they are painted. SVG and PNG
 * are two ways to paint the same list.
 *
 * The sectors go from left to right and from top to bottom. A cell has the colour of the class that most of it is of. Where it has
 * sectors of another class that matters, a square of that class's colour is in its middle; and where all of the device has few of
 * them, the cell has a dark frame, so that one sector of many billions is seen.
 */
import { SECTOR_BYTES } from '../../../src/units.js';
import type { Grid, SectorClass } from './grid.js';
import { FAINT_INK, INK, PAPER } from './palette.js';
import type { Panel } from './sources.js';

export interface Rect {
  readonly kind: 'rect';
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
  readonly color: string;
  readonly hatch?: SectorClass['hatch'];
}

/** One line of text, every character GLYPH_WIDTH × `scale` wide. */
export interface Text {
  readonly kind: 'text';
  /** Its left end, and the top of its line. */
  readonly x: number;
  readonly y: number;
  readonly text: string;
  readonly scale: number;
  readonly color: string;
}

export interface Picture {
  readonly width: number;
  readonly height: number;
  readonly items: readonly (Rect | Text)[];
}

/** Pixels of a character with the space behind it, and of its line, at scale 1. */
export const GLYPH_WIDTH = 6;
const LINE_HEIGHT = 11;

export const COLUMNS = 128;
/** Characters of the labels on the left, and of the columns of the legend. */
const OFFSET_CHARACTERS = 8;
const SIZE_CHARACTERS = 10;
const PERCENT_CHARACTERS = 10;
/** A class is rare with less than this part of all sectors. */
const RARE = 1 / 512;

export interface Heading {
  readonly name: string;
  readonly type: string;
  readonly sectors: number;
}

/** Where the cells of a panel are. */
export interface Frame {
  readonly x: number;
  readonly y: number;
  /** Pixels from one cell to the next, and how much of that is its own. */
  readonly pitch: number;
  readonly cell: number;
}

/** Draws the panels one below the other, `width` pixels wide. Also where their cells are. */
export function layOut(
  { name, type, sectors }: Heading,
  panels: readonly Panel[],
  width: number,
): { picture: Picture; frames: Frame[] } {
  const sheet = new Sheet(width);
  sheet.line(name, { big: true });
  sheet.line(`${type}, ${bytesText(sectors * SECTOR_BYTES)} (${sectors} sectors)`);
  const frames = panels.map((panel) => sheet.panel(panel));
  return { picture: sheet.picture(), frames };
}

class Sheet {
  private readonly items: (Rect | Text)[] = [];
  private readonly scale: number;
  private readonly margin: number;
  private y: number;

  constructor(private readonly width: number) {
    this.scale = Math.max(1, Math.round(width / 512));
    this.margin = 8 * this.scale;
    this.y = this.margin;
  }

  picture(): Picture {
    const { width, items } = this;
    const height = this.y + this.margin;
    const paper: Rect = { kind: 'rect', x: 0, y: 0, width, height, color: PAPER };
    return { width, height, items: [paper, ...items] };
  }

  /** A line of text over the whole width. */
  line(text: string, { big = false, color = INK } = {}): void {
    const scale = big ? this.scale + 1 : this.scale;
    const most = Math.floor((this.width - 2 * this.margin) / (GLYPH_WIDTH * scale));
    this.text(this.margin, this.y, shorten(text, most), { scale, color });
    this.y += LINE_HEIGHT * scale;
  }

  panel({ title, note, grid }: Panel): Frame {
    const { scale, margin, width } = this;
    const cellBytes = grid.cellSectors * SECTOR_BYTES;
    this.y += LINE_HEIGHT * scale;
    this.line(note === '' ? title : `${title}: ${note}`);
    this.line(`1 cell = ${bytesText(cellBytes)}, 1 row = ${bytesText(COLUMNS * cellBytes)}`, {
      color: FAINT_INK,
    });
    const x = margin + (OFFSET_CHARACTERS + 1) * GLYPH_WIDTH * scale;
    const pitch = Math.max(1, Math.floor((width - margin - x) / COLUMNS));
    // A gap between cells where there is room for one.
    const cell = pitch >= 4 ? pitch - 1 : pitch;
    this.columnLabels(x, pitch, cellBytes);
    const frame = { x, y: this.y, pitch, cell };
    this.cells(grid, frame);
    this.rowLabels(grid, frame);
    this.y += Math.ceil(grid.cellCount / COLUMNS) * pitch + 5 * scale;
    this.legend(grid);
    return frame;
  }

  private columnLabels(x: number, pitch: number, cellBytes: number): void {
    const step = COLUMNS / 4;
    for (let column = 0; column < COLUMNS; column += step) {
      this.text(x + column * pitch, this.y, column === 0 ? '0' : `+${offsetText(column * cellBytes)}`, {
        color: FAINT_INK,
      });
    }
    this.y += LINE_HEIGHT * this.scale - this.scale;
  }

  private rowLabels({ cellCount, cellSectors }: Grid, { x, y, pitch }: Frame): void {
    const rows = Math.ceil(cellCount / COLUMNS);
    let step = 1;
    while (step * pitch < 2 * LINE_HEIGHT * this.scale) step *= 2;
    for (let row = 0; row < rows; row += step) {
      const label = offsetText(row * COLUMNS * cellSectors * SECTOR_BYTES);
      const left = x - (label.length + 1) * GLYPH_WIDTH * this.scale;
      this.text(left, y + row * pitch, label, { color: FAINT_INK });
      this.rect(x - 3 * this.scale, y + row * pitch, 2 * this.scale, Math.max(1, this.scale / 2), {
        color: FAINT_INK,
      });
    }
  }

  private cells(grid: Grid, { x, y, pitch, cell }: Frame): void {
    const { classes, sectors } = grid;
    const totals = grid.totals();
    const isRare = (number: number) => (classes[number]!.weight ?? 0) > 0 && totals[number]! < RARE * sectors;
    const marks: (() => void)[] = [];
    for (let first = 0; first < grid.cellCount; ) {
      const [row, column] = [Math.floor(first / COLUMNS), first % COLUMNS];
      const { main } = grid.cell(first);
      let end = first;
      for (; end < Math.min(grid.cellCount, (row + 1) * COLUMNS) && grid.cell(end).main === main; end++) {
        const shown = grid.cell(end).mark ?? main;
        const at = [x + (end % COLUMNS) * pitch, y + row * pitch] as const;
        if (isRare(shown)) marks.push(() => this.framed(at, pitch, classes[shown]!));
        else if (shown !== main) marks.push(() => this.mark(at, cell, classes[shown]!));
      }
      this.rect(x + column * pitch, y + row * pitch, (end - first) * pitch, pitch, classes[main]!);
      first = end;
    }
    if (cell < pitch) this.gaps(grid, { x, y, pitch, cell });
    for (const draw of marks) draw();
  }

  /** The lines between the cells, and right and below of the last ones. */
  private gaps({ cellCount }: Grid, { x, y, pitch, cell }: Frame): void {
    const rows = Math.ceil(cellCount / COLUMNS);
    const columns = Math.min(COLUMNS, cellCount);
    for (let column = 0; column < columns; column++) {
      this.rect(x + column * pitch + cell, y, pitch - cell, rows * pitch, { color: PAPER });
    }
    for (let row = 0; row < rows; row++) {
      this.rect(x, y + row * pitch + cell, columns * pitch, pitch - cell, { color: PAPER });
    }
  }

  private mark([x, y]: readonly [number, number], cell: number, { color }: SectorClass): void {
    const size = Math.max(1, Math.round(cell * 0.6));
    const inset = Math.floor((cell - size) / 2);
    this.rect(x + inset, y + inset, size, size, { color });
  }

  /** One pixel larger than the cell, on all sides. */
  private framed([x, y]: readonly [number, number], pitch: number, { color }: SectorClass): void {
    const edge = Math.max(1, Math.floor(pitch / 6));
    this.rect(x - edge, y - edge, pitch + edge, pitch + edge, { color: INK });
    this.rect(x, y, pitch - edge, pitch - edge, { color });
  }

  private legend(grid: Grid): void {
    const { scale, margin, width } = this;
    const advance = GLYPH_WIDTH * scale;
    const totals = grid.totals();
    const percentAt = width - margin - PERCENT_CHARACTERS * advance;
    const sizeAt = percentAt - SIZE_CHARACTERS * advance;
    const nameAt = margin + 3 * advance;
    grid.classes.forEach((each, number) => {
      const { y } = this;
      this.rect(margin, y, 2 * advance, 8 * scale, { color: FAINT_INK });
      this.rect(margin + scale / 2, y + scale / 2, 2 * advance - scale, 7 * scale, each);
      this.text(nameAt, y, shorten(each.name, Math.floor((sizeAt - nameAt) / advance)));
      this.text(sizeAt, y, bytesText(totals[number]! * SECTOR_BYTES).padStart(SIZE_CHARACTERS));
      this.text(percentAt, y, percentText(totals[number]! / grid.sectors).padStart(PERCENT_CHARACTERS));
      this.y += LINE_HEIGHT * scale;
    });
    this.line('A square inside a cell: there is some of that, too. A dark frame: rare.', {
      color: FAINT_INK,
    });
  }

  private text(x: number, y: number, text: string, { scale = this.scale, color = INK } = {}): void {
    this.items.push({ kind: 'text', x, y, text, scale, color });
  }

  private rect(
    x: number,
    y: number,
    width: number,
    height: number,
    { color, hatch }: Pick<SectorClass, 'color' | 'hatch'>,
  ): void {
    this.items.push({ kind: 'rect', x, y, width, height, color, ...(hatch && { hatch }) });
  }
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** Exact: in the largest unit of which it is a whole number. */
export function offsetText(bytes: number): string {
  let unit = 0;
  let value = bytes;
  for (; value > 0 && value % 1024 === 0 && unit < UNITS.length - 1; unit++) value /= 1024;
  return value === 0 ? '0' : `${value} ${UNITS[unit]}`;
}

/** Three digits at least, and whole numbers as they are. */
export function bytesText(bytes: number): string {
  let unit = 0;
  let value = bytes;
  for (; value >= 1024 && unit < UNITS.length - 1; unit++) value /= 1024;
  const digits = Number.isInteger(value) ? 0 : value < 10 ? 2 : value < 100 ? 1 : 0;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** Never 0 or 100 for what is not quite. */
export function percentText(part: number): string {
  if (part === 0 || part === 1) return `${100 * part} %`;
  if (part < 0.001) return '< 0.1 %';
  if (part > 0.999) return '> 99.9 %';
  return `${(100 * part).toFixed(1)} %`;
}

function shorten(text: string, characters: number): string {
  const all = [...text];
  return all.length <= characters ? text : `${all.slice(0, Math.max(0, characters - 3)).join('')}...`;
}
