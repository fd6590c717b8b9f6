/** One session on the page: its input, its output, and its controls. */

import { Candidates, summary } from "./candidates";
import { Chips } from "./chips";
import { Copying } from "./copying";
import { button, fill, freshId, h, say } from "./dom";
import type { ModelInfo } from "./gen/carousel/v1/models_pb";
import { Generating } from "./generating";
import { Inside } from "./inside";
import { Marks } from "./marks";
import type { Source } from "./messages";
import { Numbers } from "./numbers";
import type { Listener } from "./listener";
import { type Server, words } from "./server";
import { Session } from "./session";
import { Sound } from "./sound";
import { SourceForm } from "./source";
import type { Stored } from "./steps";
import { news, numEmitted, Transcript } from "./transcript";
import { Typing } from "./typing";
import { Written } from "./written";

/** The part of the page that a column calls. */
export interface Host {
  /** Shows a copy of the column's session beside it. */
  fork(column: Column): Promise<void>;
  /** Removes the column. */
  close(column: Column): void;
  /** The column's session, or the id of its session, has changed. */
  renamed(): void;
}

const QUIET_MS = 400;
const NEWS_MS = 1500;

/** A column with a session of one model. */
export class Column implements Listener {
  readonly element: HTMLElement;
  session: Session;
  private readonly heading = h("h2");
  private readonly stats = h("dl", { class: "stats" });
  private readonly status = h("p", { class: "status", role: "status" });
  private readonly problem = h("p", { class: "problem", role: "alert" });
  private readonly now = button("Try now", () => this.again?.(), { hidden: true });
  private readonly live = h("p", { class: "unseen", "aria-live": "polite" });
  private readonly forking = button("Fork", () => void this.act(() => this.host.fork(this)), {
    title: "Copy the session into a second column",
  });
  private readonly buttons = h("div", { class: "buttons" });
  private readonly body = h("div", { class: "body" });
  private readonly sourceForm: SourceForm;
  private readonly typing: Typing;
  private readonly chips: Chips;
  private readonly marks: Marks;
  private readonly candidates: Candidates;
  private readonly generating: Generating;
  private readonly numbers: Numbers;
  private readonly sound: Sound;
  private readonly transcript = new Transcript();
  private readonly written = new Written();
  private readonly inside = new Inside();
  private readonly copying: Copying;
  private again: (() => void) | null = null;
  private speaking = 0;
  private numSpoken = 0;

  constructor(
    readonly model: ModelInfo,
    private readonly server: Server,
    private readonly host: Host,
    isSecond: boolean,
  ) {
    const run = (work: () => Promise<void>) => this.act(work);
    this.session = new Session(model, server, this);
    this.sourceForm = new SourceForm((source) => this.open(source), run);
    this.typing = new Typing(() => this.generating.stop(), run);
    this.chips = new Chips((position) => void this.rewind(position));
    this.marks = new Marks((position) => void this.rewind(position));
    this.candidates = new Candidates((token) => void this.feed(token));
    this.generating = new Generating(run, (text) => this.notice(text));
    this.numbers = new Numbers(run);
    this.sound = new Sound(run);
    this.copying = new Copying((text) => this.notice(text));
    const end = isSecond
      ? button("Close", () => this.host.close(this), { title: "Close this session" })
      : button("Start over", () => void this.act(() => this.startOver()), { title: "Close this session and open another" });
    fill(this.body, [
      this.typing.element,
      this.sound.element,
      this.numbers.element,
      this.transcript.element,
      this.written.element,
      this.candidates.element,
      this.chips.element,
      this.marks.element,
      this.generating.element,
      this.inside.element,
      this.copying.element,
    ]);
    fill(this.buttons, [!isSecond && this.forking, end]);
    const name = freshId("column");
    this.heading.id = name;
    say(this.heading, isSecond ? "Fork" : "Session");
    this.element = h("section", { class: "column", "aria-labelledby": name }, [
      h("header", {}, [this.heading, this.stats, this.buttons]),
      h("div", { class: "messages" }, [this.status, this.now, this.problem]),
      this.sourceForm.element,
      this.body,
      this.live,
    ]);
    this.sourceForm.offer(model);
    this.changed();
  }

