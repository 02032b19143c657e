declare module 'crc-32/crc32c.js' {
  /** CRC-32C (Castagnoli) of bytes, as a signed number. */
  function buf(data: Uint8Array, seed?: number): number;
  const crc32c: { buf: typeof buf };
  export default crc32c;
}
