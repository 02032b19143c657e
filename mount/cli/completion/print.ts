/** `dmfuse completion`: one model of the command line, printed for the shell that asks. */
import type { Command } from 'commander';
import { bashScript } from './bash.js';
import { fishScript } from './fish.js';
import { type CommandEntry, commandEntries } from './model.js';
import { zshScript } from './zsh.js';

const SCRIPTS: Readonly<Record<string, (entries: readonly CommandEntry[]) => string>> = {
  bash: bashScript,
  zsh: zshScript,
  fish: fishScript,
};

/** Commander has checked that it is one of the three. */
export function printCompletion(shell: string, dmfuse: Command): void {
  process.stdout.write(SCRIPTS[shell]!(commandEntries(dmfuse)));
}
