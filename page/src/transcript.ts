/** The tokens that a transducer has emitted: as text, and one by one with their probabilities. */

import { fill, h, say } from "./dom";
import { type Emissions, type Emitted, textOfEmitted } from "./emissions";
import { type Layout, layoutOf } from "./frames";
import type { Session } from "./session";
import { percent, shown, spoken } from "./tokens";

const NUM_SHOWN = 240;

/** The transcript of a session. */
export class Transcript {
  readonly element: HTMLElement;
  private readonly text = h("p", { class: "text", tabindex: 0, role: "group", "aria-label": "Transcript" });
  private readonly limit = h("p", { class: "muted hint" });
  private readonly count = h("span", { class: "muted" });
  private readonly list = h("ol", { class: "emitted", tabindex: 0, "aria-label": "Emitted" });
  private readonly more = h("li", { class: "more" });
  private layout: Layout | null = null;
  private drawn: Emissions | null = null;
  private items: { token: Emitted; element: HTMLElement }[] = [];

  constructor() {
    const heading = h("div", { class: "heading" }, [h("h3", {}, ["Transcript"]), this.count]);
    this.list.append(this.more);
    this.element = h("div", { class: "transcript" }, [heading, this.text, this.list, this.limit]);
  }

  /** Draws the emitted tokens of a session. */
  draw(session: Session): void {
    const { transducer, targetVocabulary } = session.model;
    this.element.hidden = transducer === undefined;
    if (transducer === undefined) return;
    if (session.emissions === this.drawn) return;
    this.drawn = session.emissions;
    const { tokens, numBefore } = session.emissions;
    const num = numBefore + tokens.length;
    const text = textOfEmitted(tokens, targetVocabulary);
    const isAtEnd = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 8;
    say(this.text, num === 0 ? "Nothing yet." : `${numBefore > 0 ? "… " : ""}${text}`);
    this.text.classList.toggle("muted", num === 0);
    if (isAtEnd) this.text.scrollTop = this.text.scrollHeight;
    say(this.count, num === 0 ? "" : num === 1 ? "1 token" : `${num} tokens`);
    this.list.hidden = num === 0;
    this.layout = layoutOf(session.model);
    this.lay(tokens.slice(-NUM_SHOWN), num);
    const numLimited = tokens.reduce((sum, token) => sum + token.numLimited, 0);
    say(this.limit, numLimited > 0 ? limited(numLimited, transducer.maxSymbols) : "");
  }

  private lay(tokens: Emitted[], num: number): void {
    const skipped = num - tokens.length;
    this.more.hidden = skipped === 0;
    if (skipped > 0) {
      fill(this.more, ["…", h("span", { class: "unseen" }, [`${skipped} tokens before these`])]);
      this.more.title = `${skipped} tokens before these`;
    }
    const from = Math.max(0, this.items.findIndex(({ token }) => token === tokens[0]));
    for (const { element } of this.items.splice(0, from)) element.remove();
    const changed = this.items.findIndex(({ token }, index) => token !== tokens[index]);
    for (const { element } of this.items.splice(changed < 0 ? this.items.length : changed)) element.remove();
    const added = tokens.slice(this.items.length);
    for (const token of added) {
      const element = item(token, this.layout);
      this.items.push({ token, element });
      this.list.append(element);
    }
    if (added.length > 0) this.list.scrollTop = this.list.scrollHeight;
  }
}

/** Returns the text for screen readers about the tokens after the first `num`. Empty for sound without new tokens. */
export function news(session: Session, num: number): string {
  if (layoutOf(session.model) && num >= numEmitted(session)) return "";
  const { tokens, numBefore } = session.emissions;
  const text = textOfEmitted(tokens.slice(Math.max(0, num - numBefore)), session.model.targetVocabulary);
  return `Step ${session.position}.${text.trim() === "" ? "" : ` Emitted: ${text}.`}`;
}

/** Returns the number of tokens that a session has emitted. */
export function numEmitted({ emissions }: Session): number {
  return emissions.numBefore + emissions.tokens.length;
}

function item(token: Emitted, layout: Layout | null): HTMLElement {
  const { position, probability, numLimited } = token;
  const time = layout && position !== null ? `, ${((position * layout.size) / layout.rate).toFixed(1)} s` : "";
  const where = position === null ? "" : `step ${position}${time}`;
  const share = probability === null ? "" : percent(probability);
  const isLimited = numLimited > 0 ? "the symbol limit was reached" : "";
  const told = [where, isLimited].filter((part) => part !== "").join(", ");
  const title = [share, told].filter((part) => part !== "").join(", ");
  const name = shown(token.text);
  const read = spoken(token.text);
  const children = [
    h("span", { class: "name", "aria-hidden": name !== read && "true" }, [name]),
    name !== read && h("span", { class: "unseen" }, [read]),
    share !== "" && h("span", { class: "share" }, [share]),
    told !== "" && h("span", { class: "unseen" }, [`, ${told}`]),
  ];
  const bar = h("span", { class: "bar" });
  bar.style.transform = `scaleX(${(probability ?? 0).toFixed(3)})`;
  return h("li", { class: isLimited && "is-limited", title }, [...children, bar]);
}

function limited(num: number, most: number): string {
  const frames = num === 1 ? "one frame" : `${num} frames`;
  const tokens = most === 1 ? "one token" : `${most} tokens`;
  return `At ${frames} the limit of ${tokens} was reached: the model might have emitted more. These tokens have a marked edge.`;
}
