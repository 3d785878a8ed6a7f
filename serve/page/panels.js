// What can be made of a finished song: a variation, a new span, more of it, other words. One panel is open at a time.

import { announce, el, field } from "./dom.js";
import { valueOf } from "./fields.js";
import { clearOnInput, clearProblems, showError, showProblem } from "./problems.js";
import { canVary, edit, extend, repaint, vary } from "./requests.js";
import { short } from "./wording.js";

/**
 * Buttons and panels of a song. `send(body)` posts a request and raises an `ApiError`; `select` is the song's
 * `SpanSelect`. `followSpan` is to be called with what is dragged there.
 */
export function panelsOf(job, song, { send, select }) {
  const suffix = `${job.id}-${song.index}`;
  const holder = el("div", { class: "panels" });
  const buttons = [];

  const number = (name, label, attributes, hint) =>
    field(name, label, el("input", { type: "number", step: "any", inputmode: "decimal", ...attributes }), { unit: hint, id: `${name}-${suffix}` });
  const text = (name, label, rows, value) =>
    field(name, label, el("textarea", { rows, value }), { id: `${name}-${suffix}` });
  const slider = (name, label, value, hint) => {
    const shown = el("output", { class: "unit" }, value.toFixed(2));
    const input = el("input", { type: "range", min: 0, max: 1, step: 0.01, value });
    input.addEventListener("input", () => (shown.textContent = Number(input.value).toFixed(2)));
    return field(name, label, input, { unit: shown, hint, id: `${name}-${suffix}` });
  };
  const words = () => el("details", { class: "fold" }, el("summary", {}, "With other words"),
    text("prompt", "Prompt", 2, job.parameters.prompt), text("lyrics", "Lyrics", 5, job.parameters.lyrics ?? ""));

  const open = (panel) => {
    for (const each of holder.children) each.hidden = each !== panel;
    buttons.forEach((button) => button.setAttribute("aria-expanded", button.panel === panel));
  };

  /** `build(values)` makes the request of the panel's fields. */
  const add = (label, action, fields, build, note) => {
    const alert = el("p", { class: "alert", role: "alert", hidden: true });
    const go = el("button", { type: "submit", class: "primary small" }, action);
    const panel = el("form", { class: "panel", hidden: true, novalidate: true, "aria-label": label, id: `${label.toLowerCase()}-panel-${suffix}` },
      note ? el("p", { class: "hint" }, note) : null, fields, alert, el("div", { class: "panel-foot" }, go));
    panel.addEventListener("submit", async (event) => {
      event.preventDefault();
      clearProblems(panel, alert);
      const values = {};
      for (const control of panel.querySelectorAll("[name]")) {
        try {
          values[control.name] = control.tagName === "TEXTAREA" ? control.value : valueOf(control);
        } catch (error) {
          showProblem(panel, control.name, error.message);
          return;
        }
      }
      go.disabled = true;
      try {
        await send(build(values));
        announce(`${label}: in the queue.`);
      } catch (error) {
        showError(panel, alert, error);
      } finally {
        go.disabled = false;
      }
    });
    clearOnInput(panel);
    const button = el("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": panel.id }, label);
    button.panel = panel;
    button.addEventListener("click", () => {
      open(panel.hidden ? panel : null);
      if (panel === repaintPanel) startSpan();
      if (!panel.hidden) panel.querySelector("[name]").focus();
    });
    buttons.push(button);
    holder.append(panel);
    return panel;
  };

  if (canVary(job)) {
    add("Vary", "Make a variation",
      [slider("variance", "How far from this song", 0.3, "0 is the same song, 1 another one.")],
      ({ variance }) => vary(job, song, { variance: Number(variance) }));
  }

  const repaintPanel = add("Repaint", "Repaint this span", [
    el("div", { class: "grid" },
      number("repaint_start", "From", { min: 0, max: song.duration }, "s"),
      number("repaint_end", "To", { min: 0, max: song.duration }, "s"),
      slider("variance", "How far from what is there", 1)),
    words(),
  ], ({ repaint_start: start, repaint_end: end, variance, ...texts }) =>
    repaint(job, song, { start, end, variance: Number(variance), ...texts }),
  "Drag over the picture to choose what is made anew; the rest stays as it is.");
  const [from, to] = ["repaint_start", "repaint_end"].map((name) => repaintPanel.elements[name]);

  const writeSpan = (span) => {
    from.value = short(span.start);
    to.value = short(span.end);
    [from, to].forEach((control) => control.dispatchEvent(new Event("input", { bubbles: true })));
  };
  const startSpan = () => {
    if (repaintPanel.hidden || select.span) return;
    select.set({ start: song.duration / 3, end: (song.duration * 2) / 3 });
    writeSpan(select.span);
  };
  repaintPanel.addEventListener("input", (event) => {
    if (!event.isTrusted || ![from, to].includes(event.target) || from.value === "" || to.value === "") return;
    if (Number(from.value) < Number(to.value)) select.set({ start: Number(from.value), end: Number(to.value) });
  });

  add("Extend", "Extend the song", [
    el("div", { class: "grid" },
      number("extend_left", "Before it", { min: 0, max: 239, value: 0 }, "s"),
      number("extend_right", "After it", { min: 0, max: 239, value: 10 }, "s")),
    words(),
  ], ({ extend_left: left, extend_right: right, ...texts }) => extend(job, song, { left, right, ...texts }));

  add("Edit", "Sing and play it otherwise", [
    text("target_prompt", "Prompt", 2, job.parameters.target_prompt ?? job.parameters.prompt),
    text("target_lyrics", "Lyrics", 6, job.parameters.target_lyrics ?? job.parameters.lyrics ?? ""),
    el("div", { class: "grid" },
      slider("edit_n_min", "Skip the first steps", 0, "More keeps more of the song."),
      slider("edit_n_max", "Follow the song until", 1, "Less frees the last steps.")),
  ], (values) => edit(job, song, {
    prompt: values.target_prompt, lyrics: values.target_lyrics,
    from: Number(values.edit_n_min), to: Number(values.edit_n_max),
  }));

  const followSpan = (span) => {
    if (!span) return;
    if (repaintPanel.hidden) open(repaintPanel);
    writeSpan(span);
  };
  return { buttons, holder, followSpan };
}
