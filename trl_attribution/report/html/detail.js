"use strict";
// One pair: its prompt, both responses side by side with the differing words marked, and what was decided.
const detail = (() => {
  if (!rows) return null;
  const { find, make, count, kind, capital } = page;
  // Beyond this, comparing takes longer than a person waits.
  const patience = { timeout: 150, maxEditLength: 4000 };

  const spoken = { prompt: "prompt", chosen: kind.raised, rejected: kind.lowered };
  const joined = (parts) => parts.map((part) => part[1]).join("\n\n");

  const compared = (found) => {
    const [chosen, rejected] = [joined(found.c), joined(found.r)];
    return Diff.diffWordsWithSpace(rejected, chosen, patience) ?? null;
  };

  // The pieces of one side as [text, differs]; a space between two differing words differs too.
  const sideOf = (pieces, other) => {
    const found = pieces.filter((piece) => !piece[other]).map((piece) => [piece.value, Boolean(piece.added || piece.removed)]);
    for (let i = 1; i < found.length - 1; i++) {
      if (!found[i][1] && found[i][0].trim() === "" && found[i - 1][1] && found[i + 1][1]) found[i][1] = true;
    }
    return found;
  };

  // The marked pieces of one side, in the elements of its messages.
  const blocks = (parts, pieces, name) => {
    const queue = pieces.map(([value, marked]) => ({ value, marked }));
    const take = (wanted) => {
      const nodes = [];
      let left = wanted;
      while (left > 0 && queue.length) {
        const head = queue[0];
        const value = head.value.slice(0, left);
        if (head.marked && nodes.at(-1)?.tagName === "MARK") nodes.at(-1).append(value);
        else nodes.push(head.marked ? make("mark", {}, value) : document.createTextNode(value));
        left -= value.length;
        head.value = head.value.slice(value.length);
        if (!head.value) queue.shift();
      }
      return nodes;
    };
    return parts.map(([role, text, dropped], at) => {
      if (at > 0) take(2); // the line break between two messages
      return make(
        "div",
        { class: `text ${name}`, dir: "auto", tabindex: "0", role: "region", "aria-label": `${spoken[name]} ${role}`.trim() },
        parts.length > 1 || role === "system" ? make("span", { class: "role" }, role) : null,
        ...take(text.length),
        dropped ? make("span", { class: "role" }, `… ${count(dropped)} more characters are not in this page`) : null,
      );
    });
  };

  const fact = (name, value) => make("span", {}, `${name} `, make("b", { class: "data" }, value));

  const about = (i) =>
    make(
      "div",
      { class: "about" },
      fact(i < rows.flagged ? "#" : "not flagged, #", count(i + 1)),
      fact("score", rows.score[i].toFixed(4)),
      rows.decided(i) ? null : fact("q", rows.q[i].toPrecision(2)), // beside an estimate it would be another answer
      fact("rank", count(rows.rank[i])),
      fact("probe", rows.probeName(i)),
      fact("source", rows.sourceName(i)),
      fact("row", count(rows.row[i])),
      rows.text(i) ? fact("at", rows.text(i).where) : null,
      make("span", {}, "id ", make("code", {}, rows.id(i))),
      make("a", { href: `#pair=${rows.id(i)}` }, `Link to this ${kind.one}`),
    );

  const byLayer = (i) => {
    const scored = rows.columns.filter((column) => i < column.score.length);
    if (scored.length < 2) return null;
    const cells = scored.map((column) =>
      make("tr", {}, make("th", { scope: "row" }, column.probe), make("td", { class: "n" }, String(column.layer)), make("td", { class: "n" }, column.score[i].toFixed(3))),
    );
    const head = make("tr", {}, make("th", { scope: "col" }, "Probe"), make("th", { scope: "col", class: "n" }, "Layer"), make("th", { scope: "col", class: "n" }, "Score"));
    return make("details", {}, make("summary", {}, `Scores of this ${kind.one} by probe and layer`), make("table", {}, make("thead", {}, head), make("tbody", {}, ...cells)));
  };

  const texts = (i) => {
    const found = rows.text(i);
    if (!found) return [make("p", { class: "notice" }, page.data.texts.missing)];
    const pieces = compared(found);
    const side = (parts, other) => (pieces ? sideOf(pieces, other) : [[joined(parts), false]]);
    const unmarked = found.p.map((part, at) => [at ? `\n\n${part[1]}` : part[1], false]);
    return [
      found.p.some((part) => part[1]) ? make("h3", {}, "Prompt") : null,
      ...(found.p.some((part) => part[1]) ? blocks(found.p, unmarked, "prompt") : []),
      make(
        "div",
        { class: "sides" },
        make("div", {}, make("h3", {}, `${capital(kind.raised)}: training pushes towards this`), ...blocks(found.c, side(found.c, "removed"), "chosen")),
        make("div", {}, make("h3", {}, `${capital(kind.lowered)}: and away from this`), ...blocks(found.r, side(found.r, "added"), "rejected")),
      ),
      pieces ? null : make("p", { class: "hint" }, "The responses differ too much for differing words to be marked."),
    ];
  };

  const button = (action, label, key) => {
    const made = make("button", { type: "button", class: action ?? "clear", "data-action": action ?? "" }, label, make("kbd", { "aria-hidden": "true" }, key));
    made.addEventListener("click", () => browser.decide(action));
    return made;
  };

  const decide = () => {
    const note = make("input", { id: "note", maxlength: "2000", autocomplete: "off", placeholder: "kept with the decision" });
    note.addEventListener("change", () => {
      const now = decisions.at(current);
      if (now && now.note !== note.value) decisions.decide([current], now.action, note.value);
    });
    note.addEventListener("keydown", (event) => event.key === "Enter" && note.blur());
    const undo = make("button", { type: "button", class: "quiet" }, "Undo", make("kbd", { "aria-hidden": "true" }, "U"));
    undo.addEventListener("click", () => browser.undo());
    return make(
      "div",
      { class: "decide", role: "group", "aria-label": "Decision" },
      ...kind.actions.map((action) => button(action, capital(action), { keep: "K", filter: "F", flip: "X" }[action])),
      button(null, "Clear", "C"),
      undo,
      make("label", { class: "note" }, "Note", note),
    );
  };

  let current = -1;
  const drawDecision = (i) => {
    if (i < 0) return;
    const now = decisions.at(i);
    for (const each of find("detail").querySelectorAll("button[data-action]")) {
      if (each.dataset.action) each.setAttribute("aria-pressed", String(each.dataset.action === now?.action));
      else each.disabled = !now;
    }
    const note = find("note");
    // Without a decision it holds what was typed, to be kept with the decision.
    if (now && document.activeElement !== note) note.value = now.note;
  };

  const draw = (i) => {
    // A note that is still being typed belongs to the pair that it was typed for.
    if (document.activeElement === find("note")) find("note").blur();
    current = i;
    if (i < 0) {
      find("detail").replaceChildren(make("p", { class: "hint" }, rows.length ? `No ${kind.one} fits these filters.` : `No ${kind.one} is listed.`));
      return;
    }
    find("detail").replaceChildren(...[about(i), ...texts(i), byLayer(i), decide()].filter((node) => node !== null));
    find("detail").scrollTop = 0;
    drawDecision(i);
  };

  return { draw, drawDecision };
})();
