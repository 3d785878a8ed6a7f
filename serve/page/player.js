// Plays one song: a button, the time, and a picture (waveform or spectrogram) to click and drag on.

import { el, icon } from "./dom.js";
import { Sound } from "./sound.js";
import { SpanSelect } from "./span.js";
import { drawSpectrogram, pictureOf } from "./spectrogram.js";
import { drawWaveform } from "./waveform.js";
import { clock } from "./wording.js";

const STEPS = { ArrowLeft: -5, ArrowDown: -5, ArrowRight: 5, ArrowUp: 5, PageDown: -30, PageUp: 30 };
let playing = null;

/** Runs `work` once, when `node` first comes near the view. */
function whenNear(node, work) {
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    work();
  }, { rootMargin: "300px" });
  observer.observe(node);
  return () => observer.disconnect();
}

export class Player {
  #peaks = null;
  #picture = null;
  #shown = "waveform";
  #frame = 0;

  /** `onSpan(span, isDone)` when a span is dragged. */
  constructor(jobId, song, title, { onSpan }) {
    this.sound = new Sound(jobId, song);
    this.duration = song.duration;
    this.audio = new Audio();
    this.audio.preload = "none";
    this.button = el("button", { type: "button", class: "play", "aria-label": `Play ${title}`, on: { click: () => this.toggle() } }, icon("play"));
    this.title = title;
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.position = el("div", {
      class: "position", role: "slider", tabindex: "0", "aria-label": "Position", "aria-valuemin": 0,
      "aria-valuemax": Math.round(this.duration), on: { keydown: (event) => this.#keys(event) },
    });
    this.needle = el("div", { class: "needle", hidden: true });
    this.note = el("p", { class: "stage-note" }, "…");
    this.stage = el("div", { class: "stage" }, this.canvas, this.needle, this.position, this.note);
    this.time = el("span", { class: "time" });
    this.switch = el("button", {
      type: "button", class: "quiet tiny", "aria-pressed": "false", on: { click: () => this.#switch() },
    }, "Spectrogram");
    this.element = el("div", { class: "player" }, this.button, this.stage, el("div", { class: "under" }, this.time, this.switch));
    this.select = new SpanSelect(this.stage, this.duration, { onSeek: (seconds) => this.seek(seconds), onChange: onSpan });
    this.#listen();
    this.#show();
  }

  #listen() {
    for (const event of ["play", "pause", "ended", "seeked", "timeupdate"]) this.audio.addEventListener(event, () => this.#show());
    this.audio.addEventListener("play", () => this.#follow());
    this.resizes = new ResizeObserver(() => this.draw());
    this.resizes.observe(this.stage);
    this.stopWaiting = whenNear(this.element, () => this.#look());
  }

  async #look() {
    try {
      this.#peaks = await this.sound.peaks();
      this.note.hidden = true;
      this.draw();
    } catch (error) {
      this.note.textContent = error.status === 404 ? "The sound is no longer on the server." : "The sound could not be read.";
    }
  }

  async #load() {
    if (this.audio.src) return;
    this.audio.src = await this.sound.address();
  }

  async toggle() {
    if (!this.audio.paused) {
      this.audio.pause();
      return;
    }
    try {
      await this.#load();
      if (playing && playing !== this.audio) playing.pause();
      playing = this.audio;
      await this.audio.play();
    } catch (error) {
      if (error.name === "AbortError") return; // Paused again before it began.
      this.note.textContent = `It cannot be played: ${error.message}`;
      this.note.hidden = false;
    }
  }

  async seek(seconds) {
    await this.#load();
    const to = Math.max(0, Math.min(seconds, this.duration));
    if (this.audio.readyState === 0) {
      this.audio.preload = "metadata";
      this.audio.load();
      await new Promise((resolve) => this.audio.addEventListener("loadedmetadata", resolve, { once: true }));
    }
    this.audio.currentTime = to;
    this.#show();
  }

  #keys(event) {
    const now = this.audio.currentTime;
    const to = event.key === "Home" ? 0 : event.key === "End" ? this.duration : STEPS[event.key] && now + STEPS[event.key];
    if (event.key === " " || event.key === "Enter") this.toggle();
    else if (to !== undefined) this.seek(to);
    else return;
    event.preventDefault();
  }

  #follow() {
    cancelAnimationFrame(this.#frame);
    const step = () => {
      this.#show();
      if (!this.audio.paused) this.#frame = requestAnimationFrame(step);
    };
    step();
  }

  #show() {
    const { paused, currentTime } = this.audio;
    if (this.button.dataset.state !== String(paused)) {
      this.button.dataset.state = String(paused);
      this.button.replaceChildren(icon(paused ? "play" : "pause"));
      this.button.setAttribute("aria-label", `${paused ? "Play" : "Pause"} ${this.title}`);
    }
    this.time.textContent = `${clock(currentTime)} / ${clock(this.duration)}`;
    this.position.setAttribute("aria-valuenow", Math.round(currentTime));
    this.position.setAttribute("aria-valuetext", `${clock(currentTime)} of ${clock(this.duration)}`);
    this.needle.hidden = currentTime === 0;
    this.needle.style.left = `${Math.min(1, currentTime / this.duration) * 100}%`;
    if (this.#shown === "waveform") this.draw();
  }

  /** Draws the picture anew, in the colours of now. */
  draw() {
    if (this.#shown === "spectrogram" && this.#picture) {
      drawSpectrogram(this.canvas, this.#picture.canvas, this.#picture.sampleRate);
    } else if (this.#peaks) {
      const colours = { accent: getComputedStyle(this.needle).backgroundColor, rest: getComputedStyle(this.canvas).color };
      drawWaveform(this.canvas, this.#peaks, this.audio.currentTime / this.duration, colours);
    }
  }

  async #switch() {
    const on = this.#shown === "waveform";
    this.switch.setAttribute("aria-pressed", on);
    if (on && !this.#picture) {
      this.switch.disabled = true;
      try {
        const { samples, sampleRate } = await this.sound.mono();
        const ratio = window.devicePixelRatio || 1;
        const columns = Math.min(1600, Math.round(this.canvas.clientWidth * ratio));
        const rows = Math.round(150 * Math.min(2, ratio));
        this.#picture = { canvas: pictureOf(samples, sampleRate, columns, rows), sampleRate };
      } catch {
        this.switch.setAttribute("aria-pressed", "false");
        return;
      } finally {
        this.switch.disabled = false;
      }
    }
    this.#shown = on ? "spectrogram" : "waveform";
    this.stage.classList.toggle("tall", on);
    this.draw();
  }

  free() {
    this.audio.pause();
    this.audio.removeAttribute("src");
    this.resizes.disconnect();
    this.stopWaiting();
    this.sound.free();
  }
}
