/** Sound from the microphone, and the texts of its errors. */

import { type Layout, stepsIn } from "./frames";
import type { CutOptions } from "./worklet";

const BLOCK_S = 0.02;
const WHY: Record<string, string> = {
  NotAllowedError: "The browser does not allow this page to use the microphone. Allow it beside the address bar, and try again.",
  NotFoundError: "No microphone was found.",
  NotReadableError: "The microphone cannot be read: another program may be using it.",
};

/** Starts to listen. Returns a function that stops it. give: called with the samples of one step or more, as they arrive.
 * ended: called when the browser ends the sound. Throws an Error with a text for people. */
export async function listen(
  layout: Layout,
  give: (samples: Float32Array) => void,
  ended: () => void,
): Promise<() => Promise<void>> {
  if (!window.isSecureContext) {
    throw new Error("Browsers allow the microphone only on pages of https:// and of localhost: open this page there.");
  }
  const stream = await microphone();
  const stop = () => stream.getTracks().forEach((track) => track.stop());
  try {
    const context = await heard(stream, layout, give);
    stream.getAudioTracks()[0]?.addEventListener("ended", ended);
    return () => {
      stop();
      return context.close();
    };
  } catch (error) {
    stop();
    throw error;
  }
}

async function microphone(): Promise<MediaStream> {
  try {
    const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    return await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...raw } });
  } catch (error) {
    const name = error instanceof Error ? error.name : "";
    throw new Error(WHY[name] ?? `The microphone cannot be used: ${String(error)}`);
  }
}

/** Lets the browser convert the sound to the model's rate. If it cannot, the worklet does. */
async function heard(stream: MediaStream, layout: Layout, give: (samples: Float32Array) => void): Promise<AudioContext> {
  try {
    return await heardAt({ sampleRate: layout.rate }, stream, layout, give);
  } catch {
    return heardAt({}, stream, layout, give);
  }
}

async function heardAt(
  wanted: AudioContextOptions,
  stream: MediaStream,
  { rate, size }: Layout,
  give: (samples: Float32Array) => void,
): Promise<AudioContext> {
  const context = new AudioContext(wanted);
  try {
    const source = context.createMediaStreamSource(stream);
    await context.audioWorklet.addModule("worklet.js");
    const processorOptions: CutOptions = { rate, size: size * stepsIn({ rate, size }, BLOCK_S) };
    const one = { channelCount: 1, channelCountMode: "explicit" as const };
    const node = new AudioWorkletNode(context, "cutter", { numberOfOutputs: 0, ...one, processorOptions });
    node.port.onmessage = ({ data }: MessageEvent<Float32Array>) => give(data);
    source.connect(node);
    await context.resume();
    return context;
  } catch (error) {
    await context.close();
    throw error;
  }
}
