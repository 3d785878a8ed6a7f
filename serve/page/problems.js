// Errors, each beside the field that it is about.

const placeOf = (root, name) => root.querySelector(`[data-field="${CSS.escape(name)}"]`);

/** Shows a message beside the field `name`; false: there is no such field here. */
export function showProblem(root, name, message) {
  const place = placeOf(root, name);
  const control = place?.querySelector("[name]");
  if (!control) return false;
  for (let fold = place.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  const text = place.querySelector(".error");
  text.id ||= `${control.id}-error`;
  text.textContent = sentence(name, message);
  text.hidden = false;
  control.setAttribute("aria-invalid", "true");
  const others = (control.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => id && id !== text.id);
  control.setAttribute("aria-describedby", [text.id, ...others].join(" "));
  return true;
}

export function clearProblem(place) {
  const text = place.querySelector(".error");
  const control = place.querySelector("[name]");
  if (!text || !control?.hasAttribute("aria-invalid")) return;
  text.hidden = true;
  text.textContent = "";
  control.removeAttribute("aria-invalid");
  const others = control.getAttribute("aria-describedby").split(" ").filter((id) => id !== text.id);
  if (others.length) control.setAttribute("aria-describedby", others.join(" "));
  else control.removeAttribute("aria-describedby");
}

/** Takes all errors away, and a field's own as soon as it changes. */
export function clearProblems(root, alert) {
  root.querySelectorAll("[data-field]").forEach(clearProblem);
  showAlert(alert, "");
}

export function clearOnInput(root) {
  root.addEventListener("input", (event) => {
    const place = event.target.closest("[data-field]");
    if (place) clearProblem(place);
  });
}

/** Shows an `ApiError`: beside its fields in `root`, the rest in `alert`. The first bad field has the focus. */
export function showError(root, alert, error) {
  const homeless = error.problems.filter(({ param, message }) => {
    const name = String(param ?? "").split(".").filter((part) => !/^\d+$/.test(part)).pop() ?? "";
    return !showProblem(root, name, message);
  });
  const first = root.querySelector("[aria-invalid=true]");
  if (error.retryAfter) countDown(alert, error);
  else if (homeless.length) showAlert(alert, homeless.map(({ message }) => message).join(" "));
  else if (!error.problems.length) showAlert(alert, error.message);
  first?.focus();
}

export function showAlert(alert, text) {
  clearInterval(alert.countdown);
  alert.textContent = text;
  alert.hidden = !text;
}

/** A busy server says when to come back. */
function countDown(alert, error) {
  const until = Date.now() + error.retryAfter * 1000;
  showAlert(alert, `${sentence("", error.message)} `);
  const when = document.createElement("span");
  alert.append(when);
  // The alert is read out once, with the first number; the rest is for the eye.
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    when.textContent = left > 0 ? `Try again in ${left} s.` : "You can try again now.";
    if (left <= 0) clearInterval(alert.countdown);
  };
  tick();
  when.setAttribute("aria-live", "off");
  alert.countdown = setInterval(tick, 1000);
}

/** The server's message without the name of the field that it stands beside. */
function sentence(name, message) {
  const text = String(message ?? "").trim();
  const bare = name && text.startsWith(`${name}: `) ? text.slice(name.length + 2) : text;
  const capital = bare.charAt(0).toUpperCase() + bare.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}
