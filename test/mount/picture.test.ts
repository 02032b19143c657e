/** Pictures without a mount: cells against a model that looks at one sector after the other, and what is painted. */
import { spawnSync } from 'node:child_process';
import fc from 'fast-check';
import { decode } from 'fast-png';
import { describe, expect, it } from 'vitest';
import { Grid, type SectorClass } from '../../mount/cli/picture/grid.js';
import { bytesText, COLUMNS, layOut, offsetText, percentText } from '../../mount/cli/picture/layout.js';
import { paintPng } from '../../mount/cli/picture/png.js';
import { escapeXml, paintSvg } from '../../mount/cli/picture/svg.js';
import { colorsAt } from './pixels.js';

const CLASSES: SectorClass[] = [
  { name: 'most', color: '#E4E4E4' },
  { name: 'some', color: '#0072B2', weight: 1 },
  { name: 'plain', color: '#56B4E9' },
  { name: 'bad', color: '#D55E00', weight: 2, hatch: 'rising' },
];

/** A device whose sectors are of these classes, run after run. */
const device = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 700 }), fc.nat(CLASSES.length - 1)), {
    minLength: 1,
    maxLength: 60,
  })
  .map((runs) => runs.flatMap(([count, number]) => new Array<number>(count).fill(number)));

/** As sectors are added: in runs, from any place on. */
function gridOf(sectors: readonly number[], cellsMax: number): Grid {
  const grid = new Grid(sectors.length, CLASSES, cellsMax);
  for (let start = 0; start < sectors.length; ) {
    let end = start + 1;
    while (end < sectors.length && sectors[end] === sectors[start]) end++;
    // The last run may be said to be longer than the device.
    grid.add(start, end === sectors.length ? end - start + 9 : end - start, sectors[start]!);
    start = end;
  }
  return grid;
}

/** What a cell is: what most of it is, of several the heaviest; and the heaviest of the others. */
function naiveCell(sectors: readonly number[]): { main: number; mark: number | undefined } {
  const count = (number: number) => sectors.filter((each) => each === number).length;
  const weight = (number: number) => CLASSES[number]!.weight ?? 0;
  const there = CLASSES.map((_, number) => number).filter((number) => count(number) > 0);
  const [main] = [...there].sort((a, b) => count(b) - count(a) || weight(b) - weight(a) || a - b);
  const others = there.filter((number) => number !== main && weight(number) > 0);
  const [mark] = others.sort((a, b) => weight(b) - weight(a));
  return { main: main!, mark };
}

describe('the cells of a picture', () => {
  it('any device: as counted sector by sector; what matters is in no cell lost', () => {
    fc.assert(
      fc.property(device, fc.integer({ min: 1, max: 300 }), (sectors, cellsMax) => {
        const grid = gridOf(sectors, cellsMax);
        const { cellSectors } = grid;
        expect(grid.cellCount).toBeLessThanOrEqual(cellsMax);
        expect(Number.isInteger(Math.log2(cellSectors))).toBe(true);
        // No larger than it has to be.
        expect(cellSectors === 1 || Math.ceil((2 * sectors.length) / cellSectors) > cellsMax).toBe(true);
        for (let cell = 0; cell < grid.cellCount; cell++) {
          expect(grid.cell(cell)).toEqual(
            naiveCell(sectors.slice(cell * cellSectors, (cell + 1) * cellSectors)),
          );
        }
        const totals = CLASSES.map((_, number) => sectors.filter((each) => each === number).length);
        expect(grid.totals()).toEqual(totals);
      }),
      { numRuns: 100 },
    );
  });

  it('numbers for people: exact places, never all or nothing for what is not', () => {
    expect([0, 512, 1024, 1536, 3 * 2 ** 30, 1056 * 2 ** 30].map(offsetText)).toEqual([
      '0',
      '512 B',
      '1 KiB',
      '1536 B',
      '3 GiB',
      '1056 GiB',
    ]);
    expect([512, 2 ** 44, 1.5 * 2 ** 30, 25.25 * 2 ** 20].map(bytesText)).toEqual([
      '512 B',
      '16 TiB',
      '1.50 GiB',
      '25.3 MiB',
    ]);
    expect([0, 2 ** -35, 0.5, 1 - 2 ** -35, 1].map(percentText)).toEqual([
      '0 %',
      '< 0.1 %',
      '50.0 %',
      '> 99.9 %',
      '100 %',
    ]);
  });
});

describe('what is painted', () => {
  const draw = (grid: Grid, width: number, name = 'x') =>
    layOut({ name, type: 'cow', sectors: grid.sectors }, [{ title: 'layers', note: '', grid }], width);

  it('any device, any width: every cell has its colours, in its place; nothing is cut off', () => {
    fc.assert(
      fc.property(device, fc.constantFrom(480, 640, 1040, 2000), (sectors, width) => {
        const grid = gridOf(sectors, 256);
        const { picture, frames } = draw(grid, width);
        const { x, pitch } = frames[0]!;
        expect(x + COLUMNS * pitch).toBeLessThanOrEqual(width);
        const image = decode(paintPng(picture));
        expect([image.width, image.height]).toEqual([width, picture.height]);
        for (let cell = 0; cell < grid.cellCount; cell++) {
          const { main, mark } = grid.cell(cell);
          const colors = colorsAt(image, frames[0]!, cell);
          expect(colors).toContain(CLASSES[mark ?? main]!.color);
        }
        for (const item of picture.items) {
          if (item.kind === 'rect') expect(item.y + item.height).toBeLessThanOrEqual(picture.height);
        }
      }),
      { numRuns: 8 },
    );
  });

  it('a name is no markup, and XML can say all of it', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 30 }), (name) => {
        expect(escapeXml(name)).not.toMatch(/[<>"']|&(?!#\d+;)/);
      }),
    );
    const grid = gridOf([0, 1, 3], 256);
    const name = `</text><script>"'&\u0001\ud800é`;
    const seen = spawnSync(
      'python3',
      [
        '-c',
        'import sys, xml.etree.ElementTree as e\n' +
          'root = e.fromstring(sys.stdin.buffer.read())\n' +
          "ns = '{http://www.w3.org/2000/svg}'\n" +
          'print(ascii([t.text for t in root.iter(ns + "text")][0]), len(list(root.iter("script"))))',
      ],
      { input: paintSvg(draw(grid, 1040, name).picture), encoding: 'utf8' },
    );
    expect(seen.stderr).toBe('');
    expect(seen.stdout).toBe(`'</text><script>"\\'&\\ufffd\\ufffd\\xe9' 0\n`);
  });

  it('twice the same is the same, byte for byte', () => {
    const grid = gridOf([0, 1, 3, 3, 3, 2, 2, 0], 256);
    expect(paintSvg(draw(grid, 640).picture)).toBe(paintSvg(draw(grid, 640).picture));
    expect(paintPng(draw(grid, 640).picture)).toEqual(paintPng(draw(grid, 640).picture));
  });
});
