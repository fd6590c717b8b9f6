/** The model's likeliest next tokens with their probabilities. A click on a token feeds it. */

import { button, h, say } from "./dom";
import type { Session } from "./session";
import { isEnd, percent, shown, spoken } from "./tokens";

const NUM_SHOWN = 8;

interface Row {
  item: HTMLElement;
  press: HTMLButtonElement;
  bar: HTMLElement;
  name: HTMLElement;
  share: HTMLElement;
}

/** The list. choose: called with the token that was clicked. */
export class Candidates {
  readonly element: HTMLElement;
  private readonly heading = h("h3");
  private readonly hint = h("p", { class: "muted hint" });
  private readonly rows: Row[] = [];
  private texts: string[] = [];

  constructor(choose: (token: string) => void) {
    const list = h("ol", { class: "candidates" });
    for (let index = 0; index < NUM_SHOWN; index += 1) {
      const [bar, name, share] = [h("span", { class: "bar" }), h("span", { class: "name" }), h("span", { class: "share" })];
      const press = button("", () => choose(this.texts[index] ?? ""), { class: "candidate" });
      press.append(bar, name, share);
      const item = h("li", {}, [press]);
      list.append(item);
      this.rows.push({ item, press, bar, name, share });
    }
    this.element = h("div", { class: "expects" }, [this.heading, this.hint, list]);
  }

  /** Draws the last output of the session's model. */
  draw(session: Session): void {
    const isTagger = session.model.inputVocabulary.length > 0;
    const candidates = session.output?.tokens.slice(0, NUM_SHOWN) ?? [];
    this.texts = candidates.map((one) => one.text);
    this.element.hidden = session.model.targetVocabulary.length === 0 || session.model.transducer !== undefined;
    say(this.heading, isTagger ? "Its tags" : "What it expects next");
    say(this.hint, candidates.length > 0 ? (isTagger ? "" : "Click a token to feed it.") : "Shown after the first token.");
    for (const [index, row] of this.rows.entries()) {
      const candidate = candidates[index];
      row.item.hidden = candidate === undefined;
      if (candidate === undefined) continue;
      const probability = Math.exp(candidate.logProbability);
      const share = percent(probability);
      row.bar.style.transform = `scaleX(${probability.toFixed(4)})`;
      say(row.name, shown(candidate.text));
      say(row.share, share);
      row.press.disabled = isTagger || isEnd(candidate.text);
      row.press.setAttribute("aria-label", `${spoken(candidate.text)}, ${share}`);
    }
  }
}

/** The text for screen readers after a step. */
export function summary(session: Session): string {
  const said = session.output?.tokens.slice(0, 3) ?? [];
  const words = said.map((one) => `${spoken(one.text)} ${percent(Math.exp(one.logProbability))}`);
  const values = session.output?.values.map((value) => value.toPrecision(6)).join(" ");
  const next = words.length > 0 ? words.join(", ") : values;
  return `Step ${session.position}.${next ? ` Next: ${next}.` : ""}`;
}
