// A song as a picture of its frequencies: time to the right, pitch upwards (logarithmic), loudness as light.

import { fitted } from "./waveform.js";

const SIZE = 2048;
const LOWEST = 40;
const RANGE_DB = 80;
const MARKS = [100, 1000, 5000];

/** Magnitudes of the first half of the spectrum of a window, by a radix-2 FFT in place. */
export function makeFft(size) {
  const bits = Math.log2(size);
  const reversed = Uint32Array.from({ length: size }, (_, at) => {
    let result = 0;
    for (let bit = 0; bit < bits; bit += 1) if (at & (1 << bit)) result |= 1 << (bits - 1 - bit);
    return result;
  });
  const cosines = Float64Array.from({ length: size / 2 }, (_, at) => Math.cos((2 * Math.PI * at) / size));
  const sines = Float64Array.from({ length: size / 2 }, (_, at) => -Math.sin((2 * Math.PI * at) / size));
  const [real, imaginary] = [new Float64Array(size), new Float64Array(size)];
  return (window_) => {
    imaginary.fill(0);
    for (let at = 0; at < size; at += 1) real[reversed[at]] = window_[at];
    for (let span = 2; span <= size; span *= 2) {
      const [half, stride] = [span / 2, size / span];
      for (let start = 0; start < size; start += span) {
        for (let at = 0; at < half; at += 1) {
          const [low, high] = [start + at, start + at + half];
          const [c, s] = [cosines[at * stride], sines[at * stride]];
          const r = real[high] * c - imaginary[high] * s;
          const i = real[high] * s + imaginary[high] * c;
          real[high] = real[low] - r;
          imaginary[high] = imaginary[low] - i;
          real[low] += r;
          imaginary[low] += i;
        }
      }
    }
    return Float32Array.from({ length: size / 2 }, (_, at) => Math.hypot(real[at], imaginary[at]));
  };
}

/** Loudness in dB below the loudest place, `columns` of `rows`; row 0 is the highest frequency. */
export function spectrogramOf(samples, sampleRate, columns, rows) {
  const fft = makeFft(SIZE);
  const hann = Float32Array.from({ length: SIZE }, (_, at) => 0.5 - 0.5 * Math.cos((2 * Math.PI * at) / (SIZE - 1)));
  const top = Math.min(20_000, sampleRate / 2);
  // The edges of the rows, in bins; low rows are narrower than a bin and read between two.
  const edges = Float64Array.from({ length: rows + 1 }, (_, row) =>
    (LOWEST * (top / LOWEST) ** (1 - row / rows) * SIZE) / sampleRate);
  const picture = new Float32Array(columns * rows);
  const part = new Float32Array(SIZE);
  let loudest = 1e-9;
  for (let column = 0; column < columns; column += 1) {
    const start = Math.round(((column + 0.5) * samples.length) / columns - SIZE / 2);
    for (let at = 0; at < SIZE; at += 1) part[at] = (samples[start + at] ?? 0) * hann[at];
    const magnitudes = fft(part);
    for (let row = 0; row < rows; row += 1) {
      const value = between(magnitudes, edges[row + 1], edges[row]);
      picture[column * rows + row] = value;
      loudest = Math.max(loudest, value);
    }
  }
  return picture.map((value) => 20 * Math.log10(Math.max(value, 1e-9) / loudest));
}

/** The loudest bin from `low` to `high`, both fractional. */
function between(magnitudes, low, high) {
  const read = (bin) => {
    const at = Math.min(Math.floor(bin), magnitudes.length - 2);
    return magnitudes[at] + (magnitudes[at + 1] - magnitudes[at]) * (bin - at);
  };
  let most = Math.max(read(low), read(high));
  for (let bin = Math.ceil(low); bin < Math.min(high, magnitudes.length); bin += 1) most = Math.max(most, magnitudes[bin]);
  return most;
}

// Dark to light, even in brightness, and told apart by the colour-blind.
const STOPS = [[10, 12, 28], [38, 28, 92], [98, 36, 128], [168, 54, 118], [226, 94, 84], [252, 164, 80], [252, 240, 176]];
const COLOURS = Uint8Array.from({ length: 256 * 3 }, (_, at) => {
  const place = (Math.floor(at / 3) / 255) * (STOPS.length - 1);
  const stop = Math.min(Math.floor(place), STOPS.length - 2);
  const [from, to] = [STOPS[stop][at % 3], STOPS[stop + 1][at % 3]];
  return Math.round(from + (to - from) * (place - stop));
});

/** Draws mono samples; gives a canvas of the picture, so that it need not be computed again. */
export function pictureOf(samples, sampleRate, columns, rows) {
  const levels = spectrogramOf(samples, sampleRate, columns, rows);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let column = 0; column < columns; column += 1) {
    for (let row = 0; row < rows; row += 1) {
      const light = Math.max(0, Math.min(255, Math.round((1 + levels[column * rows + row] / RANGE_DB) * 255)));
      const to = (row * columns + column) * 4;
      image.data.set(COLOURS.subarray(light * 3, light * 3 + 3), to);
      image.data[to + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Puts the picture on the visible canvas, with marks in Hz. */
export function drawSpectrogram(canvas, picture, sampleRate) {
  const { context, width, height } = fitted(canvas);
  context.drawImage(picture, 0, 0, width, height);
  const top = Math.min(20_000, sampleRate / 2);
  context.font = "10px system-ui, sans-serif";
  context.textBaseline = "middle";
  for (const hertz of MARKS) {
    const y = height * (1 - Math.log(hertz / LOWEST) / Math.log(top / LOWEST));
    context.fillStyle = "rgb(255 255 255 / 25%)";
    context.fillRect(0, y, width, 0.5);
    context.shadowColor = "#000";
    context.shadowBlur = 3;
    context.fillStyle = "#fff";
    context.fillText(hertz < 1000 ? `${hertz} Hz` : `${hertz / 1000} kHz`, 5, y - 7);
    context.shadowBlur = 0;
  }
}
