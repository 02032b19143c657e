/**
 * A cow stack that is not attached, as the command line names it: members bottom to top, a base and layers, each with its
 * bitmap beside it (`LAYER.bitmap`); or a table line in one word, for other places, which layers may follow.
 */
import { closeSync, existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { type BlockDevice, extentOf } from '../../src/device/block-device.js';
import { type FileDescription, FileDevice } from '../../src/device/file.js';
import { type Access, inodeKey, statBacking } from '../../src/device/open.js';
import { DmError } from '../../src/errors.js';
import { parseTableLine, type TableLine } from '../../src/table.js';
import { bitmapPathOf } from '../../src/targets/cow/create.js';
import { cow, parseArgs } from '../../src/targets/cow/index.js';
import type { CowDescriptor } from '../../src/targets/cow/state.js';
import type { Backing, CreateContext, OpenContext } from '../../src/targets/target.js';
import { openWhenFree } from './images.js';

/** A stack that is open. */
export interface Stack {
  readonly descriptor: CowDescriptor;
  readonly context: OpenContext;
  /** Opens one more file or block device, which must be none of the stack's; closed with it. */
  open(path: string, access: Access): Promise<FileDescription>;
}

export function isTableLine(word: string): boolean {
  return /^\s*(\d+\s+\d+\s+)?cow\s/.test(word);
}

/** True where a layer has its bitmap beside it; a base has none. */
export function isLayer(path: string): boolean {
  return existsSync(bitmapPathOf(path));
}

/** The table line of a stack, with absolute paths. Throws EINVAL for one that is none, and for a base that is a layer. */
export function stackTable([first = '', ...layers]: readonly string[]): TableLine {
  const below = isTableLine(first) ? absoluteTable(first) : undefined;
  if (!below && isLayer(first)) {
    throw new DmError(
      'EINVAL',
      `${first} is a layer, for ${bitmapPathOf(first)} is there: name the base first, then all layers, bottom to top`,
    );
  }
  return {
    length: below?.length,
    type: cow.name,
    args: [...(below?.args ?? [resolve(first), '0']), ...layers.flatMap(layerArgs)],
  };
}

/** The three words of a layer in a table. */
export function layerArgs(layer: string): string[] {
  return [bitmapPathOf(resolve(layer)), resolve(layer), '0'];
}

/** How many layers a table has. */
export function layersIn({ args }: TableLine): number {
  return parseArgs(args).layers.length;
}

/**
 * Opens a stack and has `use` work on it. Its `writtenMembers` uppermost members, data and bitmap, are this process's alone
 * meanwhile, all others everybody's to read. Nothing is written before `use`. Throws what `cow.create` throws, EBUSY where
 * another process uses one of them.
 */
export async function withStack<T>(
  table: TableLine,
  writtenMembers: number,
  use: (stack: Stack) => T | Promise<T>,
): Promise<T> {
  const files = new OpenFiles();
  const members = layersIn(table) + 1;
  let opened = 0;
  const context: CreateContext = {
    length: table.length,
    raise: () => {},
    // A new bitmap stays as it is: a stack is not changed by looking.
    device: (backing) => withoutWrites(files.device(backing)),
    openBacking: async (path) => {
      // In this order: the base, then of each layer its bitmap and its data.
      const member = Math.ceil(opened++ / 2);
      const file = await files.open(path, member >= members - writtenMembers ? 'write' : 'read');
      return { kind: 'file', ...file };
    },
  };
  try {
    const descriptor = await cow.create(table.args, context);
    return await use({
      descriptor,
      context: { device: (backing) => files.device(backing), raise: () => {} },
      open: (path, access) => files.open(path, access),
    });
  } finally {
    files.close();
  }
}

class OpenFiles {
  private readonly files: { file: FileDescription; key: string; access: Access }[] = [];

  async open(path: string, access: Access): Promise<FileDescription> {
    if (path.startsWith('@')) {
      throw new DmError(
        'EINVAL',
        `${path}: only a mount has targets by name; name the file or device that it stands on`,
      );
    }
    const key = inodeKey(await statBacking(path));
    const twice = this.files.find((other) => other.key === key);
    if (twice && (access === 'write' || twice.access === 'write')) {
      throw new DmError(
        'EINVAL',
        `${path} and ${twice.file.path} are the same: what is written is named once`,
      );
    }
    const file = await openWhenFree(path, access);
    this.files.push({ file, key, access });
    return file;
  }

  device(backing: Backing): FileDevice {
    if (backing.kind !== 'file') throw new Error('a stack that is not attached stands on files only');
    return new FileDevice(backing);
  }

  close(): void {
    for (const { file } of this.files) closeSync(file.fd);
  }
}

function withoutWrites(device: BlockDevice): BlockDevice {
  return {
    size: device.size,
    read: (offset, into) => device.read(offset, into),
    extentAt: (offset) => extentOf(device, offset),
    write: () => {},
    flush: () => {},
    discard: () => {},
    writeZeroes: () => {},
  };
}

function absoluteTable(line: string): TableLine {
  const table = parseTableLine(line);
  parseArgs(table.args);
  const isPath = (index: number) => index === 0 || (index >= 2 && (index - 2) % 3 < 2);
  const args = table.args.map((word, index) =>
    isPath(index) && !word.startsWith('@') ? resolve(word) : word,
  );
  return { ...table, args };
}
