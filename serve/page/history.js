// The list of songs: what this browser asked for, newest first, fetched again when the page is opened.

import { cancelOrDelete, job as fetchJob } from "./api.js";
import { announce, byId, el } from "./dom.js";
import { endingCard } from "./endings.js";
import { enqueue } from "./queue.js";
import { essential } from "./requests.js";
import { songCard } from "./song.js";
import { load, save } from "./store.js";
import { isOver } from "./watch.js";
import { short } from "./wording.js";

const MOST = 300;
const PAGE = 12;
const AT_ONCE = 3;

export class History {
  #entries = load("history", []);
  #slots = new Map();
  #cards = new Map();
  #shown = 0;

  /** `actions`: send(body), use(request), formats(). */
  constructor(actions) {
    this.actions = actions;
    byId("clear-history").addEventListener("click", () => this.#clear());
    byId("older").addEventListener("click", () => this.showOlder());
    this.#tidy();
  }

  /** A job that was just accepted. */
  add(job, request) {
    this.#entries = [{ id: job.id, request }, ...this.#entries].slice(0, MOST);
    this.#shown += 1;
    save("history", this.#entries);
    byId("history").prepend(this.#slot(job.id));
    this.#follow(job, request);
    this.#tidy();
  }

  /** The next page of what was made earlier. */
  async showOlder() {
    const entries = this.#entries.slice(this.#shown, this.#shown + PAGE);
    this.#shown += entries.length;
    byId("history").append(...entries.map(({ id }) => this.#slot(id)));
    this.#tidy();
    const fetchNext = async () => {
      for (let entry = entries.shift(); entry; entry = entries.shift()) await this.#fetch(entry);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, fetchNext));
  }

  /** Draws every picture anew: the colours changed. */
  redraw() {
    for (const cards of this.#cards.values()) cards.forEach((card) => card.redraw());
  }

  #slot(id) {
    const slot = el("li", { "data-job": id });
    this.#slots.set(id, slot);
    return slot;
  }

  async #fetch({ id, request }) {
    const slot = this.#slots.get(id);
    if (!slot) return; // Removed meanwhile.
    slot.replaceChildren(el("p", { class: "loading muted" }, request.prompt));
    try {
      this.#follow(await fetchJob(id), request);
    } catch (error) {
      this.#lost(id, request, error);
    }
    this.#tidy();
  }

  #lost(id, request, error) {
    if (error.status === 404) {
      this.#end(id, "gone", request, null);
      return;
    }
    const retry = el("button", { type: "button", class: "quiet", on: { click: () => this.#fetch({ id, request }) } }, "Try again");
    this.#slots.get(id)?.replaceChildren(el("p", { class: "loading" }, `${request.prompt}: ${error.message} `, retry));
  }

  #follow(job, request) {
    if (isOver(job)) {
      this.#settle(job, request);
      return;
    }
    this.#slots.get(job.id).replaceChildren();
    enqueue(job, (last, error) => {
      if (error) this.#lost(job.id, request, error);
      else {
        this.#settle(last, request);
        this.#say(last);
      }
      this.#tidy();
    });
  }

  #say(job) {
    if (job.status === "completed") {
      announce(`Finished: ${job.parameters.prompt}, ${job.data.map(({ duration }) => `${short(duration)} seconds`).join(", ")}.`);
    } else if (job.status === "failed") {
      announce(`Failed: ${job.error?.message ?? job.parameters.prompt}`);
    }
  }

  #settle(job, request) {
    const slot = this.#slots.get(job.id);
    if (!slot) return; // The history was cleared while it was being made.
    if (!job.data.length) {
      this.#end(job.id, job.status, request, job.error?.message);
      return;
    }
    const { send, use, formats } = this.actions;
    const actions = { send, use, formats: formats(), remove: () => this.#delete(job) };
    const cards = job.data.map((song) => songCard(job, song, actions));
    this.#cards.set(job.id, cards);
    slot.replaceChildren(...cards.map((card) => card.element));
    if (job.status !== "completed") {
      const missing = `${job.n - job.data.length} of ${job.n} songs are missing`;
      slot.append(el("p", { class: "alert" }, job.error ? `${missing}: ${job.error.message}` : `${missing}: cancelled.`));
    }
  }

  #end(id, kind, request, message) {
    const { send, use } = this.actions;
    const actions = { send, use, forget: () => this.#forget(id) };
    this.#slots.get(id)?.replaceChildren(endingCard(kind, essential(request), message, actions));
  }

  async #delete(job) {
    if (!confirm("Delete this from the server and from this list?")) return;
    try {
      await cancelOrDelete(job.id);
    } catch (error) {
      if (error.status !== 404) {
        announce(error.message);
        alert(error.message);
        return;
      }
    }
    this.#forget(job.id);
    announce("Deleted.");
  }

  #forget(id) {
    const slot = this.#slots.get(id);
    const next = slot?.nextElementSibling ?? slot?.previousElementSibling;
    this.#cards.get(id)?.forEach((card) => card.free());
    this.#cards.delete(id);
    this.#slots.delete(id);
    slot?.remove();
    if (this.#entries.some((entry) => entry.id === id)) this.#shown -= 1;
    this.#entries = this.#entries.filter((entry) => entry.id !== id);
    save("history", this.#entries);
    this.#tidy();
    (next?.querySelector("button") ?? byId("songs")).focus({ preventScroll: true });
  }

  #clear() {
    if (!confirm("Clear this list? Songs stay on the server until they expire, but this page forgets them.")) return;
    [...this.#slots.keys()].forEach((id) => this.#forget(id));
    this.#entries = [];
    this.#shown = 0;
    save("history", null);
    this.#tidy();
    announce("The history is cleared.");
  }

  #tidy() {
    byId("empty").hidden = this.#entries.length > 0;
    byId("clear-history").hidden = !this.#entries.length;
    byId("older").hidden = this.#shown >= this.#entries.length;
  }
}
