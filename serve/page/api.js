// The server's HTTP interface. Every call carries the API key, if there is one.

import { load, save } from "./store.js";

export const ROOT = new URL(".", document.baseURI).href;

export const apiKey = () => load("api_key", "");
export const keepApiKey = (key) => save("api_key", key || null);

/** What the server said about a request that it refused; `status` 0: it was not reached. */
export class ApiError extends Error {
  constructor(status, error = {}, retryAfter = null) {
    super(error.message || (status ? `The server answered ${status}.` : "The server cannot be reached."));
    this.status = status;
    this.code = error.code ?? null;
    this.problems = error.problems?.length
      ? error.problems
      : error.param
        ? [{ param: error.param, message: error.message }]
        : [];
    this.retryAfter = retryAfter;
  }
}

const GET_TRIES = 4;

/** A response that is not an error; raises `ApiError`. What only reads is asked again when there was too much at once. */
export async function request(path, options = {}) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await once(path, options);
    } catch (error) {
      if (error.status !== 429 || (options.method ?? "GET") !== "GET" || tried === GET_TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, Math.min(error.retryAfter ?? 1, 60) * 1000));
    }
  }
}

async function once(path, { method = "GET", body, form, signal, headers = {} }) {
  const sent = { ...headers };
  if (apiKey()) sent.Authorization = `Bearer ${apiKey()}`;
  if (body) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { method, headers: sent, body: form ?? (body && JSON.stringify(body)), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new ApiError(response.status, told.error, seconds(response.headers.get("Retry-After")));
}

const json = async (path, options) => (await request(path, options)).json();

/** Retry-After holds seconds, or a date behind some proxies. */
function seconds(retryAfter) {
  if (!retryAfter) return null;
  const number = Number(retryAfter);
  return Number.isFinite(number) ? number : Math.max(1, Math.ceil((Date.parse(retryAfter) - Date.now()) / 1000));
}

export const model = async () => (await json("v1/models")).data[0];
export const ready = () => json("ready");
export const submit = (body) => json("v1/audio/jobs", { method: "POST", body });
export const job = (id, signal) => json(`v1/audio/jobs/${encodeURIComponent(id)}`, { signal });
export const cancelOrDelete = (id) => json(`v1/audio/jobs/${encodeURIComponent(id)}`, { method: "DELETE" });

export function upload(file) {
  const form = new FormData();
  form.append("file", file);
  return json("v1/audio/uploads", { method: "POST", form });
}

/** Where a song's audio is; `format` null: as it was stored. */
export function contentPath(id, index, { format = null, download = false } = {}) {
  const query = new URLSearchParams({ index });
  if (format) query.set("format", format);
  if (download) query.set("download", "1");
  return `v1/audio/jobs/${encodeURIComponent(id)}/content?${query}`;
}

/** The job, each time it changes. Read with fetch, for an EventSource cannot carry a key. */
export async function* events(id, signal) {
  const path = `v1/audio/jobs/${encodeURIComponent(id)}/events`;
  const response = await request(path, { signal, headers: { Accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const messages = (text + value).replaceAll("\r\n", "\n").split("\n\n");
    text = messages.pop();
    for (const message of messages) {
      const lines = message.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield JSON.parse(lines.map((line) => line.slice(5)).join("\n"));
    }
  }
}
