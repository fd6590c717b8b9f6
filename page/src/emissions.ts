/** What a transducer has emitted, as far as it is known here. Pure. */

import type { StepOutput, Token } from "./gen/carousel/v1/inference_pb";

/** A token. position: of the step that emitted it, and probability: each null where it is not known. numLimited: at how
 * many encoded frames of the step there were as many tokens as there may be; told of the step's last token. */
export interface Emitted {
  text: string;
  position: number | null;
  probability: number | null;
  numLimited: number;
}

/** The last tokens of a session, the newest last. numBefore: how many there were before them. */
export interface Emissions {
  tokens: Emitted[];
  numBefore: number;
}

const MAX_TOKENS = 4000;

/** Of a session that has emitted nothing. */
export function noEmissions(): Emissions {
  return { tokens: [], numBefore: 0 };
}

/** With what was emitted next; the same where that is nothing. */
export function extended(emissions: Emissions, outputs: readonly StepOutput[]): Emissions {
  const next = outputs.flatMap(emittedBy);
  if (next.length === 0) return emissions;
  const all = [...emissions.tokens, ...next];
  const num = Math.max(0, all.length - MAX_TOKENS);
  return { tokens: all.slice(num), numBefore: emissions.numBefore + num };
}

/** As of a position; null when it is not known which tokens that leaves. known: the position from which on it is. */
export function emittedUpTo({ tokens, numBefore }: Emissions, position: number, known: number): Emissions | null {
  const left = tokens.filter((token) => token.position === null || token.position <= position);
  const last = left.at(-1);
  if (position < known && (last ? last.position === null : numBefore > 0)) return null;
  return { tokens: left, numBefore };
}

/** As the server tells it, which knows the last ones alone and not where they were. */
export function recalled(tokens: readonly Token[], numEmitted: number): Emissions {
  const found = tokens.map(({ text }) => ({ text, position: null, probability: null, numLimited: 0 }));
  return { tokens: found, numBefore: numEmitted - found.length };
}

/** Tokens as one reads them: characters and pieces of words put together, words with spaces between. */
export function textOfEmitted(tokens: readonly Emitted[], vocabulary: readonly string[]): string {
  const texts = tokens.map(({ text }) => text);
  if (vocabulary.some((one) => one.startsWith("▁"))) return texts.join("").replaceAll("▁", " ").trimStart();
  const isOfCharacters = vocabulary.filter((one) => Array.from(one).length === 1).length > vocabulary.length / 2;
  return isOfCharacters || vocabulary.includes(" ") ? texts.join("") : texts.join(" ");
}

function emittedBy({ position, tokens, numLimited }: StepOutput): Emitted[] {
  return tokens.map(({ text, logProbability }, index) => ({
    text,
    position: Number(position),
    probability: logProbability === undefined ? null : Math.exp(logProbability),
    numLimited: index === tokens.length - 1 ? numLimited : 0,
  }));
}
