// A span of a song, dragged over its picture or moved with the keys. A click without a drag is a place to play from.

import { el } from "./dom.js";
import { short } from "./wording.js";

const DRAG_PIXELS = 5;
export const SHORTEST = 0.1;

const rounded = (seconds) => Math.round(seconds * 100) / 100;

export class SpanSelect {
  #drag = null;

  /** `onSeek(seconds)` for a click; `onChange({start, end} | null, isDone)` while and after the span moves. */
  constructor(stage, duration, { onSeek, onChange }) {
    this.duration = duration;
    this.span = null;
    this.onChange = onChange;
    this.stage = stage;
    this.handles = { start: this.#handle("start", "Begin of the span"), end: this.#handle("end", "End of the span") };
    this.overlay = el("div", { class: "span", hidden: true }, this.handles.start, this.handles.end);
    stage.append(this.overlay);
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const at = this.#secondsAt(event);
      const handle = event.target.closest(".handle")?.dataset.side;
      const fixed = handle ? this.span[handle === "start" ? "end" : "start"] : at;
      this.#drag = { x: event.clientX, fixed, moved: Boolean(handle), handle };
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      if (!this.#drag) return;
      this.#drag.moved ||= Math.abs(event.clientX - this.#drag.x) > DRAG_PIXELS;
      if (this.#drag.moved) this.#between(this.#drag.fixed, this.#secondsAt(event), false);
    });
    stage.addEventListener("pointerup", (event) => {
      const drag = this.#drag;
      this.#drag = null;
      if (!drag) return;
      if (drag.moved) this.#between(drag.fixed, this.#secondsAt(event), true);
      else onSeek(drag.fixed);
    });
    stage.addEventListener("pointercancel", () => (this.#drag = null)); // The finger scrolls the page instead.
  }

  /** Shows a span, kept within the song; null hides it. */
  set(span) {
    this.span = span && this.#allowed(span);
    this.overlay.hidden = !this.span;
    if (!this.span) return;
    const { start, end } = this.span;
    this.overlay.style.left = `${(start / this.duration) * 100}%`;
    this.overlay.style.width = `${((end - start) / this.duration) * 100}%`;
    for (const [side, handle] of Object.entries(this.handles)) {
      handle.setAttribute("aria-valuenow", this.span[side]);
      handle.setAttribute("aria-valuetext", `${short(this.span[side])} seconds`);
    }
  }

  #allowed({ start, end }) {
    const limit = Math.floor(this.duration * 100) / 100;
    const last = rounded(Math.max(SHORTEST, Math.min(end, limit)));
    return { start: rounded(Math.max(0, Math.min(start, last - SHORTEST))), end: last };
  }

  #between(one, other, isDone) {
    this.set({ start: Math.min(one, other), end: Math.max(one, other) });
    this.onChange(this.span, isDone);
  }

  #secondsAt(event) {
    const box = this.stage.getBoundingClientRect();
    return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * this.duration;
  }

  #handle(side, label) {
    const move = (event) => {
      const step = event.shiftKey ? 1 : 0.1;
      const now = this.span[side];
      const [low, high] = side === "start" ? [0, this.span.end - SHORTEST] : [this.span.start + SHORTEST, this.duration];
      const to = {
        ArrowLeft: now - step, ArrowDown: now - step, ArrowRight: now + step, ArrowUp: now + step,
        PageDown: now - 5, PageUp: now + 5, Home: low, End: high,
      }[event.key];
      if (event.key === "Escape") {
        this.set(null);
        this.onChange(null, true);
      } else if (to !== undefined) {
        event.preventDefault();
        this.set({ ...this.span, [side]: Math.max(low, Math.min(high, to)) });
        this.onChange(this.span, true);
      }
    };
    return el("div", {
      class: "handle", "data-side": side, role: "slider", tabindex: "0", "aria-label": label, "aria-valuemin": 0,
      "aria-valuemax": short(this.duration), on: { keydown: move },
    });
  }
}
