/** The example target of CONTRIBUTING.md compiles as it stands, and keeps what every target promises. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { afterAll, expect, it } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.js';
import type { Target, TargetType } from '../../src/targets/target.js';
import { testPromises } from '../targets/battery.js';
import { codeOf, makeRig } from '../targets/harness.js';
import { readText } from './examples.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

const [, example = ''] = /^```ts\n(.*?)^```$/ms.exec(readText('CONTRIBUTING.md')) ?? [];
const folder = mkdtempSync(join(tmpdir(), 'dmfuse-example-'));
const file = join(folder, 'index.mts');
// From src/targets/gate/.
writeFileSync(
  file,
  example.replace(/'\.\.\/\.\.\//g, `'${ROOT}src/`).replace(/'\.\.\//g, `'${ROOT}src/targets/`),
);
afterAll(() => rmSync(folder, { recursive: true }));

const { gate } = (await import(/* @vite-ignore */ file)) as { gate: TargetType<unknown, Target> };

it('compiles, in our style', () => {
  const { config } = ts.readConfigFile(join(ROOT, 'tsconfig.json'), ts.sys.readFile);
  const { options } = ts.convertCompilerOptionsFromJson(config.compilerOptions, ROOT);
  const program = ts.createProgram([file], { ...options, typeRoots: [join(ROOT, 'node_modules/@types')] });
  const source = program.getSourceFile(file)!;
  const found = [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)];
  expect(found.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n'))).toEqual([]);

  const biome = join(ROOT, 'node_modules/.bin/biome');
  const args = ['check', '--write', '--stdin-file-path=src/targets/gate/index.ts'];
  expect(execFileSync(biome, args, { cwd: ROOT, input: example, encoding: 'utf8' })).toBe(example);
});

it('gate-I1: refuses changes while it is shut, and only those', async () => {
  const { target, read, write, openView } = await makeRig(gate, 'disk', { disk: new MemoryDevice(4096) });
  await write('writable', '0');
  const lane = openView();
  for (const view of [target, lane]) {
    expect(codeOf(() => view.write(0, new Uint8Array(1)))).toBe('EROFS');
    expect(codeOf(() => view.discard(0, 512))).toBe('EROFS');
    expect(codeOf(() => view.writeZeroes(0, 512))).toBe('EROFS');
    expect(codeOf(() => view.read(0, new Uint8Array(512)))).toBe('none');
    expect(codeOf(() => view.flush())).toBe('none');
  }
  expect(lane.statusArgs()).toBe('writable:0');
  await write('writable', '1');
  expect(codeOf(() => lane.write(0, new Uint8Array(1)))).toBe('none');
  expect(read('writable')).toBe('1\n');
});

testPromises({ name: 'gate', type: gate, args: (device) => device, bytes: 200 * 512 });
