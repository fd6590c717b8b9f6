/** The server, over Connect: one client for each service, the token, and calls that are retried until they are answered.
 *
 * At most two calls are in flight at a time.
 * Every call through `Server.call` is safe to retry. A call whose connection is lost, or whose server shuts down, is sent
 * again unchanged. A refused call is not.
 */

import { type CallOptions, type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { Inference } from "./gen/carousel/v1/inference_pb";
import { Models } from "./gen/carousel/v1/models_pb";
import { Sessions } from "./gen/carousel/v1/sessions_pb";

/** Receives when a call waits for its server, and when it is answered. */
export interface Watch {
  /** The call was not answered, and is retried soon; `now` retries it at once. attempt: 1 after the first failure. */
  waiting(attempt: number, why: string, now: () => void): void;
  /** A retried call was answered. */
  answered(): void;
}

/** An answer, and the milliseconds from the last time that its request was sent. */
export interface Timed<T> {
  answer: T;
  ms: number;
}

const TOKEN = "carousel:token";
const TIMEOUT_MS = 30_000;
const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 3000;
const NUM_CONNECTIONS = 2; // a browser opens six to a host over HTTP/1.1, for all of its tabs

/** One server. ask: asks the user for a token; its argument says why. */
export class Server {
  readonly inference: Client<typeof Inference>;
  readonly models: Client<typeof Models>;
  readonly sessions: Client<typeof Sessions>;
  private token = sessionStorage.getItem(TOKEN) ?? "";
  private asked: Promise<void> | null = null;
  private readonly waiting: (() => void)[] = [];
  private inFlight = 0;

  constructor(private readonly ask: (why: string) => Promise<string>) {
    const transport = createConnectTransport({ baseUrl: location.origin, useBinaryFormat: true });
    this.inference = createClient(Inference, transport);
    this.models = createClient(Models, transport);
    this.sessions = createClient(Sessions, transport);
  }

  /** Whether calls have a token. */
  get hasToken(): boolean {
    return this.token !== "";
  }

  /** Makes a call. route: the header by which a proxy finds the session's server, empty for none. Throws ConnectError
   * when the server refuses it. */
  async call<T>(make: (options: CallOptions) => Promise<T>, route: string, watch: Watch): Promise<Timed<T>> {
    for (let attempt = 1; ; attempt += 1) {
      const used = this.token;
      const headers = new Headers();
      if (route) headers.set("x-session-id", route);
      if (used) headers.set("authorization", `Bearer ${used}`);
      try {
        const timed = await this.inTurn(() => make({ headers, timeoutMs: TIMEOUT_MS }));
        if (attempt > 1) watch.answered();
        return timed;
      } catch (error) {
        const refusal = ConnectError.from(error);
        if (refusal.code === Code.Unauthenticated) await this.newToken(used, refusal);
        else if (isPassing(refusal)) await pause(attempt, words(refusal), watch);
        else throw refusal;
      }
    }
  }

  /** Makes a call as soon as fewer than NUM_CONNECTIONS others are in flight. */
  private async inTurn<T>(make: () => Promise<T>): Promise<Timed<T>> {
    if (this.inFlight === NUM_CONNECTIONS) await new Promise<void>((resolve) => this.waiting.push(resolve));
    else this.inFlight += 1;
    const start = performance.now();
    try {
      return { answer: await make(), ms: performance.now() - start };
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.inFlight -= 1;
    }
  }

  private async newToken(used: string, refusal: ConnectError): Promise<void> {
    if (used !== this.token) return; // another call has asked meanwhile
    this.asked ??= this.ask(used ? words(refusal) : "").then((token) => {
      this.token = token;
      sessionStorage.setItem(TOKEN, token);
      this.asked = null;
    });
    await this.asked;
  }
}

/** The text of an error for people. */
export function words(error: unknown): string {
  if (!(error instanceof ConnectError)) return error instanceof Error ? error.message : String(error);
  if (isLost(error)) return "the server does not answer";
  try {
    return decodeURIComponent(error.rawMessage); // the server percent-encodes all but printable ASCII
  } catch {
    return error.rawMessage;
  }
}

/** Whether an error is a refusal with one of these codes. */
export function isRefusal(error: unknown, ...codes: Code[]): error is ConnectError {
  return error instanceof ConnectError && codes.includes(error.code);
}

function isLost(error: ConnectError): boolean {
  return error.code === Code.DeadlineExceeded || (error.code === Code.Unknown && error.cause instanceof TypeError);
}

function isPassing(error: ConnectError): boolean {
  return isLost(error) || error.code === Code.Unavailable;
}

function pause(attempt: number, why: string, watch: Watch): Promise<void> {
  const longest = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** (attempt - 1));
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, longest * (0.75 + Math.random() / 4));
    watch.waiting(attempt, why, () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
