// CLIP's byte-pair tokenizer; ids equal those of the Python runtime.

import { cleaner } from "./text.js";

const START = "<|startoftext|>";
const END = "<|endoftext|>";
const WORD_END = "</w>";
const WORDS =
  /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\x1c-\x1f\x85\p{L}\p{N}]+/gu;

/** A printable character for each byte: itself where printable, else one from 256 upwards. */
function byteCharacters() {
  const characters = new Map();
  const printable = (byte) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  for (let byte = 0; byte < 256; byte += 1) {
    if (printable(byte)) characters.set(byte, String.fromCharCode(byte));
  }
  let next = 256;
  for (let byte = 0; byte < 256; byte += 1) {
    if (!characters.has(byte)) characters.set(byte, String.fromCharCode(next++));
  }
  return characters;
}

export class Tokenizer {
  /**
   * @param merges lines of pairs, in order of priority
   * @param contextLength ids in a row, start and end included
   * @param tables for `cleaner`
   */
  constructor(merges, contextLength, tables) {
    this.contextLength = contextLength;
    this.clean = cleaner(tables);
    this.byteCharacters = byteCharacters();
    const vocabulary = [...this.byteCharacters.values()];
    vocabulary.push(...vocabulary.map((character) => character + WORD_END));
    for (const merge of merges) vocabulary.push(merge.replace(" ", ""));
    this.ids = new Map(vocabulary.map((token, id) => [token, id]));
    this.ranks = new Map(merges.map((merge, rank) => [merge, rank]));
    this.startId = vocabulary.length;
    this.endId = vocabulary.length + 1;
  }

  /** Ids of a text of any length, without start and end. */
  encode(text) {
    return [...this.clean(text).matchAll(WORDS)].flatMap(([word]) => {
      if (word === START) return [this.startId];
      if (word === END) return [this.endId];
      return this.#merged(word).map((token) => this.ids.get(token));
    });
  }

  /**
   * A row of ids, zero after the end, and how many tokens the text has; what does not fit is cut.
   * @returns {{row: BigInt64Array, length: number}}
   */
  row(text) {
    const ids = this.encode(text);
    const row = new BigInt64Array(this.contextLength);
    const read = ids.slice(0, this.contextLength - 2);
    [this.startId, ...read, this.endId].forEach((id, at) => {
      row[at] = BigInt(id);
    });
    return { row, length: ids.length };
  }

  #merged(word) {
    const bytes = new TextEncoder().encode(word);
    let parts = Array.from(bytes, (byte) => this.byteCharacters.get(byte));
    parts[parts.length - 1] += WORD_END;
    while (parts.length > 1) {
      let best = null;
      let bestRank = Infinity;
      for (let i = 0; i + 1 < parts.length; i += 1) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < bestRank) [best, bestRank] = [[parts[i], parts[i + 1]], rank];
      }
      if (best === null) break;
      const merged = [];
      for (const part of parts) {
        if (merged.at(-1) === best[0] && part === best[1]) merged[merged.length - 1] += part;
        else merged.push(part);
      }
      parts = merged;
    }
    return parts;
  }
}
