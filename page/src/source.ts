/** The form for the source, which a model with an encoder reads before the first step. */

import { freshId, h, onEnter, say } from "./dom";
import type { ModelInfo } from "./gen/carousel/v1/models_pb";
import type { Source } from "./messages";
import { numbersOf, rowsOf, shown } from "./tokens";

const WORD = "carousel";
const SENTENCE = "The selected file could not be opened.";
const NUM_EXAMPLE = 36;

/** The form. open: called with a source. act: runs work that may fail, and shows its error. */
export class SourceForm {
  readonly element: HTMLFormElement;
  private readonly text: HTMLTextAreaElement;
  private readonly hint: HTMLElement;
  private readonly read = h("p", { class: "read" });
  private model: ModelInfo | null = null;

  constructor(open: (source: Source) => Promise<void>, act: (work: () => Promise<void>) => Promise<boolean>) {
    const [text, hint] = [freshId("source"), freshId("hint")];
    this.text = h("textarea", { id: text, rows: 1, spellcheck: "false", autocapitalize: "off", "aria-describedby": hint });
    this.hint = h("p", { id: hint, class: "muted hint" });
    onEnter(this.text);
    this.element = h("form", { class: "source" }, [
      h("div", { class: "controls" }, [
        h("div", { class: "field grow" }, [h("label", { for: text }, ["Source"]), this.text]),
        h("button", { type: "submit", class: "primary" }, ["Open"]),
      ]),
      this.hint,
      this.read,
    ]);
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      void act(() => open(this.source()));
    });
  }

  /** Shows the form for a model, with an example source. */
  offer(model: ModelInfo): void {
    this.model = model;
    this.element.hidden = !model.hasEncoder;
    const size = model.sourceFeatureSize;
    this.text.rows = size > 0 ? 4 : model.tokenizer === "subword" ? 2 : 1;
    this.text.value = size > 0 ? (size === 1 ? example() : "") : word(model);
    const limit = `Up to ${model.maxSourceLength} ${size > 0 ? "steps" : "tokens"}.`;
    const made = size === 1 ? " These numbers are only an example: a trend and a season." : "";
    say(this.hint, `The model reads the source before the first step. ${limit}${made}`);
    say(this.read, "");
  }

  /** Shows a session's source, and the tokens that the model read. */
  show(source: Source, tokens: string[]): void {
    if (typeof source === "string") this.text.value = source;
    else if (source) this.text.value = source.map((row) => row.join(" ")).join(source[0]?.length === 1 ? " " : "\n");
    say(this.read, tokens.length > 0 ? `Read as ${tokens.map(shown).join(" ")}` : "");
  }

  private source(): Source {
    if (this.model === null) return null;
    const size = this.model.sourceFeatureSize;
    return size > 0 ? rowsOf(numbersOf(this.text.value), size) : this.text.value;
  }
}

function word(model: ModelInfo): string {
  if (model.tokenizer === "subword") return SENTENCE;
  const known = new Set(model.sourceVocabulary);
  return Array.from(WORD).every((letter) => known.has(letter)) ? WORD : "";
}

function example(): string {
  const numbers = [];
  for (let month = 0; month < NUM_EXAMPLE; month += 1) {
    numbers.push((368 + 0.14 * month + 3 * Math.sin((2 * Math.PI * month) / 12)).toFixed(1));
  }
  return numbers.join(" ");
}
