// The server's API: models, and pictures as a stream of events.

const KEY = "tgate-export-key";

/** What the server, or the way to it, has against a request; `status` is 0 where it was not reached. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = value => sessionStorage.setItem(KEY, value);
export const address = path => new URL(path, document.baseURI).href;

/** Return the entries of /v1/models. */
export async function models() {
  return (await (await request("v1/models", {})).json()).data;
}

/**
 * Ask for one picture.
 *
 * @param {object} body of the request, by the API's names.
 * @param {?Blob} start the picture to begin with.
 * @param {AbortSignal} signal ends the request, and with it the server's work.
 * @yields {object} the stream's events.
 */
export async function* generate(body, start, signal) {
  let path = "v1/images/generations";
  let options = { headers: { "Content-Type": "application/json" }, body: json(body) };
  if (start) {
    path = "v1/images/edits";
    const form = new FormData();
    for (const [name, value] of formFields(body)) form.append(name, value);
    form.append("image", start, "start.png");
    options = { body: form };
  }
  const response = await request(path, { ...options, method: "POST", signal });
  for await (const event of events(response)) {
    if (event.type === "error") throw new ServerError(event.error?.message ?? "the server failed");
    yield event;
  }
}

/** Return JSON of a body or of a value in it; a BigInt is a number there, with all its digits. */
export function json(value) {
  if (typeof value === "bigint") return `${value}`;
  if (value?.constructor !== Object) return JSON.stringify(value);
  const given = Object.entries(value).filter(([, each]) => each !== undefined);
  return `{${given.map(([name, each]) => `${JSON.stringify(name)}:${json(each)}`).join(",")}}`;
}

/** Return names and texts of a body as a form has them: a list is several fields. */
export function formFields(body) {
  return Object.entries(body).flatMap(([name, value]) =>
    Array.isArray(value) ? value.map(each => [`${name}[]`, `${each}`]) : [[name, `${value}`]]);
}

async function request(path, options) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(address(path), { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw unreached(error);
  }
  if (response.ok) return response;
  throw new ServerError(await message(response), response.status);
}

async function message(response) {
  const text = await response.text().catch(() => "");
  try {
    const found = JSON.parse(text).error?.message;
    if (found) return found;
  } catch {
    // A proxy's page, say.
  }
  return `the server answered ${response.status} ${response.statusText}`.trim();
}

function unreached(error) {
  if (error.name === "AbortError") return error;
  return new ServerError("the server cannot be reached: is it running?");
}

/** Yield the data of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      throw unreached(error);
    }
    if (chunk.done) return;
    const blocks = (text + chunk.value).split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const data = block
        .split(/\r?\n/)
        .filter(line => line.startsWith("data:"))
        .map(line => line.slice(5).trimStart())
        .join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
