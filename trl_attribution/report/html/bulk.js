"use strict";
// One decision about many pairs: all that are shown, or the first of them, as one step that undo takes back.
const bulk = (() => {
  if (!rows) return null;
  const { find, make, count, plural, kind, capital } = page;
  const actions = [...kind.actions, null];

  const chosen = () => {
    const shown = Array.from(browser.shown());
    const upTo = shown.indexOf(browser.selected()) + 1;
    const within = find("bulk-first").checked ? shown.slice(0, upTo) : shown;
    const decided = within.filter((i) => decisions.at(i));
    return { shown, upTo, decided, places: find("bulk-skip").checked ? within.filter((i) => !decisions.at(i)) : within };
  };

  const draw = () => {
    const { shown, upTo, decided, places } = chosen();
    find("bulk-all-label").textContent = `All ${plural(shown.length, kind.one)} of the list as it is filtered and sorted`;
    find("bulk-first-label").textContent = upTo === 1 ? "The first one, which is open" : `The first ${count(upTo)}, up to the one that is open`;
    find("bulk-skip-label").textContent = decided.length
      ? `Leave the ${plural(decided.length, kind.one)} as they are that have a decision`
      : `Leave ${kind.several} as they are that have a decision (none of these has)`;
    find("bulk-count").textContent = `${plural(places.length, kind.one)} will be marked.`;
    for (const button of find("bulk-actions").children) {
      const clears = button.dataset.bulk === "";
      button.disabled = clears ? find("bulk-skip").checked || !decided.length : !places.length;
    }
  };

  const act = (action) => {
    const { places } = chosen();
    const changing = action === null ? places.filter((i) => decisions.at(i)) : places;
    find("bulk").close();
    decisions.decide(changing, action, find("bulk-note").value);
    const done = action === null ? "Cleared" : `Marked ${action}`;
    decisions.note(`${done}: ${plural(changing.length, kind.one)}. U, or Undo, takes all of it back.`);
  };

  const open = () => {
    if (!browser.shown().length) return;
    find("bulk-all").checked = find("bulk-skip").checked = true;
    find("bulk-note").value = "";
    draw();
    find("bulk").showModal();
  };

  const start = () => {
    find("bulk-actions").replaceChildren(
      ...actions.map((action) => {
        const button = make("button", { type: "button", class: action ?? "clear", "data-bulk": action ?? "" }, action === null ? "Clear" : capital(action));
        button.addEventListener("click", () => act(action));
        return button;
      }),
    );
    for (const id of ["bulk-all", "bulk-first", "bulk-skip"]) find(id).addEventListener("change", draw);
    find("bulk-open").addEventListener("click", open);
    find("bulk-close").addEventListener("click", () => find("bulk").close());
  };

  return { open, start };
})();
