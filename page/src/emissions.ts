/** The tokens that a transducer has emitted, as far as the page knows them. Pure. */

import type { StepOutput, Token } from "./gen/carousel/v1/inference_pb";

/** A token. position: of the step that emitted it. position and probability are null when they are not known.
 * numLimited: for the last token of a step, the number of the step's encoded frames that reached the token limit. */
export interface Emitted {
  text: string;
  position: number | null;
  probability: number | null;
  numLimited: number;
}

/** The last tokens of a session, newest last. numBefore: the number of tokens before them. */
export interface Emissions {
  tokens: Emitted[];
  numBefore: number;
}

const MAX_TOKENS = 4000;

/** Returns the emissions of a session that has emitted nothing. */
export function noEmissions(): Emissions {
  return { tokens: [], numBefore: 0 };
}

/** Returns the emissions with new tokens; the same object when there are none. */
export function extended(emissions: Emissions, outputs: readonly StepOutput[]): Emissions {
  const next = outputs.flatMap(emittedBy);
  if (next.length === 0) return emissions;
  const all = [...emissions.tokens, ...next];
  const num = Math.max(0, all.length - MAX_TOKENS);
  return { tokens: all.slice(num), numBefore: emissions.numBefore + num };
}

/** Returns the emissions up to a position; null when the page does not know which tokens these are. known: the first
 * position that the page knows. */
export function emittedUpTo({ tokens, numBefore }: Emissions, position: number, known: number): Emissions | null {
  const left = tokens.filter((token) => token.position === null || token.position <= position);
  const last = left.at(-1);
  if (position < known && (last ? last.position === null : numBefore > 0)) return null;
  return { tokens: left, numBefore };
}

/** Returns the emissions that the server has: only the last tokens, without their positions. */
export function recalled(tokens: readonly Token[], numEmitted: number): Emissions {
  const found = tokens.map(({ text }) => ({ text, position: null, probability: null, numLimited: 0 }));
  return { tokens: found, numBefore: numEmitted - found.length };
}

/** Returns tokens as text: characters and pieces of words are joined, words are separated by spaces. */
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
