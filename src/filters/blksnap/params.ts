/**
 * What the module parameters of blksnap are: how large tracking blocks and chunks become, and when a snapshot asks for more
 * storage. One set for all devices of the mount, on the main thread; what is made keeps the values it was made with. The
 * numbers in brackets are sections of the format document.
 */
import { DmError } from '../../errors.js';
import { parseCount } from '../../table.js';

interface Parameter {
  readonly initial: number;
  readonly least: number;
  readonly most: number;
}

/** Shifts: a size of 2^shift bytes. */
export const TRACKING_SHIFT = { least: 9, most: 30 };
const CHUNK_SHIFT = { least: 12, most: 30 };

const PARAMETERS = {
  tracking_block_minimum_shift: { initial: 16, ...TRACKING_SHIFT },
  /** Blocks that a device is wanted to have at most. */
  tracking_block_maximum_count: { initial: 2_097_152, least: 1, most: 2 ** 28 },
  tracking_block_maximum_shift: { initial: 26, ...TRACKING_SHIFT },
  chunk_minimum_shift: { initial: 18, ...CHUNK_SHIFT },
  chunk_maximum_shift: { initial: 26, ...CHUNK_SHIFT },
  /** Neighbouring chunks that are copied with one request at most. */
  chunk_maximum_in_queue: { initial: 16, least: 1, most: 4096 },
  /** Sectors that a snapshot asks for at a time. */
  diff_storage_minimum: { initial: 2_097_152, least: 8, most: 2 ** 40 },
} as const satisfies Record<string, Parameter>;

export type ParameterName = keyof typeof PARAMETERS;

/**
 * Chunks that a device may have: the kernel's limit is 2^40 [2], but here the table of their states lies in memory, four bytes
 * a chunk.
 */
export const CHUNK_COUNT_MAX = 2 ** 28;

export class Params {
  readonly names = Object.keys(PARAMETERS) as readonly ParameterName[];
  private readonly values = new Map<string, number>(
    this.names.map((name) => [name, PARAMETERS[name].initial]),
  );

  get(name: ParameterName): number {
    return this.values.get(name)!;
  }

  /** Throws EINVAL naming the parameter and its range. */
  set(name: ParameterName, text: string): void {
    const { least, most } = PARAMETERS[name];
    const value = parseCount(text, `${name} (${least} to ${most})`);
    if (value < least || value > most) {
      throw new DmError('EINVAL', `${name} must be ${least} to ${most}, found ${value}`);
    }
    this.values.set(name, value);
  }
}

/** Those of the mount. */
export const params = new Params();

/** Shift of the tracking blocks of a device of so many bytes [3]: at the maximum there may be more than are wanted. */
export function trackingShift(capacity: number, values: Params): number {
  const wanted = values.get('tracking_block_maximum_count');
  const maximum = values.get('tracking_block_maximum_shift');
  let shift = values.get('tracking_block_minimum_shift');
  while (shift < maximum && blocksOf(capacity, shift) > wanted) shift++;
  return shift;
}

/** Shift of the chunks of a device of so many bytes [3]. Throws EFAULT where even the largest ones are too many. */
export function chunkShift(capacity: number, values: Params): number {
  const minimum = values.get('chunk_minimum_shift');
  const maximum = Math.max(minimum, values.get('chunk_maximum_shift'));
  for (let shift = minimum; shift <= maximum; shift++) {
    if (blocksOf(capacity, shift) <= CHUNK_COUNT_MAX) return shift;
  }
  throw new DmError(
    'EFAULT',
    `a device of ${capacity} bytes has more than ${CHUNK_COUNT_MAX} chunks of 2^${maximum} bytes: raise chunk_maximum_shift`,
  );
}

/** How many blocks of 2^shift bytes it takes; the last one may be short. */
export function blocksOf(capacity: number, shift: number): number {
  return Math.ceil(capacity / 2 ** shift);
}
