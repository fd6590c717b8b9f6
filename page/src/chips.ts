/** The steps of a session as a row of chips. A click on a chip rewinds the session to it. */

import { button, h, say } from "./dom";
import { layoutOf } from "./frames";
import type { Session } from "./session";
import type { Step } from "./steps";
import { shown, shownStep, spoken } from "./tokens";

const NUM_SHOWN = 240;
const NUM_TAGS = 4;

interface Chip {
  step: Step;
  position: number;
  element: HTMLButtonElement;
}

/** The row. rewind: called with the position that was clicked. */
export class Chips {
  readonly element: HTMLElement;
  private readonly row = h("div", { class: "chips", role: "group", "aria-label": "Steps" });
  private readonly start: HTMLButtonElement;
  private readonly hint = h("p", { class: "muted hint" });
  private chips: Chip[] = [];
  private session: Session | null = null;

  constructor(private readonly rewind: (position: number) => void) {
    this.start = button("start", () => rewind(this.session?.base ?? 0), { class: "chip", title: "Back to the start" });
    this.row.append(this.start);
    this.element = h("div", { class: "steps" }, [h("h3", {}, ["Steps"]), this.row, this.hint]);
  }

  /** Draws the steps of a session. */
  draw(session: Session): void {
    if (session !== this.session) this.clear();
    this.session = session;
    this.element.hidden = layoutOf(session.model) !== null;
    if (this.element.hidden) return;
    const skipped = Math.max(0, session.steps.length - NUM_SHOWN);
    const steps = session.steps.slice(skipped);
    const first = session.base + skipped + 1;
    const isSame = (chip: Chip, index: number) => chip.step === steps[index] && chip.position === first + index;
    const changed = this.chips.findIndex((chip, index) => !isSame(chip, index));
    const kept = changed < 0 ? this.chips.length : changed;
    for (const chip of this.chips.splice(kept)) chip.element.remove();
    for (const [index, step] of steps.entries()) {
      if (index < kept) continue;
      const chip = this.chip(step, first + index);
      this.chips.push(chip);
      this.row.append(chip.element);
    }
    say(this.start, session.base > 0 ? `… step ${session.base}` : "start");
    const marks = new Set(session.marks);
    const current = this.chips.at(-1)?.element ?? this.start;
    for (const element of [this.start, ...this.chips.map((chip) => chip.element)]) {
      if (element === current) element.setAttribute("aria-current", "step");
      else element.removeAttribute("aria-current");
    }
    for (const { element, position } of this.chips) element.classList.toggle("is-marked", marks.has(position));
    say(this.hint, session.steps.length > 1 ? "Click a step to go back to it. A dot means that the server keeps a mark there." : "");
    if (kept < steps.length) this.row.scrollTop = this.row.scrollHeight;
  }

  private chip(step: Step, position: number): Chip {
    const text = shownStep(step, position);
    const read = step.token === "" ? (step.values.length > 8 ? "" : step.values.join(" ")) : spoken(step.token);
    const tag = this.answer(step, shown);
    const about = [read, tag && `answer ${this.answer(step, spoken)}`].filter((part) => part !== "").join(", ");
    const element = button("", () => this.rewind(position), {
      class: `chip by-${step.by}`,
      "aria-label": `Step ${position}: ${about}`,
      title: `Step ${position}, ${step.ms.toFixed(1)} ms${step.by === "model" ? ", chosen by the model" : ""}`,
    });
    element.append(h("span", {}, [text]));
    if (tag !== "") element.append(h("span", { class: "tag" }, [tag]));
    return { step, position, element };
  }

  /** The model's answer to a step: a tag, or the tokens that it emitted. */
  private answer({ output }: Step, as: (token: string) => string): string {
    const model = this.session?.model;
    const tokens = output?.tokens.map(({ text }) => as(text)) ?? [];
    if (model?.transducer) return tokens.slice(0, NUM_TAGS).join(" ") + (tokens.length > NUM_TAGS ? " …" : "");
    return model?.inputVocabulary.length ? (tokens[0] ?? "") : "";
  }

  private clear(): void {
    for (const chip of this.chips) chip.element.remove();
    this.chips = [];
  }
}
