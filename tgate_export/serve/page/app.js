// The page: a picture without a gate, beside it the same one with a gate, and what that gains.

import { models, setKey } from "./api.js";
import { alike, executedSteps, Form, randomSeed } from "./form.js";
import { History } from "./history.js";
import { make, titleOf } from "./making.js";
import { Pane } from "./pane.js";
import { curl, python } from "./snippets.js";
import { engineSeconds, isShared, psnr, seconds, speedup } from "./times.js";

const PAUSE = 250; // ms that the gate has to rest before a picture is made
const $ = id => document.getElementById(id);

const form = new Form();
const ungated = new Pane($("pair"), "Every step in full");
const gated = new Pane($("pair"), "The same seed, with a gate");
const panes = [ungated, gated];
const history = new History($("history"), $("history-list"), restore, result =>
  panes.some(pane => pane.result === result));

let known = []; // models
let current = null; // { settings, gate } of what is shown or on its way
let running = null; // { control, pane } of what is on its way
let again = load; // what a key was missing for
let pause = 0;

async function load() {
  try {
    known = await models();
  } catch (error) {
    return fail(error, load);
  }
  fail(null);
  $("model").replaceChildren(...known.map(({ id }) => new Option(id, id)));
  $("model").hidden = known.length < 2;
  $("model-name").hidden = known.length > 1;
  choose(known[0]);
}

function choose(model) {
  $("model").value = $("model-name").textContent = model.id;
  const { family, size } = model.tgate;
  const range = ({ min, max }) => (min === max ? `${min}` : `${min} to ${max}`);
  $("model-facts").textContent = `${family}, ${range(size.width)} × ${range(size.height)}`;
  form.use(model);
  for (const pane of panes) pane.shape(size.width.opt, size.height.opt);
  $("generate").disabled = false;
  note("");
  prepare();
}

/** Follow the form where there are no pictures yet. */
function prepare() {
  if (!form.model) return;
  ungated.element.hidden = !compares();
  if (!ungated.result) ungated.title("No gate");
  if (!gated.result && !running)
    gated.title(titleOf(form.readGate().gate_step, Number($("gate").max)));
}

const compares = () => form.hasGate && $("compare").checked;

function fail(error, afterKey = null) {
  const needsKey = error?.status === 401;
  $("error").textContent = needsKey || !error ? "" : error.message;
  $("error").hidden = needsKey || !error;
  if (!needsKey) return;
  $("key-message").textContent = error.message;
  $("key").hidden = false;
  $("key-value").focus();
  again = afterKey;
}

function note(text) {
  $("note").textContent = text;
  $("note").hidden = !text;
}

function say(text) {
  $("verdict").textContent = text;
}

/** Return what the form asks for; null, and why, where that makes no sense. */
function wanted() {
  try {
    return { settings: form.read(), gate: form.readGate() };
  } catch (error) {
    fail(error);
    return null;
  }
}

/** Make what the form asks for, except for pictures that are there already. */
function submit() {
  const asked = $("generate").disabled ? null : wanted();
  if (!asked) return;
  const free = asked.settings.seed === undefined;
  if (free) asked.settings.seed = randomSeed();
  $("seed-used").textContent = free ? `of these pictures: ${asked.settings.seed}` : "";
  const same = current !== null && alike(current.settings, asked.settings);
  const missing = panes.filter(pane => {
    if (pane === ungated && !compares()) return false;
    return !(same && pane.result) || (pane === gated && !sameGate(pane.result.gate, asked.gate));
  });
  if (!same && !missing.includes(ungated)) ungated.clear();
  run(asked, missing.length ? missing : compares() ? panes : [gated]);
}

const sameGate = (one, other) => JSON.stringify(one) === JSON.stringify(other);

async function run(asked, missing) {
  running?.control.abort();
  const mine = { control: new AbortController(), pane: null };
  running = mine;
  current = asked;
  fail(null);
  note("");
  busy(true);
  const steps = executedSteps(asked.settings);
  for (const pane of missing) {
    const gate = (pane === gated && asked.gate.gate_step) || steps;
    pane.title(titleOf(gate, steps));
    pane.begin(steps, gate);
  }
  let made = false;
  try {
    for (const pane of missing) {
      mine.pane = pane;
      // The gate may have moved while the other picture was made.
      const gate = pane === gated ? asked.gate : { gate_step: steps };
      const whole = pane === gated && gate.gate_step >= steps && ungated.result;
      say(`${form.model.tgate.loaded ? "Making" : "Loading the model, then making"} the picture ` +
        (gate.gate_step < steps ? `with a gate at step ${gate.gate_step}` : "without a gate"));
      const result = whole
        ? { ...whole, gate }
        : await make(pane, asked.settings, gate, mine.control.signal);
      pane.title(titleOf(gate.gate_step ?? steps, steps));
      pane.show(result);
      form.model.tgate.loaded = made = true;
      if (result.warnings.length) note(result.warnings.join(" "));
    }
  } catch (error) {
    if (running !== mine) return; // another run has begun
    for (const pane of missing) if (!pane.result) pane.stopped();
    if (error.name !== "AbortError") fail(error, submit);
  }
  if (running !== mine) return;
  running = null;
  busy(false);
  if (made) history.add({ ungated: ungated.result, gated: gated.result });
  await compareShown();
}

