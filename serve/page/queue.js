// Jobs that are waiting or being made, each with its progress.

import { cancelOrDelete } from "./api.js";
import { announce, byId, el } from "./dom.js";
import { describe } from "./requests.js";
import { isOver, watch } from "./watch.js";
import { about } from "./wording.js";

/** Follows a job in the list; `onEnd(job, error)` once, with the job when it is over or the error when it is lost. */
export function enqueue(job, onEnd) {
  const stop = new AbortController();
  const row = rowOf(job, stop);
  byId("queue").append(row.element);
  byId("queue-section").hidden = false;
  row.show(job);
  let last = job;
  const end = (error) => {
    const hadFocus = row.element.contains(document.activeElement);
    row.element.remove();
    byId("queue-section").hidden = !byId("queue").children.length;
    if (hadFocus) byId("songs").focus({ preventScroll: true });
    onEnd(last, error);
  };
  const changed = (now) => {
    last = now;
    row.show(now);
  };
  if (isOver(job)) end();
  else watch(job.id, changed, row.trouble, stop.signal).then(() => end(), end);
}

function rowOf(job, stop) {
  const state = el("p", { class: "state" });
  const bar = el("div", { class: "bar" });
  const progress = el("div", {
    class: "progress", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": job.parameters.prompt,
  }, bar);
  const cancel = el("button", { type: "button", class: "quiet", "aria-label": `Cancel ${job.parameters.prompt}` }, "Cancel");
  cancel.addEventListener("click", async () => {
    cancel.disabled = true;
    try {
      await cancelOrDelete(job.id);
      announce("Cancelled.");
    } catch (error) {
      state.textContent = error.message;
      cancel.disabled = false;
    }
  });
  const facts = [describe(job.parameters), `${Math.round(job.parameters.duration)} s`, job.n > 1 ? `${job.n} songs` : ""];
  const element = el("li", { class: "job", "data-job": job.id },
    el("div", { class: "job-text" },
      el("p", { class: "job-title" }, job.parameters.target_prompt ?? job.parameters.prompt),
      el("p", { class: "facts" }, facts.filter(Boolean).map((fact) => el("span", {}, fact))),
      state),
    cancel, progress);
  let said = "";
  return {
    element,
    show(now) {
      const percent = Math.round(now.progress * 100);
      bar.style.width = `${percent}%`;
      const text = wordsOf(now);
      state.textContent = text;
      element.classList.toggle("running", now.status === "in_progress");
      if (now.status === "queued") progress.removeAttribute("aria-valuenow");
      else progress.setAttribute("aria-valuenow", percent);
      progress.setAttribute("aria-valuetext", text);
      const spoken = now.status === "queued" ? text : now.status;
      if (said && said !== spoken && now.status === "in_progress") announce(`${now.parameters.prompt}: being made.`);
      said = spoken;
    },
    trouble(isThere) {
      element.classList.toggle("troubled", isThere);
      if (isThere) state.textContent = "No answer from the server; trying again.";
    },
  };
}

function wordsOf({ status, queue_position: position, expected_wait_seconds: wait, step, steps, attempts }) {
  if (status === "queued") {
    const place = !position ? "Waiting" : position === 1 ? "Next" : `${position - 1} before it`;
    return wait === null || wait === undefined ? place : `${place}, starts in about ${about(wait)}`;
  }
  if (status !== "in_progress") return "";
  const again = attempts > 1 ? `, attempt ${attempts}` : "";
  if (!steps || !step) return `Beginning${again}`;
  return step < steps ? `Step ${step} of ${steps}${again}` : `Writing the sound${again}`;
}
