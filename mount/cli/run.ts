/** Runs the command that the process was called with. */
import { CommanderError } from 'commander';
import { messageOf } from '../../src/errors.js';
import { VERSION } from '../version.js';
import { EXIT_FAILED, note } from './output.js';
import { program } from './program.js';

const EXIT_USAGE = 64;

/** Resolves to its exit code. Actions resolve to an exit code, or to nothing for 0. */
export async function run(): Promise<number> {
  // Else it opens Node's debugger, a port on which anybody of this machine may have code run with our rights.
  process.on('SIGUSR1', () => {});
  try {
    await program(VERSION).parseAsync();
    return typeof process.exitCode === 'number' ? process.exitCode : 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
    note(messageOf(error));
    return EXIT_FAILED;
  }
}
