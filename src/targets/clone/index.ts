/**
 * clone: a writable copy of a read-only source, there at once and copied in the background. As Linux's dm-clone, with the
 * kernel's own metadata: a clone can begin here and go on there, and the other way round.
 *
 *     clone <metadata dev> <destination dev> <source dev> <region size> [<#features> …] [<#core args> …]
 *
 *     region size            sectors, a power of two from 8 to 2097152
 *     features               no_hydration, no_discard_passdown
 *     core args              hydration_threshold <regions>, hydration_batch_size <regions>
 *
 * A region is hydrated, which is a bit in the metadata, or not:
 *
 *   region         read              write, zeros                             trim of the whole region      hydration
 *   not hydrated   the source        what the request leaves is copied, then  becomes hydrated, passed      is copied, becomes
 *                                    the request; becomes hydrated            down to the destination       hydrated
 *   hydrated       the destination   the destination                          passed down                   –
 *
 * A region never goes back. A trim of a part of a region does nothing. With `no_discard_passdown` trims are not passed down, and
 * a hole that is punched is zeros that keep their space.
 *
 *   clone-I1  The source is only ever read.
 *   clone-I2  A region's bit is set after all of it is on the destination, by who holds its lock. Other regions need no lock,
 *             and who reads needs none: until the bit is set, the source is right.
 *   clone-I3, clone-I4, clone-I5   the order of a commit, and what it writes where: store.ts.
 *   clone-I6, clone-I7             a destination or metadata that fails: commit.ts.
 *
 * A flush is a commit; a change that nobody flushes is committed after a second, and the last region at once. So a crash
 * leaves each region as it was, on the source, or hydrated with its data; a kill loses what was written to regions that no
 * commit has recorded.
 *
 * Unlike the kernel: a short last region that is written as a whole is not copied first; a destination that fails to flush does
 * not make the target read-only (clone-I6); in read-only mode what was hydrated last is still read from the destination.
 *
 * Where to read: target.ts the requests, hydrate.ts the background, commit.ts and store.ts what becomes durable, image.ts how
 * metadata is read and checked, format.ts how it begins, formats/dm-clone.ts the bytes.
 */
import type { BlockDevice } from '../../device/block-device.js';
import { DmError, naming } from '../../errors.js';
import { type CloneSuperblock, MAX_REGIONS, regionsOf } from '../../formats/dm-clone.js';
import { SECTOR_BYTES } from '../../units.js';
import type { Backing, TargetType } from '../target.js';
import { cloneFiles } from './controls.js';
import { createImage } from './format.js';
import { type CloneImage, readImage } from './image.js';
import { parseOptions } from './options.js';
import { type CloneDescriptor, createShared } from './state.js';
import { createStore, MetadataStore } from './store.js';
import { CloneTarget } from './target.js';

type Sizes = Pick<CloneSuperblock, 'regionSectors' | 'targetSectors'>;

export const clone: TargetType<CloneDescriptor, CloneTarget> = {
  name: 'clone',
  usage:
    '<metadata dev> <destination dev> <source dev> <region size> [<#features> no_hydration|no_discard_passdown…] ' +
    '[<#core args> hydration_threshold <regions>|hydration_batch_size <regions>…]',
  files: cloneFiles,

  async create(args, context) {
    if (args.length < 4) {
      throw new DmError(
        'EINVAL',
        `clone needs three devices and a region size, found ${args.length} words: clone ${clone.usage}`,
      );
    }
    const [metadataPath, destinationPath, sourcePath, regionSize, ...words] = args as [
      string,
      string,
      string,
      string,
      ...string[],
    ];
    const options = parseOptions(regionSize, words);
    const { regionSectors, discardPassdown } = options;
    const metadata = await context.openBacking(metadataPath, 'write');
    const destination = await context.openBacking(destinationPath, 'write');
    const source = await context.openBacking(sourcePath, 'read');
    const device = context.device(metadata);
    const found = naming(metadataPath, () => readImage(device));
    const targetSectors = context.length ?? found?.superblock.targetSectors ?? sectorsOf(source);
    const sizes = { regionSectors, targetSectors };
    if (found) requireSameSizes(metadata, found.superblock, sizes);
    requireFewRegions(sizes);
    requireRoom(source, targetSectors);
    requireRoom(destination, targetSectors);
    const image = found ?? naming(metadataPath, () => createImage(sizes, device.size));
    const descriptor = createStore(image);
    const store = new MetadataStore(descriptor, device);
    if (found) store.settle();
    else store.writeAll();
    const regions = regionsOf(sizes);
    return {
      metadata,
      destination,
      source,
      size: targetSectors * SECTOR_BYTES,
      regionBytes: regionSectors * SECTOR_BYTES,
      regions,
      options: options.words,
      discardPassdown,
      store: descriptor,
      ...createShared(descriptor, regions, options),
    };
  },

  // As the kernel's.
  messages: new Map([
    ['enable_hydration', ['hydration', '1']],
    ['disable_hydration', ['hydration', '0']],
  ]),

  open(descriptor, context) {
    return new CloneTarget(descriptor, context);
  },
};

function sectorsOf({ size }: Pick<BlockDevice, 'size'>): number {
  return Math.floor(size / SECTOR_BYTES);
}

function requireRoom(backing: Backing, sectors: number): void {
  if (sectors >= 1 && sectorsOf(backing) >= sectors) return;
  throw new DmError(
    'EINVAL',
    `${backing.path} has ${sectorsOf(backing)} sectors, the clone has ${Math.max(1, sectors)}`,
  );
}

function requireFewRegions(sizes: Sizes): void {
  const regions = regionsOf(sizes);
  if (regions <= MAX_REGIONS) return;
  throw new DmError(
    'EINVAL',
    `clone: ${sizes.targetSectors} sectors are ${regions} regions of ${sizes.regionSectors}, ${MAX_REGIONS} at most: take larger regions`,
  );
}

function requireSameSizes({ path }: Backing, found: CloneImage['superblock'], wanted: Sizes): void {
  if (found.regionSectors !== wanted.regionSectors) {
    throw new DmError(
      'EINVAL',
      `${path}: is of a clone with regions of ${found.regionSectors} sectors, the table says ${wanted.regionSectors}`,
    );
  }
  if (found.targetSectors !== wanted.targetSectors) {
    throw new DmError(
      'EINVAL',
      `${path}: is of a clone of ${found.targetSectors} sectors, the table says ${wanted.targetSectors}`,
    );
  }
}
