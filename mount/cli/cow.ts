/** `dmfuse cow create`, `commit`, `flatten`, `map`: layers of a stack that is not attached. */
import { closeSync, existsSync, openSync } from 'node:fs';
import { resolve } from 'node:path';
import { FileDevice, fileSize } from '../../src/device/file.js';
import { NewFile, requireAbsent } from '../../src/device/new-file.js';
import { statBacking } from '../../src/device/open.js';
import { DmError, type ErrnoName, messageOf } from '../../src/errors.js';
import { quoteWord, type TableLine } from '../../src/table.js';
import { inspectBitmap } from '../../src/targets/cow/bitmap-device.js';
import { bitmapPathOf, createBitmap, createLayer } from '../../src/targets/cow/create.js';
import { type Flattened, flatten } from '../../src/targets/cow/flatten.js';
import { type Imported, importSeedBits } from '../../src/targets/cow/import.js';
import { parseArgs } from '../../src/targets/cow/index.js';
import { topRuns } from '../../src/targets/cow/map.js';
import { mergeTop } from '../../src/targets/cow/merge.js';
import { CowTarget } from '../../src/targets/cow/target.js';
import { SECTOR_BYTES } from '../../src/units.js';
import { printJson, say } from './output.js';
import { type ProgressFlags, withProgress } from './progress.js';
import { Interrupted } from './signals.js';
import { isLayer, isTableLine, layerArgs, layersIn, type Stack, stackTable, withStack } from './stack.js';

export interface CowCreateOptions extends ProgressFlags {
  /** Sectors of the stack; default: all that the base has. */
  readonly size?: number;
  /** A bitmap of the 2006 dm-cow, for the layer's data. */
  readonly importSeed?: string;
  /** Bytes: block size of that bitmap. */
  readonly blockSize: number;
}

/** What a new layer stands on. */
interface Below {
  /** Sectors that a stack on it can have. */
  readonly sectors: number;
  /** Undefined: a layer, of which only its own files are known. */
  readonly table: TableLine | undefined;
}

export async function createCowLayer(base: string, layer: string, options: CowCreateOptions): Promise<void> {
  const below = await lookBelow(base, options.size);
  const sectors = options.size ?? below.sectors;
  if (sectors > below.sectors || sectors < 1) {
    throw new DmError(
      'EINVAL',
      `${base} has ${below.sectors} sectors, a stack on it cannot have ${sectors}; choose another --size`,
    );
  }
  const { importSeed, json } = options;
  let imported: Imported | undefined;
  if (importSeed === undefined) await createLayer(layer, sectors);
  else imported = await importLayer({ base, below, layer, sectors, importSeed }, options);

  const fragment = layerArgs(layer).map(quoteWord).join(' ');
  const table = tableLine(below, sectors, fragment);
  if (json) {
    const [bitmapPath, layerPath] = layerArgs(layer);
    printJson({ layerPath, bitmapPath, lengthSectors: sectors, fragment, table, imported });
    return;
  }
  const line = table ?? `cow … ${layerArgs(base).map(quoteWord).join(' ')} ${fragment}`;
  const example = `example: dmfuse create MNT NAME ${quoteForShell(line)}`;
  say([fragment, example, ...(imported ? importedText(imported, layer) : [])].join('\n'));
}

export async function commitStack(words: readonly string[], flags: ProgressFlags): Promise<void> {
  const table = stackTable(words);
  if (layersIn(table) === 0) {
    throw new DmError(
      'EINVAL',
      `${words[0]}: a base alone has nothing to merge; name its layers too, bottom to top`,
    );
  }
  await withStack(table, 2, async ({ descriptor, context }) => {
    const { backing: top } = descriptor.layers.at(-1)!;
    const { backing: below } = descriptor.layers.at(-2) ?? descriptor.base;
    const merged = await goesOn(`merging ${top.path} into ${below.path}`, () =>
      withProgress('commit', { ...flags, interruptible: true }, (onProgress) =>
        mergeTop(descriptor, context, { onProgress }),
      ),
    );
    if (merged === undefined) return;
    const { sectors, holeSectors } = merged;
    if (flags.json) {
      printJson({
        layerPath: top.path,
        belowPath: below.path,
        mergedSectors: sectors,
        zeroedSectors: holeSectors,
      });
    } else if (sectors === 0) {
      say(`nothing to merge: ${top.path} holds no sectors`);
    } else {
      say(`merged: ${sectors} sectors of ${top.path} into ${below.path}`);
    }
  });
}

