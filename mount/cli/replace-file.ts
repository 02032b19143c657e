/** Files that commands write for others to read: whoever opens one finds what was there before, or all of the new content. */
import { realpath, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { writeDraft } from '../draft.js';
import { explain } from './control.js';

/** What is no regular file (a pipe, /dev/stdout) is written to as it is: a rename would put a file in its place. */
export async function replaceFile(path: string, content: string | Uint8Array): Promise<void> {
  const there = await stat(path).catch(() => undefined);
  // The file itself, where a link leads to it.
  const target = there ? await realpath(path).catch(() => path) : path;
  const isSpecial = there !== undefined && !there.isFile() && !there.isDirectory();
  // Of another ending: node_exporter reads all *.prom of the folder.
  const draft = join(dirname(target), `.${basename(target)}.${process.pid}.new`);
  try {
    if (isSpecial) {
      await writeFile(path, content);
    } else {
      await writeDraft(draft, content);
      await rename(draft, target);
    }
  } catch (error) {
    if (!isSpecial) await rm(draft, { force: true });
    throw explain(error, path, {
      ENOENT: 'there is no such folder',
      EISDIR: 'is a folder',
      ENOSPC: 'no space is left there',
      EACCES: 'cannot be written there: permission denied',
    });
  }
}
