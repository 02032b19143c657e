/** `dmfuse cow …`. */
import type { Command } from 'commander';
import { PROGRESS_JSON, parseBlockSize, parseSize, QUIET } from './options.js';

const STACK_HELP =
  'a base and its layers, bottom to top, each with LAYER.bitmap beside it; or a table line in one word, ' +
  'which layers may follow';

export function cowCommands(dmfuse: Command): void {
  const cow = dmfuse
    .command('cow')
    .description('work on the layers of a cow stack, while it is not attached');
  cow
    .command('create')
    .description(
      'make an empty layer, the files LAYER and LAYER.bitmap, and print its part of a table. With --import-seed make ' +
        'only LAYER.bitmap, for data that the dm-cow of 2006 wrote to LAYER',
    )
    .argument(
      '<BASE>',
      'what it goes on: a file or block device, another layer, or the table line of a stack',
    )
    .argument('<LAYER>')
    .option('--size <SECTORS>', 'of the stack; all of BASE by default', parseSize)
    .option('--import-seed <OLD_BITMAP>', 'infer the bits from a bitmap that it wrote, which stays as it is')
    .option('--block-size <BYTES>', 'that of the device of OLD_BITMAP, 512 to 32768', parseBlockSize, 4096)
    .option(...QUIET)
    .option(...PROGRESS_JSON)
    .action(async (base, layer, options) => (await import('../cow.js')).createCowLayer(base, layer, options));
  cow
    .command('commit')
    .description(
      'merge the top layer into the member below it; may be interrupted at any time and run again. Other stacks on ' +
        'that member change with it',
    )
    .argument('<STACK...>', STACK_HELP)
    .option(...QUIET)
    .option(...PROGRESS_JSON)
    .action(async (stack, options) => (await import('../cow.js')).commitStack(stack, options));
  cow
    .command('flatten')
    .description('make one sparse image of what the stack shows')
    .usage('[options] <STACK...> <OUT>')
    .argument('<STACK...>', `${STACK_HELP}; and OUT, a new file`)
    .option('--force', 'OUT may be a block device, whose content goes', false)
    .option(...QUIET)
    .option(...PROGRESS_JSON)
    .action(async (words: string[], options, command: Command) => {
      const [stack, out] = [words.slice(0, -1), words.at(-1)!];
      if (stack.length === 0) command.error("error: missing required argument 'OUT'");
      await (await import('../cow.js')).flattenStack(stack, out, options);
    });

  cow
    .command('map')
    .description(
      'list the sectors that a layer holds, the top one of a stack: what has changed since it was made. A line a run, ' +
        'start and count',
    )
    .usage('[options] <LAYER> | <STACK...>')
    .argument('<STACK...>', `one layer; or ${STACK_HELP}`)
    .option('--json', 'print JSON', false)
    .action(async (stack, options) => (await import('../cow.js')).mapLayer(stack, options));
}
