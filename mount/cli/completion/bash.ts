/**
 * Completion for bash: tables of what stands where, as functions of one `case` each, and a function that walks the words typed
 * so far through them. Mount points, targets and snapshots are looked up by the shell alone: no process is started for a TAB.
 */
import type { CommandEntry, Place } from './model.js';

export function bashScript(entries: readonly CommandEntry[]): string {
  return `# Completion of dmfuse for bash. Load it with: . <(dmfuse completion bash)
# or keep it: dmfuse completion bash > /etc/bash_completion.d/dmfuse

# Each table leaves in REPLY what it has for the command of the words $1, or nothing.
_dmfuse_subcommands() {
  case $1 in
${entries
  .filter(({ subcommands }) => subcommands.length > 0)
  .map((entry) => arm(quote(entry.path), words(entry.subcommands.map(({ name }) => name))))
  .join('\n')}
  *) REPLY= ;;
  esac
}

_dmfuse_options() {
  case $1 in
${entries.map((entry) => arm(quote(entry.path), words(entry.options.flatMap(({ flags }) => flags)))).join('\n')}
  *) REPLY= ;;
  esac
}

# What the value of option $2 is; nothing where it takes none.
_dmfuse_value() {
  case $1:$2 in
${entries.flatMap(valueArms).join('\n')}
  *) REPLY= ;;
  esac
}

# What argument number $2 is.
_dmfuse_place() {
  case $1:$2 in
${entries.flatMap(placeArms).join('\n')}
  *) REPLY=none ;;
  esac
}
${FIXED}`;
}

function valueArms({ path, options }: CommandEntry): string[] {
  return options.flatMap(({ flags, value }) =>
    value ? [arm(flags.map((flag) => quote(`${path}:${flag}`)).join(' | '), offer(value))] : [],
  );
}

function placeArms({ path, places, isVariadic }: CommandEntry): string[] {
  return places.map((place, i) => {
    const isLast = i === places.length - 1;
    const pattern = isLast && isVariadic ? `${quote(`${path}:`)}*` : quote(`${path}:${i + 1}`);
    return arm(pattern, offer(place));
  });
}

function arm(pattern: string, reply: string): string {
  return `  ${pattern}) REPLY=${quote(reply)} ;;`;
}

function words(all: readonly string[]): string {
  return all.join(' ');
}

function offer({ kind, words: choices }: Place): string {
  return [kind, ...choices].join(' ');
}

/** Names of commands and options, which hold no quotes. */
function quote(text: string): string {
  return `'${text}'`;
}

/** What does not depend on the commands. */
const FIXED = `
# Adds those of the candidates that begin as $1 does.
_dmfuse_add() {
  local prefix=$1 candidate quoted
  shift
  for candidate; do
    [[ $candidate == "$prefix"* ]] || continue
    printf -v quoted %q "$candidate"
    COMPREPLY+=("$quoted")
  done
}

# Mount points, with blanks as they are and not as octal numbers.
_dmfuse_mounts() {
  local id parent device root point rest
  local -a points=()
  while read -r id parent device root point rest; do
    [[ $rest == *' - fuse.dmfuse '* ]] || continue
    printf -v point %b "$point"
    points+=("$point")
  done </proc/self/mountinfo
  _dmfuse_add "$1" "\${points[@]}"
}

# Folders in $2, but for the one named $3.
_dmfuse_folders() {
  local folder
  local -a names=()
  for folder in "$2"/*/; do
    folder=\${folder%/}
    [[ -d $folder && \${folder##*/} != "$3" ]] && names+=("\${folder##*/}")
  done
  _dmfuse_add "$1" "\${names[@]}"
}

# Files or directories, which bash quotes by itself.
_dmfuse_files() {
  mapfile -t COMPREPLY < <(compgen -A "$1" -- "$2")
  compopt -o filenames 2>/dev/null
}

# Offers what is of the kind $1 and begins as $2 does, in the mount $3. Further arguments are the choices.
_dmfuse_offer() {
  local kind=$1 current=$2 mount=$3
  shift 3
  case $kind in
  mounts)
    _dmfuse_mounts "$current"
    [[ \${#COMPREPLY[@]} -gt 0 ]] || _dmfuse_offer directories "$current" "$mount"
    ;;
  targets) [[ -z $mount ]] || _dmfuse_folders "$current" "$mount" snapshots ;;
  snapshots) [[ -z $mount ]] || _dmfuse_folders "$current" "$mount/snapshots" params ;;
  choices) _dmfuse_add "$current" "$@" ;;
  directories) _dmfuse_files directory "$current" ;;
  files) _dmfuse_files file "$current" ;;
  commands) mapfile -t COMPREPLY < <(compgen -A command -- "$current") ;;
  esac
}

_dmfuse() {
  local current=\${COMP_WORDS[COMP_CWORD]} command='' mount='' value='' options=yes place=1 i word REPLY
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    if [[ -n $options && $word == -- ]]; then
      options=
    elif [[ -n $options && $word == -* ]]; then
      _dmfuse_value "$command" "$word"
      [[ -n $REPLY ]] || continue
      # Bash makes three words of --option=value.
      [[ \${COMP_WORDS[i + 1]} != = ]] || ((i++))
      ((++i < COMP_CWORD)) || value=$REPLY
    else
      _dmfuse_subcommands "$command"
      if [[ " $REPLY " == *" $word "* ]]; then
        command="\${command:+$command }$word"
      else
        if [[ $place == 1 ]]; then
          # As it is typed: with a tilde, backslashes, quotes.
          mount=\${word/#\\~/$HOME}
          mount=\${mount//[\\\\\\"\\']/}
        fi
        ((place++))
      fi
    fi
  done
  [[ $current != = ]] || current=
  if [[ -n $value ]]; then
    REPLY=$value
  elif [[ -n $options && $current == -* ]]; then
    _dmfuse_options "$command"
    REPLY="choices $REPLY"
  else
    _dmfuse_subcommands "$command"
    if [[ -n $REPLY ]]; then REPLY="choices $REPLY"; else _dmfuse_place "$command" "$place"; fi
  fi
  local -a what
  read -ra what <<<"$REPLY"
  _dmfuse_offer "\${what[0]}" "$current" "$mount" "\${what[@]:1}"
}

complete -F _dmfuse dmfuse
`;
