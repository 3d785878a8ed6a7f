// The card of one finished song.

import { apiKey } from "./api.js";
import { el } from "./dom.js";
import { panelsOf } from "./panels.js";
import { Player } from "./player.js";
import { showError } from "./problems.js";
import { anotherSeed, defaultOf, describe, requestOf } from "./requests.js";
import { copies, curl, python } from "./snippets.js";
import { about, moment, short } from "./wording.js";

/** `actions`: send(body), use(request), remove(), formats. */
export function songCard(job, song, actions) {
  const request = requestOf(job, song);
  const title = job.parameters.target_prompt ?? job.parameters.prompt;
  let panels = null;
  const player = new Player(job.id, song, title, { onSpan: (span) => panels.followSpan(span) });
  panels = panelsOf(job, song, { send: actions.send, select: player.select });
  const alert = el("p", { class: "alert", role: "alert", hidden: true });
  const again = el("button", { type: "button", class: "quiet", on: { click: () => makeAgain() } }, "Another seed");
  const makeAgain = async () => {
    alert.hidden = true;
    again.disabled = true;
    try {
      await actions.send(anotherSeed(job, song));
    } catch (error) {
      showError(card, alert, error);
    } finally {
      again.disabled = false;
    }
  };
  const card = el("article", { class: "song", "aria-label": title },
    el("header", { class: "song-head" }, el("h3", {}, title), el("p", { class: "facts" }, factsOf(job, song))),
    player.element,
    song.warnings?.length ? el("ul", { class: "warnings" }, song.warnings.map((warning) => el("li", {}, warning))) : null,
    el("div", { class: "actions", role: "group", "aria-label": "Make something of this song" }, again, panels.buttons),
    alert,
    panels.holder,
    footOf(job, song, request, player, actions));
  return { element: card, redraw: () => player.draw(), free: () => player.free() };
}

function factsOf(job, song) {
  const facts = [
    job.n > 1 ? `${song.index + 1} of ${job.n}` : "",
    describe(job.parameters),
    `${short(song.duration)} s`,
    `seed ${song.seed}`,
    job.completed_at ? moment(job.completed_at) : "",
  ];
  return facts.filter(Boolean).map((fact) => el("span", {}, fact));
}

function footOf(job, song, request, player, { use, remove, formats }) {
  const stored = song.format ?? job.response_format;
  const downloads = [stored, ...formats.filter((format) => format !== stored)].map((format) => {
    const link = el("a", { href: player.sound.downloadAddress(format), download: true, "aria-label": `Download as ${format}` }, format);
    link.addEventListener("click", async (event) => {
      if (!apiKey()) return;
      event.preventDefault(); // A link carries no key.
      link.setAttribute("aria-busy", "true");
      await player.sound.download(format).catch(() => link.classList.add("failed"));
      link.removeAttribute("aria-busy");
    });
    return link;
  });
  const asCurl = el("button", { type: "button", class: "link" }, "Copy as curl");
  const asPython = el("button", { type: "button", class: "link" }, "Copy as Python");
  copies(asCurl, () => curl(request, defaultOf("response_format")));
  copies(asPython, () => python(request, defaultOf("response_format")));
  return el("footer", { class: "song-foot" },
    el("p", { class: "downloads" }, el("span", { class: "muted" }, "Download"), downloads),
    el("div", { class: "foot-links" },
      asCurl, asPython,
      el("button", { type: "button", class: "link", on: { click: () => use(request) } }, "Use settings"),
      el("button", { type: "button", class: "link danger", on: { click: remove } }, job.n > 1 ? `Delete all ${job.n}` : "Delete")),
    detailsOf(job, request));
}

/** What it was made with, in full. */
function detailsOf(job, request) {
  const rows = Object.entries(request).filter(([name]) => name !== "prompt").map(([name, value]) => [
    el("dt", {}, name), el("dd", {}, typeof value === "string" ? value : JSON.stringify(value)),
  ]);
  const made = job.inference_time_s ? [el("dt", {}, "made in"), el("dd", {}, about(job.inference_time_s))] : [];
  const kept = job.expires_at ? [el("dt", {}, "kept until"), el("dd", {}, moment(job.expires_at))] : [];
  return el("details", { class: "fold details" }, el("summary", {}, "Details"), el("dl", {}, rows, made, kept, el("dt", {}, "job"), el("dd", {}, job.id)));
}
