/** The tree of all commands: what main.ts runs, what completion is made of, and what the manuals are held against. */
import { Command, type Option } from 'commander';
import { bowCommands } from './commands/bow.js';
import { cbtCommands } from './commands/cbt.js';
import { cloneCommands } from './commands/clone.js';
import { completionCommands } from './commands/completion.js';
import { cowCommands } from './commands/cow.js';
import { csumCommands } from './commands/csum.js';
import { mapCommands } from './commands/map.js';
import { mountCommands } from './commands/mount.js';
import { servicesCommands } from './commands/services.js';
import { snapshotCommands } from './commands/snapshot.js';
import { statsCommands } from './commands/stats.js';
import { targetsCommands } from './commands/targets.js';

export function program(version: string): Command {
  const dmfuse = new Command('dmfuse')
    .description(
      'Block devices that the kernel lacks, as files of a FUSE mount: checkpoint, roll back and more.',
    )
    .version(version)
    .showHelpAfterError('(dmfuse --help tells more)')
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'dmfuse: ')) })
    .configureHelp({ optionDescription: describeOption });
  mountCommands(dmfuse);
  targetsCommands(dmfuse);
  statsCommands(dmfuse);
  mapCommands(dmfuse);
  bowCommands(dmfuse);
  csumCommands(dmfuse);
  cowCommands(dmfuse);
  cloneCommands(dmfuse);
  snapshotCommands(dmfuse);
  cbtCommands(dmfuse);
  servicesCommands(dmfuse);
  completionCommands(dmfuse);
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
