/** How far long work is, for whoever shows it. */
export interface WorkDone {
  /** Bytes done, and in all. */
  readonly bytes: number;
  readonly bytesTotal: number;
}

export interface ProgressOptions {
  /** Called after each mebibyte or so, and waited for. What it throws ends the work, as an error would. */
  readonly onProgress?: (done: WorkDone) => void | Promise<void>;
}
