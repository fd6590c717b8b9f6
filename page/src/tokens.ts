/** Texts as tokens, and tokens as people read them. Pure. */

/** How text becomes tokens: see `ModelInfo.tokenizer`. */
export type Tokenizer = "characters" | "whitespace";

/** The tokens that a text has so far. Of words, the last one is not complete before a space follows. */
export function tokensOf(text: string, tokenizer: Tokenizer): string[] {
  if (tokenizer === "characters") return Array.from(text.replaceAll("\r", ""));
  const words = text.split(/\s+/);
  words.pop();
  return words.filter((word) => word !== "");
}

/** The text that has these tokens. */
export function textOf(tokens: readonly string[], tokenizer: Tokenizer): string {
  if (tokenizer === "characters") return tokens.join("");
  return tokens.map((token) => `${token} `).join("");
}

/** How many tokens two sequences begin with alike. */
export function sharedLength(one: readonly string[], other: readonly string[]): number {
  let length = 0;
  while (length < one.length && length < other.length && one[length] === other[length]) length += 1;
  return length;
}

const NUM_NUMBERS = 2;
const ENDS = new Set(["</s>", "<eos>", "<end>", "<EOS>", "[SEP]", "<|endoftext|>"]);
const MARKS: Record<string, [string, string]> = { " ": ["␣", "space"], "\n": ["↵", "line feed"], "\t": ["⇥", "tab"] };

/** Whether a token ends a sequence, by its name: the server does not say which one does. */
export function isEnd(token: string): boolean {
  return ENDS.has(token);
}

/** A token as it is shown. */
export function shown(token: string): string {
  if (isEnd(token)) return "end";
  return MARKS[token]?.[0] ?? token.replace(/^▁/, "␣");
}

/** A token as it is read aloud. */
export function spoken(token: string): string {
  if (isEnd(token)) return "the end";
  return MARKS[token]?.[1] ?? token.replace(/^▁/, "");
}

/** A probability, for people. */
export function percent(probability: number): string {
  const hundreds = 100 * probability;
  return hundreds >= 10 ? `${hundreds.toFixed(0)} %` : hundreds >= 0.1 ? `${hundreds.toFixed(1)} %` : "< 0.1 %";
}

/** The numbers of a text, separated by spaces, commas or semicolons. Throws an Error that names what is no number. */
export function numbersOf(text: string): number[] {
  const words = text.split(/[\s,;]+/).filter((word) => word !== "");
  return words.map((word) => {
    const number = Number(word);
    if (!Number.isFinite(number)) throw new Error(`“${word.slice(0, 40)}” is not a number.`);
    return number;
  });
}

/** What is fed in a step, as it is shown: a token, the numbers of a small vector, or the place of a large one. */
export function shownStep({ token, values }: { token: string; values: readonly number[] }, position: number): string {
  if (token !== "") return shown(token);
  return values.length > NUM_NUMBERS ? String(position) : values.map((value) => value.toPrecision(5)).join(" ");
}

/** Vectors of `size` numbers. Throws an Error when the last one is not full. */
export function rowsOf(numbers: readonly number[], size: number): number[][] {
  if (numbers.length === 0) throw new Error("Give at least one number.");
  if (numbers.length % size !== 0) {
    throw new Error(`A step reads ${size} numbers: ${size - (numbers.length % size)} more are missing.`);
  }
  const rows = [];
  for (let start = 0; start < numbers.length; start += size) rows.push(numbers.slice(start, start + size));
  return rows;
}
