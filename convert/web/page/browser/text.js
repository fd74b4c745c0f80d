// Cleaning of prompts, as the runtime does it: ftfy's repairs, HTML entities, white space, lower case.
// The tables come from the ftfy and Python that wrote this page.

const SPACE = /[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u;
const ENTITY = /&#?[0-9A-Za-z]{1,24};/g;
const CHARACTER_REFERENCE = /&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)/g;
const TERMINAL_ESCAPE = /\x1b\[((?:\p{Nd}|;)*)([a-zA-Z])/gu;
const CONTROL = /[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g;

// Of bytes, as strings of characters up to 0xff.
const A_GRAVE_WORD = /\xc3 (?! |quele|quela|quilo|s )/g;
const ALTERED_UTF8 = new RegExp(
  "[\xc2\xc3\xc5\xce\xd0\xd9] |[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]" +
    "|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] |\xf0 [\x80-\xbf][\x80-\xbf]" +
    "|\xf0[\x80-\xbf] [\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf] ",
  "g",
);
const LOSSY_UTF8 = new RegExp(
  "[\xc2-\xdf]\x1a|[\xc2-\xc3][?]|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]" +
    "|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]" +
    "|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]" +
    "|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]" +
    "|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]|\x1a",
  "g",
);
const SURROGATES = /\xed([\xa0-\xaf])([\x80-\xbf])\xed([\xb0-\xbf])([\x80-\xbf])/g;

/** @returns {(text: string) => string} for the tables that the export wrote */
export function cleaner(tables) {
  const bad = new RegExp(tables.badness, "u");
  const detector = new RegExp(tables.utf8_detector, "gu");
  const entities = new Map(Object.entries(tables.entities));
  const html5 = new Map(Object.entries(tables.html5));
  const encoders = tables.charmaps.map(([name, characters]) => {
    const byCharacter = new Map([...characters].map((character, byte) => [character, byte]));
    return { name, byCharacter };
  });
  const windows1252 = tables.windows_1252;
  const translations = new Map(Object.entries({ ...tables.ligatures, ...tables.widths }));

  function codePoint(number) {
    if (number in tables.invalid_references) return tables.invalid_references[number];
    if ((number >= 0xd800 && number <= 0xdfff) || number > 0x10ffff) return "\ufffd";
    return tables.invalid_code_points.includes(number) ? "" : String.fromCodePoint(number);
  }

  /** As Python's html.unescape. */
  function unescape(text) {
    return text.replace(CHARACTER_REFERENCE, (whole, reference) => {
      if (reference[0] === "#") {
        const digits = reference.replace(/;$/, "");
        const hexadecimal = /^#[xX]/.test(digits);
        return codePoint(parseInt(digits.slice(hexadecimal ? 2 : 1), hexadecimal ? 16 : 10));
      }
      if (html5.has(reference)) return html5.get(reference);
      const characters = [...reference];
      for (let end = characters.length - 1; end > 1; end -= 1) {
        const start = characters.slice(0, end).join("");
        if (html5.has(start)) return html5.get(start) + characters.slice(end).join("");
      }
      return whole;
    });
  }

  function unescapeWhole(text) {
    return text.replace(ENTITY, (entity) => {
      if (entities.has(entity)) return entities.get(entity);
      if (!entity.startsWith("&#")) return entity;
      const found = unescape(entity);
      return found.includes(";") ? entity : found;
    });
  }

  /** Bytes as a string, or null if the encoding lacks a character. */
  function encoded(text, { byCharacter }) {
    let bytes = "";
    for (const character of text) {
      const byte = byCharacter.get(character);
      if (byte === undefined) return null;
      bytes += String.fromCharCode(byte);
    }
    return bytes;
  }

  function utf8(bytes) {
    const array = Uint8Array.from(bytes, (character) => character.charCodeAt(0));
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(array);
    } catch {
      return null;
    }
  }

  /** UTF-8 in which surrogates and NUL may be encoded on their own. */
  function utf8Variants(bytes) {
    const pieces = bytes.replaceAll("\xc0\x80", "\0").replace(SURROGATES, (_, a, b, c, d) => {
      const [high, low] = [[a, b], [c, d]].map(
        ([x, y]) => 0xd000 | ((x.charCodeAt(0) & 0x3f) << 6) | (y.charCodeAt(0) & 0x3f),
      );
      const point = 0x10000 + ((high & 0x3ff) << 10) + (low & 0x3ff);
      return String.fromCharCode(
        0xf0 | (point >> 18),
        0x80 | ((point >> 12) & 0x3f),
        0x80 | ((point >> 6) & 0x3f),
        0x80 | (point & 0x3f),
      );
    });
    return utf8(pieces);
  }

  function fixEncodingOnce(text) {
    if (/^[\0-\x7f]*$/.test(text) || !bad.test(text)) return text;
    for (const encoder of encoders) {
      let bytes = encoded(text, encoder);
      if (bytes === null) continue;
      if (encoder.name !== "macroman" && bytes.search(ALTERED_UTF8) >= 0) {
        bytes = bytes
          .replace(A_GRAVE_WORD, "\xc3\xa0 ")
          .replace(ALTERED_UTF8, (found) => found.replaceAll(" ", "\xa0"));
      }
      if (encoder.name.startsWith("sloppy")) bytes = bytes.replace(LOSSY_UTF8, "\xef\xbf\xbd");
      const decoded = /[\xed\xc0]/.test(bytes) ? utf8Variants(bytes) : utf8(bytes);
      if (decoded !== null) return decoded;
    }
    const inconsistent = text.replace(detector, (found) =>
      found.length < text.length && bad.test(found) ? fixEncoding(found) : found,
    );
    if (inconsistent !== text) return inconsistent;
    return text.replace(/[\x80-\x9f]/g, (control) => windows1252[control.charCodeAt(0)]);
  }

  function fixEncoding(text) {
    for (;;) {
      const fixed = fixEncodingOnce(text);
      if (fixed === text) return text;
      text = fixed;
    }
  }

  function fixSegment(text, unescapes) {
    for (;;) {
      let fixed = unescapes ? unescapeWhole(text) : text;
      fixed = fixEncoding(fixed).replace(/[\x80-\x9f]/g, (c) => windows1252[c.charCodeAt(0)]);
      fixed = [...fixed].map((character) => translations.get(character) ?? character).join("");
      fixed = fixed
        .replace(/[\u201c-\u201f]/g, '"')
        .replace(/[\u02bc\u2018-\u201b]/g, "'")
        .replace(/\r\n|[\r\u2028\u2029\x85]/g, "\n")
        .replace(TERMINAL_ESCAPE, "")
        .replace(CONTROL, "")
        .normalize("NFC");
      if (fixed === text) return text;
      text = fixed;
    }
  }

  function fix(text) {
    let unescapes = true;
    let fixed = "";
    for (const segment of text.split(/(?<=\n)/)) {
      unescapes &&= !segment.includes("<");
      fixed += fixSegment(segment, unescapes);
    }
    return fixed;
  }

  return (text) =>
    unescape(unescape(fix(text)))
      .split(SPACE)
      .filter((word) => word)
      .join(" ")
      .toLowerCase();
}
