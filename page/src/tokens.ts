/** Converts text to tokens, and tokens to text for people. Pure. */

/** How text is split into tokens: see `ModelInfo.tokenizer`. */
export type Tokenizer = "characters" | "whitespace";

/** Returns the complete tokens of a text. A word is complete when a space follows it. */
export function tokensOf(text: string, tokenizer: Tokenizer): string[] {
  if (tokenizer === "characters") return Array.from(text.replaceAll("\r", ""));
  const words = text.split(/\s+/);
  words.pop();
  return words.filter((word) => word !== "");
}

/** Returns the text of tokens. */
export function textOf(tokens: readonly string[], tokenizer: Tokenizer): string {
  if (tokenizer === "characters") return tokens.join("");
  return tokens.map((token) => `${token} `).join("");
}

/** Returns how many first tokens two sequences share. */
export function sharedLength(one: readonly string[], other: readonly string[]): number {
  let length = 0;
  while (length < one.length && length < other.length && one[length] === other[length]) length += 1;
  return length;
}

const NUM_NUMBERS = 2;
const ENDS = new Set(["</s>", "<eos>", "<end>", "<EOS>", "[SEP]", "<|endoftext|>"]);
const MARKS: Record<string, [string, string]> = { " ": ["␣", "space"], "\n": ["↵", "line feed"], "\t": ["⇥", "tab"] };

/** Whether a token ends a sequence. Its name decides, because the server does not report the end token. */
export function isEnd(token: string): boolean {
  return ENDS.has(token);
}

/** Returns a token as the page shows it. */
export function shown(token: string): string {
  if (isEnd(token)) return "end";
  return MARKS[token]?.[0] ?? token.replace(/^▁/, "␣");
}

/** Returns a token as a screen reader reads it. */
export function spoken(token: string): string {
  if (isEnd(token)) return "the end";
  return MARKS[token]?.[1] ?? token.replace(/^▁/, "");
}

/** Returns a probability as a text. */
export function percent(probability: number): string {
  const hundreds = 100 * probability;
  return hundreds >= 10 ? `${hundreds.toFixed(0)} %` : hundreds >= 0.1 ? `${hundreds.toFixed(1)} %` : "< 0.1 %";
}

/** Returns the numbers of a text, separated by spaces, commas or semicolons. Throws an Error that names a wrong one. */
export function numbersOf(text: string): number[] {
  const words = text.split(/[\s,;]+/).filter((word) => word !== "");
  return words.map((word) => {
    const number = Number(word);
    if (!Number.isFinite(number)) throw new Error(`“${word.slice(0, 40)}” is not a number.`);
    return number;
  });
}

/** Returns the input of a step as the page shows it: a token, the numbers of a small vector, or the position of a large one. */
export function shownStep({ token, values }: { token: string; values: readonly number[] }, position: number): string {
  if (token !== "") return shown(token);
  return values.length > NUM_NUMBERS ? String(position) : values.map((value) => value.toPrecision(5)).join(" ");
}

/** Returns vectors of `size` numbers. Throws an Error when numbers are missing for the last one. */
export function rowsOf(numbers: readonly number[], size: number): number[][] {
  if (numbers.length === 0) throw new Error("Give at least one number.");
  if (numbers.length % size !== 0) {
    throw new Error(`A step reads ${size} numbers: ${size - (numbers.length % size)} are missing.`);
  }
  const rows = [];
  for (let start = 0; start < numbers.length; start += size) rows.push(numbers.slice(start, start + size));
  return rows;
}
