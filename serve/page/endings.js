// Cards of jobs that have no song: failed, cancelled, or no longer on the server.

import { el } from "./dom.js";
import { showAlert } from "./problems.js";

/** `actions`: send(body), use(request), forget(). `request` is what this browser remembers of the job. */
export function endingCard(kind, request, message, { send, use, forget }) {
  const headline = { failed: "Failed", cancelled: "Cancelled", gone: "No longer on the server" }[kind];
  const alert = el("p", { class: "alert", role: "alert", hidden: true });
  const again = el("button", { type: "button", class: "quiet" }, kind === "failed" ? "Try again" : "Make it again");
  again.addEventListener("click", async () => {
    again.disabled = true;
    try {
      await send(request);
      forget();
    } catch (error) {
      showAlert(alert, error.message);
      again.disabled = false;
    }
  });
  return el("article", { class: `song ending ${kind}`, "aria-label": request.prompt },
    el("header", { class: "song-head" },
      el("h3", {}, request.prompt),
      el("p", { class: "facts" }, el("span", { class: "state" }, headline))),
    message ? el("p", { class: "message" }, message) : null,
    alert,
    el("div", { class: "actions" }, again,
      el("button", { type: "button", class: "quiet", on: { click: () => use(request) } }, "Use settings"),
      el("button", { type: "button", class: "quiet", on: { click: forget } }, "Remove")));
}
