/** Controls for models of sound: the microphone, and files. */

import { button, freshId, h, say } from "./dom";
import { Feeding } from "./feeding";
import { type Layout, layoutOf, loudness, stepsIn, vectorsOf } from "./frames";
import { listen } from "./microphone";
import type { Session } from "./session";
import { played, samplesOf } from "./sound_file";
import { NUM_TOGETHER } from "./steps";

const WAITING_S = 3;
const MARK_S = 1;
const TOLD_MS = 500;

/** The controls. act: runs work that may fail, and shows its error. */
export class Sound {
  readonly element: HTMLElement;
  private readonly ear = button("Listen", () => void (this.stop ? this.stop() : this.hear()), { class: "primary" });
  private readonly bar = h("span", { class: "bar" });
  private readonly meter: HTMLElement;
  private readonly time = h("span", { class: "time" }, ["0.0 s"]);
  private readonly file: HTMLInputElement;
  private readonly pace: HTMLSelectElement;
  private readonly play = h("button", { type: "submit" }, ["Feed the file"]);
  private readonly hint = h("p", { class: "muted hint" });
  private readonly told = h("p", { class: "muted hint", role: "status" });
  private session: Session | null = null;
  private layout: Layout | null = null;
  private stop: (() => void) | null = null;
  private numHeard = 0;
  private lastTold = 0;

  constructor(private readonly act: (work: () => Promise<void>) => Promise<boolean>) {
    const [file, pace] = [freshId("file"), freshId("pace")];
    this.meter = h("span", { class: "meter", role: "meter", "aria-label": "Level", "aria-valuenow": 0 }, [this.bar]);
    this.file = h("input", { id: file, type: "file", accept: "audio/*,.wav", required: true });
    this.pace = h("select", { id: pace }, [
      h("option", { value: "once" }, ["At once"]),
      h("option", { value: "aloud" }, ["At the speed of the sound"]),
    ]);
    const form = h("form", { class: "controls" }, [
      h("div", { class: "field grow" }, [h("label", { for: file }, ["Sound file"]), this.file]),
      h("div", { class: "field" }, [h("label", { for: pace }, ["Pace"]), this.pace]),
      this.play,
    ]);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.stop) this.stop();
      else void this.feedFile();
    });
    this.element = h("div", { class: "sound" }, [
      h("div", { class: "ear" }, [this.ear, this.meter, this.time]),
      this.told,
      form,
      this.hint,
    ]);
  }

  /** Shows the controls for a session of a model of sound. */
  draw(session: Session): void {
    if (session === this.session) return;
    this.end();
    this.session = session;
    this.layout = layoutOf(session.model);
    this.element.hidden = this.layout === null;
    if (this.layout === null) return;
    const { rate, size } = this.layout;
    say(this.hint, `The model reads ${rate} samples per second, ${size} in each step.`);
    say(this.told, "");
  }

  /** Stops listening or playing. */
  end(): void {
    this.stop?.();
  }

  private async hear(): Promise<void> {
    await this.run(this.ear, async (layout, feeding, stopped) => {
      const isOver = new Promise<void>((resolve) => stopped(resolve));
      const gone = () => {
        say(this.told, "The microphone was disconnected, or the browser ended its use.");
        this.end();
      };
      const silence = await listen(layout, (samples) => this.take(samples, layout, feeding), gone);
      say(this.told, "Listening.");
      await isOver;
      await silence();
      await feeding.end();
    });
  }

  /** Feeds samples from the microphone. */
  private take(samples: Float32Array, layout: Layout, feeding: Feeding): void {
    if (this.stop === null) return;
    this.show(samples, layout);
    try {
      feeding.push(vectorsOf(samples, layout));
    } catch {
      this.end(); // `Feeding.end` throws the error
      return;
    }
    if (feeding.numDropped === 0 || performance.now() - this.lastTold < TOLD_MS) return;
    this.lastTold = performance.now();
    const seconds = (feeding.numDropped * layout.size) / layout.rate;
    say(this.told, `${seconds.toFixed(1)} s of sound were dropped: the server is slower than the microphone.`);
  }

  private async feedFile(): Promise<void> {
    const file = this.file.files?.[0];
    if (file === undefined) return;
    await this.run(this.play, async (layout, feeding, stopped) => {
      let isOver = false;
      stopped(() => (isOver = true));
      const samples = await samplesOf(file, layout);
      const most = NUM_TOGETHER * layout.size;
      const give = async (part: Float32Array) => {
        this.show(part, layout);
        await feeding.feed(vectorsOf(part, layout));
      };
      if (this.pace.value === "aloud") await played(samples, layout, most, () => isOver, give);
      else for (let at = 0; at < samples.length && !isOver; at += most) await give(samples.subarray(at, at + most));
      say(this.told, `${(this.numHeard / layout.rate).toFixed(1)} s of ${file.name} were fed.`);
    });
  }

  /** Runs work that feeds the session, until it ends or the user stops it. press: the button that becomes the stop button. */
  private async run(
    press: HTMLButtonElement,
    work: (layout: Layout, feeding: Feeding, stopped: (call: () => void) => void) => Promise<void>,
  ): Promise<void> {
    const { session, layout } = this;
    if (session === null || layout === null) return;
    const label = press.textContent ?? "";
    const calls: (() => void)[] = [];
    this.stop = () => {
      this.stop = null;
      for (const call of calls) call();
    };
    const others = [this.ear, this.play].filter((one) => one !== press);
    this.numHeard = 0;
    say(this.told, "");
    say(press, "Stop");
    for (const one of others) one.disabled = true;
    const feeding = new Feeding(session, stepsIn(layout, WAITING_S), stepsIn(layout, MARK_S));
    await this.act(() => work(layout, feeding, (call) => calls.push(call)));
    this.stop = null;
    say(press, label);
    for (const one of others) one.disabled = false;
    this.level(0);
    if (this.told.textContent === "Listening.") say(this.told, "Stopped.");
  }

  private show(samples: Float32Array, layout: Layout): void {
    this.numHeard += samples.length;
    this.level(loudness(samples));
    say(this.time, `${(this.numHeard / layout.rate).toFixed(1)} s`);
  }

  private level(level: number): void {
    this.bar.style.transform = `scaleX(${level.toFixed(3)})`;
    this.meter.setAttribute("aria-valuenow", String(Math.round(100 * level)));
  }
}
