// The picture's request as others would send it.

import { address, formFields, hasKey, json } from "./api.js";

const quoted = text => `'${text.replaceAll("'", "'\\''")}'`;

/** Return a command line that makes a picture. */
export function curl(body, start) {
  const lines = [`curl -sS ${address(start ? "v1/images/edits" : "v1/images/generations")}`];
  if (hasKey()) lines.push('-H "Authorization: Bearer $TGATE_API_KEY"');
  if (start) {
    lines.push("-F image=@start.png");
    for (const [name, value] of formFields(body)) lines.push(`--form-string ${quoted(`${name}=${value}`)}`);
  } else {
    lines.push("-H 'Content-Type: application/json'", `-d ${quoted(json(body))}`);
  }
  return `${lines.join(" \\\n  ")} \\\n  | jq -r '.data[0].b64_json' | base64 -d > picture.png`;
}

const OPENAI = ["model", "prompt", "size"];

/** Return Python with the package `openai` that makes a picture; ours are extra fields there. */
export function python(body, start) {
  const key = hasKey() ? 'os.environ["TGATE_API_KEY"]' : '"none"';
  const theirs = OPENAI.filter(name => name in body);
  const ours = Object.keys(body).filter(name => !OPENAI.includes(name));
  return [
    `import base64${hasKey() ? "\nimport os" : ""}`,
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${json(address("v1"))}, api_key=${key})`,
    `result = client.images.${start ? "edit" : "generate"}(`,
    ...(start ? ['    image=open("start.png", "rb"),'] : []),
    ...theirs.map(name => `    ${name}=${json(body[name])},`),
    "    extra_body={",
    ...ours.map(name => `        ${json(name)}: ${json(body[name])},`),
    "    },",
    ")",
    'with open("picture.png", "wb") as file:',
    "    file.write(base64.b64decode(result.data[0].b64_json))",
  ].join("\n");
}
