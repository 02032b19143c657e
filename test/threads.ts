/**
 * Real threads for tests. A worker cannot import TypeScript on Node 20, so all of src, and what else the test names, is
 * transpiled into a temporary folder, in which the worker's script lies too: it imports './src/shared/rwlock.js'.
 */
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import ts from 'typescript';
import { afterAll, afterEach, beforeAll } from 'vitest';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const compilerOptions = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext };

class Threads {
  private readonly folder = mkdtempSync(join(tmpdir(), 'dmfuse-threads-'));
  private readonly workers = new Set<Worker>();

  /** `script`: what each worker runs; `files`: sources beside src that it imports, as paths from the root. */
  constructor(script: string, files: readonly string[] = []) {
    writeFileSync(join(this.folder, 'package.json'), '{ "type": "module" }');
    symlinkSync(join(ROOT, 'node_modules'), join(this.folder, 'node_modules'));
    const sources = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' });
    for (const file of [...sources.map((source) => join('src', source)), ...files]) {
      if (!file.endsWith('.ts')) continue;
      const made = join(this.folder, file.replace(/\.ts$/, '.js'));
      mkdirSync(dirname(made), { recursive: true });
      const text = readFileSync(join(ROOT, file), 'utf8');
      writeFileSync(made, ts.transpileModule(text, { compilerOptions }).outputText);
    }
    writeFileSync(join(this.folder, 'worker.js'), script);
  }

  /** Starts a worker; the promise ends with its exit code, or fails with what it throws. */
  start(workerData: unknown): Promise<number> {
    const worker = new Worker(join(this.folder, 'worker.js'), { workerData, execArgv: [] });
    this.workers.add(worker);
    return new Promise((resolve, reject) => {
      worker.on('exit', resolve);
      worker.on('error', reject);
    });
  }

  /** Ends every worker, whatever it waits for. */
  async stop(): Promise<void> {
    await Promise.all([...this.workers].map((worker) => worker.terminate()));
    this.workers.clear();
  }

  async remove(): Promise<void> {
    await this.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Threads for all tests of a file: none outlives its test. */
export function useThreads(
  script: string,
  files: readonly string[] = [],
): (workerData: unknown) => Promise<number> {
  let threads: Threads;
  beforeAll(() => {
    threads = new Threads(script, files);
  });
  afterEach(() => threads.stop());
  afterAll(() => threads.remove());
  return (workerData) => threads.start(workerData);
}

/** Waits until it `holds`; fails after 60 seconds. */
export async function until(what: string, holds: () => boolean): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!holds()) {
    if (Date.now() > deadline) throw new Error(`waited in vain until ${what}`);
    await pause(1);
  }
}

export function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
