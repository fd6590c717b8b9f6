/** One session, by calls of one request and one answer. Knows no elements.
 *
 * 1. One call at a time: calls of a session wait for each other.
 * 2. Every feed says its position and keeps a mark, so that it may be sent again and come back to.
 * 3. What was fed is known here. A session that its server has lost, or has from further back, is fed again.
 */

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type CallOptions, Code } from "@connectrpc/connect";
import { type OpenSchema, type StepRequest, StepRequestSchema, type StepResponse } from "./gen/carousel/v1/inference_pb";
import type { ModelInfo } from "./gen/carousel/v1/models_pb";
import { SessionsForkRequestSchema, SessionsRewindRequestSchema } from "./gen/carousel/v1/sessions_pb";
import { forkLines, type Lines, rewindLines, stepLines } from "./lines";
import { type Fed, freshSessionId, hasStart, opening, outputs, what } from "./messages";
import { isRefusal, type Server, type Timed, type Watch } from "./server";
import { forget, type Output, outputOf, type Source, type Step, store, type Stored } from "./steps";

/** Told what happens to a session. */
export interface Listener extends Watch {
  /** Something of it has changed. */
  changed(): void;
  /** For people: what happened that was not asked for. */
  notice(text: string): void;
}

const NUM_MARKS = 8;
/** Steps in one call at most, so that an answer with their traces is not too large. */
export const NUM_TOGETHER = 32;

/** A session of `model`. */
export class Session {
  id = freshSessionId();
  route = this.id;
  base = 0;
  source: Source = null;
  sourceTokens: string[] = [];
  first: Output | null = null;
  steps: Step[] = [];
  marks: number[] = [];
  isOpen = false;
  /** Whether steps are looked into. */
  looksInside: boolean;
  /** The call that was made last. */
  lines: Lines | null = null;
  private turn: Promise<unknown> = Promise.resolve();
  private saving = 0;

  constructor(
    readonly model: ModelInfo,
    private readonly server: Server,
    private readonly listener: Listener,
  ) {
    this.looksInside = model.trace.length > 0;
  }

  /** Where it stands: how many steps it has done. */
  get position(): number {
    return this.base + this.steps.length;
  }

  /** What the model said last; null where that is not known. */
  get output(): Output | null {
    const last = this.steps.at(-1);
    return last ? last.output : this.base === 0 ? this.first : null;
  }

  /** What was fed, since its beginning is known. */
  get tokens(): string[] {
    return this.steps.map((step) => step.token);
  }

  /** Opens it. */
  open(source: Source): Promise<void> {
    return this.inTurn(async () => {
      this.source = source;
      const spec = this.spec(hasStart(this.model));
      const request = create(StepRequestSchema, { sessionId: this.id, open: opening(this.model, source, spec) });
      let answer: StepResponse;
      try {
        ({ answer } = await this.step(request));
      } catch (error) {
        if (!(isRefusal(error, Code.InvalidArgument) && error.rawMessage.includes("start token"))) throw error;
        const without = create(StepRequestSchema, { sessionId: this.id, open: opening(this.model, source, null) });
        ({ answer } = await this.step(without));
      }
      this.isOpen = true;
      this.sourceTokens = answer.opened?.source.map(({ text }) => text) ?? [];
      this.first = answer.opened?.output ? outputOf(answer.opened.output) : null;
    });
  }

  /** Finds it again after a reload. kept: what was kept of it; null, when its id alone is known. */
  resume(id: string, kept: Stored | null): Promise<void> {
    return this.inTurn(async () => {
      this.id = this.route = id;
      if (kept) {
        const { route, base, source, sourceTokens, first, steps } = kept;
        Object.assign(this, { route, base, source, sourceTokens, first, steps });
      }
      this.isOpen = true;
      await this.catchUp(kept === null);
      const { answer } = await this.call((options) => this.server.sessions.get({ sessionId: this.id }, options));
      this.marks = answer.session?.marks.map(Number) ?? [];
    });
  }

  /** Makes it consume tokens or vectors, the first at the position where it stands. */
  feed(fed: Fed, by: Step["by"]): Promise<void> {
    return this.inTurn(async () => {
      for (let start = 0; start < fed.length; start += NUM_TOGETHER) {
        await this.fed(fed.slice(start, start + NUM_TOGETHER) as Fed, by, true);
      }
    });
  }

