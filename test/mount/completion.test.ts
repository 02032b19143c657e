/** `dmfuse completion`: what each shell offers, asked of the shell itself. */
import { existsSync } from 'node:fs';
import { describe, expect } from 'vitest';
import { commandEntries } from '../../mount/cli/completion/model.js';
import { program } from '../../mount/cli/program.js';
import { type Lab, MAIN, mountTest } from './harness.js';

const commands = commandEntries(program(''));
const subcommandsOf = (path: string) =>
  commands.find((command) => command.path === path)!.subcommands.map(({ name }) => name);

interface Shell {
  /** What is offered for the last word of a command line. */
  complete(lab: Lab, script: string, words: readonly string[]): Promise<string[]>;
}

const quote = (word: string) => `'${word.replaceAll("'", "'\\''")}'`;

const SHELLS: Record<string, Shell> = {
  bash: {
    async complete(lab, script, words) {
      // A PATH with nothing in it: no process may be started.
      const out = await lab.ok(
        'bash',
        '-c',
        `. ${script}; COMP_WORDS=(${words.map(quote).join(' ')}); COMP_CWORD=${words.length - 1}; PATH=; _dmfuse
         printf '%s\\n' "\${COMPREPLY[@]}"`,
      );
      return out.split('\n').filter(Boolean);
    },
  },
  fish: {
    async complete(lab, script, words) {
      const line = words.map((word) => word.replaceAll(' ', '\\ ')).join(' ');
      const out = await lab.ok('fish', '--no-config', '-c', `source ${script}; complete -C ${quote(line)}`);
      return out
        .split('\n')
        .map((offer) => offer.split('\t')[0]!)
        .filter(Boolean);
    },
  },
};

/** As a shell that cannot be asked without a terminal: zsh, through one that Python makes. */
SHELLS.zsh = {
  async complete(lab, script, words) {
    const line = words.map((word) => word.replaceAll(' ', '\\ ')).join(' ');
    const out = await lab.python(ZSH_ON_A_TERMINAL, script, line);
    return out.split('\n').filter(Boolean);
  },
};

/** Asks the completion system itself what it would add: `compadd` is replaced by one that prints. */
const ZSH_ON_A_TERMINAL = `
import os, pty, re, sys, select, time
script, line = sys.argv[1:3]
pid, fd = pty.fork()
if pid == 0:
    os.environ.update(TERM='dumb', PS1='ready> ', ZDOTDIR='/nonexistent')
    os.execvp('zsh', ['zsh', '-f', '-i'])
def read_until(mark):
    seen = b''
    while mark not in seen:
        if not select.select([fd], [], [], 60)[0]: sys.exit('no ' + repr(mark) + ' in ' + repr(seen))
        seen += os.read(fd, 65536)
    return seen
def do(text):
    os.write(fd, text.encode() + b'\\n')
    return read_until(b'done' + b'$?'.replace(b'$?', b'=0'))
do("unsetopt zle_bracketed_paste; PS1=''; stty -echo; autoload -Uz compinit; compinit -u -D; source " + script + "; echo done=$?")
do('''compadd() {
  local -a found
  builtin compadd -O found "$@"
  print -rl -- "offer:"$^found
  builtin compadd "$@"
}; zstyle ':completion:*' list-prompt ''; LISTMAX=10000; _whole() { _main_complete; print -r -- END }; zle -C whole complete-word _whole; bindkey '^X' whole; echo done=$?''')
os.write(fd, line.encode() + b'\\x18')
seen = read_until(b'END').decode()
offers = sorted(set(re.findall(r'offer:(.+?)\\r?\\n', seen)))
print('\\n'.join(offers))
os.write(fd, b'\\x03'); os.close(fd)
`;

async function withScript(lab: Lab, shell: string): Promise<(...words: string[]) => Promise<string[]>> {
  const script = lab.path(`completion.${shell}`);
  await lab.sh(`'${process.execPath}' '${MAIN}' completion ${shell} > '${script}'`);
  await lab.ok(shell, '-n', script);
  return async (...words) => await SHELLS[shell]!.complete(lab, script, ['dmfuse', ...words]);
}

for (const shell of Object.keys(SHELLS)) {
  const isThere = ['/bin', '/usr/bin', '/usr/local/bin'].some((folder) => existsSync(`${folder}/${shell}`));
  describe.skipIf(!isThere)(
    `${shell}${isThere ? '' : ' is not installed: scripts/setup installs it'}`,
    () => {
      mountTest(`${shell}: commands, options, choices`, async (lab) => {
        const offers = await withScript(lab, shell);
        expect((await offers('')).filter((word) => subcommandsOf('').includes(word)).sort()).toEqual(
          subcommandsOf('').sort(),
        );
        expect((await offers('bow', '')).sort()).toEqual(subcommandsOf('bow').sort());
        expect(await offers('csum', 'format', '--order', '')).toEqual(['be', 'le']);
        expect((await offers('completion', '')).sort()).toEqual(['bash', 'fish', 'zsh']);
        expect(await offers('mount', '--')).toEqual(
          expect.arrayContaining(['--create', '--lanes', '--state-dir']),
        );
        expect(await offers('cbt', 'map', '--si')).toContain('--since');
      });

      mountTest(`${shell}: mount points, targets, snapshots, files`, async (lab) => {
        const offers = await withScript(lab, shell);
        await lab.sh('truncate -s 1M disk.img');
        const mount = await lab.mount({
          name: 'a mount',
          args: [
            '--create',
            `one linear ${lab.path('disk.img')} 0 1 no_passthrough`,
            '--create',
            'two linear @one 0',
          ],
        });
        // The guard knows no paths with blanks.
        lab.onClose(mount.umount);
        await lab.sh(
          `echo blksnap > '${mount.path('two/filter')}'; mkdir '${mount.path('snapshots/nightly')}'`,
        );
        const typed = mount.point.replaceAll(' ', '\\ ');
        const isBash = shell === 'bash';
        const point = isBash ? typed : mount.point;

        expect((await offers('status', lab.path('a'))).map((path) => path.replace(/\/$/, ''))).toContain(
          shell === 'zsh' ? mount.point : isBash ? typed : mount.point,
        );
        expect((await offers('status', point, '')).sort()).toEqual(['one', 'two']);
        expect(await offers('status', '--json', point, 't')).toEqual(['two']);
        expect(await offers('create', point, '')).toEqual([]);
        expect(await offers('snapshot', 'take', '--no-freeze', point, '')).toEqual(['nightly']);
        expect((await offers('snapshot', 'create', point, 's', '--device', '')).sort()).toEqual([
          'one',
          'two',
        ]);
        expect((await offers('bow', 'restore', lab.path('disk'))).join()).toContain('disk.img');
        expect((await offers('cow', 'commit', 'base', lab.path('disk'))).join()).toContain('disk.img');
      });
    },
  );
}
