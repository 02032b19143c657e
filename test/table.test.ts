import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DmError } from '../src/errors.js';
import { parseCount, parseTableLine, quoteWord, takeGroup } from '../src/table.js';
import { targetType, targetTypes } from '../src/targets/index.js';

function messageOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(DmError);
    expect((error as DmError).code).toBe('EINVAL');
    return (error as DmError).message;
  }
  return 'no error';
}

describe('a table line', () => {
  it.each([
    ['linear /dev/sda 0', undefined, 'linear', ['/dev/sda', '0']],
    ['0 2048 linear /dev/sda 0', 2048, 'linear', ['/dev/sda', '0']],
    ['  0\t2048   linear  /dev/sda\n 0 \n', 2048, 'linear', ['/dev/sda', '0']],
    ['bow', undefined, 'bow', []],
    ['0 9007199254740991 bow', 9007199254740991, 'bow', []],
    ['bow my\\ disk\\\\s 1 block_size:512', undefined, 'bow', ['my disk\\s', '1', 'block_size:512']],
    ['bow \\a\\ \\\n', undefined, 'bow', ['a \n']],
    ['bow a\\', undefined, 'bow', ['a\\']],
    ['bow @other', undefined, 'bow', ['@other']],
    ['bow Müller\u{1f4be}.img', undefined, 'bow', ['Müller\u{1f4be}.img']],
  ])('`%s`', (line, length, type, args) => {
    expect(parseTableLine(line)).toEqual({ length, type, args });
  });

  it.each([
    ['', 'the table is empty: expected `[0 LENGTH] TYPE ARGS`'],
    [' \n\t', 'the table is empty'],
    ['0 2048', 'the table is empty'],
    ['0', 'LENGTH (sectors) must be a decimal number, found ``'],
    ['0 bow', 'LENGTH (sectors) must be a decimal number, found `bow`'],
    ['0 0 bow disk', 'LENGTH is 0 sectors: leave `0 LENGTH` out for all of the device'],
    ['0 1e3 bow disk', 'found `1e3`'],
    ['0 9007199254740992 bow disk', 'found `9007199254740992`'],
    ['0 -5 bow disk', 'found `-5`'],
    ['8 100 bow disk', 'table starts at sector 8: a target here starts at sector 0'],
    ['0x0 100 bow disk', 'the start sector must be a decimal number, found `0x0`'],
  ])('`%s` is refused: %s', (line, message) => {
    expect(messageOf(() => parseTableLine(line))).toContain(message);
  });

  it('gives back every word that was quoted', () => {
    const word = fc.string({ unit: 'binary', minLength: 1 }).filter((text) => !/^\d/.test(text));
    fc.assert(
      fc.property(fc.array(word, { minLength: 1 }), fc.option(fc.integer({ min: 1 })), (words, length) => {
        const line = [...(length === null ? [] : ['0', length]), ...words.map(quoteWord)].join(' ');
        const [type, ...args] = words;
        expect(parseTableLine(line)).toEqual({ length: length ?? undefined, type, args });
      }),
    );
  });
});

describe('a `<#args> arg…` group', () => {
  it.each([
    [[], [], []],
    [['0'], [], []],
    [['0', 'a'], [], ['a']],
    [['2', 'a', 'b', 'c'], ['a', 'b'], ['c']],
    [['1', '1', '2', 'x'], ['1'], ['2', 'x']],
  ])('%j', (args, group, rest) => {
    expect(takeGroup(args, 'options')).toEqual({ group, rest });
  });

  it.each([
    [['a'], 'the number of options must be a decimal number, found `a`'],
    [['-1', 'a'], 'found `-1`'],
    [['2', 'a'], 'the table promises 2 options and gives 1'],
    [['1'], 'the table promises 1 options and gives 0'],
  ])('%j is refused: %s', (args, message) => {
    expect(messageOf(() => takeGroup(args, 'options'))).toContain(message);
  });
});

describe('a count', () => {
  it('is decimal digits below 2^53', () => {
    expect(['0', '7', '007', '9007199254740991'].map((word) => parseCount(word, 'x'))).toEqual([
      0, 7, 7, 9007199254740991,
    ]);
  });

  it.each(['', ' ', '1 ', '+1', '-1', '1.0', '1e3', '0x10', '٣', '9007199254740992', 'Infinity', '1\n'])(
    'is not `%s`, and the message names it',
    (word) => {
      expect(messageOf(() => parseCount(word, 'the depth (blocks)'))).toBe(
        `the depth (blocks) must be a decimal number, found \`${word}\``,
      );
    },
  );
});

describe('target types', () => {
  it('are found by name; an unknown one is told the known', () => {
    expect(targetType('bow').name).toBe('bow');
    expect(messageOf(() => targetType('thin'))).toMatch(
      /^there is no target type `thin`: known are linear, bow/,
    );
    for (const { name, usage } of targetTypes()) expect(`${name} ${usage}`).toMatch(/^[a-z]+ </);
  });
});