/** Say what the gate gains, where both pictures are there. */
async function compareShown() {
  const [one, other] = [compares() ? ungated.result : null, gated.result];
  const shown = other ?? ungated.result;
  $("code").hidden = !shown;
  if (!shown) return say("");
  $("curl").textContent = curl(shown.body, Boolean(shown.settings.start));
  $("python").textContent = python(shown.body, Boolean(shown.settings.start));
  const took = [one, other].map(each => (each ? engineSeconds(each.timings) : 0));
  for (const pane of panes) pane.scale(Math.max(...took));
  const shared = [one, other].some(each => each && isShared(each.timings))
    ? "; engine calls were shared with other requests" : "";
  gated.swap.hidden = !one || !other;
  if (!one || !other) return say(compares() ? "" : `Done in ${seconds(shown.wall)}${shared}`);
  const times = `${speedup(one.timings, other.timings).toFixed(2)} times as fast`;
  const near = await psnr(one.png, other.png);
  if (ungated.result !== one || gated.result !== other || running) return;
  const likeness = near === undefined ? "" : near === Infinity ? ", the same picture" : `, PSNR ${near.toFixed(1)} dB`;
  say(`${times} as without a gate${likeness}${shared}`);
}

function busy(on) {
  if (!on && document.activeElement === $("stop")) $("generate").focus();
  $("stop").hidden = !on;
}

/** The gate has moved: make that picture again if nothing else has changed. */
function gateMoved() {
  clearTimeout(pause);
  pause = setTimeout(() => {
    if (!current || !(running || ungated.result || gated.result)) return;
    const asked = wanted();
    if (!asked) return;
    const free = asked.settings.seed === undefined;
    if (!alike(current.settings, asked.settings, { seeds: !free })) return;
    if (sameGate(current.gate, asked.gate)) return;
    if (running?.pane === ungated) current.gate = asked.gate;
    else run({ settings: current.settings, gate: asked.gate }, [gated]);
  }, PAUSE);
}

/** Stop what is on its way, and forget it. */
function drop() {
  running?.control.abort();
  running = null;
  busy(false);
}

/** Bring back pictures of the session, and the settings that they were made with. */
function restore(entry) {
  drop();
  const { settings, gate, width, height } = entry.gated ?? entry.ungated;
  if (settings.model !== form.model.id) choose(known.find(({ id }) => id === settings.model));
  form.write(settings, gate);
  $("seed-used").textContent = "";
  current = { settings, gate: form.readGate() };
  for (const [pane, result] of [[ungated, entry.ungated], [gated, entry.gated]]) {
    pane.clear();
    pane.shape(width, height);
    pane.title(titleOf(pane === gated ? gate.gate_step : Infinity, executedSteps(settings)));
    if (result) pane.show(result);
  }
  fail(null);
  prepare();
  compareShown();
}

/** Show the ungated picture in the gated one's place. */
function hold(on) {
  if (!ungated.result || !gated.result) return;
  gated.picture.src = (on ? ungated : gated).result.url;
  gated.element.classList.toggle("held", on);
}

$("form").addEventListener("submit", event => {
  event.preventDefault();
  submit();
});
$("stop").addEventListener("click", () => running?.control.abort());
$("dice").addEventListener("click", () => {
  $("seed").value = randomSeed();
});
$("model").addEventListener("change", () => {
  drop();
  current = null;
  for (const pane of panes) pane.clear();
  say("");
  choose(known.find(({ id }) => id === $("model").value));
});
$("compare").addEventListener("change", () => {
  if (!running) compareShown();
});
for (const id of ["gate", "gate-more", "more-fields"]) $(id).addEventListener("change", gateMoved);
for (const type of ["input", "change"]) $("form").addEventListener(type, prepare);
$("key").addEventListener("submit", event => {
  event.preventDefault();
  setKey($("key-value").value);
  $("key").reset();
  $("key").hidden = true;
  $("prompt").focus();
  again?.();
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") running?.control.abort();
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !$("key").hidden) return;
  event.preventDefault();
  submit();
});
for (const [type, on] of [["pointerdown", true], ["pointerup", false], ["pointerleave", false], ["blur", false], ["keyup", false]])
  gated.swap.addEventListener(type, () => hold(on));
gated.swap.addEventListener("keydown", event => {
  if (event.key === " " || event.key === "Enter") hold(true);
});
for (const button of document.querySelectorAll("[data-copies]")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", () =>
    navigator.clipboard.writeText($(button.dataset.copies).textContent).then(
      () => { button.textContent = "Copied"; },
      () => { button.textContent = "Not allowed"; },
    ));
}

$("seed").value = randomSeed();
load();
