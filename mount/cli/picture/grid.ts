/**
 * A device as cells of equal length, and of each how many of its sectors are of which class. Memory goes with the number of
 * cells: a run is added in the time that its cells take, whatever the size of the device.
 */

import { CELLS_MAX, cellSectorsOf } from '../../../src/shared/cells.js';

/** A kind of sectors. Where each stands in a grid's list is its number. */
export interface SectorClass {
  readonly name: string;
  /** `#RRGGBB` */
  readonly color: string;
  /** Tells classes of a like lightness apart without colour. */
  readonly hatch?: 'rising' | 'falling';
  /**
   * How much a few sectors of it matter in a cell that is mostly of another class: the greatest is shown as a mark. 0 or left
   * out: not at all.
   */
  readonly weight?: number;
}

export interface Cell {
  /** The class that most of it is of; of several the one with the greatest weight. */
  readonly main: number;
  /** Another class that it has sectors of and that matters. */
  readonly mark: number | undefined;
}

export class Grid {
  readonly cellSectors: number;
  readonly cellCount: number;
  /** For each cell, the sectors of each class. */
  private readonly counts: Float64Array;

  /** The sectors that are never added are of class 0. */
  constructor(
    readonly sectors: number,
    readonly classes: readonly SectorClass[],
    cellsMax = CELLS_MAX,
  ) {
    this.cellSectors = cellSectorsOf(sectors, cellsMax);
    this.cellCount = Math.ceil(sectors / this.cellSectors);
    this.counts = new Float64Array(this.cellCount * classes.length);
    for (let cell = 0; cell < this.cellCount; cell++) {
      this.counts[cell * classes.length] = Math.min(this.cellSectors, sectors - cell * this.cellSectors);
    }
  }

  /** Sectors [sector, sector + count) are of a class; what is past the end is left out. No sector is added twice. */
  add(sector: number, count: number, number: number): void {
    if (number === 0) return;
    const { cellSectors, classes, counts } = this;
    const end = Math.min(sector + count, this.sectors);
    for (let at = sector; at < end; ) {
      const cell = Math.floor(at / cellSectors);
      const stop = Math.min(end, (cell + 1) * cellSectors);
      counts[cell * classes.length] -= stop - at;
      counts[cell * classes.length + number] += stop - at;
      at = stop;
    }
  }

  /** Sectors of each class, of the whole device. */
  totals(): number[] {
    const totals = this.classes.map(() => 0);
    this.counts.forEach((count, i) => {
      totals[i % totals.length]! += count;
    });
    return totals;
  }

  cell(index: number): Cell {
    const { classes } = this;
    const counts = this.counts.subarray(index * classes.length, (index + 1) * classes.length);
    const weight = (number: number) => classes[number]!.weight ?? 0;
    let main = 0;
    for (let number = 1; number < counts.length; number++) {
      const isMore = counts[number]! > counts[main]!;
      const isSame = counts[number] === counts[main] && counts[number]! > 0;
      if (isMore || (isSame && weight(number) > weight(main))) main = number;
    }
    let mark: number | undefined;
    for (let number = 0; number < counts.length; number++) {
      if (number === main || counts[number] === 0 || weight(number) === 0) continue;
      if (mark === undefined || weight(number) > weight(mark)) mark = number;
    }
    return { main, mark };
  }
}
