// Tags to build a prompt of: chips to click, and a field that knows them all.

import { byId, el, roving } from "./dom.js";

const TAGS = {
  Genre: [
    "pop", "rock", "lo-fi hip-hop", "jazz", "bossa nova", "folk", "blues", "soul", "funk", "disco", "house", "techno",
    "drum and bass", "ambient", "synthwave", "trap", "reggae", "country", "metal", "punk", "orchestral", "cinematic",
    "gospel", "k-pop",
  ],
  Instrument: [
    "acoustic guitar", "electric guitar", "piano", "rhodes", "synth pads", "analog synth", "808 bass", "upright bass",
    "bass guitar", "live drums", "drum machine", "strings", "violin", "cello", "brass", "saxophone", "trumpet", "flute",
    "vibraphone", "harp", "organ", "vinyl crackle",
  ],
  Mood: [
    "happy", "melancholic", "dreamy", "energetic", "calm", "romantic", "nostalgic", "dark", "uplifting", "epic",
    "mellow", "playful", "tense", "hopeful", "warm", "groovy",
  ],
  Voice: [
    "female vocals", "male vocals", "duet", "choir", "children's choir", "rap", "whispered", "powerful voice",
    "soft voice", "raspy voice", "falsetto", "autotune", "a cappella", "instrumental",
  ],
  Tempo: [
    "slow", "mid-tempo", "fast", "60 bpm", "80 bpm", "90 bpm", "100 bpm", "110 bpm", "120 bpm", "128 bpm", "140 bpm",
    "174 bpm", "swing", "half-time", "waltz",
  ],
};

const partsOf = (prompt) => prompt.split(",").map((part) => part.trim()).filter(Boolean);
const has = (prompt, tag) => partsOf(prompt).some((part) => part.toLowerCase() === tag.toLowerCase());

/** The prompt with `tag` added at its end, or taken out of it. */
export function toggled(prompt, tag) {
  const parts = partsOf(prompt);
  return (has(prompt, tag) ? parts.filter((part) => part.toLowerCase() !== tag.toLowerCase()) : [...parts, tag]).join(", ");
}

/** Binds chips, tabs and the field to the prompt. */
export function setUpTags(prompt) {
  const [tabs, chips, input] = [byId("tag-kinds"), byId("tag-chips"), byId("tag")];
  const write = (value) => {
    prompt.value = value;
    prompt.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const mark = () =>
    chips.querySelectorAll("button").forEach((chip) => chip.setAttribute("aria-pressed", has(prompt.value, chip.textContent)));
  const show = (kind) => {
    for (const tab of tabs.children) tab.setAttribute("aria-selected", tab.dataset.kind === kind);
    chips.replaceChildren(...TAGS[kind].map((tag) =>
      el("button", { type: "button", on: { click: () => write(toggled(prompt.value, tag)) } }, tag)));
    chips.setAttribute("aria-labelledby", `kind-${kind}`);
    roving(chips);
    roving(tabs);
    mark();
  };
  tabs.append(...Object.keys(TAGS).map((kind) =>
    el("button", {
      type: "button", role: "tab", id: `kind-${kind}`, "data-kind": kind, "aria-controls": "tag-chips",
      on: { click: () => show(kind) },
    }, kind)));
  byId("known-tags").append(...Object.values(TAGS).flat().sort().map((tag) => el("option", { value: tag })));
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const tag = input.value.replaceAll(",", " ").trim();
    if (tag && !has(prompt.value, tag)) write(toggled(prompt.value, tag));
    input.value = "";
  });
  prompt.addEventListener("input", mark);
  show("Genre");
}
