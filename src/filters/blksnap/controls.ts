/** The control files of a tracked device: `cbtinfo`, `cbtmap`, `cbtdirty`. */
import { parseSectorRanges } from '../../table.js';
import type { ControlFile } from '../../targets/target.js';
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
      const ranges = parseSectorRanges(text, { size: map.size, least: 0, what: 'cbtdirty' });
      for (const { offset, length } of ranges) if (length > 0) map.markBoth(offset, length);
    },
  },
];
