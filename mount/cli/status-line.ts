/**
 * The line in a target's `status`, `0 LENGTH TYPE …`, taken apart: for commands that show or count what it says. What follows
 * TYPE is each target's own; what a type's line does not tell, or a line that is not understood, is left out.
 */
import { SECTOR_BYTES } from '../../src/units.js';

export interface StatusLine {
  readonly type: string;
  readonly sizeBytes: number;
  readonly bow?: BowStatus;
  readonly csum?: CsumStatus;
  readonly cow?: CowStatus;
  readonly clone?: CloneStatus;
}

export interface BowStatus {
  /** 0 before the checkpoint, 1 after it, 2 committed. */
  readonly state: number;
  /** What backups may still use. */
  readonly freeBytes: number;
  /** Writes fail until the medium works again. */
  readonly isSuspect: boolean;
}

export interface CsumStatus {
  /** How often something bad was found. */
  readonly corruptFound: number;
  readonly pendingSectors: number;
}

export interface CowStatus {
  /** What the top layer holds. */
  readonly topBytes: number;
}

export interface CloneStatus {
  /** `rw`, `ro`, `Fail`: of the metadata. With `Fail` the numbers are not known, and 0. */
  readonly mode: string;
  readonly regionBytes: number;
  readonly regions: number;
  readonly hydratedRegions: number;
  readonly hydratingRegions: number;
  readonly metadataBlocks: number;
  readonly metadataBlocksUsed: number;
}

/** Undefined for the line of a directory that has no target. */
export function parseStatusLine(line: string): StatusLine | undefined {
  const [, sectors, type, rest = ''] = /^0 (\d+) (\S+) ?(.*)$/s.exec(line) ?? [];
  if (type === undefined) return undefined;
  const common = { type, sizeBytes: Number(sectors) * SECTOR_BYTES };
  switch (type) {
    case 'bow':
      return { ...common, ...bowStatus(rest) };
    case 'csum':
      return { ...common, ...csumStatus(rest) };
    case 'cow':
      return { ...common, ...cowStatus(rest) };
    case 'clone':
      return { ...common, ...cloneStatus(rest) };
    default:
      return common;
  }
}

/** `state:S free:BYTES [sequence:N entries:N] [suspect] [short_tail]` */
function bowStatus(rest: string): Pick<StatusLine, 'bow'> {
  const [, state, free] = /^state:(\d) free:(\d+)/.exec(rest) ?? [];
  if (free === undefined) return {};
  const isSuspect = rest.split(' ').includes('suspect');
  return { bow: { state: Number(state), freeBytes: Number(free), isSuspect } };
}

/** `errors:N pending:SECTORS` */
function csumStatus(rest: string): Pick<StatusLine, 'csum'> {
  const [, errors, pending] = /^errors:(\d+) pending:(\d+)/.exec(rest) ?? [];
  if (pending === undefined) return {};
  return { csum: { corruptFound: Number(errors), pendingSectors: Number(pending) } };
}

/** `LAYERS SECTORS-OF-THE-TOP/SECTORS` */
function cowStatus(rest: string): Pick<StatusLine, 'cow'> {
  const [, top] = /^\d+ (\d+)\/\d+/.exec(rest) ?? [];
  return top === undefined ? {} : { cow: { topBytes: Number(top) * SECTOR_BYTES } };
}

/** As the kernel's: `8 USED/BLOCKS REGION HYDRATED/REGIONS HYDRATING #features … #args … MODE [reason=…]`, or `Fail`. */
function cloneStatus(rest: string): Pick<StatusLine, 'clone'> {
  const nothing = { regionBytes: 0, regions: 0, hydratedRegions: 0, hydratingRegions: 0 };
  if (/^Fail\b/.test(rest)) {
    return { clone: { mode: 'Fail', ...nothing, metadataBlocks: 0, metadataBlocksUsed: 0 } };
  }
  const found = /^\d+ (\d+)\/(\d+) (\d+) (\d+)\/(\d+) (\d+) .*?\b(rw|ro)\b/s.exec(rest);
  if (!found) return {};
  const [used, blocks, region, hydrated, regions, hydrating] = found.slice(1, 7).map(Number) as number[];
  return {
    clone: {
      mode: found[7]!,
      regionBytes: region! * SECTOR_BYTES,
      regions: regions!,
      hydratedRegions: hydrated!,
      hydratingRegions: hydrating!,
      metadataBlocks: blocks!,
      metadataBlocksUsed: used!,
    },
  };
}
