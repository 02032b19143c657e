/** Mount files: tab-P1, every order of the lines makes the same targets, what others stand on first. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseCreate, parseTab, targetsOf } from '../../mount/cli/tab.js';

const FILE = '/etc/dmfuse/vm.tab';

function targets(text: string) {
  return targetsOf(parseTab(text, FILE));
}

function names(text: string): string[] {
  return targets(text).map(({ name }) => name);
}

/** Targets t0, t1, …, each on some of those before; `order` is a permutation of their lines. */
const world = fc
  .array(
    fc.record({
      below: fc.array(fc.nat(), { maxLength: 3 }),
      colon: fc.boolean(),
      indent: fc.constantFrom('', ' ', '\t'),
      above: fc.constantFrom('', '\n', '# a linear /x 0\n', '  #\n\t\n'),
      filter: fc.option(fc.constantFrom('blksnap', 'log-writes /log\\ file')),
    }),
    { minLength: 1, maxLength: 12 },
  )
  .chain((specs) =>
    fc.record({
      specs: fc.constant(
        specs.map((spec, i) => ({
          ...spec,
          name: `t${i}`,
          below: i === 0 ? [] : spec.below.map((n) => `t${n % i}`),
        })),
      ),
      order: fc.shuffledSubarray(
        specs.flatMap((spec, i) => (spec.filter ? [i, i + specs.length] : [i])),
        { minLength: specs.filter(({ filter }) => filter).length + specs.length },
      ),
    }),
  )
  .map(({ specs, order }) => {
    const tables = specs.map(({ below }) => ['cow /base 0', ...below.map((name) => `@${name}`)].join(' '));
    const lines = order.map((index) => {
      const { name, colon, indent, above, filter } = specs[index % specs.length]!;
      const rest = index < specs.length ? tables[index] : `filter ${filter}`;
      return `${above}${indent}${name}${colon ? ':' : ''}${indent} ${rest}`;
    });
    return { specs, tables, text: `${lines.join('\n')}\n` };
  });

describe('a mount file', () => {
  test('tab-P1: any order of the lines makes every target once, after what it stands on, with its filter', () => {
    fc.assert(
      fc.property(world, ({ specs, tables, text }) => {
        const made = targets(text);
        expect(made.map(({ name }) => name).sort()).toEqual(specs.map(({ name }) => name).sort());
        for (const [at, { name, table, filter }] of made.entries()) {
          const i = Number(name.slice(1));
          expect(table).toBe(tables[i]);
          expect(filter?.line ?? null).toBe(specs[i]!.filter);
          for (const below of specs[i]!.below) {
            expect(made.findIndex((other) => other.name === below)).toBeLessThan(at);
          }
        }
        // In an order that can be made as it is, it stays.
        const sorted = made.map(({ name, table }) => `${name} ${table}`).join('\n');
        expect(names(sorted)).toEqual(made.map(({ name }) => name));
      }),
    );
  });

  test('tab-P2: a target that stands on itself through others is refused, and the circle is named', () => {
    fc.assert(
      fc.property(world, fc.nat(), ({ specs, text }, pick) => {
        const { name } = specs[pick % specs.length]!;
        const circle = `${text}${name}b linear @${name}c 0\n${name}c linear @${name}b 0\n`;
        expect(() => targets(circle)).toThrow(
          `a circle, in which each stands on the next: ${name}b → ${name}c → ${name}b`,
        );
      }),
    );
    expect(() => targets('a linear @a 0')).toThrow(`${FILE}: line 1: a circle`);
    expect(() => targets('x linear @a 0\na linear @b 0\nb bow @a')).toThrow('next: a → b → a');
  });

  test.each([
    ['\nsys', 'line 2: expected `NAME TABLE`, found `sys`'],
    ['a frob /x', 'line 1: there is no target type `frob`'],
    ['# x\na 8 linear /x 0', 'line 2: table starts at sector 8'],
    ['a linear /x 0\n\na: bow /y', `line 3: a: exists (${FILE}: line 1)`],
    ['a linear /x 0\nb bow @c', 'line 2: @c: no line makes a target of that name'],
    ['a linear /x 0\nb filter blksnap', 'line 2: b: no line makes a target of that name'],
    ['a linear /x 0\na filter frob', 'line 2: there is no filter `frob`'],
    [
      'a linear /x 0\na filter blksnap\na filter blksnap',
      `line 3: the filter of a: exists (${FILE}: line 2)`,
    ],
    ['a linear /x\\\n 0', 'line 1: ends in a backslash'],
  ])('%j is refused: %s', (text, message) => {
    expect(() => targets(text)).toThrow(`${FILE}: ${message}`);
  });

  test('backslashes of a table stay as they are; two at the end of a line are one', () => {
    expect(targets('a linear /with\\ blank 0\nb bow /x\\\\').map(({ table }) => table)).toEqual([
      'linear /with\\ blank 0',
      'bow /x\\\\',
    ]);
  });

  test('--create and mount files share their names', () => {
    const lines = [...parseTab('top bow @disk', FILE), parseCreate('disk linear /img 0')];
    expect(targetsOf(lines).map(({ name, where }) => [name, where])).toEqual([
      ['disk', undefined],
      ['top', `${FILE}: line 1`],
    ]);
    expect(() => targetsOf([...lines, parseCreate('top bow /x')])).toThrow(`top: exists (${FILE}: line 1)`);
  });
});
