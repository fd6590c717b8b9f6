/** The parts of the requests of a session. Pure. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import { DisconnectAction, type OpenSchema, OutputKind, type OutputSpecSchema } from "./gen/carousel/v1/inference_pb";
import type { ModelInfo } from "./gen/carousel/v1/models_pb";
import { tensorOf } from "./tensors";

/** The content of a feed: tokens, or vectors. */
export type Fed = string[] | number[][];

/** The source of a session: a text, vectors of numbers, or none. */
export type Source = string | number[][] | null;

type Spec = MessageInitShape<typeof OutputSpecSchema>;

const NUM_CANDIDATES = 16;
/** The seconds for which a server keeps a session that is not used. */
export const KEEP_S = 3600;

/** Returns the outputs that a feed asks for: the likeliest tokens, the model's values, or the emitted tokens. */
export function outputs(model: ModelInfo, trace: boolean): Spec {
  if (model.transducer) return { kind: OutputKind.EMITTED, trace };
  const num = model.targetVocabulary.length;
  return num === 0 ? { trace } : { kind: OutputKind.TOP_K, topK: Math.min(NUM_CANDIDATES, num), trace };
}

/** Whether the model may predict the first token: not a tagger, and not a model of vectors without a source. */
export function hasStart(model: ModelInfo): boolean {
  return model.inputVocabulary.length === 0 && (model.featureSize === 0 || model.hasEncoder);
}

/** Returns an `Open`. The server keeps the session for KEEP_S after its last use. spec: the outputs for the first token;
 * null for none. */
export function opening(model: ModelInfo, source: Source, spec: Spec | null): MessageInitShape<typeof OpenSchema> {
  return {
    model: model.model,
    version: model.version,
    onDisconnect: { action: DisconnectAction.KEEP, duration: { seconds: BigInt(KEEP_S), nanos: 0 } },
    ...(source === null ? {} : { source: sourceMessage(source) }),
    ...(spec === null ? {} : { outputs: spec }),
  };
}

/** Returns the fields of a feed for its tokens or vectors. */
export function what(fed: Fed) {
  if (typeof fed[0] === "string") return { tokens: fed as string[] };
  return { features: tensorOf(fed as number[][]) };
}

/** Returns a session id that is not in use. */
export function freshSessionId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `page-${Array.from(bytes, (byte) => (byte % 36).toString(36)).join("")}`;
}

function sourceMessage(source: string | number[][]) {
  if (typeof source === "string") return { form: { case: "text" as const, value: source } };
  return { form: { case: "features" as const, value: tensorOf(source) } };
}
