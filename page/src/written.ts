/** The text of a session of subwords, as it grows. */

import { fill, h } from "./dom";
import type { Session } from "./session";
import { textAndWord } from "./spelling";
import { isEnd } from "./tokens";

/** The text. The word that the next token may go on with is paler. */
export class Written {
  readonly element: HTMLElement;
  private readonly text = h("p", { class: "text", tabindex: 0, role: "group", "aria-label": "Text" });

  constructor() {
    this.element = h("div", { class: "written" }, [h("h3", {}, ["Text"]), this.text]);
  }

  /** Draws what the session's tokens spell. */
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
