/**
 * The examples of the manual pages and of README.md: found in the text, by section, and run as they stand.
 *
 * In a page the sections are the .SS of EXAMPLES, and an example is what is between .EX and .EE; in README.md they are the
 * headings, and an example is a block that is indented by four columns. They run in a lab of their own, in a mount namespace with a
 * root that is thrown away (place.sh): /img, /mnt/dm, /usr/local/bin are there what they are in the text.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Lab, MAIN } from '../mount/harness.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const PLACE = fileURLToPath(new URL('./place.sh', import.meta.url));

export interface ExampleSection {
  /** `dmfuse-bow.8: Try an update`, `README.md: Try an update`. */
  readonly title: string;
  readonly blocks: readonly string[];
}

export interface ExampleCase {
  /** Which blocks run, in which order; all of them by default. Of some, one or the other is what a reader does. */
  readonly blocks?: readonly number[];
  /** Shell, before the first block. */
  readonly prepare?: string;
  /** Shell, before each line that matches: what the text says in words, or leaves to the reader. */
  readonly before?: readonly (readonly [RegExp, string])[];
  /** Shell, when all is detached: what the text promises. */
  readonly check?: string;
}

/** What the lab has another name for, or has smaller. */
const SUBSTITUTES: readonly (readonly [RegExp, string])[] = [
  // The one that `losetup --find --show` has found: others are in use by others.
  [/\/dev\/loop0\b/g, '"$loop"'],
  [/\/dev\/nbd0\b/g, '/img/remote.img'],
  [/\btruncate -s (10|100)G\b/g, 'truncate -s 64M'],
  // What the reader does then.
  [/^(…|\.\.\.)/gm, 'work'],
];

/** Paths of all manual pages, from the root of the repository on. */
export function manualPages(): string[] {
  return (readdirSync(ROOT, { recursive: true }) as string[]).filter(
    (path) => /^(src|mount)\/.*\.[1-8]$/.test(path) && !path.includes('node_modules'),
  );
}

export function readText(path: string): string {
  return readFileSync(join(ROOT, path), 'utf8');
}

/** The text of a page without its font changes, escapes and indentation; macros stay. */
export function plainText(roff: string): string {
  // biome-ignore format: a table
  const escapes: Readonly<Record<string, string>> = {
    '-': '-', e: '\\', ' ': ' ', '(aq': "'", '(dq': '"', '(ga': '`', '(ha': '^', '(ti': '~', '(->': '→', '(bu': '•',
  };
  return roff.replace(/\\(f[A-Z]|\(..|.)/g, (_, name: string) => escapes[name] ?? '');
}

/** The examples of a page, by section. */
export function pageExamples(path: string): ExampleSection[] {
  const name = path.split('/').at(-1)!;
  const [, examples = ''] = /^\.SH EXAMPLES\n(.*?)(?=^\.SH |$(?![\s\S]))/ms.exec(readText(path)) ?? [];
  return examples
    .split(/^\.SS /m)
    .map((section) => ({
      title: `${name}: ${section.split('\n')[0]}`,
      blocks: [...section.matchAll(/^\.EX\n(.*?)^\.EE$/gms)].map(([, text]) => plainText(text!)),
    }))
    .filter(({ blocks }) => blocks.length > 0);
}

/** The examples of a text in Markdown, by section. */
export function markdownExamples(path: string): ExampleSection[] {
  return readText(path)
    .split(/^## /m)
    .slice(1)
    .map((section) => ({
      title: `${path}: ${section.split('\n')[0]}`,
      blocks: [...section.matchAll(/(?<=\n\n)(?: {4}.*\n(?:\n(?= {4}))?)+/g)].map(([text]) =>
        text.replace(/^ {4}/gm, ''),
      ),
    }))
    .filter(({ blocks }) => blocks.length > 0);
}

/**
 * Runs the examples of a section, then the check, with the built dmfuse or another one. Throws with all that was printed at the
 * first command that fails.
 */
export async function runExamples(
  lab: Lab,
  { blocks }: ExampleSection,
  example: ExampleCase,
  main = MAIN,
): Promise<void> {
  const chosen = (example.blocks ?? blocks.map((_, i) => i)).map((i) => blocks[i] ?? 'no_such_block');
  const text = SUBSTITUTES.reduce((result, [from, to]) => result.replace(from, to), chosen.join('\n'));
  const lines = text.split('\n').map((line) => {
    const inserted = (example.before ?? []).filter(([pattern]) => pattern.test(line));
    return [...inserted.map(([, shell]) => shell), line].join('\n');
  });
  const script = [example.prepare ?? '', ...lines, 'detach', example.check ?? ''].join('\n');
  writeFileSync(lab.path('examples'), script);
  await lab.ok('unshare', '-m', '--propagation', 'slave', 'bash', PLACE, lab.folder, process.execPath, main);
}