export async function flattenStack(
  words: readonly string[],
  out: string,
  { force, ...flags }: ProgressFlags & { force: boolean },
): Promise<void> {
  const table = stackTable(words);
  const isDevice = force && (await isBlockDevice(out));
  if (!isDevice) await requireAbsent(out);
  await withStack(table, 0, async (stack) => {
    const source = new CowTarget(stack.descriptor, stack.context);
    const result = isDevice
      ? await flattenToDevice(source, stack, out, flags)
      : await flattenToFile(source, out, flags);
    if (result === undefined) return;
    const { bytes, writtenBytes } = result;
    if (flags.json) printJson({ outPath: resolve(out), lengthSectors: bytes / SECTOR_BYTES, writtenBytes });
    else say(`flattened: ${bytes / SECTOR_BYTES} sectors into ${out}, ${writtenBytes} bytes of data`);
  });
}

/** One line a run: start and count, in sectors. */
export async function mapLayer(words: readonly string[], { json }: { json: boolean }): Promise<void> {
  const [only = ''] = words;
  // A layer by itself tells its own length: a stack of it on top of itself, of which only the bits are looked at.
  const isAlone = words.length === 1 && isLayer(only);
  const table: TableLine = isAlone
    ? { length: undefined, type: 'cow', args: [resolve(only), '0', ...layerArgs(only)] }
    : stackTable(words);
  if (layersIn(table) === 0) {
    throw new DmError(
      'EINVAL',
      `${only}: a base holds all of its sectors; name a layer, with its bitmap beside it`,
    );
  }
  await withStack(table, 0, async ({ descriptor }) => {
    const runs = [...topRuns(descriptor)];
    if (json) {
      printJson({
        layerPath: descriptor.layers.at(-1)!.backing.path,
        lengthSectors: descriptor.size / SECTOR_BYTES,
        heldSectors: runs.reduce((sum, { count }) => sum + count, 0),
        runs: runs.map(({ start, count }) => ({ startSector: start, countSectors: count })),
      });
    } else {
      process.stdout.write(runs.map(({ start, count }) => `${start} ${count}\n`).join(''));
    }
  });
}

async function flattenToFile(
  source: CowTarget,
  out: string,
  flags: ProgressFlags,
): Promise<Flattened | undefined> {
  try {
    // The file is made when signals are heard already, so that they leave nothing.
    return await withProgress('flatten', { ...flags, interruptible: true }, async (onProgress) => {
      const file = await NewFile.create(out, source.size);
      try {
        const result = await named(`flattening into ${out}`, () =>
          flatten(source, file.device, { isOutZero: true, onProgress }),
        );
        file.publish();
        return result;
      } finally {
        file.drop();
      }
    });
  } catch (error) {
    return interrupted(error, `${out} was not made`);
  }
}

async function flattenToDevice(
  source: CowTarget,
  stack: Stack,
  out: string,
  flags: ProgressFlags,
): Promise<Flattened | undefined> {
  const file = await stack.open(out, 'write');
  if (file.size < source.size) {
    throw new DmError(
      'ENOSPC',
      `${out} has ${file.size} bytes, the stack ${source.size}; take a larger device`,
    );
  }
  try {
    return await withProgress('flatten', { ...flags, interruptible: true }, (onProgress) =>
      named(`flattening into ${out}`, () =>
        flatten(source, new FileDevice(file), { isOutZero: false, onProgress }),
      ),
    );
  } catch (error) {
    return interrupted(error, `${out} holds a part of the image`);
  }
}

/** Runs a merge; when it is interrupted says that it can go on, and gives undefined. */
async function goesOn<T>(what: string, merge: () => Promise<T>): Promise<T | undefined> {
  const promise = 'the stack shows what it did before; the same command goes on';
  try {
    return await merge();
  } catch (error) {
    if (error instanceof Interrupted) return interrupted(error, promise);
    const { code = 'EIO' } = error as { code?: ErrnoName };
    throw new DmError(code, `${what}: ${messageOf(error)}; ${promise}`);
  }
}

/** For errors of devices, which do not say whose they are; the others pass. */
async function named<T>(what: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof DmError || error instanceof Interrupted) throw error;
    throw new DmError((error as { code?: ErrnoName }).code ?? 'EIO', `${what}: ${messageOf(error)}`);
  }
}

