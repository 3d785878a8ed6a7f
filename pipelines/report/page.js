"use strict";
// The page is whole without this: it adds a filter, one song at a time, and a needle that follows the sound.
const players = [...document.querySelectorAll(".sound")];
for (const figure of players) {
  const audio = figure.querySelector("audio");
  const pictures = figure.querySelector(".pictures");
  const needle = figure.querySelector(".needle");
  const start = Number(figure.dataset.start), total = Number(figure.dataset.total), length = Number(figure.dataset.length);
  const follow = () => {
    needle.hidden = false;
    needle.style.left = `${(100 * Math.min(start + audio.currentTime, total)) / total}%`;
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    follow();
  });
  audio.addEventListener("seeked", follow);
  pictures.addEventListener("click", (event) => {
    const box = pictures.getBoundingClientRect();
    const wanted = ((event.clientX - box.left) / box.width) * total - start;
    const seek = () => { audio.currentTime = Math.min(Math.max(wanted, 0), length); };
    if (audio.readyState) seek(); else audio.addEventListener("loadedmetadata", seek, { once: true });
    audio.play();
  });
}
const filter = document.querySelector("#filter");
if (filter) {
  const rows = [...document.querySelectorAll("#kinds tbody tr")];
  filter.parentElement.hidden = false;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    filter.nextElementSibling.value = words.length ? `${shown} of ${rows.length} kinds` : "";
  });
}
