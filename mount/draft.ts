/** Drafts: what is to take the place of a file, by rename(2), once it is whole. */
import { open, rm } from 'node:fs/promises';

/** Writes `path` anew; durable when it resolves, but for its name. What a crash has left there goes, and so does somebody else's link. */
export async function writeDraft(path: string, content: string | Uint8Array, mode = 0o666): Promise<void> {
  await rm(path, { force: true });
  const file = await open(path, 'wx', mode);
  try {
    await file.writeFile(content);
    await file.sync();
  } finally {
    await file.close();
  }
}
