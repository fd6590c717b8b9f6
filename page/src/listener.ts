/** The listener of a session, and the texts of its notices. */

import type { Watch } from "./server";

/** Receives what happens to a session. */
export interface Listener extends Watch {
  /** The session has changed. */
  changed(): void;
  /** Shows a text to the user about something that the user did not ask for. */
  notice(text: string): void;
}

/** A notice: the server had lost the session. */
export const LOST = "The server had lost the session: the page opened it again and fed its steps again.";

/** A notice: the server had the session at an earlier position, and the page fed `num` steps again. */
export function fedAgain(position: number, num: number): string {
  return `The server had the session at step ${position}. ${num === 1 ? "1 step was" : `${num} steps were`} fed again.`;
}

/** A notice: there was no mark from which the page could go back to `position`. */
export function anew(position: number): string {
  if (position === 0) return "The session was opened again.";
  return `No mark is kept at step ${position}: the page opened the session again and fed it up to there.`;
}
