// A song as bars, drawn at the resolution of the screen.

const BAR = 2;
const GAP = 1;

/** Sizes a canvas to the pixels it covers, and gives its context in CSS pixels. */
export function fitted(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  const pixels = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** Draws peaks 0 to 1; the share `played` in the colour `accent`, the rest in `rest`. Quiet songs fill the height too. */
export function drawWaveform(canvas, peaks, played, { accent, rest }) {
  const { context, width, height } = fitted(canvas);
  if (!width) return;
  const count = Math.floor(width / (BAR + GAP));
  const top = Math.max(0.05, peaks.reduce((most, peak) => Math.max(most, peak), 0));
  for (let bar = 0; bar < count; bar += 1) {
    const from = Math.floor((bar * peaks.length) / count);
    const to = Math.max(from + 1, Math.floor(((bar + 1) * peaks.length) / count));
    let peak = 0;
    for (let at = from; at < to; at += 1) peak = Math.max(peak, peaks[at]);
    const tall = Math.max(2, (peak / top) * (height - 8));
    context.fillStyle = bar / count < played ? accent : rest;
    context.beginPath();
    context.roundRect(bar * (BAR + GAP), (height - tall) / 2, BAR, tall, BAR / 2);
    context.fill();
  }
}
