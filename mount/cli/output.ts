/** What every reading verb prints with --json carries this; it grows when a field changes its meaning or goes. */
const OUTPUT_VERSION = 1;

/** Prints one JSON object. */
export function printJson(value: object): void {
  process.stdout.write(`${JSON.stringify({ output_version: OUTPUT_VERSION, ...value }, null, 2)}\n`);
}
