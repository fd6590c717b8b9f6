/** The steps of a session, with the model's outputs, and their storage for a reload. */

import type { Emissions } from "./emissions";
import type { StepOutput } from "./gen/carousel/v1/inference_pb";
import type { ModelInfo } from "./gen/carousel/v1/models_pb";
import type { Fed, Source } from "./messages";
import type { Candidate } from "./sampling";

/** The trace of a step, by name: a gate or a state has one number for each unit, attention one for each source token. */
export type Trace = Map<string, readonly number[]>;

/** The most steps in one call, so that an answer with their traces is not too large. */
export const NUM_TOGETHER = 32;

/** The model's output after a step. tokens: the likeliest next tokens, or the tokens that a transducer's step emitted.
 * values: for models of numbers. trace: empty if it was not asked for. */
export interface Output {
  tokens: Candidate[];
  values: number[];
  trace: Trace;
}

/** One step. token: the fed token, empty for a vector. values: the fed vector. output: null if it is not known. by: who
 * chose the input. ms: how long the call took. */
export interface Step {
  token: string;
  values: number[];
  by: "you" | "model";
  output: Output | null;
  ms: number;
}

/** The stored form of a session, for a reload. base: the position before the first step. */
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

/** Vectors with more numbers are not stored for a reload. */
export const LARGE = 64;
/** A session as the page has it. */
export type Remembered = Omit<Stored, "model" | "version"> & { model: ModelInfo };

const NUM_OUTPUTS = 200;
const NUM_TRACES = 48;
const NUM_TRACES_SHOWN = 256;
const MAX_NUMBERS = 1_000_000;
const MIN_STEPS = 256;

/** Returns the output of a message. */
export function outputOf(message: StepOutput): Output {
  return {
    tokens: message.tokens.map(({ id, text, logProbability }) => ({ id, text, logProbability: logProbability ?? 0 })),
    values: message.values,
    trace: new Map(message.trace.map(({ name, values }) => [name, values])),
  };
}

/** Returns the steps of a feed, which began at `position`. outputs: of the answer. ms: how long the call took. */
export function stepsOf(fed: Fed, position: number, by: Step["by"], outputs: readonly StepOutput[], ms: number): Step[] {
  const found = new Map(outputs.map((output) => [Number(output.position), output]));
  return fed.map((one, index) => {
    const output = found.get(position + index + 1);
    const [token, values] = typeof one === "string" ? [one, []] : ["", one];
    return { token, values, by, output: output ? outputOf(output) : null, ms: ms / fed.length };
  });
}

/** Returns how many of the first steps to forget, because all vectors together have too many numbers. */
export function numToForget(steps: readonly Step[], size: number): number {
  const most = size > 0 ? Math.max(MIN_STEPS, Math.floor(MAX_NUMBERS / size)) : Infinity;
  return steps.length > 1.25 * most ? steps.length - most : 0;
}

/** Drops the traces of steps that are not shown any more. */
export function forgetTraces(steps: readonly Step[]): void {
  for (const { output } of steps.slice(-NUM_TRACES_SHOWN - NUM_TOGETHER, -NUM_TRACES_SHOWN)) output?.trace.clear();
}

/** Returns the content of a feed that repeats steps. */
export function fedBy(steps: readonly Step[]): Fed {
  return steps[0]?.values.length ? steps.map(({ values }) => values) : steps.map(({ token }) => token);
}

/** Stores a session until the tab is closed: all inputs, and the outputs of the last steps. withTraces: also the traces of
 * the very last steps, which are large. */
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
    sessionStorage.removeItem(key(id)); // the storage is full: after a reload, only the session's id is known
  }
}

/** Returns a stored session; null if there is none. */
export function stored(id: string): Stored | null {
  const record = sessionStorage.getItem(key(id));
  if (record === null) return null;
  const found = JSON.parse(record) as PackedSession;
  const steps = found.steps.map((step) => ({ ...step, output: unpacked(step.output) }));
  return { ...found, first: unpacked(found.first), steps };
}

/** Deletes a stored session. */
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
