// The key, and light or dark.

import { apiKey, keepApiKey } from "./api.js";
import { byId, icon } from "./dom.js";
import { showProblem } from "./problems.js";
import { load, save } from "./store.js";

/** `onKey()` after the key changed, `onColours()` after light became dark or dark light. */
export function setUpSettings({ onKey, onColours }) {
  const key = byId("api-key");
  key.value = apiKey();
  key.addEventListener("change", () => {
    keepApiKey(key.value.trim());
    onKey();
  });
  byId("settings-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.blur(); // Which makes a change of it count.
    byId("settings").open = false;
  });
  const settings = byId("settings");
  settings.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !settings.open) return;
    settings.open = false;
    settings.querySelector("summary").focus();
  });
  document.addEventListener("pointerdown", (event) => {
    if (settings.open && !settings.contains(event.target) && !key.hasAttribute("aria-invalid")) settings.open = false;
  });

  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (load("theme") ?? (system.matches ? "dark" : "light")) === "dark";
  const button = byId("theme");
  const show = () => {
    const chosen = load("theme");
    if (chosen) document.documentElement.dataset.theme = chosen;
    else delete document.documentElement.dataset.theme;
    button.setAttribute("aria-pressed", isDark());
    onColours();
  };
  button.append(icon("moon"));
  button.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    // Back at the system's own choice, the page follows the system again.
    save("theme", (next === "dark") === system.matches ? null : next);
    show();
  });
  system.addEventListener("change", show);
  show();
}

/** Opens the settings at the key, when the server wants another. */
export function askForKey(message) {
  byId("settings").open = true;
  showProblem(byId("settings"), "api_key", message);
  byId("api-key").focus();
}
