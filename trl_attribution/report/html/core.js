"use strict";
// What every part of the page stands on: the data, and elements made without any markup.
const page = (() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);

  const bytes = (text) => {
    const raw = atob(text);
    const found = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
    return found;
  };
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const integers = (text) => new Uint32Array(bytes(text).buffer);

  // Text only ever becomes a text node: what a dataset holds is shown, never parsed.
  const make = (tag, options = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(options)) {
      if (name === "class") made.className = value;
      else if (value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };

  const stored = {
    get(name, fallback) {
      try {
        return localStorage.getItem(`trl-attribution/1/${name}`) ?? fallback;
      } catch {
        return fallback;
      }
    },
    set(name, value) {
      try {
        localStorage.setItem(`trl-attribution/1/${name}`, value);
        return true;
      } catch {
        return false;
      }
    },
  };

  const count = (value) => value.toLocaleString("en-US");
  const plural = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
  // What an example is called, and what can be done to it.
  const { kind } = data;
  const capital = (word) => word[0].toUpperCase() + word.slice(1);

  const themes = ["auto", "light", "dark"];
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  let theme = stored.get("theme", "auto");
  // What is drawn in pixels rather than in CSS variables has to be drawn anew.
  const themed = [];
  const applyTheme = () => {
    const dark = theme === "dark" || (theme === "auto" && darkSystem.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    find("theme").textContent = `Theme: ${theme}`;
    themed.forEach((listener) => listener());
  };
  find("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    stored.set("theme", theme);
    applyTheme();
  });
  darkSystem.addEventListener("change", applyTheme);
  applyTheme();

  return { find, data, bytes, floats, integers, make, stored, count, plural, kind, capital, onTheme: (listener) => themed.push(listener) };
})();
