#!/usr/bin/env node
/** The command line: what the commands are called and take is in commands/. What they do is imported when one is run. */
import { Command, CommanderError, type Option } from 'commander';
import { messageOf } from '../../src/errors.js';
import { VERSION } from '../version.js';
import { bowCommands } from './commands/bow.js';
import { cbtCommands } from './commands/cbt.js';
import { cloneCommands } from './commands/clone.js';
import { cowCommands } from './commands/cow.js';
import { csumCommands } from './commands/csum.js';
import { mountCommands } from './commands/mount.js';
import { snapshotCommands } from './commands/snapshot.js';
import { targetsCommands } from './commands/targets.js';
import { EXIT_FAILED } from './output.js';

const EXIT_USAGE = 64;

function program(): Command {
  const dmfuse = new Command('dmfuse')
    .description(
      'Block devices that the kernel lacks, as files of a FUSE mount: checkpoint, roll back and more.',
    )
    .version(VERSION)
    .showHelpAfterError('(dmfuse --help tells more)')
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'dmfuse: ')) })
    .configureHelp({ optionDescription: describeOption });
  mountCommands(dmfuse);
  targetsCommands(dmfuse);
  bowCommands(dmfuse);
  csumCommands(dmfuse);
  cowCommands(dmfuse);
  cloneCommands(dmfuse);
  snapshotCommands(dmfuse);
  cbtCommands(dmfuse);
  exitByThrowing(dmfuse);
  return dmfuse;
}

function exitByThrowing(command: Command): void {
  command.exitOverride();
  for (const part of command.commands) exitByThrowing(part);
}

/** A default is worth a word where it is a value, not where it is an option left out. */
function describeOption({ description, defaultValue, defaultValueDescription }: Option): string {
  if (typeof defaultValue !== 'number') return description;
  return `${description} (default: ${defaultValueDescription ?? defaultValue})`;
}

/** Actions resolve to an exit code, or to nothing for 0. */
async function run(): Promise<number> {
  try {
    await program().parseAsync();
    return typeof process.exitCode === 'number' ? process.exitCode : 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
    process.stderr.write(`dmfuse: ${messageOf(error)}\n`);
    return EXIT_FAILED;
  }
}

void run().then((code) => {
  process.exitCode = code;
});
