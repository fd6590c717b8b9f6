/** Who is told what happens to a session, and in which words. */

import type { Watch } from "./server";

/** Told what happens to a session. */
export interface Listener extends Watch {
  /** Something of it has changed. */
  changed(): void;
  /** For people: what happened that was not asked for. */
  notice(text: string): void;
}

/** A notice. */
export const LOST = "The server had lost the session: it was opened anew and fed again.";

/** A notice: the server had the session as of `position`, and was fed `num` steps again. */
export function fedAgain(position: number, num: number): string {
  return `The server had the session as of step ${position}. ${num === 1 ? "1 step was" : `${num} steps were`} fed again.`;
}

/** A notice: there was no mark to go back to `position` by. */
export function anew(position: number): string {
  if (position === 0) return "The session was opened anew.";
  return `No mark is kept at step ${position}: the session was opened anew and fed up to there.`;
}
