"use strict";
// Not a module: it runs before the first paint, so that the page never flashes in the wrong colours.
(() => {
  const KEY = "filepool.theme";
  const ORDER = ["auto", "light", "dark"];
  let theme = "auto";
  try {
    theme = localStorage.getItem(KEY) || "auto";
  } catch {
    // storage is disabled: use the theme of the system
  }
  const show = () => {
    document.documentElement.dataset.theme = ORDER.includes(theme) ? theme : "auto";
  };
  show();
  window.filepoolTheme = {
    get: () => document.documentElement.dataset.theme,
    next: () => {
      theme = ORDER[(ORDER.indexOf(document.documentElement.dataset.theme) + 1) % ORDER.length];
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // storage is disabled: the theme lasts until the page closes
      }
      show();
      return theme;
    },
  };
})();
