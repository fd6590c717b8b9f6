/** The text of SentencePiece's pieces of words. Pure. */

import { isEnd } from "./tokens";

const SPACE = "▁";
const BYTE = /^<0x([0-9A-F]{2})>$/;

/** Returns the text of pieces in two parts: the complete words, and the last word, which the next piece may continue. */
export function textAndWord(pieces: readonly string[]): [string, string] {
  const begin = pieces.findLastIndex((piece) => piece.startsWith(SPACE));
  const text = spelt(pieces);
  const before = begin < 0 ? "" : spelt(pieces.slice(0, begin));
  return [before, text.slice(before.length)];
}

/** Returns the text of pieces. Bytes of an incomplete character become a replacement character. */
export function spelt(pieces: readonly string[]): string {
  const encoder = new TextEncoder();
  const bytes = pieces.flatMap((piece) => {
    if (isEnd(piece)) return [];
    const byte = BYTE.exec(piece)?.[1];
    return byte === undefined ? [...encoder.encode(piece.replaceAll(SPACE, " "))] : [Number.parseInt(byte, 16)];
  });
  return new TextDecoder().decode(new Uint8Array(bytes)).trimStart();
}
