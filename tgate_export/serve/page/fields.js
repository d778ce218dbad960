// Inputs for a model's parameters, made from its table.

/** Parameters that change nothing before the gate: the picture without a gate stays as it is. */
export const OF_GATE = ["gate_step", "cache_blend", "guidance_carry", "fi_interval"];

const LABELS = {
  num_inference_steps: "Steps",
  scheduler: "Sampler",
  guidance_scale: "Guidance",
  cache_blend: "Blend",
  guidance_carry: "Carry",
  strength: "Strength",
};
const PAIRS = { crops_coords_top_left: ["top", "left"] };

let made = 0;

/**
 * Make the field of a parameter.
 *
 * @param {string} name of the parameter.
 * @param {object} entry of the model's table.
 * @param {object} samplers most steps by name, for the parameter `scheduler`.
 * @returns {{name, element, input, read, write}} `read` returns undefined where nothing is set, and
 *   throws an Error that says what is wrong; `write(undefined)` sets nothing.
 */
export function makeField(name, entry, samplers) {
  const choices = name === "scheduler" ? Object.keys(samplers) : entry.choices;
  const label = LABELS[name] ?? name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");
  const parts = choices
    ? choice(choices, entry)
    : entry.type === "pair" ? pair(name, entry, label) : number(name, entry, label);
  const id = `parameter-${++made}`;
  const heading = document.createElement(parts.group ? "span" : "label");
  heading.textContent = entry.unit ? `${label}, ${entry.unit}` : label;
  if (parts.group) {
    heading.id = id;
    parts.element.setAttribute("role", "group");
    parts.element.setAttribute("aria-labelledby", id);
  } else {
    heading.htmlFor = parts.input.id = id;
  }
  const element = document.createElement("div");
  element.className = "field";
  element.title = entry.help ?? "";
  element.append(heading, parts.element);
  return { name, element, input: parts.input, read: parts.read, write: parts.write };
}

function choice(choices, entry) {
  const input = document.createElement("select");
  for (const value of choices) input.add(new Option(value, value));
  const write = value => {
    input.value = value ?? entry.default ?? choices[0];
  };
  write();
  return { element: input, input, read: () => input.value, write };
}

function number(name, entry, label) {
  const input = numberInput(entry);
  const usual = entry.default ?? "";
  if (usual !== "") input.placeholder = usual;
  return {
    element: input,
    input,
    read: () => numberOf(input, label),
    write: value => {
      input.value = value ?? "";
    },
  };
}

function pair(name, entry, label) {
  const sides = PAIRS[name] ?? ["height", "width"];
  const element = document.createElement("div");
  element.className = "two";
  const inputs = sides.map((side, at) => {
    const input = numberInput({ type: "integer", min: 0 });
    input.setAttribute("aria-label", side);
    input.placeholder = entry.default?.[at] ?? side;
    element.append(input);
    return input;
  });
  return {
    element,
    input: inputs[0],
    group: true,
    read: () => {
      const given = inputs.map(input => numberOf(input, label));
      if (given.every(value => value === undefined)) return undefined;
      const values = given.map((value, at) => value ?? entry.default?.[at]);
      if (values.includes(undefined)) throw new Error(`${label}: two numbers, ${sides.join(" and ")}`);
      return values;
    },
    write: value => inputs.forEach((input, at) => {
      input.value = value?.[at] ?? "";
    }),
  };
}

function numberInput(entry) {
  const input = document.createElement("input");
  input.type = "number";
  input.inputMode = "decimal";
  const whole = entry.type === "integer";
  // Where arrows lead; any other number may be typed.
  input.step = whole ? 1 : entry.max !== undefined && entry.max <= 2 ? 0.05 : 0.5;
  if (entry.min !== undefined) input.min = entry.min;
  if (entry.max !== undefined) input.max = entry.max;
  return input;
}

/** Return an input's number, or undefined where it is empty. */
export function numberOf(input, label) {
  if (input.validity.badInput) throw new Error(`${label} is not a number`);
  return input.value === "" ? undefined : Number(input.value);
}

/** Return an input's whole number with all its digits, of which a Number has no more than 15. */
export function wholeOf(input, label) {
  const number = numberOf(input, label);
  return /^-?\d+$/.test(input.value) ? BigInt(input.value) : number;
}
