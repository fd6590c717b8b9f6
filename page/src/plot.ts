/** A plot of numbers by step: observed values, the model's predictions for these steps, and its forecast. */

import uPlot from "uplot";
import { colour, fill, h, onTheme, say } from "./dom";

/** The curves, in pairs [step, value]. Steps before 1 are the source. expected: the model's predictions, or its outputs. */
export interface Curves {
  observed: [number, number][];
  expected: [number, number][];
  forecast: [number, number][];
}

const HEIGHT = 260;
const KEYS = ["observed", "expected", "forecast"];
const WHOLE = [1, 10, 100, 1000, 10_000].flatMap((power) => [1, 2, 5].map((digit) => digit * power));

/** A plot that is as wide as its container. */
export class Plot {
  readonly element: HTMLElement;
  private readonly place = h("div", { class: "plot", role: "img" });
  private readonly told = h("p", { class: "muted hint" });
  private readonly legend = h("ul", { class: "legend" });
  private names: readonly string[] = [];
  private curves: Curves = { observed: [], expected: [], forecast: [] };
  private drawn: uPlot | null = null;

  constructor() {
    this.element = h("figure", {}, [this.legend, this.place, this.told]);
    onTheme(() => this.make());
    new ResizeObserver(() => {
      const width = this.place.clientWidth;
      if (this.drawn && width > 0 && width !== this.drawn.width) this.drawn.setSize({ width, height: HEIGHT });
      else if (!this.drawn && width > 0) this.make();
    }).observe(this.place);
  }

  /** Draws curves. names: for the legend, of the first curves. */
  draw(curves: Curves, names: readonly string[]): void {
    this.curves = curves;
    if (names.join() !== this.names.join()) {
      fill(this.legend, names.map((name, index) => h("li", { class: `key ${KEYS[index]}` }, [name])));
      this.names = names;
    }
    const last = curves.observed.at(-1);
    const said = curves.expected.at(-1);
    const end = curves.forecast.at(-1);
    const words = [`${curves.observed.length} ${names[0] === "observed" ? "observed" : "steps"}`];
    if (last && names[0] === "observed") words.push(`the last one ${last[1]}`);
    if (said && names[1] === "given") words.push(`${said[1].toPrecision(6)} given last`);
    if (end) words.push(`${curves.forecast.length} forecast, up to ${end[1].toPrecision(6)} at step ${end[0]}`);
    this.place.setAttribute("aria-label", `Plot: ${words.join(", ")}.`);
    if (this.drawn) this.drawn.setData(this.data());
    else this.make();
  }

  private data(): uPlot.AlignedData {
    const { observed, expected, forecast } = this.curves;
    const all = [...observed, ...expected, ...forecast].map(([step]) => step);
    const steps = [...new Set(all)].sort((one, other) => one - other);
    const start = observed.filter(([step]) => step < (forecast[0]?.[0] ?? -Infinity)).slice(-1); // so that the forecast joins the observed curve
    const values = [observed, expected, [...start, ...forecast]].map((points) => {
      const known = new Map(points);
      return steps.map((step) => known.get(step) ?? null);
    });
    return [steps, ...values] as uPlot.AlignedData;
  }

  private make(): void {
    const width = this.place.clientWidth;
    if (width === 0) return;
    this.drawn?.destroy();
    const axis = {
      stroke: colour("--muted"),
      grid: { stroke: colour("--border"), width: 1 },
      ticks: { stroke: colour("--border"), width: 1 },
      font: "12px system-ui, sans-serif",
    };
    const line = (label: string, name: string, dash?: number[]): uPlot.Series => ({
      label,
      stroke: colour(name),
      width: 2,
      spanGaps: true,
      points: { show: false },
      ...(dash ? { dash } : {}),
    });
    this.drawn = new uPlot(
      {
        width,
        height: HEIGHT,
        scales: { x: { time: false } },
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, points: { size: 7 } },
        axes: [{ ...axis, incrs: WHOLE, size: 32 }, { ...axis, size: 56 }],
        series: [{}, line("observed", "--text"), line("expected", "--accent", [3, 4]), line("forecast", "--warm")],
        hooks: { setCursor: [(plot) => this.tell(plot)] },
      },
      this.data(),
      this.place,
    );
  }

  private tell(plot: uPlot): void {
    const index = plot.cursor.idx;
    if (index === null || index === undefined) {
      say(this.told, "");
      return;
    }
    const values = plot.series.slice(1).map((_, at) => [this.names[at], plot.data[at + 1]?.[index]] as const);
    const known = values.filter(([, value]) => typeof value === "number");
    const words = known.map(([name, value]) => `${String(name)} ${(value as number).toPrecision(6)}`);
    say(this.told, `Step ${plot.data[0]?.[index]}: ${words.join(", ")}`);
  }
}
