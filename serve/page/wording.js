// Numbers as people say them.

/** Seconds as 1:05. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds + 0.5));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** A length of time, roughly. */
export function about(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** Seconds with at most two decimals. */
export const short = (seconds) => String(Math.round(seconds * 100) / 100);

/** Unix seconds as a time of day, with the date unless it is today. */
export function moment(unix) {
  const when = new Date(unix * 1000);
  const today = when.toDateString() === new Date().toDateString();
  const time = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return today ? time : `${when.toLocaleDateString([], { day: "numeric", month: "short" })} ${time}`;
}

/** A seed that every JSON reader keeps exact. */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];
