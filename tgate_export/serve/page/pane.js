// A picture with what it took: the preview, a cell for each step, and times.

import { engineSeconds, seconds } from "./times.js";

const template = document.getElementById("pane");

/** Return the colour of a phase: those that begin at the gate have the second one. */
const kind = phase => (/^(gated|single)/.test(phase) ? "gated" : "full");

/** One of the two pictures; `result` is what it shows, null while there is none. */
export class Pane {
  constructor(parent, empty) {
    this.element = template.content.cloneNode(true).firstElementChild;
    for (const name of ["frame", "picture", "empty", "steps", "times", "swap", "download"])
      this[name] = this.element.querySelector(`.${name}`);
    this.name = this.element.querySelector("figcaption");
    this.result = null;
    this.phases = [];
    this.empty.textContent = empty;
    this.picture.addEventListener("load", () => {
      const small = Math.max(this.picture.naturalWidth, this.picture.naturalHeight) < 128;
      this.picture.classList.toggle("small", small);
    });
    this.title("");
    this.clear();
    parent.append(this.element);
  }

  title(text) {
    this.name.textContent = text;
    this.steps.setAttribute("aria-label", `Progress: ${text}`);
  }

  /** Give the frame the shape of pictures to come. */
  shape(width, height) {
    this.frame.style.aspectRatio = `${width} / ${height}`;
    this.frame.closest(".stage").style.setProperty("--shape", width / height);
  }

  clear() {
    this.result = null;
    this.picture.hidden = true;
    this.picture.removeAttribute("src");
    this.empty.hidden = false;
    this.element.classList.remove("busy", "stale");
    this.#cells([]);
    this.#say("");
  }

  /** Show that a picture is on its way; the one before it stays, dimmed, until there is more to see. */
  begin(steps, gate) {
    this.result = null;
    this.element.classList.add("busy", "stale");
    this.#cells(Array.from({ length: steps }, (_, step) => ({ kind: step < gate ? "full" : "gated" })));
    this.#say("waiting");
  }

  progress({ step, evaluations, phase }) {
    const cells = this.steps.children;
    if (cells.length !== evaluations) {
      // Some samplers evaluate more often than there are steps, before the first one.
      const kinds = [...cells].map(cell => ({ kind: cell.className }));
      const more = Math.max(0, evaluations - kinds.length);
      this.#cells([...Array(more).fill({ kind: "full" }), ...kinds].slice(-evaluations));
    }
    this.phases[step] = phase;
    cells[step].className = `${kind(phase)} done`;
    const said = `step ${step + 1} of ${evaluations}, ${phase}`;
    this.steps.setAttribute("aria-valuenow", step + 1);
    this.steps.setAttribute("aria-valuetext", said);
    this.times.textContent = said;
  }

  preview(source, alt = "Preview") {
    this.picture.src = source;
    this.picture.alt = alt;
    this.picture.hidden = false;
    this.empty.hidden = true;
    this.element.classList.remove("stale");
  }

  stopped() {
    this.element.classList.remove("busy");
    this.element.classList.add("stale");
    const at = this.times.textContent;
    this.#say(at.startsWith("step") ? `stopped at ${at}` : "stopped");
  }

  /** Show a finished picture, its times, and how to have it. */
  show(result) {
    const { url, settings, timings, wall, phases, file } = result;
    this.result = result;
    this.preview(url, `${this.name.textContent}: ${settings.prompt}`);
    this.element.classList.remove("busy", "stale");
    this.#say(`engines ${seconds(engineSeconds(timings))} · in all ${seconds(wall)}`);
    this.download.href = url;
    this.download.download = file;
    this.download.hidden = false;
    this.#cells(timed(phases, timings.stages));
    this.steps.setAttribute("aria-valuenow", this.steps.getAttribute("aria-valuemax"));
    this.steps.setAttribute("aria-valuetext", `${phases.length} steps done`);
  }

  /** Make the strip of steps as long as the picture's share of the longest time. */
  scale(longest) {
    if (this.result)
      this.steps.style.width = `${(100 * engineSeconds(this.result.timings)) / longest}%`;
  }

  #say(text) {
    this.times.textContent = text;
    this.download.hidden = this.swap.hidden = true;
  }

  #cells(cells) {
    this.phases = [];
    this.steps.style.width = "";
    this.steps.setAttribute("aria-valuemax", Math.max(1, cells.length));
    this.steps.setAttribute("aria-valuenow", "0");
    this.steps.removeAttribute("aria-valuetext");
    // Growth that sums up to less than 1 would not fill the strip.
    const whole = cells.reduce((sum, { weight = 1 }) => sum + weight, 0);
    this.steps.replaceChildren(...cells.map(each => {
      const cell = document.createElement("i");
      cell.className = each.kind;
      cell.title = each.title ?? "";
      cell.style.flexGrow = (each.weight ?? 1) / whole;
      return cell;
    }));
  }
}

/** Return a cell for each stage of a finished picture, as wide as it took long. */
function timed(phases, stages) {
  const cell = (stage, name, colour, mean) => ({
    kind: `${colour} done`, title: `${name}: ${seconds(mean)}`, weight: mean,
  });
  const other = (name, text) =>
    stages[name] ? [cell(stages[name], text, "other", stages[name].seconds)] : [];
  return [
    ...other("encode", "text encoder"),
    ...phases.map(phase => {
      const stage = stages[phase];
      return cell(stage, phase, kind(phase), stage ? stage.seconds / stage.calls : 0);
    }),
    ...other("decode", "VAE decoder"),
  ];
}
