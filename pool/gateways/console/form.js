// A form made from the JSON schema of an engine's parameters.

import { h, icon } from "./dom.js";
import { bytes, title } from "./format.js";
import { t } from "./texts.js";

const PATHS = new Set(["path", "file-path"]);
const INPUTS = /^(audio|video|image|picture|photo|file|input|recording|template)(_(path|file))?$/;
const OUTPUTS = /^(output|out|save|result)(_|$)/;
const ACCEPTS = [
  [/image|picture|photo/, ["image"]],
  [/video|template/, ["video", "image"]],
  [/audio|sound|recording|speech/, ["audio", "video"]],
];

/** The form field of one parameter: {key, kind, required, about, …}. kind: file, path, choice, switch, number, text, json. */
function fieldOf(key, property, required) {
  const options = (property.anyOf ?? [property]).filter((option) => option.type !== "null");
  const one = options.length === 1 ? options[0] : null;
  const about = property.description ?? one?.description ?? "";
  const field = { key, required, about, initial: property.default ?? one?.default ?? null, nullable: options.length < (property.anyOf ?? [property]).length };
  const is = (type) => one?.type === type;
  if (options.some((option) => PATHS.has(option.format)) || (is("string") && INPUTS.test(key)))
    return OUTPUTS.test(key) ? { ...field, kind: "path" } : { ...field, kind: "file", accepts: accepts(key) };
  if (one?.enum && one.enum.length === 2 && one.enum.every((value) => value === 0 || value === 1)) return { ...field, kind: "switch", off: 0, on: 1 };
  if (one?.enum || one?.const !== undefined) return { ...field, kind: "choice", choices: one.enum ?? [one.const] };
  if (is("boolean")) return { ...field, kind: "switch", off: false, on: true };
  if (is("integer") || is("number")) return { ...field, kind: "number", whole: is("integer"), min: one.minimum ?? one.exclusiveMinimum, max: one.maximum ?? one.exclusiveMaximum };
  if (is("string")) return OUTPUTS.test(key) ? { ...field, kind: "path" } : { ...field, kind: "text", long: one.maxLength > 200 };
  return { ...field, kind: "json" };
}

function accepts(key) {
  return ACCEPTS.find(([pattern]) => pattern.test(key))?.[1] ?? ["audio", "video", "image"];
}

/** The fields of an engine's parameters, the required ones first; null without a schema. */
export function fieldsOf(schema) {
  if (!schema?.properties) return null;
  const required = new Set(schema.required ?? []);
  const fields = Object.entries(schema.properties).map(([key, property]) => fieldOf(key, property, required.has(key)));
  return [...fields.filter((field) => field.required), ...fields.filter((field) => !field.required)];
}

/** The kind of a file: "image", "audio", "video" or "". */
export function kindOf(file) {
  const kind = file.type.split("/")[0];
  if (["image", "audio", "video"].includes(kind)) return kind;
  if (/\.(wav|mp3|m4a|flac|ogg|opus|aac|amr|wma)$/i.test(file.name)) return "audio";
  return /\.(mp4|mov|mkv|webm|avi|wmv|flv|ts|mpe?g)$/i.test(file.name) ? "video" : "";
}

/** Assign files to fields: {key: files}, or null when some fit no field. Several files for the only field make several jobs. */
export function assign(fields, files) {
  const places = fields.filter((field) => field.kind === "file");
  const found = {};
  let rest = [...files];
  for (const rank of [0, 1, 2])
    for (const field of places) {
      if (found[field.key]) continue;
      const fits = rest.filter((file) => field.accepts[rank] === kindOf(file));
      if (!fits.length) continue;
      found[field.key] = places.length === 1 ? fits : [fits[0]];
      rest = rest.filter((file) => !found[field.key].includes(file));
    }
  return rest.length ? null : found;
}

/** Fields as a form. changed(): called after each change. Returns {needed, more, put(key, files), fill(key, value, name), missing(), read()}. */
export function makeFields(fields, changed) {
  const made = fields.map((field) => ({ field, ...MAKERS[field.kind](field, changed) }));
  const first = made.filter(({ field }) => field.required);
  // When no field is required, the first ones are the main ones.
  const needed = first.length ? first : made.slice(0, 2);
  return {
    needed: needed.map((one) => one.node),
    more: made.filter((one) => !needed.includes(one)).map((one) => one.node),
    put: (key, files) => made.find((one) => one.field.key === key)?.put?.(files),
    /** Set a field to a parameter's value. name: of the upload that it stands for. */
    fill: (key, value, name = "") => made.find((one) => one.field.key === key)?.fill(value, name),
    missing: () => made.filter(({ field, filled }) => field.required && !filled()).map(({ field }) => field.key),
    /** {params, files: {key: [File]}}. Throws Error with the name of an invalid field. */
    read() {
      const [params, files] = [{}, {}];
      for (const { field, value, chosen } of made) {
        const picked = chosen?.() ?? [];
        if (picked.length) files[field.key] = picked;
        else {
          const given = value();
          if (given !== undefined) params[field.key] = given;
        }
      }
      return { params, files };
    },
  };
}

function frame(field, control, extra = null) {
  const id = `field-${field.key}`;
  control.id = id;
  const about = field.about ? h("small", { id: `${id}-about`, text: field.about }) : null;
  if (about) control.setAttribute("aria-describedby", about.id);
  const label = h("label", { for: id, text: title(field.key) });
  if (field.required) label.append(h("i", { class: "must", text: t("required") }));
  return h("div", { class: "field", dataset: { kind: field.kind, key: field.key } }, label, control, extra, about);
}

