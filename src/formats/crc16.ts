/**
 * CRC-16/KERMIT (polynomial x^16 + x^12 + x^5 + 1, reflected, from 0, not inverted) of sectors; dm-csum format, section 3.
 *
 * Faster than a table lookup a byte: squaring the polynomial P five times gives x^512 = x^384 + x^160 + 1 (mod P), in
 * which every exponent is a whole number of 32-bit words. So the first word of a message can be taken away when it is
 * added (XOR) to the words 4, 11 and 16 places after it, and so on until 16 words are left. P^16 does the same with
 * steps of half words until 8 are left, P^8 with steps of bytes until 4 are left; the last 16 bytes are looked up.
 *
 * Words are little-endian, as on every machine that Node runs FUSE on.
 */

/** Entry 256k + b: the CRC of byte b with k zero bytes after it. */
const TABLE = makeTable();

const WORDS = 128;

/** The CRC of the 512 bytes from word `at` (32 bits) of `words` on. */
export function crcOfSector(words: Int32Array, at: number): number {
  return crcAfter(words, at, words[at]!, words[at + 1]!);
}

/** The same with zeros for its first 8 bytes, which is the CRC of the other 504: zeros in front do not change a CRC. */
export function crcAfterHeader(words: Int32Array, at: number): number {
  return crcAfter(words, at, 0, 0);
}

function crcAfter(m: Int32Array, at: number, first: number, second: number): number {
  let i = at;
  let a = first;
  let b = second;
  let c = m[i + 2]!;
  let d = m[i + 3]!;
  let e = m[i + 4]! ^ a;
  let f = m[i + 5]! ^ b;
  let g = m[i + 6]! ^ c;
  let h = m[i + 7]! ^ d;
  let j = m[i + 8]! ^ e;
  let k = m[i + 9]! ^ f;
  let l = m[i + 10]! ^ g;
  let n = m[i + 11]! ^ h ^ a;
  let o = m[i + 12]! ^ j ^ b;
  let p = m[i + 13]! ^ k ^ c;
  let q = m[i + 14]! ^ l ^ d;
  let r = m[i + 15]! ^ n ^ e;
  const last = at + WORDS - 16;
  // word[i] ^= word[i - 4] ^ word[i - 11] ^ word[i - 16], the last 16 words in a to r
  for (i += 16; i < last; i += 16) {
    a ^= m[i]! ^ o ^ f;
    b ^= m[i + 1]! ^ p ^ g;
    c ^= m[i + 2]! ^ q ^ h;
    d ^= m[i + 3]! ^ r ^ j;
    e ^= m[i + 4]! ^ a ^ k;
    f ^= m[i + 5]! ^ b ^ l;
    g ^= m[i + 6]! ^ c ^ n;
    h ^= m[i + 7]! ^ d ^ o;
    j ^= m[i + 8]! ^ e ^ p;
    k ^= m[i + 9]! ^ f ^ q;
    l ^= m[i + 10]! ^ g ^ r;
    n ^= m[i + 11]! ^ h ^ a;
    o ^= m[i + 12]! ^ j ^ b;
    p ^= m[i + 13]! ^ k ^ c;
    q ^= m[i + 14]! ^ l ^ d;
    r ^= m[i + 15]! ^ n ^ e;
  }
  // The last 16 words take what was taken away before them, and nothing of each other.
  a ^= m[i]! ^ o ^ f;
  b ^= m[i + 1]! ^ p ^ g;
  c ^= m[i + 2]! ^ q ^ h;
  d ^= m[i + 3]! ^ r ^ j;
  e ^= m[i + 4]! ^ k;
  f ^= m[i + 5]! ^ l;
  g ^= m[i + 6]! ^ n;
  h ^= m[i + 7]! ^ o;
  j ^= m[i + 8]! ^ p;
  k ^= m[i + 9]! ^ q;
  l ^= m[i + 10]! ^ r;
  n ^= m[i + 11]!;
  o ^= m[i + 12]!;
  p ^= m[i + 13]!;
  q ^= m[i + 14]!;
  r ^= m[i + 15]!;
  // P^16: half words 4, 11 and 16 places after it; a word stands for two of them.
  c ^= a;
  f ^= a << 16;
  g ^= a >>> 16;
  j ^= a;
  d ^= b;
  g ^= b << 16;
  h ^= b >>> 16;
  k ^= b;
  e ^= c;
  h ^= c << 16;
  j ^= c >>> 16;
  l ^= c;
  f ^= d;
  j ^= d << 16;
  k ^= d >>> 16;
  n ^= d;
  g ^= e;
  k ^= e << 16;
  l ^= e >>> 16;
  o ^= e;
  h ^= f;
  l ^= f << 16;
  n ^= f >>> 16;
  p ^= f;
  j ^= g;
  n ^= g << 16;
  o ^= g >>> 16;
  q ^= g;
  k ^= h;
  o ^= h << 16;
  p ^= h >>> 16;
  r ^= h;
  // P^8: bytes 4, 11 and 16 places after it; a word stands for four.
  k ^= j;
  l ^= j << 24;
  n ^= j >>> 8;
  o ^= j;
  l ^= k;
  n ^= k << 24;
  o ^= k >>> 8;
  p ^= k;
  n ^= l;
  o ^= l << 24;
  p ^= l >>> 8;
  q ^= l;
  o ^= n;
  p ^= n << 24;
  q ^= n >>> 8;
  r ^= n;
  return lookUp(o, 3) ^ lookUp(p, 2) ^ lookUp(q, 1) ^ lookUp(r, 0);
}

/** The CRC of a word's four bytes with `after` words of zeros after it. */
function lookUp(word: number, after: number): number {
  const at = after << 10;
  return (
    TABLE[at + 768 + (word & 255)]! ^
    TABLE[at + 512 + ((word >>> 8) & 255)]! ^
    TABLE[at + 256 + ((word >>> 16) & 255)]! ^
    TABLE[at + (word >>> 24)]!
  );
}

function makeTable(): Uint16Array {
  const table = new Uint16Array(16 * 256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x8408 : crc >>> 1;
    table[byte] = crc;
  }
  for (let i = 256; i < table.length; i++) {
    const before = table[i - 256]!;
    table[i] = (before >>> 8) ^ table[before & 255]!;
  }
  return table;
}
