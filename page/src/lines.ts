/** Writes calls of the page as lines of `curl` and Python. Pure. */

import { toJson } from "@bufbuild/protobuf";
import { type SessionsForkRequest, SessionsForkRequestSchema } from "./gen/carousel/v1/sessions_pb";
import { type SessionsRewindRequest, SessionsRewindRequestSchema } from "./gen/carousel/v1/sessions_pb";
import { OutputKind, type StepRequest, StepRequestSchema } from "./gen/carousel/v1/inference_pb";
import type { ModelInfo } from "./gen/carousel/v1/models_pb";
import { KEEP_S } from "./messages";
import { floatsOf } from "./tensors";

/** The target of calls. origin: the page's origin. hasToken: whether calls need a token. route: the header `x-session-id`. */
export interface Place {
  model: ModelInfo;
  origin: string;
  hasToken: boolean;
  route: string;
}

/** One call as text. */
export interface Lines {
  curl: string;
  python: string;
}

const MAX_NUMBERS = 640;

/** Returns the lines of an `Inference.Step` call. */
export function stepLines(request: StepRequest, place: Place): Lines {
  const num = (request.feed?.features?.data.length ?? 0) / 4;
  if (num > MAX_NUMBERS) return leftOut(num, place);
  const json = toJson(StepRequestSchema, request);
  const names = [quoted(request.sessionId)];
  const { open, feed } = request;
  if (feed?.tokens.length) names.push(`[${feed.tokens.map(quoted).join(", ")}]`);
  if (feed?.features) names.push(`features=${rows(feed.features.shape[1] ?? 1, floatsOf(feed.features))}`);
  if (open) {
    names.push(`model=${quoted(open.model)}`, `version=${open.version}`);
    const form = open.source?.form;
    if (form?.case === "text") names.push(`source=${quoted(form.value)}`);
    if (form?.case === "features") names.push(`source=${rows(form.value.shape[1] ?? 1, floatsOf(form.value))}`);
    if (open.outputs && !feed) names.push("first=True");
    names.push('on_disconnect="keep"', `hold_s=${KEEP_S}`);
  }
  if (feed?.position !== undefined) names.push(`position=${feed.position}`);
  const outputs = feed?.outputs ?? open?.outputs;
  if (outputs?.topK) names.push(`top_k=${outputs.topK}`);
  if (outputs?.everyPosition) names.push("every_position=True");
  if (outputs?.trace) names.push("trace=True");
  if (feed?.mark) names.push("mark=True");
  const told = outputOf(request);
  const calls = [`step = client.step(${names.join(", ")})`, `print(step.position, ${told})`];
  return { curl: curl("carousel.v1.Inference/Step", json, place), python: python(calls, place) };
}

/** Returns the lines of a `Sessions.Rewind` call. */
export function rewindLines(request: SessionsRewindRequest, place: Place): Lines {
  const call = `client.sessions.rewind(${quoted(request.sessionId)}, ${request.position})`;
  const json = toJson(SessionsRewindRequestSchema, request);
  return { curl: curl("carousel.v1.Sessions/Rewind", json, place), python: python([`print(${call})`], place) };
}

/** Returns the lines of a `Sessions.Fork` call. */
export function forkLines(request: SessionsForkRequest, place: Place): Lines {
  const call = `client.sessions.fork(${quoted(request.sessionId)}, ${quoted(request.forkSessionId)})`;
  const json = toJson(SessionsForkRequestSchema, request);
  return { curl: curl("carousel.v1.Sessions/Fork", json, place), python: python([`print(${call})`], place) };
}

/** Returns the lines for a call with too many numbers to paste. */
function leftOut(num: number, { origin, model }: Place): Lines {
  const why = `# The call had ${num} numbers. They are left out here.`;
  const { isSecure, target } = targetOf(origin);
  if (model.sampleRate === 0) return { curl: why, python: why };
  const how = `# This command feeds a WAV file of ${model.sampleRate} samples per second to a new session:`;
  const line = `carousel --target ${target}${isSecure ? " --tls" : ""} stream ${model.model} sound.wav`;
  return { curl: [why, how, line].join("\n"), python: [why, how, `# ${line}`].join("\n") };
}

function targetOf(origin: string): { isSecure: boolean; target: string } {
  const url = new URL(origin);
  const isSecure = url.protocol === "https:";
  return { isSecure, target: `${url.hostname}:${url.port || (isSecure ? 443 : 80)}` };
}

function outputOf({ open, feed }: StepRequest): string {
  if (feed?.outputs?.kind === OutputKind.EMITTED) return "step.emitted";
  if (feed?.outputs?.everyPosition) return "step.outputs";
  if (feed) return feed.features ? "step.values" : "step.tokens";
  return open?.outputs ? "step.first" : "step.model";
}

function curl(path: string, json: unknown, place: Place): string {
  const token = place.hasToken ? ' -H "authorization: Bearer $CAROUSEL_TOKEN"' : "";
  const headers = `-H 'content-type: application/json' -H 'x-session-id: ${place.route}'${token}`;
  const data = JSON.stringify(json).replaceAll("'", "'\\''");
  return `curl -s ${headers} -d '${data}' ${place.origin}/${path}`;
}

function python(calls: string[], place: Place): string {
  const { isSecure, target } = targetOf(place.origin);
  const given = [quoted(target)];
  const imports = [...(place.hasToken ? ["import os", ""] : []), ...(isSecure ? ["import grpc"] : [])];
  if (isSecure) given.push("credentials=grpc.ssl_channel_credentials()");
  if (place.hasToken) given.push('token=os.environ["CAROUSEL_TOKEN"]');
  const head = [...imports, "from carousel import Client", "", `with Client(${given.join(", ")}) as client:`];
  return [...head, ...calls.map((call) => `    ${call}`)].join("\n");
}

function quoted(text: string): string {
  return JSON.stringify(text);
}

function rows(size: number, numbers: number[]): string {
  const texts = [];
  for (let start = 0; start < numbers.length; start += size) {
    texts.push(`[${numbers.slice(start, start + size).join(", ")}]`);
  }
  return `[${texts.join(", ")}]`;
}
