/** What the pixels of a picture show. */
import type { DecodedPng } from 'fast-png';
import { COLUMNS, type Frame } from '../../mount/cli/picture/layout.js';

/** The colours of a pixel, `#RRGGBB`. */
export function colorAt({ width, channels, data }: DecodedPng, x: number, y: number): string {
  const at = channels * (y * width + x);
  const hex = [...data.subarray(at, at + 3)].map((value) => value.toString(16).padStart(2, '0')).join('');
  return `#${hex.toUpperCase()}`;
}

/** All colours within a cell. */
export function colorsAt(image: DecodedPng, { x, y, pitch, cell }: Frame, index: number): string[] {
  const left = x + (index % COLUMNS) * pitch;
  const top = y + Math.floor(index / COLUMNS) * pitch;
  const colors = new Set<string>();
  for (let i = 0; i < cell * cell; i++) {
    colors.add(colorAt(image, left + (i % cell), top + Math.floor(i / cell)));
  }
  return [...colors];
}
