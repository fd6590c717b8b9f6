/** The text that pieces of words spell, as SentencePiece writes them. Pure. */

import { isEnd } from "./tokens";

const SPACE = "▁";
const BYTE = /^<0x([0-9A-F]{2})>$/;

/** The text of pieces, and of its end the word that the next piece may go on with. */
export function textAndWord(pieces: readonly string[]): [string, string] {
  const begin = pieces.findLastIndex((piece) => piece.startsWith(SPACE));
  const text = spelt(pieces);
  const before = begin < 0 ? "" : spelt(pieces.slice(0, begin));
  return [before, text.slice(before.length)];
}

/** The text of pieces. Bytes that make no character yet are shown as a replacement character. */
export function spelt(pieces: readonly string[]): string {
  const encoder = new TextEncoder();
  const bytes = pieces.flatMap((piece) => {
    if (isEnd(piece)) return [];
    const byte = BYTE.exec(piece)?.[1];
    return byte === undefined ? [...encoder.encode(piece.replaceAll(SPACE, " "))] : [Number.parseInt(byte, 16)];
  });
  return new TextDecoder().decode(new Uint8Array(bytes)).trimStart();
}
