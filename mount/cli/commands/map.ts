/** `dmfuse map`. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { QUIET } from './options.js';

const WIDTH_MIN = 480;
const WIDTH_MAX = 4096;
const WIDTH_DEFAULT = 1040;

export function mapCommands(dmfuse: Command): void {
  dmfuse
    .command('map')
    .summary('draw a target as a picture')
    .description(
      'draw what is where on a live target: the ranges of bow, the layers of cow, the regions of clone, what csum found bad, ' +
        'the data of linear, and on any of them what blksnap says has changed. Without -o in letters',
    )
    .argument('<MNT>')
    .argument('<NAME>')
    .option('-o, --output <FILE>', 'a picture, by its name FILE.svg or FILE.png; - for stdout, with --format')
    .addOption(new Option('--format <FORMAT>', 'whatever FILE is called').choices(['svg', 'png']))
    .option('--width <PX>', `pixels, ${WIDTH_MIN} to ${WIDTH_MAX}`, parseWidth, WIDTH_DEFAULT)
    .option(...QUIET)
    .addOption(new Option('--json', 'print JSON: the classes and the cells').conflicts(['output', 'format']))
    .action(async (mountPoint, name, options, command: Command) => {
      const format = options.format ?? /\.(svg|png)$/.exec(options.output ?? '')?.[1];
      if (options.output !== undefined && format === undefined) {
        command.error(`error: ${options.output}: which format? call it .svg or .png, or use --format`);
      }
      await (await import('../map.js')).drawMap(mountPoint, name, { json: false, ...options, format });
    });
}

function parseWidth(value: string): number {
  const width = Number(value);
  if (/^\d+$/.test(value) && width >= WIDTH_MIN && width <= WIDTH_MAX) return width;
  throw new InvalidArgumentError(`expected ${WIDTH_MIN} to ${WIDTH_MAX} pixels`);
}
