// Values that outlive the page, in localStorage; without it (private windows), they last as long as the page.

const PREFIX = "acestep.";
const fallback = new Map();

export function load(name, otherwise = null) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return fallback.has(name) ? fallback.get(name) : otherwise;
  }
}

export function save(name, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    fallback.set(name, value);
  }
}
