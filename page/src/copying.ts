/** Shows the last call as lines for a shell and for Python, and copies them. */

import { button, h, say } from "./dom";
import type { Lines } from "./lines";

/** The buttons and the lines. tell: shows a text to the user. */
export class Copying {
  readonly element: HTMLElement;
  private readonly curl = h("code");
  private readonly python = h("code");
  private readonly details: HTMLDetailsElement;

  constructor(tell: (text: string) => void) {
    const copy = (name: string, code: HTMLElement) => async () => {
      const text = code.textContent ?? "";
      try {
        await navigator.clipboard.writeText(text);
        tell(`The ${name} lines are copied.`);
      } catch {
        this.details.open = true;
        getSelection()?.selectAllChildren(code);
        tell("This browser does not allow the page to copy. The lines are selected: copy them yourself.");
      }
    };
    this.details = h("details", {}, [
      h("summary", {}, ["The call made last"]),
      h("h4", {}, ["curl"]),
      h("pre", { tabindex: 0, "aria-label": "curl lines" }, [this.curl]),
      h("h4", {}, ["Python"]),
      h("pre", { tabindex: 0, "aria-label": "Python lines" }, [this.python]),
    ]);
    this.element = h("div", { class: "copying" }, [
      h("div", { class: "controls" }, [
        button("Copy curl", () => void copy("curl", this.curl)()),
        button("Copy Python", () => void copy("Python", this.python)()),
      ]),
      this.details,
    ]);
  }

  /** Shows the lines of the last call. */
  draw(lines: Lines | null): void {
    this.element.hidden = lines === null;
    say(this.curl, lines?.curl ?? "");
    say(this.python, lines?.python ?? "");
  }
}
