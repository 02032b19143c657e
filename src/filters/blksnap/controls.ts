/** The control files of a tracked device: `cbtinfo`, `cbtmap`, `cbtdirty`. */
import { DmError, naming } from '../../errors.js';
import { parseCount, splitWords } from '../../table.js';
import type { ControlFile } from '../../targets/target.js';
import { SECTOR_BYTES } from '../../units.js';
import type { TrackerFilter } from './tracker.js';

export const trackerFiles: readonly ControlFile<TrackerFilter>[] = [
  {
    name: 'cbtinfo',
    read({ map }) {
      const { capacity, blockSize, blockCount, generation, changesNumber } = map.info();
      return (
        `device_capacity ${capacity}\nblock_size ${blockSize}\nblock_count ${blockCount}\n` +
        `generation_id ${generation}\nchanges_number ${changesNumber}\n`
      );
    },
  },
  {
    // A byte a block: the number of its last change, as of the last take.
    name: 'cbtmap',
    bytes: ({ map }) => map.readMap,
  },
  {
    name: 'cbtdirty',
    write({ map }, text) {
      // All of them first: one that is wrong changes nothing.
      const ranges = text.split('\n').map((line, i) => parseRange(line, i + 1, map.size));
      for (const { offset, length } of ranges) if (length > 0) map.markBoth(offset, length);
    },
  },
];

/** `SECTOR COUNT` of a device of so many bytes, in bytes. */
function parseRange(line: string, number: number, size: number): { offset: number; length: number } {
  return naming(`cbtdirty: line ${number}`, () => {
    const [sector, count, ...rest] = splitWords(line);
    if (sector === undefined || count === undefined || rest.length > 0) {
      throw new DmError('EINVAL', `expected \`SECTOR COUNT\`, found \`${line}\``);
    }
    const first = parseCount(sector, 'SECTOR');
    const sectors = parseCount(count, 'COUNT');
    const available = Math.floor(size / SECTOR_BYTES);
    if (first > available || sectors > available - first) {
      throw new DmError(
        'EINVAL',
        `${sectors} sectors from sector ${first} on, but the device has ${available}`,
      );
    }
    return { offset: first * SECTOR_BYTES, length: sectors * SECTOR_BYTES };
  });
}
