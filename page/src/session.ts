/** One session, in calls of one request and one response. Knows no HTML elements. Rules:
 *
 * 1. A session has one call in flight at a time; other calls wait.
 * 2. Every feed has its position and keeps a mark, so that the page can retry it and rewind to it.
 * 3. The page knows the steps from `base` on. If the server has lost the session, or has it at an earlier position, the
 *    page feeds these steps again.
 */

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type CallOptions, Code } from "@connectrpc/connect";
import { type Emissions, emittedUpTo, extended, noEmissions, recalled } from "./emissions";
import { type OpenSchema, type StepRequest, StepRequestSchema, type StepResponse } from "./gen/carousel/v1/inference_pb";
import type { ModelInfo } from "./gen/carousel/v1/models_pb";
import { SessionsForkRequestSchema, SessionsRewindRequestSchema } from "./gen/carousel/v1/sessions_pb";
import { forkLines, type Lines, rewindLines, stepLines } from "./lines";
import { anew, fedAgain, type Listener, LOST } from "./listener";
import { type Fed, freshSessionId, hasStart, opening, outputs, type Source, what } from "./messages";
import { isRefusal, type Server, type Timed } from "./server";
import { fedBy, forget, forgetTraces, NUM_TOGETHER, numToForget, type Output, outputOf } from "./steps";
import { type Step, stepsOf, store, type Stored } from "./steps";

