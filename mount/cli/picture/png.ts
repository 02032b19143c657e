/** Paints a picture as PNG. */
import { encode } from 'fast-png';
import { GLYPH_HEIGHT, glyphOf } from './font.js';
import { GLYPH_WIDTH, type Picture, type Rect, type Text } from './layout.js';
import { PAPER } from './palette.js';

const HATCH_STEP = 6;

export function paintPng({ width, height, items }: Picture): Uint8Array {
  const canvas = new Canvas(width, height);
  for (const item of items) {
    if (item.kind === 'rect') canvas.rect(item);
    else canvas.text(item);
  }
  return encode({ width, height, data: canvas.pixels, depth: 8, channels: 3 });
}

/** What leaves it is cut off. */
class Canvas {
  /** Red, green, blue of each pixel. */
  readonly pixels: Uint8Array;

  constructor(
    private readonly width: number,
    private readonly height: number,
  ) {
    this.pixels = new Uint8Array(3 * width * height);
  }

  rect({ x, y, width, height, color, hatch }: Rect): void {
    this.fill(x, y, width, height, color);
    if (hatch === undefined) return;
    for (let line = y; line < y + height; line++) {
      for (let at = x; at < x + width; at++) {
        const place = hatch === 'rising' ? at + line : at - line + HATCH_STEP * line;
        if (place % HATCH_STEP === 0) this.fill(at, line, 1, 1, PAPER);
      }
    }
  }

  text({ x, y, text, scale, color }: Text): void {
    let left = x;
    for (const character of text) {
      const rows = glyphOf(character);
      for (let row = 0; row < GLYPH_HEIGHT; row++) {
        for (let column = 0; column < GLYPH_WIDTH - 1; column++) {
          if (rows[row]?.[column] === '#')
            this.fill(left + column * scale, y + row * scale, scale, scale, color);
        }
      }
      left += GLYPH_WIDTH * scale;
    }
  }

  private fill(x: number, y: number, width: number, height: number, color: string): void {
    const value = Number.parseInt(color.slice(1), 16);
    const [red, green, blue] = [value >> 16, (value >> 8) & 0xff, value & 0xff];
    const [left, top] = [Math.max(0, Math.floor(x)), Math.max(0, Math.floor(y))];
    const right = Math.min(this.width, Math.floor(x + width));
    const bottom = Math.min(this.height, Math.floor(y + height));
    for (let line = top; line < bottom; line++) {
      for (let at = 3 * (line * this.width + left); at < 3 * (line * this.width + right); at += 3) {
        this.pixels[at] = red;
        this.pixels[at + 1] = green;
        this.pixels[at + 2] = blue;
      }
    }
  }
}
