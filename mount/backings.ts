/**
 * The `<dev>`s of all tables: opened once, on the main thread, and claimed for their target until it is removed: one
 * writer and nobody else, or any number of readers. Between processes src/device/open.ts sees to the same.
 */
import { closeSync } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { fileSize } from '../src/device/file.js';
import { type Access, deviceNumber, inodeKey, openBackingFile, statBacking } from '../src/device/open.js';
import { DmError } from '../src/errors.js';
import type { Backing, FileBacking, Target } from '../src/targets/target.js';

interface Claim {
  /** What is claimed: a file by its inode, a block device by its number, a target by its id. */
  readonly what: string;
  readonly owner: number;
  readonly access: Access;
  readonly backing: Backing;
}

/** What a `@NAME` leads to. */
export interface NamedTarget {
  readonly id: number;
  readonly target: Target;
  /** True while its `device` is open. */
  readonly isOpen: boolean;
  readonly isHeld: boolean;
}

export class Backings {
  private readonly claims: Claim[] = [];

  /** `mountDevice`: st_dev of the mount, to know its own files by. */
  constructor(
    private readonly mountPoint: string,
    private readonly mountDevice: () => Promise<number>,
    private readonly targetByName: (name: string) => Promise<NamedTarget | undefined>,
    /** Bytes. */
    private readonly sizeOfTarget: (id: number) => number,
  ) {}

  /** Opens and claims a `<dev>` for target `owner`. Errors as CreateContext.openBacking. */
  async open(device: string, access: Access, owner: number): Promise<Backing> {
    if (device.startsWith('@')) return await this.openTarget(device, access, owner);
    if (device.startsWith('/')) return await this.openFile(device, access, owner);
    throw new DmError('EINVAL', `${device}: a device is an absolute path or @NAME`);
  }

  /** Gives back all claims of a target and closes its files. */
  release(owner: number): void {
    for (let i = this.claims.length - 1; i >= 0; i--) {
      const claim = this.claims[i]!;
      if (claim.owner !== owner) continue;
      this.claims.splice(i, 1);
      if (claim.backing.kind === 'file') closeFile(claim.backing.fd);
    }
  }

  /** All that target `owner` has, in the order in which they were opened. */
  of(owner: number): Backing[] {
    return this.claims.filter((claim) => claim.owner === owner).map(({ backing }) => backing);
  }

  /** The same, each with the access that it was opened for. */
  claimsOf(owner: number): readonly { access: Access; backing: Backing }[] {
    return this.claims.filter((claim) => claim.owner === owner);
  }

  /** Bytes that a backing has now. */
  sizeOf(backing: Backing): number {
    return backing.kind === 'file' ? fileSize(backing.fd) : this.sizeOfTarget(backing.id);
  }

  /** From now on target `owner` knows its backings as long as they are now. */
  remeasure(owner: number): void {
    for (const backing of this.of(owner)) (backing as { size: number }).size = this.sizeOf(backing);
  }

  /** Target `id` is called `name` now: what stands on it says so in its table. */
  rename(id: number, name: string): void {
    for (const { backing } of this.claims) {
      if (backing.kind === 'target' && backing.id === id) (backing as { path: string }).path = `@${name}`;
    }
  }

  /** The target that has target `id` for a backing, if there is one. */
  userOf(id: number): { owner: number; access: Access } | undefined {
    return this.usersOf(id)[0];
  }

  /** All that have. */
  usersOf(id: number): readonly { owner: number; access: Access }[] {
    return this.claims.filter(({ what }) => what === targetKey(id));
  }

  private async openTarget(device: string, access: Access, owner: number): Promise<Backing> {
    const named = await this.targetByName(device.slice(1));
    if (!named) throw new DmError('ENOENT', `${device}: there is no target of that name in this mount`);
    if (named.isHeld) throw new DmError('EBUSY', `${device}: suspended; resume it first`);
    if (named.isOpen && access === 'write') {
      throw new DmError('EBUSY', `${device}: its device file is open; close it first`);
    }
    this.refuseConflict(device, targetKey(named.id), access);
    return this.claim(targetKey(named.id), owner, access, {
      kind: 'target',
      id: named.id,
      path: device,
      size: named.target.size,
    });
  }

  /** The same, for a path alone. */
  async openFile(path: string, access: Access, owner: number): Promise<FileBacking> {
    if (!path.startsWith('/')) throw new DmError('EINVAL', `${path}: not an absolute path`);
    const found = await statBacking(path);
    if (found.dev === (await this.mountDevice())) throw selfAccess(path);
    await this.refuseOwnLoop(path, found.isBlockDevice() ? found.rdev : found.dev);
    this.refuseConflict(path, inodeKey(found), access);
    const file = await openBackingFile(path, found, access);
    return this.claim(inodeKey(found), owner, access, { kind: 'file', ...file });
  }

  private claim<B extends Backing>(what: string, owner: number, access: Access, backing: B): B {
    this.claims.push({ what, owner, access, backing });
    return backing;
  }

  private refuseConflict(device: string, what: string, access: Access): void {
    const claim = this.claims.find((c) => c.what === what && (access === 'write' || c.access === 'write'));
    if (claim) throw new DmError('EBUSY', `${device}: in use by another target of this mount`);
  }

  /**
   * A loop device on one of our own files would wait for this mount: as block device `device`, below it, or below the
   * file system on it.
   */
  private async refuseOwnLoop(path: string, device: number): Promise<void> {
    const mountDevice = await this.mountDevice();
    const pending = [`/sys/dev/block/${deviceNumber(device)}`];
    for (let at = pending.pop(); at !== undefined; at = pending.pop()) {
      // A partition's folder lies inside its disk's.
      for (const folder of [at, `${at}/..`]) {
        const file = (await readFile(`${folder}/loop/backing_file`, 'utf8').catch(() => '')).trimEnd();
        // By its device too: the mount may have other names (bind mounts).
        const fileDevice = file && (await stat(file).catch(() => undefined))?.dev;
        if (file.startsWith(`${this.mountPoint}/`) || fileDevice === mountDevice) throw selfAccess(path);
      }
      const slaves = await readdir(`${at}/slaves`).catch(() => []);
      pending.push(...slaves.map((name) => `/sys/class/block/${name}`));
    }
  }
}

/** What was to be durable has been flushed before; one that fails is closed all the same, and the others must be too. */
function closeFile(fd: number): void {
  try {
    closeSync(fd);
  } catch {
    // Nobody is left to tell.
  }
}

function selfAccess(path: string): DmError {
  return new DmError(
    'EINVAL',
    `${path}: leads into this mount, which would wait for itself; stack targets with @NAME`,
  );
}

function targetKey(id: number): string {
  return `target ${id}`;
}
