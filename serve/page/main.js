// Puts the page together.

import { submit } from "./api.js";
import { announce, byId, el } from "./dom.js";
import { clearProblem } from "./problems.js";
import { setUpForm } from "./form.js";
import { History } from "./history.js";
import { essential, setDefaults } from "./requests.js";
import { askForKey, setUpSettings } from "./settings.js";
import { greet } from "./status.js";

const EXAMPLES = [
  { prompt: "lo-fi hip-hop, soft piano, vinyl crackle, mellow, 80 bpm", duration: 30 },
  {
    prompt: "folk, acoustic guitar, female vocals, warm, slow",
    lyrics: "[verse]\nThe river keeps the evening light\nA little longer than the town\n\n[chorus]\nStay until the lamps go down\nStay until the lamps go down\n",
    duration: 45,
  },
  { prompt: "synthwave, analog synth, drum machine, energetic, instrumental, 110 bpm", duration: 60 },
];

let formats = ["wav", "flac", "mp3", "ogg", "opus"];

async function send(request) {
  try {
    const job = await submit(request);
    history.add(job, request);
    announce("In the queue.");
  } catch (error) {
    if (error.status === 401) askForKey(error.message);
    throw error;
  }
}

const form = setUpForm(async (request) => {
  await send(request);
  // Where the form fills the view, what came of it is below.
  if (matchMedia("(max-width: 60rem)").matches) byId("songs").scrollIntoView({ block: "start" });
});
const history = new History({ send, use: (request) => form.use(request), formats: () => formats });

let isShown = false;

const begin = () => greet((model) => {
  setDefaults(model.defaults);
  formats = model.formats ?? formats;
  form.fit(model);
  if (!isShown) history.showOlder();
  isShown = true;
});

setUpSettings({
  onKey: () => {
    clearProblem(byId("settings").querySelector("[data-field]"));
    begin();
  },
  onColours: () => history.redraw(),
});

byId("examples").append(...EXAMPLES.map((request) =>
  el("button", { type: "button", class: "example", on: { click: () => form.use(essential(request)) } }, request.prompt)));

begin();
