/** What a session has consumed and what the model said, step by step, and how a reload finds it again. */

import type { Emissions } from "./emissions";
import type { StepOutput } from "./gen/carousel/v1/inference_pb";
import type { ModelInfo } from "./gen/carousel/v1/models_pb";
import type { Fed } from "./messages";
import type { Candidate } from "./sampling";

/** A look inside a step: gates and states by name, unit by unit; attention, source token by source token. */
export type Trace = Map<string, readonly number[]>;

/** Steps in one call at most, so that an answer with their traces is not too large. */
export const NUM_TOGETHER = 32;

/** What the model says after a step. tokens: the likeliest next ones, or those that the step of a transducer emitted.
 * values: of models of numbers. trace: empty where the step was not looked into. */
export interface Output {
  tokens: Candidate[];
  values: number[];
  trace: Trace;
}

/** One step. token: what was fed, empty for a vector; values: the vector. output: null where it is not known. by: who
 * chose it. ms: how long the call took. */
export interface Step {
  token: string;
  values: number[];
  by: "you" | "model";
  output: Output | null;
  ms: number;
}

/** The source of a session: a text, vectors of numbers, or none. */
export type Source = string | number[][] | null;

/** What is kept of a session for a reload. base: the position before the first step. */
export interface Stored {
  id: string;
  route: string;
  model: string;
  version: number;
  source: Source;
  sourceTokens: string[];
  base: number;
  first: Output | null;
  steps: Step[];
  emissions: Emissions;
}

/** Vectors of more numbers are kept for as long as the page is there, and not for a reload. */
export const LARGE = 64;
/** A session as the page has it. */
export type Remembered = Omit<Stored, "model" | "version"> & { model: ModelInfo };

const NUM_OUTPUTS = 200;
const NUM_TRACES = 48;
const NUM_TRACES_SHOWN = 256;
const MAX_NUMBERS = 1_000_000;
const MIN_STEPS = 256;

/** An answer's output. */
export function outputOf(message: StepOutput): Output {
  return {
    tokens: message.tokens.map(({ id, text, logProbability }) => ({ id, text, logProbability: logProbability ?? 0 })),
    values: message.values,
    trace: new Map(message.trace.map(({ name, values }) => [name, values])),
  };
}

/** The steps that a feed was, the first at `position`. outputs: of the answer. ms: how long it took. */
export function stepsOf(fed: Fed, position: number, by: Step["by"], outputs: readonly StepOutput[], ms: number): Step[] {
  const found = new Map(outputs.map((output) => [Number(output.position), output]));
  return fed.map((one, index) => {
    const output = found.get(position + index + 1);
    const [token, values] = typeof one === "string" ? [one, []] : ["", one];
    return { token, values, by, output: output ? outputOf(output) : null, ms: ms / fed.length };
  });
}

/** How many of the first steps are too much to remember: their vectors have too many numbers together. */
export function numToForget(steps: readonly Step[], size: number): number {
  const most = size > 0 ? Math.max(MIN_STEPS, Math.floor(MAX_NUMBERS / size)) : Infinity;
  return steps.length > 1.25 * most ? steps.length - most : 0;
}

/** Leaves out looks inside steps that are not shown any more. */
export function forgetTraces(steps: readonly Step[]): void {
  for (const { output } of steps.slice(-NUM_TRACES_SHOWN - NUM_TOGETHER, -NUM_TRACES_SHOWN)) output?.trace.clear();
}

/** What is fed again of steps. */
export function fedBy(steps: readonly Step[]): Fed {
  return steps[0]?.values.length ? steps.map(({ values }) => values) : steps.map(({ token }) => token);
}

/** Keeps a session for as long as the tab lives. What the last steps said is kept; of earlier ones, what was fed.
 * withTraces: looks inside the very last ones, too, which are large. */
export function store(session: Remembered, withTraces: boolean): void {
  const { id, route, source, sourceTokens, base, first, steps, emissions } = session;
  const { model, version, featureSize } = session.model;
  const num = steps.length;
  const packedSteps = steps.map((step, index) => {
    if (index < num - NUM_OUTPUTS) return { ...step, output: null };
    return { ...step, output: packed(step.output, withTraces && index >= num - NUM_TRACES) };
  });
  const known = featureSize > LARGE ? { base: base + num, steps: [] } : { base, steps: packedSteps };
  const about = { id, route, model, version, source, sourceTokens, first: packed(first, withTraces), emissions };
  try {
    sessionStorage.setItem(key(id), JSON.stringify({ ...about, ...known }));
  } catch {
    sessionStorage.removeItem(key(id)); // full: a reload then knows the session's id alone
  }
}

/** What was kept of a session, if anything was. */
export function stored(id: string): Stored | null {
  const record = sessionStorage.getItem(key(id));
  if (record === null) return null;
  const found = JSON.parse(record) as PackedSession;
  const steps = found.steps.map((step) => ({ ...step, output: unpacked(step.output) }));
  return { ...found, first: unpacked(found.first), steps };
}

/** Forgets a session. */
export function forget(id: string): void {
  sessionStorage.removeItem(key(id));
}

type PackedSession = Omit<Stored, "first" | "steps"> & { first: Packed; steps: PackedStep[] };
type PackedStep = Omit<Step, "output"> & { output: Packed };
type Packed = (Omit<Output, "trace"> & { trace: [string, number[]][] }) | null;

function key(id: string): string {
  return `carousel:session:${id}`;
}

function packed(output: Output | null, withTrace: boolean): Packed {
  if (output === null) return null;
  const trace: [string, number[]][] = [];
  if (withTrace) {
    for (const [name, values] of output.trace) trace.push([name, values.map((value) => Math.round(value * 1000) / 1000)]);
  }
  return { ...output, trace };
}

function unpacked(output: Packed): Output | null {
  return output && { ...output, trace: new Map(output.trace) };
}
