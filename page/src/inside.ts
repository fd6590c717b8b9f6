/** The traces of steps: cells, gates and attention. */

import { fill, freshId, h, say } from "./dom";
import { HeatMap } from "./heat_map";
import type { Session } from "./session";
import type { Trace } from "./steps";
import { shown, shownStep } from "./tokens";

const NUM_STEPS = 64;
const HINT = "A column is a step, a row a unit. Point at a map, or use the arrow keys, to read a value.";
const OF_SOURCE = "Attention: a column shows where the step before the token below it looked, a row is a token of the source. ";
const ORDER = ["cell", "hidden"];

/** The heat maps of a session. Hidden for a model without a trace. */
export class Inside {
  readonly element = h("details", { class: "panel inside", open: true });
  private readonly body = h("div");
  private readonly hint = h("p", { class: "muted hint" });
  private readonly layers = h("fieldset", { class: "layers" });
  private readonly maps = new Map<string, HeatMap>();
  private layer = "";
  private names: string[] = [];
  private session: Session | null = null;

  constructor() {
    this.element.append(h("summary", {}, [h("h3", {}, ["Inside the model"])]), this.body);
    this.element.addEventListener("toggle", () => {
      if (this.session) this.session.looksInside = this.element.open && this.session.model.trace.length > 0;
    });
  }

  /** Draws the steps of a session. */
  draw(session: Session): void {
    if (session !== this.session) this.show(session);
    if (this.element.hidden || !this.element.open) return;
    const steps = session.steps.slice(-NUM_STEPS);
    const traces: (Trace | null)[] = steps.map((step) => step.output?.trace ?? null);
    const first = session.position - steps.length + 1;
    const labels = steps.map((step, index) => shownStep(step, first + index));
    if (session.first?.trace.size && steps.length < NUM_STEPS && session.base === 0) {
      traces.unshift(session.first.trace);
      labels.unshift("start");
    }
    const following = [...labels.slice(1), expected(session)];
    for (const [name, map] of this.maps) {
      const columns = traces.map((trace) => trace?.get(name) ?? null);
      const rows = isOfSource(name) && session.sourceTokens.length > 0 ? session.sourceTokens.map(shown) : "unit";
      const named = isOfSource(name) ? { labels: following, columnIs: "before" as const } : { labels, columnIs: "step" as const };
      map.element.hidden = columns.every((column) => column === null);
      map.draw({ columns, ...named, rows, isSigned: !/gate|attention/.test(name) });
    }
    const isKnown = traces.some((trace) => trace !== null && trace.size > 0);
    this.layers.hidden = !isKnown;
    say(this.hint, isKnown ? (this.names.some(isOfSource) ? OF_SOURCE : "") + HINT : "There are no values yet: they are drawn from the next step on.");
  }

  private show(session: Session): void {
    this.session = session;
    session.looksInside = this.element.open && session.model.trace.length > 0;
    const names = session.model.trace;
    this.element.hidden = names.length === 0;
    if (names.join() !== this.names.join()) {
      this.names = names;
      this.layer = "";
    }
    const layers = [...new Set(names.filter((name) => name.includes(".")).map(layerOf))];
    this.layer ||= layers.at(-1) ?? "";
    this.lay(layers);
  }

  private lay(layers: string[]): void {
    this.maps.clear();
    const ofSource = this.names.filter(isOfSource);
    for (const name of ofSource) this.maps.set(name, new HeatMap(plain(name), true));
    const units = this.names.filter((name) => name.startsWith(`${this.layer}.`) || !(name.includes(".") || isOfSource(name)));
    units.sort((one, other) => rank(one) - rank(other));
    for (const name of units) this.maps.set(name, new HeatMap(plain(name)));
    const elements = (names: string[]) => names.map((name) => this.maps.get(name)?.element);
    const group = freshId("layers");
    const choices = layers.map((layer) => this.choice(layer, group, layers));
    fill(this.layers, [h("legend", {}, ["Layer"]), ...choices]);
    fill(this.body, [
      ofSource.length > 0 && h("div", { class: "attention" }, elements(ofSource)),
      layers.length > 1 && this.layers,
      h("div", { class: "maps" }, elements(units)),
      this.hint,
    ]);
  }

  private choice(layer: string, group: string, layers: string[]): HTMLElement {
    const input = h("input", { type: "radio", name: group, value: layer });
    input.checked = layer === this.layer;
    input.addEventListener("change", () => {
      this.layer = layer;
      this.lay(layers);
      if (this.session) this.draw(this.session);
      this.layers.querySelector<HTMLInputElement>("input:checked")?.focus();
    });
    return h("label", {}, [input, layer.replace(/(\D)(\d)/, "$1 $2")]);
  }
}

/** The model's prediction after the last step: the likeliest token, or its values. */
function expected({ output, position }: Session): string {
  const [likeliest] = output?.tokens ?? [];
  if (likeliest) return shown(likeliest.text);
  return output?.values.length ? shownStep({ token: "", values: output.values }, position + 1) : "?";
}

function isOfSource(name: string): boolean {
  return name.includes("attention");
}

function layerOf(name: string): string {
  return name.slice(0, name.indexOf("."));
}

function plain(name: string): string {
  const text = name.slice(name.indexOf(".") + 1).replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function rank(name: string): number {
  const place = ORDER.indexOf(name.slice(name.indexOf(".") + 1));
  return place < 0 ? ORDER.length : place;
}
