/**
 * csum: checksums on writes, verified on reads. As the dm-csum of 2009, in its layout.
 *
 *     csum <data dev> <offset> [<imd dev> <offset>]         offsets in sectors
 *
 * 62 data sectors are a group. Its table of CRCs exists twice, as the brothers M1 and M2: the two latest versions of it. They
 * lie before the group, or on a device of their own. An update overwrites the older brother, and the data comes after it.
 *
 * A write is staged in shared memory and reads as written at once. A commit makes all that is staged durable: on a flush,
 * when a stage is half full, and every second in between. What was not flushed is lost with the daemon, as in the cache of a
 * disk that loses power. Two flushes of the medium serve all groups of a commit, so many small writes cost little more than one.
 *
 *   a sector is            when its CRC is
 *   good                   the newer brother's
 *   good, not settled      the older's: its update was under way when the last start ended. The first commit that touches
 *                          the group looks at the data and settles it
 *   corrupt                neither: EIO for the request, an event, a line in `errors`; writing it heals it
 *
 *   csum-I1  Between commits, newer brothers describe all data on the medium. A crash then leaves nothing half done.
 *   csum-I2  Tables, flush, data, flush; and before the first table is written, everything of earlier commits is durable. So
 *            a sector on the medium matches one of the brothers at any instant.
 *   csum-I3  What is staged is served from the stage until it is durable. A commit that fails has lost nothing: the next one
 *            does again all that may not have landed.
 *   csum-I4  What threads have cached of a table is used only while the version of its stripe says that none has changed.
 *   csum-I5  Nothing is trusted that does not verify. One flipped bit of a table is put right by the table's own CRC; a brother
 *            with more counts as lost; a group without a brother in order can be neither read nor written.
 *
 * A start that finds the superblock (in the reserved sector) clean trusts newer brothers alone, so that a write that the disk
 * has lost is found out; after any other end, either brother. Trims are writes of zeros.
 *
 * Where to read: target.ts the requests, commit.ts the order of writes, stage.ts what is pending, tables.ts and pair.ts what
 * is trusted, volume.ts how a volume is known, format.ts and check.ts the offline side; formats/csum.ts the bytes.
 */
import { randomBytes } from 'node:crypto';
import type { BlockDevice } from '../../device/block-device.js';
import { DmError } from '../../errors.js';
import { GROUP_SECTORS, groupsOf, type Volume } from '../../formats/csum.js';
import { parseCount } from '../../table.js';
import { SECTOR_BYTES } from '../../units.js';
import type { TargetType } from '../target.js';
import { csumFiles } from './controls.js';
import type { Areas } from './groups.js';
import { type CsumDescriptor, createShared, MAX_GROUPS, stageLimits } from './state.js';
import { CsumTarget } from './target.js';
import { findVolume, readReserved, writeSuperblock } from './volume.js';

export const csum: TargetType<CsumDescriptor, CsumTarget> = {
  name: 'csum',
  usage: '<data dev> <offset> [<imd dev> <offset>]',
  files: csumFiles,

  async create(args, context) {
    if (args.length !== 2 && args.length !== 4) {
      throw new DmError('EINVAL', `csum takes 2 or 4 arguments, found ${args.length}: csum ${csum.usage}`);
    }
    const [dataPath, dataOffset, imdPath, imdOffset] = args as [string, string, string?, string?];
    const dataStart = parseCount(dataOffset, 'the data offset (sectors)') * SECTOR_BYTES;
    const imdStart = parseCount(imdOffset ?? '0', 'the imd offset (sectors)') * SECTOR_BYTES;
    const data = await context.openBacking(dataPath, 'write');
    const imd = imdPath === undefined ? undefined : await context.openBacking(imdPath, 'write');
    const devices = { data: context.device(data), imd: imd && context.device(imd) };
    const found = findVolume(devices, { dataStart, imdStart, dataPath, imdPath, length: context.length });
    const { volume } = found;
    const sectors = context.length ?? volume.sectors;
    if (sectors > volume.sectors) {
      throw new DmError(
        'EINVAL',
        `${dataPath}: the volume has ${volume.sectors} sectors, the table wants ${sectors}`,
      );
    }
    if (groupsOf(volume) > MAX_GROUPS) {
      const most = MAX_GROUPS * GROUP_SECTORS;
      throw new DmError(
        'EINVAL',
        `${dataPath}: a volume of ${volume.sectors} sectors is too large: ${most} at most`,
      );
    }
    const id = found.superblock?.id ?? firstId(devices.imd, imdStart, imdPath);
    markInUse(devices, volume, id);
    return {
      data,
      imd,
      volume,
      size: sectors * SECTOR_BYTES,
      id,
      wasClean: found.isClean,
      ...createShared(volume, stageLimits(volume)),
    };
  },

  open(descriptor, context) {
    return new CsumTarget(descriptor, context);
  },
};

/**
 * The id of a volume that had none. With an imd area it is what stands in the place of an id there: so the two belong together
 * as soon as the data area has its superblock, and a power cut between the two leaves no strangers.
 */
function firstId(imd: BlockDevice | undefined, imdStart: number, imdPath = ''): Uint8Array {
  return imd ? readReserved('imd', imd, imdStart, imdPath).id.slice() : new Uint8Array(randomBytes(16));
}

/**
 * From here on an update may be half done. The flushes also make durable what a daemon before us wrote and did not flush:
 * commits judge by what they read (csum-I2).
 */
function markInUse({ data, imd }: Areas, volume: Volume, id: Uint8Array): void {
  const superblock = { ...volume, state: 'in-use' as const, groupsFormatted: 0, id };
  writeSuperblock({ data }, volume, superblock);
  data.flush();
  writeSuperblock({ imd }, volume, superblock);
  imd?.flush();
}
