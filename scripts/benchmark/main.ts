#!/usr/bin/env node
/** scripts/bench: the command line, and the order of things. */
import { writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { Command, CommanderError, InvalidArgumentError, type Option } from 'commander';
import { showProgress } from '../../mount/cli/output.js';
import { messageOf } from '../../src/errors.js';
import { Interrupted, type Lab } from './lab.js';
import { formatTable } from './report.js';
import { type Options, runBenchmark } from './run.js';
import { SUBJECTS } from './subjects/index.js';
import { WORKLOADS } from './workloads.js';

const EXIT_FAILED = 1;
const EXIT_USAGE = 64;
const EXIT_INTERRUPTED = 130;

function program(): Command {
  return new Command('scripts/bench')
    .description(
      "Measures dmfuse and its peers with fio and compares them with the kernel's own loop device. " +
        'All subjects serve one cached image. In each round every one of them comes up once and is measured as a ' +
        'file and as a loop device, with the reference beside each figure. What is printed are the ratios: their ' +
        'median over the rounds and their spread. What a machine lacks is left out, and the output says so. ' +
        'The verdicts at the end do not change the exit code.',
    )
    .option('--quick', 'about one minute: a small image, fewer rounds, subjects and workloads', false)
    .option('--json <FILE>', 'where every single measurement goes', 'bench.json')
    .option('--only <REGEX>', 'the subjects to measure, of those below', toRegExp)
    .option(
      '--workloads <REGEX>',
      'the workloads, of those below; also first-touch (of bow-1), memory (of bow-0 and of tracked), overlays, crc (of csum), hydration (of clone) and snapshot-fresh',
      toRegExp,
    )
    .option('--dir <DIR>', 'a folder on a disk for the image (default: $TMPDIR or /var/tmp)')
    .option('--size <MIB>', 'of the image (default: 1024, with --quick 256)', toCount(64, 1 << 20))
    .option(
      '--rounds <N>',
      'how often each figure is measured, two thirds of it where no verdict needs it (default: 3, with --quick 2)',
      toCount(1, 1000),
    )
    .option(
      '--seconds <S>',
      'of one measurement (default: 0.15, with --quick 0.08; cold reads take three times as long, first touches four times)',
      toSeconds,
    )
    .addHelpText('after', () => `\nSubjects:\n${names(SUBJECTS)}\nWorkloads:\n${names(WORKLOADS)}`)
    .configureHelp({ optionDescription: describeOption })
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'bench: ')) })
    .exitOverride();
}

function names(all: readonly { readonly name: string; readonly description: string }[]): string {
  return formatTable(
    all.map(({ name, description }) => [`  ${name}`, description]),
    'left',
  );
}

function describeOption({ description, defaultValue }: Option): string {
  return typeof defaultValue === 'string' ? `${description} (default: ${defaultValue})` : description;
}

function toRegExp(text: string): RegExp {
  try {
    return new RegExp(text);
  } catch (error) {
    throw new InvalidArgumentError(messageOf(error));
  }
}

function toCount(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`expected a whole number from ${min} to ${max}`);
  };
}

function toSeconds(text: string): number {
  const value = Number(text);
  if (value >= 0.05 && value <= 600) return value;
  throw new InvalidArgumentError('expected a number from 0.05 to 600');
}

/** The exit code. */
async function run(): Promise<number> {
  let lab: Lab | undefined;
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => {
      lab?.interrupt(signal);
      process.stderr.write('\nbench: cleaning up\n');
    });
  }
  try {
    const options = program().parse().opts<Options>();
    const { report, json } = await runBenchmark(options, showProgress, (opened) => (lab = opened));
    showProgress('');
    const path = resolve(options.json);
    writeFileSync(path, `${JSON.stringify(json, null, 2)}\n`);
    process.stdout.write(`${report}\nAll measurements: ${path}\n`);
    return lab?.complaints.length === 0 ? 0 : EXIT_FAILED;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
    if (error instanceof Interrupted) return EXIT_INTERRUPTED;
    process.stderr.write(`bench: ${messageOf(error)}\n`);
    return EXIT_FAILED;
  } finally {
    for (const complaint of lab?.complaints ?? []) process.stderr.write(`bench: clean-up: ${complaint}\n`);
  }
}

void run().then((code) => {
  process.exitCode = code;
});
