/** What a model of numbers says of the steps to come. Knows no elements. */

import type { Session } from "./session";

/** What the model gives when it is fed what it has given itself: `num` vectors. It is asked in a copy, which is closed. */
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
