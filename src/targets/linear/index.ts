/**
 * linear: the device is a range of another one, moved by an offset. As dm-linear.
 *
 *     linear <dev> <offset> [<#opts> no_passthrough]         offset in sectors
 *
 * Every request goes to the backing at `offset` + its own. Nothing is kept, so a crash leaves what the backing
 * promises. Where the range is a whole regular file, the kernel may pass I/O straight through to it
 * (FUSE passthrough), unless `no_passthrough` keeps it in the lanes: for filters, and to measure the lanes.
 */
import { type BlockDevice, type Extent, extentOf } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { parseCount, quoteWord, takeGroup } from '../../table.js';
import { SECTOR_BYTES } from '../../units.js';
import type { Backing, FileBacking, OpenContext, Target, TargetType } from '../target.js';

interface LinearDescriptor {
  readonly backing: Backing;
  /** Bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly size: number;
  readonly mayPassThrough: boolean;
}

export class LinearTarget implements Target {
  readonly size: number;
  readonly trimGranularity = 4096;
  private readonly device: BlockDevice;
  private readonly offset: number;

  constructor(
    private readonly descriptor: LinearDescriptor,
    context: Pick<OpenContext, 'device'>,
  ) {
    this.device = context.device(descriptor.backing);
    this.size = descriptor.size;
    this.offset = descriptor.offset;
  }

  read(offset: number, into: Uint8Array): void {
    this.device.read(this.offset + offset, into);
  }

  write(offset: number, from: Uint8Array): void {
    this.device.write(this.offset + offset, from);
  }

  flush(): void {
    this.device.flush();
  }

  discard(offset: number, length: number): void {
    this.device.discard(this.offset + offset, length);
  }

  writeZeroes(offset: number, length: number, options?: { unmap?: boolean }): void {
    this.device.writeZeroes(this.offset + offset, length, options);
  }

  extentAt(offset: number): Extent {
    const { data, end } = extentOf(this.device, this.offset + offset);
    return { data, end: Math.min(end - this.offset, this.size) };
  }

  tableArgs(): string {
    const { backing, offset, mayPassThrough } = this.descriptor;
    return `${quoteWord(backing.path)} ${offset / SECTOR_BYTES}${mayPassThrough ? '' : ' 1 no_passthrough'}`;
  }

  statusArgs(): string {
    return '';
  }

  passthrough(): FileBacking | undefined {
    const { backing, offset, size, mayPassThrough } = this.descriptor;
    const whole = offset === 0 && size === backing.size;
    return mayPassThrough && whole && backing.kind === 'file' ? backing : undefined;
  }
}

export const linear: TargetType<LinearDescriptor, LinearTarget> = {
  name: 'linear',
  usage: '<dev> <offset> [<#opts> no_passthrough]',
  files: [],

  async create(args, context) {
    const [device, offsetSectors, ...options] = args;
    if (device === undefined || offsetSectors === undefined) {
      throw new DmError('EINVAL', `linear needs a device and an offset: linear ${this.usage}`);
    }
    const offset = parseCount(offsetSectors, 'the offset (sectors)') * SECTOR_BYTES;
    const { group, rest } = takeGroup(options, 'options');
    const unknown = group.find((option) => option !== 'no_passthrough') ?? rest[0];
    if (unknown !== undefined) {
      throw new DmError('EINVAL', `linear does not know \`${unknown}\`: linear ${this.usage}`);
    }

    const backing = await context.openBacking(device, 'write');
    const available = Math.floor((backing.size - offset) / SECTOR_BYTES);
    const sectors = context.length ?? available;
    if (available <= 0 || sectors > available) {
      throw new DmError(
        'EINVAL',
        `${device} has ${Math.max(0, available)} sectors from sector ${offsetSectors} on, the table wants ` +
          `${context.length ?? 'at least 1'}`,
      );
    }
    return { backing, offset, size: sectors * SECTOR_BYTES, mayPassThrough: group.length === 0 };
  },

  grow(descriptor, { sizeOf }) {
    const { backing, offset, size } = descriptor;
    const sizeFor = (available: number) => Math.floor((available - offset) / SECTOR_BYTES) * SECTOR_BYTES;
    const grown = sizeFor(sizeOf(backing));
    return size === sizeFor(backing.size) && grown > size ? { ...descriptor, size: grown } : undefined;
  },

  open(descriptor, context) {
    return new LinearTarget(descriptor, context);
  },
};
