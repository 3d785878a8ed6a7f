// The audio of one song: where it is, what it looks like, and its bytes where a key is needed to get them.

import { apiKey, contentPath, request, ROOT } from "./api.js";

const TYPES = { wav: "audio/wav", flac: "audio/flac", mp3: "audio/mpeg", ogg: "audio/ogg", opus: "audio/ogg; codecs=opus" };
const BUCKETS = 2048;
const AT_ONCE = 2;

/** Decoded audio is large (85 MB for four minutes): few at a time, and none is kept. */
let running = 0;
const waiting = [];

async function inTurn(work) {
  if (running >= AT_ONCE) await new Promise((resolve) => waiting.push(resolve));
  running += 1;
  try {
    return await work();
  } finally {
    running -= 1;
    waiting.shift()?.();
  }
}

export class Sound {
  #blobUrl = null;
  #peaks = null;

  constructor(jobId, song) {
    this.jobId = jobId;
    this.song = song;
    const plays = new Audio().canPlayType(TYPES[song.format] ?? "");
    this.format = plays ? null : "mp3"; // What this browser cannot play is converted on the way.
  }

  #path(options) {
    return contentPath(this.jobId, this.song.index, options);
  }

  /** An address for an audio element; it carries no key, so with one it is the bytes themselves. */
  async address() {
    if (!apiKey()) return new URL(this.#path({ format: this.format }), ROOT).href;
    this.#blobUrl ??= URL.createObjectURL(await this.#blob({ format: this.format }));
    return this.#blobUrl;
  }

  async #blob(options) {
    return (await request(this.#path(options))).blob();
  }

  downloadAddress(format) {
    return new URL(this.#path({ format, download: true }), ROOT).href;
  }

  /** Fetches a file with the key and hands it to the browser. */
  async download(format) {
    const address = URL.createObjectURL(await this.#blob({ format, download: true }));
    const link = document.createElement("a");
    link.href = address;
    link.download = `${this.jobId}-${this.song.index}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }

  /** The decoded song, given to `work`. */
  #decoded(work) {
    return inTurn(async () => {
      const bytes = this.#blobUrl
        ? await (await fetch(this.#blobUrl)).arrayBuffer()
        : await (await request(this.#path({ format: this.format }))).arrayBuffer();
      const context = new OfflineAudioContext(1, 1, this.song.sample_rate ?? 44_100);
      return work(await context.decodeAudioData(bytes));
    });
  }

  /** The loudest sample of each of 2,048 parts of the song, 0 to 1, over both channels. */
  peaks() {
    this.#peaks ??= this.#decoded(peaksOf).catch((error) => {
      this.#peaks = null;
      throw error;
    });
    return this.#peaks;
  }

  /** Both channels as one, and the sample rate. */
  mono() {
    return this.#decoded((audio) => ({ samples: monoOf(audio), sampleRate: audio.sampleRate }));
  }

  free() {
    if (this.#blobUrl) URL.revokeObjectURL(this.#blobUrl);
    this.#blobUrl = null;
  }
}

function peaksOf(audio) {
  const peaks = new Float32Array(BUCKETS);
  for (let channel = 0; channel < audio.numberOfChannels; channel += 1) {
    const samples = audio.getChannelData(channel);
    const width = samples.length / BUCKETS;
    for (let bucket = 0; bucket < BUCKETS; bucket += 1) {
      const end = Math.min(samples.length, Math.ceil((bucket + 1) * width));
      let peak = peaks[bucket];
      for (let at = Math.floor(bucket * width); at < end; at += 1) peak = Math.max(peak, Math.abs(samples[at]));
      peaks[bucket] = peak;
    }
  }
  return peaks;
}

function monoOf(audio) {
  const sum = audio.getChannelData(0).slice();
  for (let channel = 1; channel < audio.numberOfChannels; channel += 1) {
    audio.getChannelData(channel).forEach((sample, at) => (sum[at] += sample));
  }
  return sum;
}