  /** Opens a session. */
  async open(source: Source): Promise<void> {
    const opened = new Session(this.model, this.server, this);
    await opened.open(source);
    const before = this.session;
    this.show(opened);
    this.focus();
    await before.close();
  }

  /** Continues with a session after a reload. */
  async resume(id: string, kept: Stored | null): Promise<void> {
    await this.act(async () => {
      await this.session.resume(id, kept);
      this.show(this.session);
    });
  }

  /** Shows an open session. */
  show(session: Session): void {
    this.session = session;
    this.numSpoken = numEmitted(session);
    this.sourceForm.show(session.source, session.sourceTokens);
    this.changed();
  }

  /** Closes the column's session. */
  close(): void {
    this.generating.stop();
    this.sound.end();
    void this.session.close();
  }

  /** Puts the cursor into the box for the next step. */
  focus(): void {
    if (!this.typing.element.hidden) this.typing.box.focus();
  }

  /** Runs work that may fail, and shows its error. Returns whether it succeeded. */
  async act(work: () => Promise<void>): Promise<boolean> {
    say(this.problem, "");
    say(this.status, "");
    try {
      await work();
      return true;
    } catch (error) {
      say(this.problem, words(error));
      return false;
    }
  }

  /** See `Listener`. */
  changed(): void {
    const { session } = this;
    this.body.hidden = !session.isOpen;
    this.stats.hidden = !session.isOpen;
    this.buttons.hidden = !session.isOpen;
    if (!session.isOpen) return;
    const last = session.steps.at(-1);
    const facts: [string, string][] = [
      ["position", String(session.position)],
      ["state", bytes(Number(this.model.stateSizeBytes))],
      ["last step", last && last.ms > 0 ? `${last.ms.toFixed(1)} ms` : "–"],
    ];
    fill(this.stats, facts.map(([name, value]) => h("div", {}, [h("dt", {}, [name]), h("dd", {}, [value])])));
    this.heading.title = session.id;
    this.typing.draw(session);
    this.sound.draw(session);
    this.numbers.draw(session);
    this.transcript.draw(session);
    this.written.draw(session);
    this.chips.draw(session);
    this.marks.draw(session);
    this.candidates.draw(session);
    this.generating.draw(session);
    this.inside.draw(session);
    this.copying.draw(session.lines);
    this.host.renamed();
    this.speak();
  }

  /** Lets screen readers read new output: steps when no more follow, emitted tokens at intervals. */
  private speak(): void {
    if (this.model.transducer === undefined) {
      clearTimeout(this.speaking);
      this.speaking = window.setTimeout(() => say(this.live, summary(this.session)), QUIET_MS);
    } else if (this.speaking === 0) {
      this.speaking = window.setTimeout(() => {
        this.speaking = 0;
        const text = news(this.session, this.numSpoken);
        if (text !== "") say(this.live, text);
        this.numSpoken = numEmitted(this.session);
      }, NEWS_MS);
    }
  }

  /** See `Listener`. */
  notice(text: string): void {
    say(this.status, text);
  }

  /** See `Watch`. */
  waiting(attempt: number, why: string, now: () => void): void {
    this.again = now;
    this.now.hidden = false;
    say(this.status, `Not connected: ${why}. Trying again${attempt > 1 ? ` (${attempt})` : ""} …`);
  }

  /** See `Watch`. */
  answered(): void {
    this.again = null;
    this.now.hidden = true;
    say(this.status, "Connected again. Nothing was lost.");
  }

  private async startOver(): Promise<void> {
    const { source } = this.session;
    this.generating.stop();
    this.typing.settle();
    if (this.model.hasEncoder && source === null) return;
    await this.open(source);
  }

  private async feed(token: string): Promise<void> {
    this.generating.stop();
    this.typing.settle();
    await this.act(() => this.session.feed([token], "you"));
  }

  private async rewind(position: number): Promise<void> {
    this.generating.stop();
    this.typing.settle();
    if (await this.act(() => this.session.rewind(position))) this.focus();
  }
}

function bytes(size: number): string {
  return size < 1024 ? `${size} B` : `${(size / 1024).toFixed(1)} KiB`;
}
