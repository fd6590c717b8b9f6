/** What a session has consumed and what the model said, step by step, and how a reload finds it again. */

import type { StepOutput } from "./gen/carousel/v1/inference_pb";
import type { Candidate } from "./sampling";

/** A look inside a step: gates and states by name, unit by unit; attention, source token by source token. */
export type Trace = Map<string, readonly number[]>;

/** What the model says after a step. values: of models of numbers. trace: empty where the step was not looked into. */
export interface Output {
  candidates: Candidate[];
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

/** What is kept of a session for a reload. base: the position of the first step. */
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
}

const NUM_OUTPUTS = 200;
const NUM_TRACES = 48;

/** An answer's output. */
export function outputOf(message: StepOutput): Output {
  return {
    candidates: message.tokens.map(({ id, text, logProbability }) => ({ id, text, logProbability: logProbability ?? 0 })),
    values: message.values,
    trace: new Map(message.trace.map(({ name, values }) => [name, values])),
  };
}

/** Keeps a session for as long as the tab lives. What the last steps said is kept; of earlier ones, what was fed.
 * withTraces: looks inside the very last ones, too, which are large. */
export function store(session: Stored, withTraces: boolean): void {
  const num = session.steps.length;
  const steps = session.steps.map((step, index) => {
    if (index < num - NUM_OUTPUTS) return { ...step, output: null };
    return { ...step, output: packed(step.output, withTraces && index >= num - NUM_TRACES) };
  });
  const record = JSON.stringify({ ...session, first: packed(session.first, withTraces), steps });
  try {
    sessionStorage.setItem(key(session.id), record);
  } catch {
    sessionStorage.removeItem(key(session.id)); // full: a reload then knows the session's id alone
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
