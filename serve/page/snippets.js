// A request as commands to paste elsewhere. Keys are never written into them.

import { apiKey, ROOT } from "./api.js";

const KEY = "ACESTEP_API_KEY";

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const extensionOf = (request, format) => request.response_format ?? format;

/** A shell command that makes the song and keeps it; several songs are answered as JSON with their addresses. */
export function curl(request, format) {
  const one = (request.n ?? 1) === 1;
  return [
    `curl ${quoted(new URL("v1/audio/generations", ROOT).href)}`,
    apiKey() && `-H "Authorization: Bearer $${KEY}"`,
    "-H 'Content-Type: application/json'",
    one && "-H 'Accept: audio/*'",
    `-d ${quoted(JSON.stringify(request))}`,
    one && `--fail-with-body -o song.${extensionOf(request, format)}`,
  ].filter(Boolean).join(" \\\n  ");
}

/** The same with the Python client, which reads the key from the environment by itself. */
export function python(request, format) {
  const file = extensionOf(request, format);
  const settings = Object.entries(request).map(([name, value]) => `    ${name}=${literal(value)},\n`).join("");
  const call = `Client(${literal(ROOT.replace(/\/$/, ""))}).generate(\n${settings})`;
  const kept = (request.n ?? 1) === 1
    ? `${call}.save("song.${file}")`
    : `songs = ${call}\nfor number, song in enumerate(songs, 1):\n    song.save(f"song-{number}.${file}")`;
  return `from acestep.client import Client\n\n${kept}\n`;
}

function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  return JSON.stringify(value);
}

/** Copies text; the modern way needs HTTPS or localhost, so there is an old one too. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser does not let this page copy");
}

/** Makes `button` copy what `text()` gives, and say so. */
export function copies(button, text) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    try {
      await copy(text());
      button.textContent = "Copied";
    } catch (error) {
      button.textContent = error instanceof RangeError ? "Mend the form first" : "Could not copy";
    }
    button.setAttribute("aria-live", "polite");
    setTimeout(() => (button.textContent = label), 1800);
  });
}
