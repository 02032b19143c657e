/** What fio does to each subject. All of it stays inside the region of the image (image.ts). */

export type Unit = 'iops' | 'bytesPerSecond';

export interface Workload {
  readonly name: string;
  readonly description: string;
  readonly unit: Unit;
  readonly rw: 'randread' | 'randwrite' | 'read' | 'write';
  readonly blockBytes: number;
  readonly jobs: number;
  /** True: from a file that is not in the page cache; no block is read twice. */
  readonly cold: boolean;
  /** False: left out by --quick. */
  readonly inQuick: boolean;
}

const KIB = 1024;
const MIB = 1024 * KIB;

/** In the order of the table. */
export const WORKLOADS: readonly Workload[] = [
  random('randread', 1, { inQuick: false }),
  random('randread', 4),
  random('randwrite', 1, { inQuick: false }),
  random('randwrite', 4),
  sequential('read'),
  sequential('write'),
  {
    ...random('randread', 8),
    name: 'cold-8',
    description: '4 KiB random reads by 8 jobs, file not cached',
    cold: true,
  },
];

/**
 * Reads before writes: their figures are not to wait for anybody's write-back, and overlays serve them from their base.
 */
export function inOrderOfMeasurement(workloads: readonly Workload[]): Workload[] {
  const order = ({ rw }: Workload) => (isWrite(rw) ? 1 : 0);
  return [...workloads].sort((a, b) => order(a) - order(b));
}

export function isWrite(rw: Workload['rw']): boolean {
  return rw === 'write' || rw === 'randwrite';
}

/** 4 KiB random reads or writes. */
export function random(rw: 'randread' | 'randwrite', jobs: number, { inQuick = true } = {}): Workload {
  return {
    name: `${rw}-${jobs}`,
    description: `4 KiB random ${rw.slice(4)}s by ${jobs} ${jobs === 1 ? 'job' : 'jobs'}`,
    unit: 'iops',
    rw,
    blockBytes: 4 * KIB,
    jobs,
    cold: false,
    inQuick,
  };
}

function sequential(rw: 'read' | 'write'): Workload {
  const description = `1 MiB sequential ${rw}s by 1 job`;
  return {
    name: rw,
    description,
    unit: 'bytesPerSecond',
    rw,
    blockBytes: MIB,
    jobs: 1,
    cold: false,
    inQuick: true,
  };
}
