// The form for a new song: what it says as a request, and a request put into it.

import { byId, el, icon } from "./dom.js";
import { choices, fill, MORE_NAMES, moreFields, optionOf, valueOf } from "./fields.js";
import { clearOnInput, clearProblems, showError, showProblem } from "./problems.js";
import { referenceFields } from "./reference.js";
import { defaultOf, essential } from "./requests.js";
import { copies, curl, python } from "./snippets.js";
import { load, save } from "./store.js";
import { setUpLyrics } from "./lyrics.js";
import { setUpTags } from "./tags.js";
import { randomSeed } from "./wording.js";

const PLAIN = ["prompt", "lyrics", "duration", "seed", "num_inference_steps", "n"];
const NAMES = [...PLAIN, ...MORE_NAMES];

/** `send(body)` posts a request and raises an `ApiError`. */
export function setUpForm(send) {
  const form = byId("composer");
  const alert = byId("form-alert");
  const reference = referenceFields();
  byId("more-fields").append(...moreFields(), reference.element);
  const control = (name) => form.elements[name];
  const slider = byId("duration-slider");

  const read = () => {
    const values = {};
    const readOr = (name, work) => {
      try {
        return work();
      } catch (error) {
        showProblem(form, name, error.message);
        control(name).focus();
        throw error;
      }
    };
    for (const name of NAMES) values[name] = readOr(name, () => valueOf(control(name)));
    const begun = readOr("source", () => reference.read());
    return essential({ prompt: "", ...values, ...begun });
  };

  const untouched = new Map();
  const write = (request) => {
    for (const name of NAMES) {
      fill(control(name), defaultOf(name));
      untouched.set(name, stateOf(control(name)));
      if (request[name] !== undefined) fill(control(name), request[name]);
    }
    changed();
  };
  const restore = () => {
    write({});
    for (const [name, state] of Object.entries(load("draft", {}))) {
      if (!NAMES.includes(name)) continue;
      if (control(name).type === "checkbox") control(name).checked = state;
      else control(name).value = state;
    }
    changed();
  };

  const changed = () => {
    slider.value = control("duration").value || defaultOf("duration");
    let count = 0;
    for (const name of MORE_NAMES) {
      const value = control(name).validity.badInput ? undefined : valueOf(control(name));
      const isDefault = value === undefined || JSON.stringify(value) === JSON.stringify(defaultOf(name));
      if (!isDefault) count += 1;
    }
    byId("more-changed").hidden = !count;
    byId("more-changed").textContent = `${count} changed`;
  };

  // Only what differs from the defaults, so that a model with other defaults keeps its own.
  const keep = () => save("draft", Object.fromEntries(
    NAMES.map((name) => [name, stateOf(control(name))]).filter(([name, state]) => state !== untouched.get(name))));

  const submit = async () => {
    clearProblems(form, alert);
    let body;
    try {
      body = read();
    } catch {
      return;
    }
    byId("generate").disabled = true;
    try {
      await send(body);
    } catch (error) {
      showError(form, alert, error);
    } finally {
      byId("generate").disabled = false;
    }
  };

  slider.addEventListener("input", () => {
    control("duration").value = slider.value;
    control("duration").dispatchEvent(new Event("input", { bubbles: true }));
  });
  byId("dice").append(icon("dice"));
  byId("dice").addEventListener("click", () => {
    control("seed").value = randomSeed();
    control("seed").dispatchEvent(new Event("input", { bubbles: true }));
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      if (!byId("generate").disabled) submit();
    } else if (event.target.tagName === "INPUT") {
      event.preventDefault(); // Enter in a small field does not make a song by accident.
    }
  });
  form.addEventListener("input", () => {
    changed();
    keep();
  });
  byId("reset").addEventListener("click", () => {
    write({});
    reference.clear();
    keep();
    clearProblems(form, alert);
    control("prompt").focus();
  });
  clearOnInput(form);
  setUpTags(control("prompt"));
  setUpLyrics(control("lyrics"));
  const format = () => defaultOf("response_format");
  copies(byId("copy-curl"), () => curl(read(), format()));
  copies(byId("copy-python"), () => python(read(), format()));
  restore();

  return {
    /** Puts a request into the form and shows it. */
    use(request) {
      write(request);
      keep();
      clearProblems(form, alert);
      form.scrollIntoView({ block: "start" });
      control("prompt").focus({ preventScroll: true });
    },
    /** Takes limits, choices and defaults from the served model; what was typed stays. */
    fit(model) {
      for (const input of [slider, control("duration")]) input.max = Math.floor(model.max_duration ?? 240);
      if (model.max_n) control("n").max = model.max_n;
      if (model.languages) choices(control("language"), [...new Set(["auto", "per-line", ...model.languages])]);
      offerAdapters(control("lora"), model.loras);
      if (model.formats) choices(control("response_format"), model.formats);
      restore();
    },
  };
}

/** Known adapters as suggestions; a server that says it has none has no fields for them. */
function offerAdapters(control, adapters) {
  control.closest("fieldset").hidden = adapters?.length === 0;
  const known = (adapters ?? []).filter((name) => name !== "*");
  byId("known-adapters")?.remove();
  if (!known.length) return;
  control.after(el("datalist", { id: "known-adapters" }, known.map(optionOf)));
  control.setAttribute("list", "known-adapters");
}

/** What a control shows, typed in or not. */
const stateOf = (control) => (control.type === "checkbox" ? control.checked : control.value);
