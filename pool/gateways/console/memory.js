// The input files of jobs, kept in this browser, so that lists show their names.

const KEY = "filepool.jobs";
const MOST = 500;

let known = {};
try {
  known = JSON.parse(localStorage.getItem(KEY) ?? "{}") ?? {};
} catch {
  known = {};
}

/** {field: {id, name, type}} of a job that this browser submitted, else {}. */
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
    // storage is full or disabled: only the names are lost, when the page closes
  }
}

/** The names of a job's files, "" when unknown. */
export function nameOf(jobId) {
  return Object.values(inputsOf(jobId))
    .map((input) => String(input.name ?? ""))
    .filter(Boolean)
    .join(" + ");
}
