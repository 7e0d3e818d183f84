"use strict";
// Not a module: it runs before the first paint, so that no page flashes in the wrong colours.
(() => {
  const KEY = "filepool.theme";
  const ORDER = ["auto", "light", "dark"];
  let theme = "auto";
  try {
    theme = localStorage.getItem(KEY) || "auto";
  } catch {
    // storage is forbidden here: the system's choice it is
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
        // it lasts as long as the page
      }
      show();
      return theme;
    },
  };
})();