function interrupted(error: unknown, what: string): undefined {
  if (!(error instanceof Interrupted)) throw error;
  process.stderr.write(`dmfuse: interrupted: ${what}\n`);
  process.exitCode = error.exitCode;
}

async function lookBelow(base: string, size: number | undefined): Promise<Below> {
  if (isTableLine(base)) {
    const table = stackTable([base]);
    const { device, offset } = parseArgs(table.args).base;
    const available = Math.floor(((await bytesOf(device)) - offset) / SECTOR_BYTES);
    return { table, sectors: table.length ?? Math.max(0, available) };
  }
  const sectors = Math.floor((await bytesOf(base)) / SECTOR_BYTES);
  if (!isLayer(base)) return { table: stackTable([base]), sectors };
  await requireFrozen(base, size ?? sectors);
  return { table: undefined, sectors };
}

/** A layer that gets another one on top needs a bitmap that is initialised, for a stack of that length. */
async function requireFrozen(layer: string, sectors: number): Promise<void> {
  const path = bitmapPathOf(layer);
  const fd = openSync(path, 'r');
  try {
    if (inspectBitmap(new FileDevice({ fd, path, size: fileSize(fd) }), path, sectors) === 'existing') return;
  } finally {
    closeSync(fd);
  }
  throw new DmError(
    'EINVAL',
    `${path}: all zero: ${layer} was never in use; attach it once as the top of its stack, or take it away`,
  );
}

/** Not locked: a layer may be made for a stack that is attached, which freezes when it is not any more. */
async function bytesOf(path: string): Promise<number> {
  const stats = await statBacking(path);
  if (stats.isFile()) return stats.size;
  const fd = openSync(path, 'r');
  try {
    return fileSize(fd);
  } finally {
    closeSync(fd);
  }
}

interface Import {
  readonly base: string;
  readonly below: Below;
  readonly layer: string;
  readonly sectors: number;
  /** The bitmap of the 2006 dm-cow. */
  readonly importSeed: string;
}

async function importLayer(
  { base, below, layer, sectors, importSeed: oldPath }: Import,
  { blockSize, quiet, json }: CowCreateOptions,
): Promise<Imported> {
  if (!below.table) {
    throw new DmError(
      'EINVAL',
      `${base} is a layer itself: give the whole stack below ${layer} as a table line, 'cow BASE 0 …', to compare with`,
    );
  }
  const path = bitmapPathOf(layer);
  if (existsSync(path)) {
    throw new DmError(
      'EEXIST',
      `${path} is where the new bitmap goes; give what is there another name first`,
    );
  }
  return await withStack({ ...below.table, length: sectors }, 0, async (stack) => {
    const data = await stack.open(layer, 'read');
    if (data.size < sectors * SECTOR_BYTES) {
      throw new DmError('EINVAL', `${layer} has ${data.size} bytes, the stack ${sectors * SECTOR_BYTES}`);
    }
    const old = await stack.open(oldPath, 'read');
    const seed = {
      oldBitmap: { device: new FileDevice(old), path: oldPath },
      blockSize,
      data: new FileDevice(data),
      below: new CowTarget(stack.descriptor, stack.context),
    };
    return await withProgress('import', { quiet, json, interruptible: false }, (onProgress) =>
      createBitmap(layer, sectors, (bitmap) => importSeedBits(seed, bitmap, { onProgress })),
    );
  });
}

function importedText(imported: Imported, layer: string): string[] {
  const { bits, sectors, uncertainSectors, uncertainZeroSectors } = imported;
  return [
    `imported: ${bits} bits, ${sectors} sectors taken, ${uncertainSectors} of them uncertain, of which ` +
      `${uncertainZeroSectors} are zeros in ${layer} and data below`,
    'This is an inference: a bit of the old bitmap stands for eight sectors and says that at least one was written. Taken ' +
      'are those that differ from the layer below or are not zero; uncertain are those that share a bit.',
  ];
}

/** Of the stack with the new layer on top; undefined where what is below is not known. */
function tableLine({ table, sectors: all }: Below, sectors: number, fragment: string) {
  if (!table) return undefined;
  const length = table.length !== undefined || sectors !== all ? `0 ${sectors} ` : '';
  return `${length}cow ${table.args.map(quoteWord).join(' ')} ${fragment}`;
}

function quoteForShell(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

async function isBlockDevice(path: string): Promise<boolean> {
  return await statBacking(path).then(
    (stats) => stats.isBlockDevice(),
    () => false,
  );
}
