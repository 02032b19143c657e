/** What snapshots need of the mount that they are in. All of it on the main thread. */
import type { ImageDescriptor } from './image.js';
import type { TrackerDescriptor } from './tracker.js';

/** A device with the filter. */
export interface TrackedDevice {
  readonly id: number;
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** What a device stands on has a lower one. */
  readonly loaded: number;
  /** The filter's descriptor, without an area. */
  readonly tracker: TrackerDescriptor;
}

/** An image that is announced. */
export interface ImageAnnouncement {
  readonly id: number;
  /** That of its device; unique in the snapshot. */
  readonly name: string;
  readonly snapshotId: number;
  /** The device that it is the image of. */
  readonly originId: number;
  readonly descriptor: ImageDescriptor;
  /** Bytes. */
  readonly size: number;
}

/** A file or block device that is opened for difference storage. */
export interface StorageFile {
  readonly fd: number;
  /** Bytes. */
  readonly size: number;
  readonly path: string;
  readonly isBlockDevice: boolean;
  /** The same for all paths to it. */
  readonly key: string;
}

export interface Host {
  /** A number for a snapshot or an image that nothing else of the mount has. */
  newId(): number;
  /** Throws ENOENT where there is no target of the name, or no blksnap filter on it. */
  trackedDevice(name: string): TrackedDevice;
  /** Replaces the descriptor of the device's filter on all threads. */
  setTracker(device: TrackedDevice, descriptor: TrackerDescriptor): void;
  /** Announced to all threads. Throws and adds nothing. */
  addImage(image: ImageAnnouncement): void;
  /** Also of one that is open: its requests fail from now on. */
  removeImage(id: number): void;
  /**
   * Resolves when every thread has heard of all that was announced, and no request for these devices and images is under way
   * that began before.
   */
  settle(ids: readonly number[]): Promise<void>;
  /** Opens a file and claims it; what this owner has open already is the same descriptor again. */
  openStorage(path: string, owner: number): Promise<StorageFile>;
  /** Gives a part of a regular file, bytes, its space. Throws ENOSPC. */
  allocateStorage(fd: number, offset: number, length: number): Promise<void>;
  /** Closes what it has open and gives the claims back. */
  releaseStorage(owner: number): Promise<void>;
  /** Puts a line in the events of a snapshot. */
  raise(id: number, event: string): void;
}
