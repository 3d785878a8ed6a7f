// What stands under "More": every other field of a request, with what it is for.

import { el, field } from "./dom.js";

/** [heading, [name, label, kind, options]] in the order shown; kind: number, text, check, or a list of choices. */
export const MORE = [
  ["Sampling", [
    ["scheduler", "Stepper", ["euler", "heun", "pingpong"]],
    ["omega_scale", "Granularity", "number", { min: -100, max: 100, step: 1, hint: "Rescales each step about its mean." }],
    ["oss_steps", "Chosen steps", "text", { hint: "Such as 16, 29, 52: replaces Steps." }],
  ]],
  ["Guidance", [
    ["guidance_scale", "Strength", "number", { min: 0, max: 100, step: 0.5, hint: "0 and 1: none." }],
    ["guidance", "Kind", ["apg", "cfg", "cfg_star"]],
    ["guidance_interval", "Share of the steps", "number", { min: 0, max: 1, step: 0.05 }],
    ["guidance_interval_decay", "Decay over them", "number", { min: 0, max: 1, step: 0.05 }],
    ["min_guidance_scale", "Strength at its end", "number", { min: 0, max: 100, step: 0.5 }],
    ["guidance_scale_text", "For the prompt apart", "number", { min: 0, max: 100, step: 0.5, hint: "Both above 1 count." }],
    ["guidance_scale_lyric", "For the lyrics apart", "number", { min: 0, max: 100, step: 0.5 }],
    ["use_erg_tag", "Weaken the prompt", "check", { hint: "The unguided branch sees less of it, not nothing." }],
    ["use_erg_lyric", "Weaken the lyrics", "check"],
    ["use_erg_diffusion", "Weaken the attention", "check"],
  ]],
  ["Lyrics", [
    ["language", "Language", ["auto", "per-line"]],
    ["normalize_tags", "Read [Verse 2] as [verse]", "check"],
  ]],
  ["Adapter", [
    ["lora", "LoRA", "text", { hint: "An adapter that this server has." }],
    ["lora_weight", "Its strength", "number", { min: -10, max: 10, step: 0.05 }],
  ]],
  ["File", [
    ["response_format", "Format", ["wav", "flac", "mp3", "ogg", "opus"]],
    ["sample_rate", "Sample rate (Hz)", ["44100", "48000"]],
    ["resampler", "Resampler", ["kaiser", "upstream"]],
  ]],
];

const KINDS = new Map(MORE.flatMap(([, fields]) => fields.map(([name, , kind]) => [name, kind])));

export const MORE_NAMES = [...KINDS.keys()];

/** The controls under "More", as fieldsets. */
export function moreFields() {
  return MORE.map(([heading, fields]) =>
    el("fieldset", {}, el("legend", {}, heading),
      el("div", { class: "grid" }, fields.map(([name, label, kind, { hint, ...limits } = {}]) =>
        field(name, label, controlOf(kind, limits), { hint })))));
}

function controlOf(kind, limits) {
  if (Array.isArray(kind)) return el("select", {}, kind.map(optionOf));
  if (kind === "check") return el("input", { type: "checkbox" });
  return el("input", { type: kind, inputmode: kind === "number" ? "decimal" : null, ...limits, spellcheck: "false" });
}

export const optionOf = (value) => el("option", { value, textContent: value });

/** Puts other choices into a select, and keeps what was chosen. */
export function choices(select, values) {
  const chosen = select.value;
  select.replaceChildren(...values.map(optionOf));
  if (values.includes(chosen)) select.value = chosen;
}

/** What a control says, as the API wants it; undefined: nothing. Raises `RangeError` for what is no number. */
export function valueOf(control) {
  if (control.type === "checkbox") return control.checked;
  if (control.validity.badInput) throw new RangeError("It must be a number.");
  const text = control.value;
  if (text.trim() === "") return undefined;
  if (control.type === "number" || control.name === "sample_rate") return Number(text);
  if (control.name === "oss_steps") return text.split(/[\s,]+/).filter(Boolean).map(Number);
  return text;
}

/** Puts an API value into a control. */
export function fill(control, value) {
  if (control.type === "checkbox") control.checked = Boolean(value);
  else if (Array.isArray(value)) control.value = value.join(", ");
  else control.value = value ?? "";
}