const MAKERS = {
  file(field, changed) {
    let files = [];
    let kept = null; // {value, name} of an upload of an earlier job
    const input = h("input", { type: "file", accept: field.accepts.map((kind) => `${kind}/*`).join(","), multiple: true });
    const path = h("input", { type: "text", placeholder: t("/path/on/the/server or tempfile:<id>"), hidden: true, spellcheck: false, "aria-label": t("{name}: path on the server", { name: title(field.key) }), oninput: changed });
    const shown = h("span", { class: "chosen" });
    const zone = h("label", { class: "zone", for: `field-${field.key}` }, icon("upload"), shown);
    const other = h("button", { type: "button", class: "link", text: t("use a path on the server") });
    const node = frame(field, input, h("div", { class: "pick" }, zone, path, other));
    const show = () => {
      const sum = files.reduce((total, file) => total + file.size, 0);
      const names = kept ? kept.name : files.length === 1 ? files[0].name : t("{n} files, one job each", { n: files.length });
      const filled = kept !== null || files.length > 0;
      zone.toggleAttribute("data-filled", filled);
      shown.replaceChildren(filled ? h("b", { text: names }) : t("Drop here, or choose: {name}", { name: title(field.key) }), filled ? h("small", { text: kept ? t("from the earlier job") : bytes(sum) }) : "");
    };
    const put = (more) => {
      files = [...more];
      kept = null;
      show();
      changed();
    };
    input.addEventListener("change", () => put(input.files));
    const turn = (typed) => {
      path.hidden = !typed;
      zone.hidden = typed;
      other.textContent = typed ? t("upload a file") : t("use a path on the server");
    };
    other.addEventListener("click", () => {
      turn(path.hidden);
      if (!path.hidden) path.focus();
      changed();
    });
    const fill = (value, name) => {
      if (name) kept = { value, name };
      else {
        path.value = String(value);
        turn(true);
      }
      show();
    };
    for (const kind of ["dragover", "dragleave", "drop"])
      zone.addEventListener(kind, (event) => {
        event.preventDefault();
        zone.toggleAttribute("data-over", kind === "dragover");
        if (kind !== "drop") return;
        event.stopPropagation();
        put(event.dataTransfer.files);
      });
    show();
    const typed = () => !path.hidden && path.value.trim();
    const value = () => typed() || (path.hidden ? kept?.value : undefined) || undefined;
    return { node, put, fill, chosen: () => (path.hidden ? files : []), value, filled: () => Boolean(value() || (path.hidden && files.length)) };
  },
  path: (field, changed) => text(field, changed, { placeholder: t("default: in the spool") }),
  text: (field, changed) => text(field, changed),
  choice(field, changed) {
    const unset = field.initial === null && !field.required;
    const options = [...(unset ? [h("option", { value: "", text: t("default") })] : []), ...field.choices.map((choice, at) => h("option", { value: String(at), text: String(choice) }))];
    const select = h("select", { onchange: changed }, options);
    const initial = field.choices.indexOf(field.initial);
    if (initial >= 0) select.value = String(initial);
    const value = () => (select.value === "" ? undefined : field.choices[Number(select.value)]);
    const fill = (given) => (select.value = field.choices.includes(given) ? String(field.choices.indexOf(given)) : select.value);
    return { node: frame(field, select), fill, value: () => (value() === field.initial ? undefined : value()), filled: () => true };
  },
  switch(field, changed) {
    const box = h("input", { type: "checkbox", role: "switch", checked: field.initial === field.on, onchange: changed });
    const value = () => (box.checked ? field.on : field.off);
    const fill = (given) => (box.checked = given === field.on);
    return { node: frame(field, box), fill, value: () => (value() === field.initial ? undefined : value()), filled: () => true };
  },
  number(field, changed) {
    const input = h("input", { type: "number", step: field.whole ? 1 : "any", min: field.min, max: field.max, inputmode: field.whole ? "numeric" : "decimal", placeholder: field.initial ?? t("default"), oninput: changed });
    const value = () => {
      if (!input.validity.valid) throw new Error(`${title(field.key)}: ${input.validationMessage}`);
      return input.value === "" ? undefined : Number(input.value);
    };
    const fill = (given) => (input.value = String(given ?? ""));
    return { node: frame(field, input), fill, value, filled: () => input.value !== "" };
  },
  json(field, changed) {
    const plain = field.initial === null || typeof field.initial === "object" ? t("JSON or text") : String(field.initial);
    const input = h("input", { type: "text", placeholder: plain, spellcheck: false, oninput: changed });
    const value = () => {
      const given = input.value.trim();
      if (!given) return undefined;
      try {
        return JSON.parse(given);
      } catch {
        return given;
      }
    };
    const fill = (given) => (input.value = typeof given === "string" && !isJson(given) ? given : JSON.stringify(given));
    return { node: frame(field, input), fill, value, filled: () => input.value.trim() !== "" };
  },
};

function text(field, changed, more = {}) {
  const placeholder = typeof field.initial === "string" && field.initial ? field.initial : t("default");
  const input = field.long ? h("textarea", { rows: 2, oninput: changed }) : h("input", { type: "text", placeholder: field.required ? "" : placeholder, spellcheck: false, oninput: changed, ...more });
  const fill = (given) => (input.value = String(given ?? ""));
  return { node: frame(field, input), fill, value: () => input.value.trim() || undefined, filled: () => input.value.trim() !== "" };
}

function isJson(given) {
  try {
    JSON.parse(given);
    return true;
  } catch {
    return false;
  }
}
