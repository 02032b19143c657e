/** Paints a picture as SVG. Names come from whoever made the target: nothing of them is markup. */
import { GLYPH_WIDTH, type Picture, type Rect, type Text } from './layout.js';
import { PAPER } from './palette.js';

/** Pixels at scale 1. A monospaced character is 0.6 of its size wide; `textLength` makes it so in any font. */
const FONT_SIZE = 10;
const BASELINE = 7;

/** Lines of the paper's colour over the class's; as wide as in a PNG. */
const HATCHES = [
  ['rising', 'M-1 1 L1 -1 M0 6 L6 0 M5 7 L7 5'],
  ['falling', 'M-1 5 L1 7 M0 0 L6 6 M5 -1 L7 1'],
] as const;

export function paintSvg({ width, height, items }: Picture): string {
  const patterns = HATCHES.map(
    ([name, path]) =>
      `<pattern id="${name}" width="6" height="6" patternUnits="userSpaceOnUse"><path d="${path}" stroke="${PAPER}" fill="none"/></pattern>\n`,
  );
  const body = items.map((item) => (item.kind === 'rect' ? rectText(item) : textText(item)));
  return (
    `<?xml version="1.0" encoding="UTF-8"?>\n` +
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ` +
    `shape-rendering="crispEdges" font-family="monospace">\n<defs>\n${patterns.join('')}</defs>\n${body.join('')}</svg>\n`
  );
}

function rectText({ x, y, width, height, color, hatch }: Rect): string {
  const place = `x="${x}" y="${y}" width="${width}" height="${height}"`;
  const over = hatch ? `<rect ${place} fill="url(#${hatch})"/>\n` : '';
  return `<rect ${place} fill="${color}"/>\n${over}`;
}

function textText({ x, y, text, scale, color }: Text): string {
  const length = [...text].length * GLYPH_WIDTH * scale;
  return (
    `<text x="${x}" y="${y + BASELINE * scale}" font-size="${FONT_SIZE * scale}" textLength="${length}" ` +
    `lengthAdjust="spacingAndGlyphs" xml:space="preserve" fill="${color}">${escapeXml(text)}</text>\n`
  );
}

/** What XML cannot say at all becomes U+FFFD. */
export function escapeXml(text: string): string {
  return text
    .replace(/[^\t\n\r\u{20}-\u{d7ff}\u{e000}-\u{fffd}\u{10000}-\u{10ffff}]/gu, '\ufffd')
    .replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