const NUM_MARKS = 8;
/** The most numbers, or tokens, in one call that feeds steps again. */
const NUM_AGAIN = 100_000;

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
  emissions = noEmissions();
  isOpen = false;
  /** Whether feeds ask for traces. */
  looksInside: boolean;
  /** The last call, as lines of `curl` and Python. */
  lines: Lines | null = null;
  private turn: Promise<unknown> = Promise.resolve();
  private saving = 0;

  constructor(
    readonly model: ModelInfo,
    private readonly server: Server,
    readonly listener: Listener,
  ) {
    this.looksInside = model.trace.length > 0;
  }

  /** The session's position: its number of steps. */
  get position(): number {
    return this.base + this.steps.length;
  }

  /** The model's last output; null when the page does not know it. */
  get output(): Output | null {
    const last = this.steps.at(-1);
    return last ? last.output : this.base === 0 ? this.first : null;
  }

  /** The tokens of the steps that the page knows. */
  get tokens(): string[] {
    return this.steps.map((step) => step.token);
  }

  /** Opens the session. */
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

  /** Continues with the session after a reload. kept: what the tab kept of it; null when only its id is known. */
  resume(id: string, kept: Stored | null): Promise<void> {
    return this.inTurn(async () => {
      this.id = this.route = id;
      if (kept) {
        const { route, base, source, sourceTokens, first, steps, emissions } = kept;
        Object.assign(this, { route, base, source, sourceTokens, first, steps, emissions });
      }
      this.isOpen = true;
      await this.catchUp(kept === null);
      const { answer } = await this.call((options) => this.server.sessions.get({ sessionId: this.id }, options));
      this.marks = answer.session?.marks.map(Number) ?? [];
    });
  }

  /** Makes the session consume tokens or vectors, from its position on. mark: keep a mark after each call, for rewinds. */
  feed(fed: Fed, by: Step["by"], mark = true): Promise<void> {
    return this.inTurn(async () => {
      if (!this.isOpen) throw new Error("The session is closed.");
      for (let start = 0; start < fed.length; start += NUM_TOGETHER) {
        await this.fed(fed.slice(start, start + NUM_TOGETHER) as Fed, by, mark);
      }
    });
  }

  /** Rewinds the session to a position: rewinds it to the last mark up to there, and feeds the steps between again. If
   * there is no such mark, opens the session again. */
  rewind(position: number): Promise<void> {
    return this.inTurn(async () => {
      if (position === this.position) return;
      const length = position - this.base;
      const mark = this.marks.findLast((one) => one === position || (one >= this.base && one < position));
      if (mark !== undefined && (await this.rewound(mark))) {
        const again = this.steps.slice(mark - this.base, length);
        await this.setBack(position);
        if (again.length > 0) await this.refeed(again, mark, {});
      } else {
        const { id, route } = this;
        await this.reopen(length, anew(position));
        const close = (options: CallOptions) => this.server.inference.step({ sessionId: id, close: true }, options);
        await this.server.call(close, route, this.listener).catch(() => undefined);
      }
    });
  }

  /** Copies the session. The copy is independent. */
  fork(listener: Listener): Promise<Session> {
    return this.inTurn(async () => {
      const copy = new Session(this.model, this.server, listener);
      const { route, base, source, sourceTokens, first, looksInside, isOpen, emissions } = this;
      Object.assign(copy, { route, base, source, sourceTokens, first, looksInside, isOpen, emissions });
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
          if (isRefusal(error, Code.AlreadyExists)) break; // an earlier attempt made it, and its answer was lost
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

  /** Closes the session. The server deletes its state. */
  async close(): Promise<void> {
    clearTimeout(this.saving);
    forget(this.id);
    if (!this.isOpen) return;
    this.isOpen = false;
    const request = { sessionId: this.id, close: true };
    await this.inTurn(() => this.call((options) => this.server.inference.step(request, options))).catch(() => undefined);
  }

  private async fed(fed: Fed, by: Step["by"], mark: boolean): Promise<void> {
    const spec = { ...outputs(this.model, this.looksInside), everyPosition: fed.length > 1 && !this.model.transducer };
    const feed = { ...what(fed), position: BigInt(this.position), outputs: spec, mark };
    const request = create(StepRequestSchema, { sessionId: this.id, feed });
    const { answer, ms } = await this.step(request);
    const found = answer.fed?.outputs ?? [];
    this.steps.push(...stepsOf(fed, this.position, by, found, ms));
    if (this.model.transducer) this.emissions = extended(this.emissions, found);
    if (mark) this.marked(this.position);
    forgetTraces(this.steps);
    this.base += this.steps.splice(0, numToForget(this.steps, this.model.featureSize)).length;
  }

  private marked(position: number): void {
    this.marks = [...this.marks, position].slice(-NUM_MARKS);
  }

  /** Sends a request until it is answered. If the server has the session at another position, or has lost it, repairs that
   * first. */
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

  /** Reads the session's position from the server, and feeds the later steps again. isNew: the page does not know its steps. */
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
      this.listener.notice(fedAgain(position, again.length));
      return;
    }
    const isBehind = position < this.position;
    this.marks = [];
    if (isBehind) await this.setBack(position);
    else await this.setOn(position);
    if (isBehind) this.listener.notice(`The server had the session at step ${position}. Later steps are lost.`);
    else if (!isNew) this.listener.notice(`Another client fed the session. It is at step ${position} now.`);
  }

  /** Records that the server has the session at an earlier position. */
  private async setBack(position: number): Promise<void> {
    const emissions = emittedUpTo(this.emissions, position, this.base);
    if (emissions === null || position < this.base) await this.setOn(position, emissions);
    else Object.assign(this, { emissions, steps: this.steps.slice(0, position - this.base) });
  }

  /** Records that the session is at a position to which this page did not feed it. emissions: null when they are not known. */
  private async setOn(position: number, emissions: Emissions | null = null): Promise<void> {
    Object.assign(this, { base: position, steps: [], emissions: emissions ?? noEmissions() });
    if (emissions || !this.model.transducer) return;
    const { answer } = await this.call((options) => this.server.sessions.getState({ sessionId: this.id }, options));
    this.emissions = recalled(answer.emitted, Number(answer.numEmitted));
  }

  /** Opens the session again under a new id, and feeds it its first `length` steps. */
  private async reopen(length: number, why: string): Promise<void> {
    if (this.base > 0) throw new Error("There is no mark at that step, and this page does not know how the session began.");
    const old = this.id;
    const isRoot = this.route === old;
    this.id = freshSessionId();
    if (isRoot) this.route = this.id;
    const steps = this.steps.slice(0, length);
    const spec = this.spec(steps.length === 0 && this.first !== null);
    this.marks = [];
    await this.refeed(steps, 0, { open: opening(this.model, this.source, spec) });
    this.steps = steps;
    this.emissions = emittedUpTo(this.emissions, steps.length, 0) ?? noEmissions();
    forget(old);
    this.listener.notice(why);
  }

  private async refeed(steps: Step[], position: number, more: { open?: MessageInitShape<typeof OpenSchema> }): Promise<void> {
    const num = Math.floor(NUM_AGAIN / Math.max(1, this.model.featureSize)) || 1;
    for (let start = 0; start === 0 || start < steps.length; start += num) {
      const part = steps.slice(start, start + num);
      const feed = { ...what(fedBy(part)), position: BigInt(position + start), outputs: outputs(this.model, false), mark: true };
      const own = { sessionId: this.id, ...(start === 0 ? more : {}), ...(part.length > 0 ? { feed } : {}) };
      const request = create(StepRequestSchema, own);
      await this.call((options) => this.server.inference.step(request, options));
      this.lines = stepLines(request, this.place());
      if (part.length > 0) this.marked(position + start + part.length);
    }
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

  /** Stores the session for a reload, at once. withTraces: also the traces of its last steps. */
  keep(withTraces: boolean): void {
    if (this.isOpen) store(this, withTraces);
  }

  private spec(isWanted: boolean) {
    return isWanted ? outputs(this.model, this.looksInside) : null;
  }

  private place() {
    return { model: this.model, origin: location.origin, hasToken: this.server.hasToken, route: this.route };
  }
}
