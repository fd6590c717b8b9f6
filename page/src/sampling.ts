/** Draws the next token at random. Pure, except for the random numbers. */

/** A token with its probability. logProbability: natural logarithm, 0 or less. */
export interface Candidate {
  id: number;
  text: string;
  logProbability: number;
}

/** Draws one of the candidates. temperature: 0 takes the likeliest, 1 uses the model's probabilities, a greater value makes
 * them more even. random: a number in [0, 1). */
export function draw(candidates: readonly Candidate[], temperature: number, random = Math.random()): Candidate {
  const [best] = candidates;
  if (best === undefined) throw new Error("The model has no prediction yet: feed a token first.");
  if (temperature === 0) return best;
  const weights = candidates.map((one) => Math.exp((one.logProbability - best.logProbability) / temperature));
  let rest = random * weights.reduce((sum, weight) => sum + weight, 0);
  for (const [index, weight] of weights.entries()) {
    rest -= weight;
    if (rest < 0) return candidates[index] ?? best;
  }
  return best;
}
