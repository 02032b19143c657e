/**
 * Completion for fish: a line for each subcommand, option and argument. Which command is being typed, and which of its arguments,
 * is found by a function that walks the words; mount points, targets and snapshots are looked up by the shell alone.
 */
import type { CommandEntry, OptionEntry, Place } from './model.js';

export function fishScript(entries: readonly CommandEntry[]): string {
  return `# Completion of dmfuse for fish. Keep it: dmfuse completion fish > ~/.config/fish/completions/dmfuse.fish

# Whether $argv[2] is a subcommand of the command of the words $argv[1].
function __dmfuse_is_subcommand
    switch $argv[1]
${entries
  .filter(({ subcommands }) => subcommands.length > 0)
  .map(({ path, subcommands }) => row(quote(path), subcommands.map(({ name }) => quote(name)).join(' ')))
  .join('\n')}
    end
    return 1
end

# Whether option $argv[2] of it takes a value.
function __dmfuse_takes_value
    switch $argv[1]
${entries.flatMap(valueRow).join('\n')}
    end
    return 1
end
${FIXED}
complete -c dmfuse -f
${entries.flatMap(lines).join('\n')}
`;
}

function row(pattern: string, words: string): string {
  return `        case ${pattern}\n            contains -- $argv[2] ${words}; and return 0`;
}

function valueRow({ path, options }: CommandEntry): string[] {
  const flags = options.filter(({ value }) => value).flatMap((option) => option.flags);
  return flags.length > 0 ? [row(quote(path), flags.map(quote).join(' '))] : [];
}

function lines({ path, subcommands, options, places, isVariadic }: CommandEntry): string[] {
  const at = (place: string) => `complete -c dmfuse -n ${quote(`__dmfuse_at ${place} ${path}`)}`;
  return [
    ...subcommands.map(({ name, description }) => `${at('1')} -a ${name} -d ${quote(description)}`),
    ...options.map((option) => `${at('any')} ${optionWords(option)}`),
    ...places.map((place, i) => {
      const number = isVariadic && i === places.length - 1 ? `${i + 1}+` : `${i + 1}`;
      return `${at(number)} ${offer(place)}`.trimEnd();
    }),
  ];
}

function optionWords({ flags, description, value }: OptionEntry): string {
  const names = flags.map((flag) => (flag.startsWith('--') ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`));
  const takes = value ? ` ${value.kind === 'files' ? '-r' : '-x'} ${offer(value)}`.trimEnd() : '';
  return `${names.join(' ')} -d ${quote(description)}${takes}`;
}

function offer({ kind, words }: Place): string {
  if (kind === 'choices') return `-a ${quote(words.join(' '))}`;
  if (kind === 'files') return '-F';
  if (kind === 'none') return '';
  return `-a '(__dmfuse_${kind})'`;
}

function quote(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
}

/** What does not depend on the commands. */
const FIXED = `
# Walks the words before the cursor: the command they name, then its arguments so far, a line each.
function __dmfuse_words
    set -l command ''
    set -l found
    set -l skip 0
    set -l options 1
    set -l typed (commandline -opc)
    for word in $typed[2..]
        if test $skip = 1
            set skip 0
        else if test $options = 1 -a "$word" = --
            set options 0
        else if test $options = 1; and string match -q -- '-*' $word
            __dmfuse_takes_value "$command" $word; and set skip 1
        else if __dmfuse_is_subcommand "$command" $word
            set command (string trim "$command $word")
        else
            set -a found $word
        end
    end
    printf '%s\\n' "$command" $found
end

# Whether the cursor is in the command $argv[2..], at its argument number $argv[1]: a number, N+ from there on, or any.
function __dmfuse_at
    set -l words (__dmfuse_words)
    test "$words[1]" = "$argv[2..]"; or return 1
    set -l number (count $words)
    switch $argv[1]
        case any
            return 0
        case '*+'
            test $number -ge (string replace + '' $argv[1])
        case '*'
            test $number = $argv[1]
    end
end

# Mount points, with blanks as they are and not as octal numbers.
function __dmfuse_mounts
    while read -l line
        string match -q '* - fuse.dmfuse *' $line; and printf '%b\\n' (string split ' ' $line)[5]
    end </proc/self/mountinfo
    __fish_complete_directories (commandline -ct)
end

function __dmfuse_directories
    __fish_complete_directories (commandline -ct)
end

function __dmfuse_commands
    __fish_complete_command
end

# Folders in $argv[1], but for the one named $argv[2].
function __dmfuse_folders
    for folder in $argv[1]/*/
        set -l name (string split / $folder)[-2]
        test "$name" = "$argv[2]"; or echo $name
    end
end

function __dmfuse_targets
    set -l words (__dmfuse_words)
    set -q words[2]; and __dmfuse_folders $words[2] snapshots
end

function __dmfuse_snapshots
    set -l words (__dmfuse_words)
    set -q words[2]; and __dmfuse_folders $words[2]/snapshots params
end
`;
