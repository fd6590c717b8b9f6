/** Generates: draws a token from the model's candidates, feeds it, and repeats this. */

import { button, freshId, h, say } from "./dom";
import { draw } from "./sampling";
import type { Session } from "./session";
import { isEnd } from "./tokens";

/** The controls. act: runs work that may fail, and shows its error. tell: shows a text to the user. */
export class Generating {
  readonly element: HTMLElement;
  private readonly temperature: HTMLInputElement;
  private readonly num: HTMLInputElement;
  private readonly press: HTMLButtonElement;
  private session: Session | null = null;
  private running = false;

  constructor(
    private readonly act: (work: () => Promise<void>) => Promise<boolean>,
    private readonly tell: (text: string) => void,
  ) {
    const [temperature, num] = [freshId("temperature"), freshId("num")];
    const told = h("span", {}, ["0.7"]);
    this.temperature = h("input", { id: temperature, type: "range", min: 0, max: 2, step: 0.1, value: 0.7 });
    this.temperature.addEventListener("input", () => say(told, Number(this.temperature.value).toFixed(1)));
    this.num = h("input", { id: num, type: "number", min: 1, max: 1000, value: 20, inputmode: "numeric" });
    this.press = button("Generate", () => void (this.running ? this.stop() : this.run()), { class: "primary" });
    this.element = h("div", { class: "controls generating" }, [
      h("div", { class: "field" }, [h("label", { for: temperature }, ["Temperature ", told]), this.temperature]),
      h("div", { class: "field" }, [h("label", { for: num }, ["Tokens"]), this.num]),
      this.press,
    ]);
  }

  /** Shows the controls if the session's model can generate. */
  draw(session: Session): void {
    if (session !== this.session) this.stop();
    if (session.model !== this.session?.model) this.suggest(session.model.tokenizer === "subword");
    this.session = session;
    this.element.hidden = !session.model.canGenerate || session.model.featureSize > 0;
  }

  /** Sets the first values. isText: whether the model writes text; its likeliest token is then taken. */
  private suggest(isText: boolean): void {
    this.temperature.valueAsNumber = isText ? 0 : 0.7;
    this.num.valueAsNumber = isText ? 60 : 20;
    this.temperature.dispatchEvent(new Event("input"));
  }

  /** Stops after the current token. */
  stop(): void {
    this.running = false;
    say(this.press, "Generate");
  }

  private async run(): Promise<void> {
    const session = this.session;
    if (session === null) return;
    this.running = true;
    say(this.press, "Stop");
    await this.act(async () => {
      for (let left = this.num.valueAsNumber || 1; left > 0 && this.running; left -= 1) {
        const chosen = draw(session.output?.tokens ?? [], this.temperature.valueAsNumber);
        if (isEnd(chosen.text)) {
          this.tell("The model chose to end the sequence here.");
          break;
        }
        await session.feed([chosen.text], "model");
      }
    });
    this.stop();
  }
}
