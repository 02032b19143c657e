/** `dmfuse stats` and `top`: what targets do, in numbers. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { ListenAddress } from '../metrics-server.js';

const INTERVAL_DEFAULT_SECONDS = 2;
const INTERVAL_SECONDS = { least: 0.1, most: 86_400 };

export function statsCommands(dmfuse: Command): void {
  dmfuse
    .command('stats')
    .summary('print counters and latencies')
    .description(
      'print what one target or all have done: requests, bytes, errors, latencies. I/O that the kernel passes through is not seen',
    )
    .argument('<MNT>')
    .argument('[NAME]')
    .option('--json', 'print JSON', false)
    .addOption(new Option('--prometheus', 'print them in the text format of Prometheus').conflicts(['json']))
    .addOption(
      new Option('--output <FILE>', 'the same, into a file that is replaced whole: for node_exporter')
        .conflicts(['json', 'listen'])
        .implies({ prometheus: true }),
    )
    .addOption(
      new Option(
        '--listen <[HOST:]PORT>',
        'the same, over HTTP at /metrics, until SIGTERM; HOST is 127.0.0.1',
      )
        .argParser(parseListen)
        .conflicts(['json']),
    )
    .action(async (mountPoint, name, options) =>
      (await import('../stats.js')).stats(mountPoint, name, options),
    );

  dmfuse
    .command('top')
    .summary('show what targets do, live')
    .description(
      'show rates, queue depth, latency and state of each target, anew every interval; q ends it. Where stdout is no terminal, ' +
        'one table after the other',
    )
    .argument('<MNT>')
    .addOption(
      new Option('--interval <SECONDS>', 'the time that rates are taken over')
        .argParser(parseInterval)
        .default(INTERVAL_DEFAULT_SECONDS),
    )
    .addOption(new Option('-n, --count <COUNT>', 'end after so many').argParser(parseCount))
    .addOption(new Option('--once', 'the same as --count 1').conflicts(['count']))
    .option('--json', 'print a JSON object a line', false)
    .action(async (mountPoint, options) => (await import('../top.js')).top(mountPoint, options));
}

/** `[HOST:]PORT`, an IPv6 address in brackets. Without HOST nobody else is let in. */
export function parseListen(value: string): ListenAddress {
  const [, bracketed, plain, digits] = /^(?:(?:\[([^[\]]+)\]|([^:[\]]+)):)?(\d{1,5})$/.exec(value) ?? [];
  const port = Number(digits);
  if (digits !== undefined && port <= 65_535) return { host: bracketed ?? plain ?? '127.0.0.1', port };
  throw new InvalidArgumentError('expected PORT or HOST:PORT, an IPv6 address in brackets');
}

function parseInterval(value: string): number {
  const seconds = Number(value);
  const { least, most } = INTERVAL_SECONDS;
  if (/^\d+(\.\d+)?$/.test(value) && seconds >= least && seconds <= most) return seconds;
  throw new InvalidArgumentError(`expected seconds from ${least} to ${most}`);
}

function parseCount(value: string): number {
  const count = Number(value);
  if (/^\d+$/.test(value) && count >= 1 && Number.isSafeInteger(count)) return count;
  throw new InvalidArgumentError('expected a number from 1 on');
}
