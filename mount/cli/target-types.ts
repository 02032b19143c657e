/** `dmfuse targets`: what this dmfuse can make. */
import { filterTypes } from '../../src/filters/index.js';
import { targetTypes } from '../../src/targets/index.js';
import { VERSION } from '../version.js';
import { printJson } from './output.js';

export function printTypes({ json }: { json: boolean }): void {
  const describe = (kind: string) => (type: { readonly name: string; readonly usage: string }) => ({
    ...{ name: type.name, kind, version: VERSION, arguments: type.usage },
  });
  const types = [...targetTypes().map(describe('target')), ...filterTypes().map(describe('filter'))];
  if (json) {
    printJson({ types });
    return;
  }
  for (const { name, kind, version, arguments: usage } of types) {
    process.stdout.write(`${name.padEnd(12)}v${version}  ${kind}  ${usage}`.trimEnd());
    process.stdout.write('\n');
  }
}
