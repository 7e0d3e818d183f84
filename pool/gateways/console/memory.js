// What only this browser knows: which files went into a job. The pool keeps no parameters of jobs that are over.

const KEY = "filepool.jobs";
const MOST = 500;

let known = {};
try {
  known = JSON.parse(localStorage.getItem(KEY) ?? "{}") ?? {};
} catch {
  known = {};
}

/** {field: {id, name, type}} of a job that was submitted from here, else {}. */
export function inputsOf(jobId) {
  const found = Object.hasOwn(known, jobId) ? known[jobId] : {};
  return found && typeof found === "object" ? found : {};
}

export function rememberInputs(jobId, inputs) {
  delete known[jobId];
  known[jobId] = inputs;
  const ids = Object.keys(known);
  for (const id of ids.slice(0, Math.max(0, ids.length - MOST))) delete known[id];
  try {
    localStorage.setItem(KEY, JSON.stringify(known));
  } catch {
    // full or forbidden: the names are lost with the page, nothing else
  }
}

/** The names of a job's files, "" when unknown. */
export function nameOf(jobId) {
  return Object.values(inputsOf(jobId))
    .map((input) => String(input.name ?? ""))
    .filter(Boolean)
    .join(" + ");
}