  /** Sets it back to a position. Where no mark is kept any more, it is opened anew and fed up to there. */
  rewind(position: number): Promise<void> {
    return this.inTurn(async () => {
      if (position === this.position) return;
      const length = position - this.base;
      if (this.marks.includes(position) && (await this.rewound(position))) this.steps.length = length;
      else {
        const { id, route } = this;
        await this.reopen(length, `No mark is kept at step ${position}: the session was opened anew and fed up to there.`);
        const close = (options: CallOptions) => this.server.inference.step({ sessionId: id, close: true }, options);
        await this.server.call(close, route, this.listener).catch(() => undefined);
      }
    });
  }

  /** Makes a copy that goes on by itself. */
  fork(listener: Listener): Promise<Session> {
    return this.inTurn(async () => {
      const copy = new Session(this.model, this.server, listener);
      const { route, base, source, sourceTokens, first, looksInside, isOpen } = this;
      Object.assign(copy, { route, base, source, sourceTokens, first, looksInside, isOpen });
      copy.steps = [...this.steps];
      copy.marks = [...this.marks];
      const request = create(SessionsForkRequestSchema, { sessionId: this.id, forkSessionId: copy.id });
      const make = (options: CallOptions) => this.server.sessions.fork(request, options);
      let isSentAgain = false;
      for (;;) {
        try {
          await this.call(make);
          break;
        } catch (error) {
          if (isRefusal(error, Code.AlreadyExists)) break; // by this call, whose answer was lost
          if (isSentAgain || !isRefusal(error, Code.NotFound)) throw error;
          isSentAgain = true;
          await this.reopen(this.steps.length, LOST);
        }
      }
      this.lines = copy.lines = forkLines(request, this.place());
      copy.save();
      return copy;
    });
  }

  /** What the model gives when it is fed what it has given itself: `num` vectors. It is asked in a copy, which is closed. */
  async forecast(num: number, isStopped: () => boolean): Promise<number[][]> {
    const lines = this.lines;
    const copy = await this.fork(this.listener);
    this.lines = lines;
    const given: number[][] = [];
    try {
      for (let values = copy.output?.values ?? []; values.length > 0; values = copy.output?.values ?? []) {
        given.push(values);
        if (given.length >= num || isStopped()) break;
        await copy.inTurn(() => copy.fed([values], "model", false));
      }
    } finally {
      await copy.close();
    }
    return given;
  }

  /** Closes it. Its state is gone. */
  async close(): Promise<void> {
    clearTimeout(this.saving);
    forget(this.id);
    if (!this.isOpen) return;
    this.isOpen = false;
    const request = { sessionId: this.id, close: true };
    await this.inTurn(() => this.call((options) => this.server.inference.step(request, options))).catch(() => undefined);
  }

  private async fed(fed: Fed, by: Step["by"], mark: boolean): Promise<void> {
    const spec = { ...outputs(this.model, this.looksInside), everyPosition: fed.length > 1 };
    const feed = { ...what(fed), position: BigInt(this.position), outputs: spec, mark };
    const request = create(StepRequestSchema, { sessionId: this.id, feed });
    const { answer, ms } = await this.step(request);
    const found = answer.fed?.outputs ?? [];
    for (const [index, one] of fed.entries()) {
      const output = found[found.length - fed.length + index];
      const token = typeof one === "string" ? one : "";
      const values = typeof one === "string" ? [] : one;
      this.steps.push({ token, values, by, output: output ? outputOf(output) : null, ms: ms / fed.length });
    }
    if (mark) this.marks = [...this.marks, this.position].slice(-NUM_MARKS);
  }

  /** Sends a request until it is answered; mends the session where the server does not have it as it is here. */
  private async step(request: StepRequest): Promise<Timed<StepResponse>> {
    for (let tries = 0; ; tries += 1) {
      try {
        const timed = await this.call((options) => this.server.inference.step(request, options));
        this.lines = stepLines(request, this.place());
        return timed;
      } catch (error) {
        const isElsewhere = isRefusal(error, Code.FailedPrecondition) && request.feed !== undefined;
        if (tries === 2 || request.open || !(isElsewhere || isRefusal(error, Code.NotFound))) throw error;
        const before = this.position;
        await this.catchUp(false);
        if (this.position !== before) throw error;
        request.sessionId = this.id;
      }
    }
  }

