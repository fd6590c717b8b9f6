/** The text of a session of subwords, as it grows. */

import { h, say } from "./dom";
import type { Session } from "./session";
import { spelt } from "./spelling";

/** The text. */
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
    const text = spelt(session.tokens);
    say(this.text, text === "" ? "Nothing yet." : text);
    this.text.classList.toggle("muted", text === "");
  }
}
