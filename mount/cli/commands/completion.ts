/** `dmfuse completion …`. */
import { Argument, type Command } from 'commander';

export function completionCommands(dmfuse: Command): void {
  dmfuse
    .command('completion')
    .summary('print a completion script for a shell')
    .description(
      'print what makes a shell complete the command line of dmfuse: commands, options, mount points, targets and snapshots',
    )
    .addArgument(new Argument('<SHELL>', 'which shell').choices(['bash', 'zsh', 'fish']))
    .action(async (shell) => (await import('../completion/print.js')).printCompletion(shell, dmfuse));
}
