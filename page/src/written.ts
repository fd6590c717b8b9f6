/** The growing text of a session of a subword model. */

import { fill, h } from "./dom";
import type { Session } from "./session";
import { textAndWord } from "./spelling";
import { isEnd } from "./tokens";

/** The text. The last word is paler while the next token may continue it. */
export class Written {
  readonly element: HTMLElement;
  private readonly text = h("p", { class: "text", tabindex: 0, role: "group", "aria-label": "Text" });

  constructor() {
    this.element = h("div", { class: "written" }, [h("h3", {}, ["Text"]), this.text]);
  }

  /** Draws the text of the session's tokens. */
  draw(session: Session): void {
    this.element.hidden = session.model.tokenizer !== "subword";
    if (this.element.hidden) return;
    const [before, word] = textAndWord(session.tokens);
    const isWhole = isEnd(session.output?.tokens[0]?.text ?? "");
    const isEmpty = before + word === "";
    this.text.classList.toggle("muted", isEmpty);
    fill(this.text, isEmpty ? ["Nothing yet."] : [before, isWhole ? word : h("span", { class: "muted" }, [word])]);
  }
}
