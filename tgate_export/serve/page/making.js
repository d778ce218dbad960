// One picture from its settings and a gate, shown in a pane as it comes.

import { generate, ServerError } from "./api.js";
import { executedSteps, fitted } from "./form.js";

const PREVIEWS = 8;

/** What a picture of a gate is called. */
export const titleOf = (gate, steps) => (gate < steps ? `Gate at step ${gate}` : "No gate");

/**
 * Make a picture.
 *
 * @param {Pane} pane shows what comes.
 * @param {object} settings of `Form.read`, with a seed.
 * @param {object} gate of `Form.readGate`.
 * @param {AbortSignal} signal ends it.
 * @returns {object} the result, for `Pane.show`.
 * @throws {ServerError} the server refuses it, fails or goes away.
 */
export async function make(pane, settings, gate, signal) {
  const { start, width, height, parameters, ...rest } = settings;
  const body = { ...rest, size: `${width}x${height}`, ...parameters, ...gate };
  const steps = executedSteps(settings);
  pane.title(titleOf(gate.gate_step ?? steps, steps));
  pane.shape(width, height);
  pane.begin(steps, gate.gate_step ?? steps);
  const picture = start && (await fitted(start, width, height));
  const asked = { output_format: "png", stream: true, progress: true, partial_images: PREVIEWS };
  const began = performance.now();
  for await (const event of generate({ ...body, ...asked }, picture, signal)) {
    const type = event.type.split(".").pop();
    if (type === "progress") pane.progress(event);
    if (type === "partial_image") pane.preview(`data:image/png;base64,${event.b64_json}`);
    if (type !== "completed") continue;
    const wall = (performance.now() - began) / 1000;
    const bytes = Uint8Array.from(atob(event.b64_json), char => char.charCodeAt(0));
    const png = new Blob([bytes], { type: "image/png" });
    return {
      png, url: URL.createObjectURL(png), file: fileName(settings, gate, steps),
      settings, gate, body, width, height, wall,
      timings: event.tgate.timings, warnings: event.tgate.warnings ?? [],
      phases: pane.phases.filter(Boolean),
    };
  }
  throw new ServerError("the server closed the connection before the picture was done");
}

function fileName({ model, prompt, seed }, { gate_step: gate }, steps) {
  const words = prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
  const end = gate < steps ? `gate${gate}` : "";
  const parts = [model, words.replace(/^-+|-+$/g, ""), `seed${seed}`, end];
  return `${parts.filter(Boolean).join("-")}.png`;
}
