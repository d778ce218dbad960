// The settings: read from the page, and put back.

import { makeField, numberOf, OF_GATE, wholeOf } from "./fields.js";

const MAIN = ["num_inference_steps", "scheduler", "guidance_scale"];
const SENT = [...MAIN, "strength"];
const $ = id => document.getElementById(id);

/** Return a seed that nobody chose. */
export const randomSeed = () => BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);

/** Return the steps that a picture of these settings runs: one that begins with a picture skips some. */
export function executedSteps({ parameters, start }) {
  const steps = parameters.num_inference_steps ?? 1;
  return Math.max(1, start ? Math.trunc(steps * (parameters.strength ?? 1)) : steps);
}

/** Whether two settings give the same picture where there is no gate; their seeds aside if asked. */
export function alike(one, other, { seeds = true } = {}) {
  const key = ({ start, seed, ...rest }) => JSON.stringify(rest);
  return one.start === other.start && (!seeds || one.seed === other.seed) && key(one) === key(other);
}

/** The form's controls for one model after another. */
export class Form {
  constructor() {
    this.model = null;
    this.start = null; // the picture to begin with, a File
    this.fields = []; // of everything but the gate
    this.gateFields = [];
    this.share = 0; // where the gate is between the first and the last step
    $("gate").addEventListener("input", () => this.#gateSet());
    $("start-file").addEventListener("change", event => this.#setStart(event.target.files[0] ?? null));
    $("start-remove").addEventListener("click", () => {
      this.#setStart(null);
      $("start-file").focus();
    });
    for (const type of ["input", "change"])
      $("form").addEventListener(type, event => {
        if (this.model && event.target.id !== "gate") this.#limits();
      });
  }

  /** Make the fields of a model, an entry of /v1/models. */
  use(model) {
    this.model = model;
    const { parameters, schedulers, size } = model.tgate;
    const make = name => makeField(name, parameters[name], schedulers);
    const names = Object.keys(parameters).filter(name => parameters[name].type !== "image");
    const main = MAIN.filter(name => names.includes(name)).map(make);
    const ofGate = OF_GATE.slice(1).filter(name => names.includes(name)).map(make);
    const ofStart = ["strength"].filter(name => names.includes(name)).map(make);
    const taken = [...SENT, ...OF_GATE];
    const more = names.filter(name => !taken.includes(name)).map(make);
    this.fields = [...main, ...ofStart, ...more];
    this.gateFields = ofGate;
    fill("main-fields", main);
    // The interval between gated steps stands beside the one before the gate.
    const aside = ofGate.filter(field => field.name === "fi_interval");
    fill("gate-more", ofGate.filter(field => !aside.includes(field)));
    fill("start-fields", ofStart);
    fill("more-fields", [...more, ...aside]);
    $("more").hidden = !(more.length + aside.length);
    $("gate-panel").hidden = !this.hasGate;
    $("gate").title = parameters.gate_step?.help ?? "";
    $("negative-row").hidden = !model.tgate.negative_prompt;
    $("start").hidden = !model.tgate.image_to_image;
    if (!model.tgate.image_to_image) this.#setStart(null);
    for (const side of ["width", "height"]) {
      Object.assign($(side), { min: size[side].min, max: size[side].max, step: size.multiple ?? 1 });
      $(side).value = size[side].opt;
    }
    $("size").hidden = size.width.min === size.width.max && size.height.min === size.height.max;
    for (const field of main) field.write(parameters[field.name].default);
    const steps = parameters.num_inference_steps?.default ?? 1;
    this.share = (parameters.gate_step?.default ?? steps) / steps;
    this.#limits();
  }

  get hasGate() {
    return "gate_step" in this.model.tgate.parameters;
  }

  /**
   * Return what all pictures of the settings share; `seed` is undefined where it is free.
   *
   * @throws {Error} of a field that is no number.
   */
  read() {
    const { tgate, id } = this.model;
    const settings = { model: id, prompt: $("prompt").value, parameters: {}, start: this.start };
    if (tgate.negative_prompt && $("negative").value) settings.negative_prompt = $("negative").value;
    settings.seed = wholeOf($("seed"), "Seed");
    settings.width = numberOf($("width"), "Width") ?? tgate.size.width.opt;
    settings.height = numberOf($("height"), "Height") ?? tgate.size.height.opt;
    for (const field of this.fields) {
      if (field.name === "strength" && !this.start) continue;
      // Of the others the server has defaults, some of which give way to what is given.
      const value = field.read() ?? (SENT.includes(field.name) ? this.#default(field.name) : undefined);
      if (value !== undefined) settings.parameters[field.name] = value;
    }
    return settings;
  }

  /** Return the gate and what goes with it. */
  readGate() {
    if (!this.hasGate) return {};
    const gate = { gate_step: $("gate").valueAsNumber };
    for (const field of this.gateFields) {
      const value = field.read();
      if (value !== undefined) gate[field.name] = value;
    }
    return gate;
  }

  /** Put settings and a gate back; their model is in use. */
  write(settings, gate) {
    $("prompt").value = settings.prompt;
    $("negative").value = settings.negative_prompt ?? "";
    $("seed").value = settings.seed ?? "";
    $("width").value = settings.width;
    $("height").value = settings.height;
    this.#setStart(settings.start);
    for (const field of this.fields) field.write(settings.parameters[field.name]);
    for (const field of this.gateFields) field.write(gate[field.name]);
    if (gate.gate_step) this.share = gate.gate_step / executedSteps(settings);
    this.#limits();
  }

  #default(name) {
    return this.model.tgate.parameters[name].default;
  }

  /** Let the limits of some fields follow from others. */
  #limits() {
    let settings;
    try {
      settings = this.read();
    } catch {
      return; // said when it matters
    }
    const steps = this.fields.find(field => field.name === "num_inference_steps");
    const most = this.model.tgate.schedulers[settings.parameters.scheduler];
    if (steps && most) steps.input.max = most;
    $("start-fields").hidden = !this.start;
    const executed = Math.min(executedSteps(settings), 1000);
    $("gate").max = executed;
    $("gate").value = Math.min(executed, Math.max(1, Math.round(this.share * executed)));
    this.#showGate();
  }

  #gateSet() {
    this.share = $("gate").valueAsNumber / Number($("gate").max);
    this.#showGate();
  }

  #showGate() {
    const [gate, steps] = [$("gate").valueAsNumber, Number($("gate").max)];
    const said = gate < steps ? `${gate} of ${steps}` : `no gate in ${steps} steps`;
    $("gate-value").textContent = said;
    $("gate").setAttribute("aria-valuetext", said);
    $("gate").style.setProperty("--at", steps > 1 ? (gate - 1) / (steps - 1) : 1);
  }

  #setStart(file) {
    if (file === this.start) return;
    URL.revokeObjectURL($("start-image").src);
    this.start = file;
    $("start-chosen").hidden = !file;
    $("start-file").hidden = Boolean(file);
    if (file) $("start-image").src = URL.createObjectURL(file);
    else $("start-file").value = "";
    if (this.model) this.#limits();
  }
}

function fill(id, fields) {
  $(id).replaceChildren(...fields.map(field => field.element));
}

/** Return a PNG of a picture file's middle, in the size of the picture that is to be made of it. */
export async function fitted(file, width, height) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [across, down] = [bitmap.width * scale, bitmap.height * scale];
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (width - across) / 2, (height - down) / 2, across, down);
  bitmap.close();
  return canvas.convertToBlob({ type: "image/png" });
}
