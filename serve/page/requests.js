// What is sent: requests as short as they can be, and those that begin with a finished song. No page in here.

import { randomSeed } from "./wording.js";

/** Defaults of the API; the served model's own go before them (`setDefaults`). */
const defaults = {
  lyrics: "", language: "auto", normalize_tags: true, duration: 30, num_inference_steps: 27, guidance_scale: 15,
  scheduler: "euler", guidance: "apg", guidance_interval: 0.5, guidance_interval_decay: 0, min_guidance_scale: 3,
  guidance_scale_text: 0, guidance_scale_lyric: 0, oss_steps: [], omega_scale: 10, use_erg_tag: true,
  use_erg_lyric: true, use_erg_diffusion: true, task: "text2music", lora_weight: 1, sample_rate: 44100,
  resampler: "kaiser", response_format: "flac", n: 1, delivery: "url",
};

const ALWAYS = ["prompt", "duration"];
const OF_TASKS = [
  "task", "source", "variance", "variation_seed", "repaint_start", "repaint_end", "extend_left", "extend_right",
  "target_prompt", "target_lyrics", "edit_n_min", "edit_n_max", "edit_n_avg", "reference_strength",
];
const NOT_SENT = ["id", "model", "delivery"];

export const defaultOf = (name) => defaults[name];

export function setDefaults(values) {
  for (const [name, value] of Object.entries(values ?? {})) if (value !== null) defaults[name] = value;
}

const same = (left, right) => JSON.stringify(left) === JSON.stringify(right);

/** A request without what is left open or is the default anyway. */
export function essential(values) {
  return Object.fromEntries(Object.entries(values).filter(([name, value]) =>
    value !== undefined && value !== null && !NOT_SENT.includes(name) &&
    (ALWAYS.includes(name) || !same(value, defaults[name]))));
}

/** The request that makes one song of a job once more: its own seed, alone. (`parameters` may hold the seeds of all.) */
export function requestOf(job, song) {
  const { n, seed, ...settings } = job.parameters;
  return essential({ ...settings, response_format: job.response_format, seed: song.seed });
}

/** Its settings without those of its task. */
function settingsOf(job, song) {
  const request = requestOf(job, song);
  for (const name of OF_TASKS) delete request[name];
  return request;
}

/** As `settingsOf`, for a task that begins with the song's sound: its length is the song's, its steps are plain. */
function onSource(job, song, task) {
  const { oss_steps, ...settings } = settingsOf(job, song);
  const source = song.index === 0 ? `job:${job.id}` : `job:${job.id}/${song.index}`;
  return { ...settings, duration: song.duration, task, source };
}

export const taskOf = (job) => job.parameters.task ?? "text2music";

export const canVary = (job) => !["edit", "audio2audio"].includes(taskOf(job));

export function anotherSeed(job, song) {
  const { variation_seed, ...request } = requestOf(job, song);
  return { ...request, seed: randomSeed() };
}

/** Near the song: the same seed, its noise turned a little. A repainted or extended song is varied as what it is. */
export function vary(job, song, { variance }) {
  const request = requestOf(job, song);
  const task = taskOf(job) === "text2music" ? "retake" : taskOf(job);
  return { ...request, task, variance, variation_seed: randomSeed() };
}

/** Other words than the song's own, where they differ. */
const otherWords = ({ prompt, lyrics }) => essential({ prompt: prompt || undefined, lyrics: lyrics ?? undefined });

/** An end at the song's own end is left open: the song is whole latent frames, and the last must not be cut off. */
export function repaint(job, song, { start, end, variance, ...words }) {
  const span = { repaint_start: start, repaint_end: end !== undefined && end >= song.duration - 0.01 ? undefined : end };
  const request = { ...onSource(job, song, "repaint"), ...otherWords(words), ...span, variation_seed: randomSeed() };
  return essential({ ...request, variance: variance === 1 ? undefined : variance });
}

export function extend(job, song, { left, right, ...words }) {
  const sides = { extend_left: left || undefined, extend_right: right || undefined };
  return essential({ ...onSource(job, song, "extend"), ...otherWords(words), ...sides, variation_seed: randomSeed() });
}

export function edit(job, song, { prompt, lyrics, from, to }) {
  const request = onSource(job, song, "edit");
  return essential({
    ...request,
    target_prompt: prompt && prompt !== request.prompt ? prompt : undefined,
    target_lyrics: lyrics !== undefined && lyrics !== (request.lyrics ?? "") ? lyrics : undefined,
    edit_n_min: from === 0 ? undefined : from,
    edit_n_max: to === 1 ? undefined : to,
  });
}

/** What a request is, in a few words. */
export function describe(request) {
  const number = (value) => String(Math.round(value * 100) / 100);
  switch (request.task ?? "text2music") {
    case "retake": return `variation, ${number(request.variance ?? 0.5)}`;
    case "repaint": {
      const end = request.repaint_end ?? request.duration;
      return `repainted ${number(request.repaint_start ?? 0)} to ${end === undefined ? "the end" : `${number(end)} s`}`;
    }
    case "extend": {
      const sides = [["before", request.extend_left], ["after", request.extend_right]].filter(([, value]) => value);
      return `extended by ${sides.map(([side, value]) => `${number(value)} s ${side}`).join(", ")}`;
    }
    case "edit": return "edited";
    case "audio2audio": return "from audio";
    default: return "";
  }
}
