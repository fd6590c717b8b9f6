/** Controls and plot for models of numbers: observed values, and a forecast. */

import { button, freshId, h, onEnter, say } from "./dom";
import { forecast } from "./forecasting";
import { layoutOf, loudness } from "./frames";
import { type Curves, Plot } from "./plot";
import type { Session } from "./session";
import type { Step } from "./steps";
import { numbersOf, rowsOf } from "./tokens";

const SOUND = ["level", "given"];
const NUM_SOUND = 1500;
const known = new WeakMap<Step, number>();

/** The controls and the plot. act: runs work that may fail, and shows its error. */
export class Numbers {
  readonly element: HTMLElement;
  private readonly plot = new Plot();
  private readonly given: HTMLTextAreaElement;
  private readonly label: HTMLElement;
  private readonly num: HTMLInputElement;
  private readonly controls: HTMLElement;
  private readonly forecasting: HTMLElement;
  private readonly press: HTMLButtonElement;
  private session: Session | null = null;
  private forecast: { from: number; values: number[][] } = { from: 0, values: [] };
  private running = false;

  constructor(private readonly act: (work: () => Promise<void>) => Promise<boolean>) {
    const [given, num] = [freshId("given"), freshId("num")];
    this.given = h("textarea", { id: given, rows: 1, spellcheck: "false", autocomplete: "off" });
    this.label = h("label", { for: given });
    onEnter(this.given);
    this.num = h("input", { id: num, type: "number", min: 1, max: 1000, value: 12, inputmode: "numeric" });
    this.press = button("Forecast", () => void (this.running ? this.stop() : this.run()), { class: "primary" });
    const form = h("form", { class: "controls grow" }, [
      h("div", { class: "field grow" }, [this.label, this.given]),
      h("button", { type: "submit" }, ["Feed"]),
    ]);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.feed();
    });
    this.forecasting = h("div", { class: "controls" }, [
      h("div", { class: "field" }, [h("label", { for: num }, ["Steps ahead"]), this.num]),
      this.press,
    ]);
    this.controls = h("div", { class: "controls" }, [form, this.forecasting]);
    this.element = h("div", { class: "numbers" }, [this.plot.element, this.controls]);
  }

  /** Draws the inputs and outputs of a session. */
  draw(session: Session): void {
    const { model } = session;
    const isSound = layoutOf(model) !== null;
    this.plot.element.hidden = model.transducer !== undefined;
    this.controls.hidden = isSound;
    this.element.hidden = model.featureSize === 0 || (this.plot.element.hidden && this.controls.hidden);
    if (this.element.hidden) return;
    if (session !== this.session || session.position < this.forecast.from) {
      this.forecast = { from: 0, values: [] };
      this.stop();
    }
    this.session = session;
    this.forecasting.hidden = !model.canGenerate;
    say(this.label, model.transducer ? "Frames" : "Observed next");
    this.given.rows = model.featureSize > 1 ? 3 : 1;
    this.given.placeholder = model.featureSize === 1 ? "such as 371.4, or several numbers" : `${model.featureSize} numbers per step`;
    if (this.plot.element.hidden) return;
    if (isSound) this.plot.draw(soundCurves(session), SOUND);
    else if (model.canGenerate) this.plot.draw(curves(session, this.forecast), ["observed", "expected", "forecast"]);
    else this.plot.draw(curves(session, this.forecast), ["observed", "given"]);
  }

  private async feed(): Promise<void> {
    const session = this.session;
    if (session === null) return;
    const isDone = await this.act(async () => {
      await session.feed(rowsOf(numbersOf(this.given.value), session.model.featureSize), "you");
    });
    if (isDone) this.given.value = "";
  }

  private stop(): void {
    this.running = false;
    this.press.textContent = "Forecast";
  }

  private async run(): Promise<void> {
    const session = this.session;
    if (session === null) return;
    this.running = true;
    this.press.textContent = "Stop";
    await this.act(async () => {
      if (session.output === null) throw new Error("The model has no prediction yet: feed a number first.");
      const values = await forecast(session, this.num.valueAsNumber || 1, () => !this.running);
      this.forecast = { from: session.position, values };
    });
    this.stop();
    this.draw(session);
  }
}

/** Returns the curves of a session of sound: the levels of the last steps, and the model's outputs. */
function soundCurves({ steps, position }: Session): Curves {
  const shown = steps.slice(-NUM_SOUND);
  const first = position - shown.length + 1;
  const observed = shown.map((step, index): [number, number] => [first + index, loudnessOf(step)]);
  const expected = shown.flatMap(({ output }, index): [number, number][] => {
    const given = output?.values[0];
    return given === undefined ? [] : [[first + index, given]];
  });
  return { observed, expected, forecast: [] };
}

function loudnessOf(step: Step): number {
  const found = known.get(step) ?? loudness(step.values);
  known.set(step, found);
  return found;
}

function curves(session: Session, forecast: { from: number; values: number[][] }): Curves {
  const source = Array.isArray(session.source) ? session.source : [];
  const observed: [number, number][] = [];
  const expected: [number, number][] = [];
  for (const [index, row] of source.entries()) observed.push([index + 1 - source.length, row[0] ?? 0]);
  if (session.first?.values[0] !== undefined) expected.push([1, session.first.values[0]]);
  for (const [index, step] of session.steps.entries()) {
    const position = session.base + index + 1;
    observed.push([position, step.values[0] ?? 0]);
    const said = step.output?.values[0];
    if (said !== undefined) expected.push([session.model.canGenerate ? position + 1 : position, said]);
  }
  const ahead = forecast.values.map((row, index): [number, number] => [forecast.from + 1 + index, row[0] ?? 0]);
  return { observed, expected, forecast: ahead };
}
