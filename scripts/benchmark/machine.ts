/** Where the figures come from: they mean little without it. */
import { cpus, release, totalmem } from 'node:os';
import { VERSION } from '../../mount/version.js';
import type { Lab } from './lab.js';

export interface Machine {
  readonly kernel: string;
  readonly cpu: string;
  readonly cpuCount: number;
  readonly memoryBytes: number;
  readonly node: string;
  readonly dmfuse: string;
  /** Of each command; null where it is not installed. */
  readonly versions: Readonly<Record<string, string | null>>;
}

const COMMANDS = ['fio', 'losetup', 'qemu-storage-daemon', 'nbdkit', 'nbdfuse'];

export async function describeMachine(lab: Lab): Promise<Machine> {
  const versions = await Promise.all(
    COMMANDS.map(async (name) => [name, await versionOf(lab, name)] as const),
  );
  return {
    kernel: release(),
    cpu: cpus()[0]?.model ?? 'unknown',
    cpuCount: cpus().length,
    memoryBytes: totalmem(),
    node: process.version,
    dmfuse: VERSION,
    versions: Object.fromEntries(versions),
  };
}

async function versionOf(lab: Lab, command: string): Promise<string | null> {
  try {
    return /\d+(\.\d+)+/.exec(await lab.run(command, ['--version']))?.[0] ?? null;
  } catch {
    return null;
  }
}
