/** A line of `events`: `name key=value… monotonic_ns=N`, where a value with blanks is a JSON string. */

export interface EventLine {
  readonly name: string;
  readonly fields: Readonly<Record<string, string | number>>;
}

/** Fields whose digits are a name. */
const NAMES = ['device', 'file'];

export function parseEvent(line: string): EventLine {
  const fields = [...line.matchAll(/ ([^\s=]+)=("(?:[^"\\]|\\.)*"|\S*)/g)].map(
    ([, key, value]) => [key!, parseValue(key!, value!)] as const,
  );
  return { name: /^\S*/.exec(line)![0], fields: Object.fromEntries(fields) };
}

function parseValue(key: string, value: string): string | number {
  if (value.startsWith('"')) return JSON.parse(value);
  return /^-?\d+$/.test(value) && !NAMES.includes(key) ? Number(value) : value;
}
