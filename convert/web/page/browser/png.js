// PNG files with the recipe inside, as `galip-edge generate` writes them.

const SIGNATURE = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
export const XMP = "XML:com.adobe.xmp";
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit += 1) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(kind, data) {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(kind), 4);
  bytes.set(data, 8);
  let crc = 0xffffffff;
  for (const byte of bytes.subarray(4, data.length + 8)) crc = CRC[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  view.setUint32(data.length + 8, ~crc >>> 0);
  return bytes;
}

/** tEXt where Latin-1 will do, else iTXt, as always for XMP. */
function textChunk(key, value) {
  const head = new TextEncoder().encode(`${key}\0`);
  const isLatin1 = key !== XMP && /^[\0-\xff]*$/.test(value);
  const body = isLatin1
    ? Uint8Array.from(value, (character) => character.charCodeAt(0))
    : new TextEncoder().encode(`\0\0\0\0${value}`);
  return chunk(isLatin1 ? "tEXt" : "iTXt", Uint8Array.from([...head, ...body]));
}

/**
 * @param {Uint8Array} pixels RGB, row by row
 * @param {number} size width and height
 * @param {Record<string, string>} texts of text chunks
 * @returns {Promise<Blob>}
 */
export async function png(pixels, size, texts) {
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, size);
  header.setUint32(4, size);
  header.setUint8(8, 8);
  header.setUint8(9, 2);
  const stride = 3 * size;
  const rows = new Uint8Array((stride + 1) * size);
  for (let y = 0; y < size; y += 1) {
    // Filter "up": the difference to the row above.
    const at = y * (stride + 1);
    rows[at] = y ? 2 : 0;
    for (let x = 0; x < stride; x += 1) {
      rows[at + 1 + x] = pixels[y * stride + x] - (y ? pixels[(y - 1) * stride + x] : 0);
    }
  }
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  return new Blob(
    [
      SIGNATURE,
      chunk("IHDR", new Uint8Array(header.buffer)),
      ...Object.entries(texts).map(([key, value]) => textChunk(key, value)),
      chunk("IDAT", data),
      chunk("IEND", new Uint8Array()),
    ],
    { type: "image/png" },
  );
}
