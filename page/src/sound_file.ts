/** Sound from a file. */

import type { Layout } from "./frames";
import { Resampler } from "./resampling";

const [LOWEST, HIGHEST] = [8000, 96_000]; // the rates that every browser supports
const PAUSE_MS = 20;

/** Returns the samples of a file, in one channel. Throws an Error with a text for people when the browser cannot read it. */
export async function samplesOf(file: File, { rate }: Layout): Promise<Float32Array<ArrayBuffer>> {
  const near = Math.max(LOWEST, Math.min(HIGHEST, rate));
  const sound = await decoded(file, near);
  const mixed = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel += 1) {
    sound.getChannelData(channel).forEach((sample, at) => (mixed[at] = (mixed[at] ?? 0) + sample / sound.numberOfChannels));
  }
  if (near === rate) return mixed;
  const found: number[] = [];
  new Resampler(near, rate).add(mixed, (sample) => found.push(sample));
  return Float32Array.from(found);
}

async function decoded(file: File, rate: number): Promise<AudioBuffer> {
  try {
    return await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is not a sound file that this browser can read: choose a WAV file.`);
  }
}

/** Plays the samples, and passes them to `give` at the same speed, in parts of at most `most`. isOver: whether to stop. */
export async function played(
  samples: Float32Array<ArrayBuffer>,
  { rate, size }: Layout,
  most: number,
  isOver: () => boolean,
  give: (part: Float32Array) => Promise<void>,
): Promise<void> {
  const context = aloud(samples, rate);
  const start = performance.now();
  for (let at = 0; at < samples.length && !isOver(); ) {
    const now = size * Math.floor(((performance.now() - start) * rate) / 1000 / size);
    const end = Math.min(now < samples.length ? now : samples.length, at + most);
    if (end > at) await give(samples.subarray(at, end));
    else await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    at = Math.max(at, end);
  }
  await context?.close();
}

function aloud(samples: Float32Array<ArrayBuffer>, rate: number): AudioContext | null {
  try {
    const context = new AudioContext();
    const buffer = context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    source.start();
    return context;
  } catch {
    return null; // no loudspeaker, or a rate that cannot be played
  }
}