  /** Asks where the session stands, and feeds it again what came after. isNew: its steps are not known here. */
  private async catchUp(isNew: boolean): Promise<void> {
    let position: number;
    try {
      const { answer } = await this.call((options) => this.server.inference.step({ sessionId: this.id }, options));
      position = Number(answer.position);
    } catch (error) {
      if (isNew || !isRefusal(error, Code.NotFound)) throw error;
      await this.reopen(this.steps.length, LOST);
      return;
    }
    if (position === this.position) return;
    if (position < this.position && position >= this.base) {
      const again = this.steps.slice(position - this.base);
      await this.refeed(again, position, {});
      this.listener.notice(`The server had the session as of step ${position}. ${counted(again.length)} fed again.`);
      return;
    }
    this.base = position;
    this.steps = [];
    this.marks = [];
    if (!isNew) this.listener.notice(`The session was fed from elsewhere. It stands at step ${position} now.`);
  }

  /** Opens it anew and feeds it its first `length` steps. */
  private async reopen(length: number, why: string): Promise<void> {
    if (this.base > 0) throw new Error("No mark is kept there, and what the session began with is not known here.");
    const old = this.id;
    const isRoot = this.route === old;
    this.id = freshSessionId();
    if (isRoot) this.route = this.id;
    const steps = this.steps.slice(0, length);
    const spec = this.spec(steps.length === 0 && this.first !== null);
    await this.refeed(steps, 0, { open: opening(this.model, this.source, spec) });
    this.steps = steps;
    this.marks = steps.length > 0 ? [steps.length] : [];
    forget(old);
    this.listener.notice(why);
  }

  private async refeed(steps: Step[], position: number, more: { open?: MessageInitShape<typeof OpenSchema> }): Promise<void> {
    const items = this.model.featureSize > 0 ? steps.map(({ values }) => values) : steps.map(({ token }) => token);
    const feed = { ...what(items as Fed), position: BigInt(position), outputs: this.spec(true) ?? {}, mark: true };
    const request = create(StepRequestSchema, { sessionId: this.id, ...more, ...(steps.length > 0 ? { feed } : {}) });
    await this.call((options) => this.server.inference.step(request, options));
    this.lines = stepLines(request, this.place());
  }

  private async rewound(position: number): Promise<boolean> {
    const request = create(SessionsRewindRequestSchema, { sessionId: this.id, position: BigInt(position) });
    try {
      const { answer } = await this.call((options) => this.server.sessions.rewind(request, options));
      this.marks = answer.session?.marks.map(Number) ?? [];
      this.lines = rewindLines(request, this.place());
      return true;
    } catch (error) {
      if (isRefusal(error, Code.FailedPrecondition, Code.NotFound)) return false;
      throw error;
    }
  }

  private call<T>(make: (options: CallOptions) => Promise<T>): Promise<Timed<T>> {
    return this.server.call(make, this.route, this.listener);
  }

  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.turn.then(work).finally(() => {
      this.listener.changed();
      if (this.isOpen) this.save();
    });
    this.turn = done.catch(() => undefined);
    return done;
  }

  private save(): void {
    clearTimeout(this.saving);
    this.saving = window.setTimeout(() => this.keep(false), 150);
  }

  /** Keeps it for a reload, now; with looks inside its last steps or without. */
  keep(withTraces: boolean): void {
    if (!this.isOpen) return;
    const { id, route, base, source, sourceTokens, first, steps, model } = this;
    store({ id, route, model: model.model, version: model.version, source, sourceTokens, base, first, steps }, withTraces);
  }

  private spec(isWanted: boolean) {
    return isWanted ? outputs(this.model, this.looksInside) : null;
  }

  private place() {
    return { origin: location.origin, hasToken: this.server.hasToken, route: this.route };
  }
}

const LOST = "The server had lost the session: it was opened anew and fed again.";

function counted(num: number): string {
  return num === 1 ? "1 step was" : `${num} steps were`;
}
