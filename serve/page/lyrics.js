// Buttons that put the parts of a song into the lyrics, as tags that the model was trained on.

import { byId, el, roving } from "./dom.js";

const PARTS = {
  intro: "[intro]", verse: "[verse]", "pre-chorus": "[pre-chorus]", chorus: "[chorus]", hook: "[hook]",
  bridge: "[bridge]", solo: "[solo]", break: "[break]", instrumental: "[inst]", outro: "[outro]",
};

/** The text with `tag` on a line of its own at the cursor, and where the cursor is then. */
export function withTag(text, at, tag) {
  const before = text.slice(0, at);
  const after = text.slice(at).replace(/^\n+/, "");
  const gap = !before.trim() ? "" : before.endsWith("\n\n") ? "" : before.endsWith("\n") ? "\n" : "\n\n";
  const start = `${before.trim() ? before : ""}${gap}${tag}\n`;
  return { text: after ? `${start}\n${after}` : start, cursor: start.length };
}

export function setUpLyrics(lyrics) {
  const bar = byId("lyric-tags");
  const insert = (tag) => {
    const { text, cursor } = withTag(lyrics.value, lyrics.selectionStart ?? lyrics.value.length, tag);
    lyrics.value = text;
    lyrics.focus();
    lyrics.setSelectionRange(cursor, cursor);
    lyrics.dispatchEvent(new Event("input", { bubbles: true }));
  };
  bar.append(...Object.entries(PARTS).map(([name, tag]) =>
    el("button", { type: "button", "aria-label": `Insert ${name}`, on: { click: () => insert(tag) } }, name)));
  roving(bar);
}
