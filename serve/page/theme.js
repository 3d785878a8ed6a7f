// Not a module: it runs before the first paint, so that the page never flashes in the other colours.
(() => {
  try {
    const theme = JSON.parse(localStorage.getItem("acestep.theme"));
    if (theme) document.documentElement.dataset.theme = theme;
  } catch {
    // No storage, no choice: the system's colours.
  }
})();
