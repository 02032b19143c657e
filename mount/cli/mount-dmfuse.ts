#!/usr/bin/env node
/** mount.dmfuse: `dmfuse mount` for mount(8), with the exit codes that it knows. */
import { messageOf } from '../../src/errors.js';
import { helperArguments } from './mount-helper.js';
import { printable } from './output.js';

/** mount(8), "EXIT STATUS". */
const EXIT_WRONG_CALL = 1;
const EXIT_MOUNT_FAILED = 32;

async function helper(): Promise<number> {
  let args: string[];
  try {
    args = helperArguments(process.argv.slice(2));
  } catch (error) {
    process.stderr.write(`mount.dmfuse: ${printable(messageOf(error))}\n`);
    return EXIT_WRONG_CALL;
  }
  if (args.length === 0) return 0;
  // The daemon in the background is started with these too.
  process.argv.splice(2, Number.POSITIVE_INFINITY, ...args);
  const { run } = await import('./run.js');
  return (await run()) === 0 ? 0 : EXIT_MOUNT_FAILED;
}

void helper().then((code) => {
  process.exitCode = code;
});
