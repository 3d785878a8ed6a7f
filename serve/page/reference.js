// A song that begins with audio of one's own: the file is uploaded when it is chosen.

import { upload } from "./api.js";
import { byId, el, field } from "./dom.js";
import { showProblem, clearProblem } from "./problems.js";
import { short } from "./wording.js";

/** A fieldset, and `read()`: the fields that it adds to a request; raises `RangeError` while the file is on its way. */
export function referenceFields() {
  let source = null;
  let isLoading = false;
  const shown = el("output", { class: "unit" }, "0.50");
  const strength = el("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0.5 });
  const file = el("input", { type: "file", accept: "audio/*,.flac,.opus" });
  const state = el("p", { class: "hint", role: "status" });
  const remove = el("button", { type: "button", class: "link", hidden: true }, "Remove");
  const place = field("source", "Audio to begin with", file);
  const much = field("reference_strength", "How much of it stays", strength, { unit: shown });

  const show = (text, isThere) => {
    state.textContent = text;
    remove.hidden = !isThere;
    much.hidden = !isThere;
    strength.disabled = !isThere;
  };
  const clear = () => {
    source = null;
    file.value = "";
    clearProblem(place);
    show("", false);
  };
  strength.addEventListener("input", () => (shown.textContent = Number(strength.value).toFixed(2)));
  remove.addEventListener("click", () => {
    clear();
    file.focus();
  });
  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    source = null;
    clearProblem(place);
    show(chosen ? "Sending it…" : "", false);
    if (!chosen) return;
    isLoading = true;
    try {
      const made = await upload(chosen);
      if (file.files[0] !== chosen) return;
      source = `upload:${made.id}`;
      show(`${chosen.name}, ${short(made.duration)} s`, true);
    } catch (error) {
      show("", false);
      showProblem(byId("composer"), "source", error.message.replace(/^file: /, "")); // The part's name, not the field's.
    } finally {
      isLoading = false;
    }
  });
  place.append(state, remove);
  show("", false);
  return {
    element: el("fieldset", {}, el("legend", {}, "Begin with audio"), place, much),
    clear,
    read() {
      if (isLoading) throw new RangeError("It is still being sent.");
      return source ? { task: "audio2audio", source, reference_strength: Number(strength.value) } : {};
    },
  };
}
