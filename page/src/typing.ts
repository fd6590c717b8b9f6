/** The box for typed tokens. The session follows the text: added tokens are fed, deleted tokens are rewound. The text may
 * change at any time; the session follows its latest state. */

import { freshId, h, say } from "./dom";
import type { Session } from "./session";
import { NUM_TOGETHER } from "./steps";
import { sharedLength, textOf, type Tokenizer, tokensOf } from "./tokens";

const NUM_ALONE = 16;

/** The box. typed: called when the user changed the text. act: runs work that may fail, and shows its error. */
export class Typing {
  readonly element: HTMLElement;
  readonly box: HTMLTextAreaElement;
  private readonly hint: HTMLElement;
  private session: Session | null = null;
  private running = false;
  private failed = false;

  constructor(typed: () => void, private readonly act: (work: () => Promise<void>) => Promise<boolean>) {
    const [box, hint] = [freshId("box"), freshId("hint")];
    this.hint = h("p", { id: hint, class: "muted hint" });
    this.box = h("textarea", {
      id: box,
      rows: 3,
      spellcheck: "false",
      autocomplete: "off",
      autocapitalize: "off",
      "aria-describedby": hint,
    });
    this.box.addEventListener("input", (event) => {
      if ((event as InputEvent).isComposing) return;
      typed();
      void this.follow();
    });
    this.box.addEventListener("compositionend", () => void this.follow());
    this.element = h("div", { class: "typing" }, [h("label", { for: box }, ["Type"]), this.box, this.hint]);
  }

  /** Shows the text of a session, unless the session still follows the text. */
  draw(session: Session): void {
    if (session !== this.session) this.failed = false;
    this.session = session;
    this.element.hidden = session.model.featureSize > 0 || session.model.tokenizer === "subword"; // users cannot type subwords
    say(
      this.hint,
      this.tokenizer === "characters"
        ? "Each key is a step. Delete to go back."
        : "A token is a step as soon as a space follows it. Delete to go back.",
    );
    if (this.running || this.failed) return;
    const [, own] = this.parts(session.tokens);
    if (own.join("\n") !== tokensOf(this.box.value, this.tokenizer).join("\n")) this.box.value = textOf(own, this.tokenizer);
  }

  /** Lets the text follow the session again after a refused text. */
  settle(): void {
    this.failed = false;
    this.box.removeAttribute("aria-invalid");
  }

  private get tokenizer(): Tokenizer {
    return this.session?.model.tokenizer === "characters" ? "characters" : "whitespace";
  }

  private async follow(): Promise<void> {
    this.settle();
    if (this.running || this.session === null) return;
    this.running = true;
    const session = this.session;
    const isDone = await this.act(async () => {
      for (;;) {
        const [before] = this.parts(session.tokens);
        const wanted = [...before, ...tokensOf(this.box.value, this.tokenizer)];
        const shared = sharedLength(session.tokens, wanted);
        if (shared < session.tokens.length) await session.rewind(session.base + shared);
        else if (shared === wanted.length) return;
        else await session.feed(next(wanted.slice(shared)), "you");
      }
    });
    this.running = false;
    this.failed = !isDone;
    if (this.failed) this.box.setAttribute("aria-invalid", "true");
    else this.draw(session);
  }

  /** The tokens before the text, and those of the text. The text begins after the last token that cannot be typed. */
  private parts(tokens: string[]): [string[], string[]] {
    const isText = (token: string) => {
      const [same, ...more] = tokensOf(textOf([token], this.tokenizer), this.tokenizer);
      return same === token && more.length === 0;
    };
    const start = tokens.findLastIndex((token) => !isText(token)) + 1;
    return [tokens.slice(0, start), tokens.slice(start)];
  }
}

function next(tokens: string[]): string[] {
  return tokens.slice(0, tokens.length > NUM_ALONE ? NUM_TOGETHER : 1);
}
