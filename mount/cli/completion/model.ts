/**
 * What can stand where on the command line, read off the tree of commands, for scripts that complete it.
 *
 * What an argument or the value of an option is follows from its name in the help text: `<MNT>` is a mount point everywhere.
 */
import type { Command } from 'commander';

/** What is offered in a place. `choices` are in `words`; `none`: something new, or a number. */
export type Kind =
  | 'mounts'
  | 'targets'
  | 'snapshots'
  | 'directories'
  | 'files'
  | 'commands'
  | 'choices'
  | 'none';

export interface Place {
  readonly kind: Kind;
  /** What there is to choose from, for `choices`. */
  readonly words: readonly string[];
}

export interface OptionEntry {
  /** `-f` and `--foreground`. */
  readonly flags: readonly string[];
  readonly description: string;
  /** Undefined: takes no value. */
  readonly value: Place | undefined;
}

export interface CommandEntry {
  /** Words after `dmfuse`: '', 'bow', 'bow restore'. */
  readonly path: string;
  readonly subcommands: readonly { readonly name: string; readonly description: string }[];
  readonly options: readonly OptionEntry[];
  /** In order. The last one stands for all that follow when the command takes any number. */
  readonly places: readonly Place[];
  readonly isVariadic: boolean;
}

const KINDS: Readonly<Record<string, Kind>> = {
  MNT: 'mounts',
  NAME: 'targets',
  S: 'snapshots',
  DIR: 'directories',
  COMMAND: 'commands',
  ...Object.fromEntries(
    [
      'BASE',
      'DEV',
      'FILE',
      'IMAGE',
      'IMD',
      'LAYER',
      'META',
      'OLD_BITMAP',
      'OUT',
      'PATH',
      'STACK',
      'TABLE',
    ].map((name) => [name, 'files' as const]),
  ),
};

/** Where a name means something else than elsewhere: what the command makes, or where it mounts. */
const EXCEPTIONS: Readonly<Record<string, Kind>> = {
  'mount MNT': 'directories',
  'create NAME': 'none',
  'snapshot create S': 'none',
  'snapshot run S': 'none',
};

/** The command and all below it, itself first. */
export function commandEntries(command: Command, path = ''): CommandEntry[] {
  const inside = command.commands.map((part) => commandEntries(part, `${path} ${part.name()}`.trim()));
  const own: CommandEntry = {
    path,
    subcommands: command.commands.map((part) => ({ name: part.name(), description: summaryOf(part) })),
    options: optionsOf(command),
    places: command.registeredArguments.map((argument) =>
      placeOf(path, argument.name(), argument.argChoices),
    ),
    isVariadic: command.registeredArguments.at(-1)?.variadic ?? false,
  };
  return [own, ...inside.flat()];
}

function optionsOf(command: Command): OptionEntry[] {
  return command
    .createHelp()
    .visibleOptions(command)
    .map((option) => ({
      flags: [option.short, option.long].filter((flag) => flag != null),
      description: option.description,
      value:
        option.required || option.optional
          ? placeOf('', /[<[]([^>]*)/.exec(option.flags)?.[1] ?? '', option.argChoices)
          : undefined,
    }));
}

function placeOf(path: string, name: string, choices: readonly string[] | undefined): Place {
  if (choices) return { kind: 'choices', words: choices };
  return { kind: EXCEPTIONS[`${path} ${name}`] ?? KINDS[name] ?? 'none', words: [] };
}

function summaryOf(command: Command): string {
  return command.summary() || command.description();
}
