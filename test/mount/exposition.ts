/**
 * A strict reader of Prometheus' text format, version 0.0.4, for tests: what promtool would refuse throws. Beyond the grammar it
 * holds families together (HELP, TYPE, then all samples), refuses two samples with the same labels, and knows what a histogram is:
 * ascending `le`, counts that never fall, +Inf the same as `_count`.
 */

export interface ExpositionSample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Exposition {
  readonly types: ReadonlyMap<string, string>;
  readonly samples: readonly ExpositionSample[];
  /** The one sample of that name with all of these labels. */
  value(name: string, labels?: Readonly<Record<string, string>>): number;
}

const NAME = /^[a-zA-Z_:][a-zA-Z0-9_:]*/;
const LABEL = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|(?=\}))/;
const NUMBER = /^(?:[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]Inf|NaN)$/;

export function parseExposition(text: string): Exposition {
  if (!text.endsWith('\n')) throw new Error('the last line has no end');
  const types = new Map<string, string>();
  const helps = new Set<string>();
  const samples: ExpositionSample[] = [];
  let family = '';
  for (const line of text.split('\n').filter((each) => each !== '')) {
    const about = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line);
    if (about) {
      const [, what, name = '', rest = ''] = about;
      const seen = what === 'HELP' ? helps.has(name) : types.has(name);
      if (seen) throw new Error(`a second ${what} of ${name}`);
      if (what === 'HELP') helps.add(name);
      else if (!/^(counter|gauge|histogram|summary|untyped)$/.test(rest))
        throw new Error(`not a type: ${line}`);
      else types.set(name, rest);
      family = name;
    } else {
      const sample = parseSample(line);
      const suffix = types.get(family) === 'histogram' ? '(_bucket|_sum|_count)' : '';
      if (!new RegExp(`^${family}${suffix}$`).test(sample.name))
        throw new Error(`${line}: not of the family ${family}`);
      samples.push(sample);
    }
  }
  const keys = samples.map(({ name, labels }) => `${name} ${JSON.stringify(Object.entries(labels).sort())}`);
  if (new Set(keys).size < keys.length) throw new Error('the same sample twice');
  for (const [name, type] of types) {
    if (!helps.has(name)) throw new Error(`${name} has no HELP`);
    if (type === 'counter' && !name.endsWith('_total')) throw new Error(`${name}: a counter ends in _total`);
    if (type === 'histogram') checkHistogram(name, samples);
  }
  return { types, samples, value: (name, labels = {}) => only(samples, name, labels).value };
}

function parseSample(line: string): ExpositionSample {
  const [name] = NAME.exec(line) ?? [];
  if (name === undefined) throw new Error(`no name: ${line}`);
  let rest = line.slice(name.length);
  const labels: Record<string, string> = {};
  if (rest.startsWith('{')) {
    rest = rest.slice(1);
    for (let found = LABEL.exec(rest); found; found = LABEL.exec(rest)) {
      const [whole, key, value] = found;
      if (labels[key!] !== undefined) throw new Error(`${key} twice: ${line}`);
      labels[key!] = value!.replace(/\\(.)/g, (_, escaped) => (escaped === 'n' ? '\n' : escaped));
      rest = rest.slice(whole.length);
    }
    if (!rest.startsWith('}')) throw new Error(`not labels: ${line}`);
    rest = rest.slice(1);
  }
  const [blank, value = '', ...more] = rest.split(' ');
  if (blank !== '' || more.length > 0 || !NUMBER.test(value)) throw new Error(`not a value: ${line}`);
  return { name, labels, value: Number(value.replace('Inf', 'Infinity')) };
}

function checkHistogram(name: string, samples: readonly ExpositionSample[]): void {
  const series = new Map<string, { le: number; count: number }[]>();
  const keyOf = (labels: Readonly<Record<string, string>>) => JSON.stringify(Object.entries(labels).sort());
  for (const { name: of, labels, value } of samples) {
    if (of !== `${name}_bucket`) continue;
    const { le, ...others } = labels;
    if (le === undefined) throw new Error(`${name}: a bucket without le`);
    const buckets = series.get(keyOf(others)) ?? [];
    buckets.push({ le: Number(le.replace('Inf', 'Infinity')), count: value });
    series.set(keyOf(others), buckets);
  }
  for (const { name: of, labels, value } of samples) {
    if (of !== `${name}_count`) continue;
    const buckets = series.get(keyOf(labels)) ?? [];
    series.delete(keyOf(labels));
    const last = buckets.at(-1);
    if (last?.le !== Infinity || last.count !== value) throw new Error(`${name}: +Inf is not the count`);
    buckets.slice(1).forEach(({ le, count }, i) => {
      if (le <= buckets[i]!.le || count < buckets[i]!.count) throw new Error(`${name}: falls at le=${le}`);
    });
    if (!samples.some((each) => each.name === `${name}_sum` && keyOf(each.labels) === keyOf(labels)))
      throw new Error(`${name}: no sum`);
  }
  if (series.size > 0) throw new Error(`${name}: buckets without a count`);
}

function only(
  samples: readonly ExpositionSample[],
  name: string,
  labels: Readonly<Record<string, string>>,
): ExpositionSample {
  const found = samples.filter(
    (sample) =>
      sample.name === name && Object.entries(labels).every(([key, value]) => sample.labels[key] === value),
  );
  if (found.length !== 1) throw new Error(`${found.length} samples ${name} ${JSON.stringify(labels)}`);
  return found[0]!;
}
