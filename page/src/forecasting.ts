/** Forecasts with a model of numbers. Knows no HTML elements. */

import type { Session } from "./session";

/** Returns the next `num` vectors: feeds the model its own outputs, in a copy of the session, and closes the copy. */
export async function forecast(session: Session, num: number, isStopped: () => boolean): Promise<number[][]> {
  const { lines } = session;
  const copy = await session.fork(session.listener);
  session.lines = lines;
  const given: number[][] = [];
  try {
    for (let values = copy.output?.values ?? []; values.length > 0; values = copy.output?.values ?? []) {
      given.push(values);
      if (given.length >= num || isStopped()) break;
      await copy.feed([values], "model", false);
    }
  } finally {
    await copy.close();
  }
  return given;
}
