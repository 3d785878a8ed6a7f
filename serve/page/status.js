// What the server says about itself: its model, and whether it is ready.

import { model as fetchModel, ready } from "./api.js";
import { byId, el } from "./dom.js";
import { askForKey } from "./settings.js";

const AGAIN_MS = 3000;
let generation = 0;

const pause = () => new Promise((resolve) => setTimeout(resolve, AGAIN_MS));

function banner(id, text) {
  const there = byId(id);
  if (!text) there?.remove();
  else if (there) there.textContent = text;
  else byId("banners").append(el("p", { class: "banner", id }, text));
}

/** Asks until the server knows its model and is ready; `onModel(model)` once. Called again after the key changed. */
export async function greet(onModel) {
  const mine = ++generation;
  const known = learn(onModel, mine);
  while (mine === generation) {
    try {
      await ready();
      break;
    } catch (error) {
      const text = error.status ? "The model is warming up. What you ask for now waits until it is ready." : error.message;
      banner("warming", text);
    }
    await pause();
  }
  banner("warming", "");
  await known;
}

async function learn(onModel, mine) {
  while (mine === generation) {
    try {
      const model = await fetchModel();
      byId("model").textContent = `${model.id}, ${model.dtype}`;
      banner("random", model.random_weights ? "This model has random weights: it makes noise, not music." : "");
      onModel(model);
      return;
    } catch (error) {
      if ([401, 403].includes(error.status)) {
        askForKey(error.message);
        return;
      }
    }
    await pause();
  }
}
