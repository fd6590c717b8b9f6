/** The marks of a session of sound, which has too many steps to show them. A click on a mark rewinds the session to it. */

import { button, fill, h, say } from "./dom";
import { layoutOf } from "./frames";
import type { Session } from "./session";

/** The row. rewind: called with the position that was clicked. */
export class Marks {
  readonly element: HTMLElement;
  private readonly row = h("div", { class: "chips", role: "group", "aria-label": "Marks" });
  private readonly hint = h("p", { class: "muted hint" });
  private chips = new Map<number, HTMLButtonElement>();

  constructor(private readonly rewind: (position: number) => void) {
    this.element = h("div", { class: "steps" }, [h("h3", {}, ["Marks"]), this.row, this.hint]);
  }

  /** Draws the marks of a session. */
  draw(session: Session): void {
    const layout = layoutOf(session.model);
    this.element.hidden = layout === null;
    if (layout === null) return;
    const positions = [...(session.base === 0 ? [0] : []), ...session.marks];
    const chips = positions.map((position) => {
      const told = `${((position * layout.size) / layout.rate).toFixed(1)} s`;
      return [position, this.chips.get(position) ?? this.chip(position, told)] as const;
    });
    this.chips = new Map(chips);
    const elements = [...this.chips.values()];
    const isSame = elements.length === this.row.children.length && elements.every((one, at) => one === this.row.children[at]);
    if (!isSame) this.lay(elements);
    for (const [position, chip] of this.chips) {
      if (position === session.position) chip.setAttribute("aria-current", "step");
      else chip.removeAttribute("aria-current");
    }
    say(this.hint, "Click a mark to go back to it. The page sets one about every second; the server keeps the last ones.");
  }

  /** Does not move the elements that stay, so that none of them loses the focus. */
  private lay(elements: HTMLButtonElement[]): void {
    for (const child of [...this.row.children]) if (!elements.includes(child as HTMLButtonElement)) child.remove();
    for (const element of elements) if (element.parentElement !== this.row) this.row.append(element);
    const isOrdered = elements.every((element, at) => element === this.row.children[at]);
    if (!isOrdered) fill(this.row, elements);
  }

  private chip(position: number, told: string): HTMLButtonElement {
    const name = position === 0 ? "start" : told;
    const label = position === 0 ? "Back to the start" : `Mark at step ${position}, ${told}`;
    return button(name, () => this.rewind(position), { class: "chip", "aria-label": label, title: label });
  }
}
