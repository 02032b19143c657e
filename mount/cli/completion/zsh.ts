/**
 * Completion for zsh: a function for each command, in the terms of zsh's own `_arguments`. Mount points, targets and snapshots are
 * looked up by the shell alone: no process is started for a TAB.
 */
import type { CommandEntry, OptionEntry, Place } from './model.js';

export function zshScript(entries: readonly CommandEntry[]): string {
  return `#compdef dmfuse
# Completion of dmfuse for zsh. Keep it in a folder of $fpath: dmfuse completion zsh > /usr/local/share/zsh/site-functions/_dmfuse
${FIXED}
${entries.map(commandFunction).join('\n')}
if [[ $funcstack[1] == _dmfuse ]]; then _dmfuse "$@"; else compdef _dmfuse dmfuse; fi
`;
}

function functionName(path: string): string {
  return ['_dmfuse', ...path.split(' ').filter(Boolean)].join('_');
}

function commandFunction(entry: CommandEntry): string {
  const { path, subcommands, options, places, isVariadic } = entry;
  const name = functionName(path);
  const optionSpecs = options.map(optionSpec);
  if (subcommands.length === 0) {
    const specs = places.map((place, i) => {
      const number = isVariadic && i === places.length - 1 ? '*' : `${i + 1}`;
      return quote(`${number}:${label(place)}:${action(place)}`);
    });
    return `${name}() {
  local line
  typeset -A opt_args
  _arguments -s : ${[...optionSpecs, ...specs].join(' \\\n    ')}
}
`;
  }
  const described = subcommands.map((part) => quote(`${part.name}:${part.description}`));
  return `${name}() {
  local line state
  typeset -A opt_args
  local -a commands=(
    ${described.join('\n    ')}
  )
  _arguments -C : ${optionSpecs.join(' \\\n    ')} \\
    '1:command:{_describe command commands}' '*:: :->rest'
  [[ $state != rest ]] || case $line[1] in
${subcommands.map((part) => `  ${part.name}) ${functionName(`${path} ${part.name}`)} ;;`).join('\n')}
  esac
}
`;
}

function optionSpec({ flags, description, value }: OptionEntry): string {
  const rest = `[${escapeDescription(description)}]${value ? `:${label(value)}:${action(value)}` : ''}`;
  if (flags.length === 1) return quote(`*${flags[0]}${rest}`);
  return `'*'{${flags.join(',')}}${quote(rest)}`;
}

function label({ kind }: Place): string {
  return kind === 'choices' || kind === 'none' ? 'value' : kind.replace(/s$/, '').replace('ie', 'y');
}

function action({ kind, words }: Place): string {
  const actions: Readonly<Record<Place['kind'], string>> = {
    mounts: '_dmfuse__mounts',
    targets: '_dmfuse__targets',
    snapshots: '_dmfuse__snapshots',
    directories: '_files -/',
    files: '_files',
    commands: '_command_names -e',
    choices: `(${words.join(' ')})`,
    none: '',
  };
  return actions[kind];
}

/** For a description in brackets. */
function escapeDescription(text: string): string {
  return text.replace(/[[\]\\:]/g, '\\$&');
}

function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** What does not depend on the commands. */
const FIXED = `
# Mount points, with blanks as they are and not as octal numbers.
_dmfuse__mounts() {
  local entry
  local -a points fields
  while read -r entry; do
    [[ $entry == *' - fuse.dmfuse '* ]] || continue
    fields=(\${=entry})
    points+=("$(printf %b "$fields[5]")")
  done </proc/self/mountinfo
  compadd -a points
  _files -/
}

# Folders in the mount that is the first argument (in the folder $1 of it), but for the one named $2.
_dmfuse__folders() {
  local folder=\${(Q)line[1]}
  [[ -n $folder ]] || return 1
  folder=\${folder/#\\~/$HOME}/$1
  local -a names=($folder/*(N-/:t))
  names=(\${names:#$2})
  compadd -a names
}

_dmfuse__targets() { _dmfuse__folders '' snapshots }
_dmfuse__snapshots() { _dmfuse__folders snapshots params }
`;
