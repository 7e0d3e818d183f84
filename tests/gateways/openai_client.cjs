// A transcription by OpenAI's client for Node: openai_client.cjs MODULES BASE FILE PROMPT TIMEOUT_MS
// Prints a line per request, then the answer's job and text.
const { createRequire } = require("node:module");
const { readFileSync } = require("node:fs");
const [modules, base, file, prompt, timeout] = process.argv.slice(2);
const { OpenAI, toFile } = createRequire(`${modules}/`)("openai");

const client = new OpenAI({
  baseURL: `${base}/v1`,
  apiKey: "any",
  maxRetries: 5,
  timeout: Number(timeout),
  fetch: (url, init) => (console.log("request"), fetch(url, init)),
});

// of bytes: a stream cannot be sent twice, and is not tried again
toFile(readFileSync(file), "talk.wav")
  .then((sound) => client.audio.transcriptions.create({ model: "any", file: sound, prompt }).withResponse())
  .then(({ data, response }) => console.log(JSON.stringify({ job: response.headers.get("x-job-id"), text: data.text })));
