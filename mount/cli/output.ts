/** The exit code of a command that could not do what it was asked. */
export const EXIT_FAILED = 1;
/** Of `check` verbs: damage was found; there is nothing of the kind to check. */
export const EXIT_DAMAGED = 2;
export const EXIT_NOTHING_THERE = 3;

/** What every reading verb prints with --json carries this; it grows when a field changes its meaning or goes. */
const OUTPUT_VERSION = 1;

/** Prints one JSON object. */
export function printJson(value: object): void {
  process.stdout.write(`${JSON.stringify({ output_version: OUTPUT_VERSION, ...value }, null, 2)}\n`);
}

/** One JSON object, on one line. */
export function jsonLine(value: object): string {
  return JSON.stringify({ output_version: OUTPUT_VERSION, ...value });
}

/** Tells people something that is no result. */
export function note(text: string): void {
  process.stderr.write(`dmfuse: ${printable(text)}\n`);
}

/** For people: no control characters but newlines. Paths and the names of processes are any user's words, and terminals obey them. */
export function printable(text: string): string {
  return text.replace(/(?!\n)\p{Cc}/gu, '?');
}

/** Prints a result: for programs as it is, on a terminal for people. */
export function print(text: string): void {
  process.stdout.write(process.stdout.isTTY ? printable(text) : text);
}

/** Shows a line that replaces the one before, for people who watch a terminal; nothing for everybody else. */
export function showProgress(line: string): void {
  if (!process.stderr.isTTY) return;
  // A line that breaks could not be replaced. Some terminals do not know how wide they are: 0.
  const width = process.stderr.columns || Number.POSITIVE_INFINITY;
  process.stderr.write(`\r\x1b[K${line.slice(0, width - 1)}`);
}

/** Prints a result, in place of the progress. */
export function say(text: string): void {
  showProgress('');
  print(`${text}\n`);
}
