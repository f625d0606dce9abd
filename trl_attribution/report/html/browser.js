"use strict";
// The list of pairs, the pair that is looked at, and the keys.
const browser = (() => {
  if (!rows) return null;
  const { find, make, count, plural, kind } = page;
  const controls = Object.fromEntries(
    ["query", "by-source", "by-probe", "by-score", "by-review", "sort", "page-size"].map((id) => [id, find(id)]),
  );
  let shown = rows.order("rank");
  let first = 0;
  let selected = -1;
  const size = () => Number(controls["page-size"].value);
  const highest = rows.score.reduce((a, b) => Math.max(a, b), 0) || 1;

  page.data.rows.sourceNames
    .map((name, i) => [name, i])
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .forEach(([name, i]) => controls["by-source"].append(make("option", { value: i }, name)));
  page.data.probes.forEach(({ name }, i) => controls["by-probe"].append(make("option", { value: i }, name)));

  const tests = () => {
    const found = [];
    const [source, probe, score, review] = ["by-source", "by-probe", "by-score", "by-review"].map((id) => controls[id].value);
    if (source) found.push((i) => rows.source[i] === Number(source));
    if (probe) found.push((i) => rows.probe[i] === Number(probe));
    if (score !== "") found.push((i) => rows.score[i] >= Number(score) - 1e-9);
    if (review) {
      found.push((i) => {
        const action = decisions.at(i)?.action;
        return review === "none" ? !action : review === "any" ? Boolean(action) : action === review;
      });
    }
    const query = rows.matcher(controls.query.value);
    if (query) found.push(query);
    return found;
  };

  // Opens `wanted` if it is among what is shown then, else the first.
  const filter = (wanted = -1) => {
    const order = rows.order(controls.sort.value);
    const all = tests();
    if (!all.length) shown = order;
    else shown = order.filter((i) => all.every((test) => test(i)));
    first = 0;
    select(shown.includes(wanted) ? wanted : shown.length ? shown[0] : -1, false);
  };

  const chip = (action) => make("span", { class: `chip chip-${action ?? "none"}` }, action ?? "·");

  const snippet = (i) => {
    const found = rows.text(i);
    const last = found?.p.at(-1) ?? found?.c.at(-1);
    return last ? last[1].slice(0, 160).replace(/\s+/g, " ") : rows.id(i);
  };

  const option = (i) => {
    const meter = make("i");
    meter.style.setProperty("--w", `${Math.max(0, (100 * rows.score[i]) / highest)}%`);
    const item = make(
      "li",
      { id: `pair-${i}`, role: "option", "aria-selected": String(i === selected) },
      make("span", { class: "score" }, rows.score[i].toFixed(3)),
      make("span", { class: "place" }, `${i < rows.flagged ? `#${count(i + 1)}` : "not flagged"}${rows.first.has(i) ? " · read first" : ""} · ${rows.sourceName(i)}`),
      chip(decisions.at(i)?.action),
      make("span", { class: "meter", "aria-hidden": "true" }, meter),
      make("span", { class: "snippet" }, snippet(i)),
    );
    item.addEventListener("click", () => select(i));
    return item;
  };

  const drawList = () => {
    const list = find("list");
    const items = Array.from(shown.slice(first, first + size()), option);
    list.replaceChildren(...items);
    list.setAttribute("aria-activedescendant", selected >= 0 ? `pair-${selected}` : "");
    const pages = Math.max(1, Math.ceil(shown.length / size()));
    find("page-of").textContent = `Page ${count(1 + first / size())} of ${count(pages)}`;
    find("previous-page").disabled = first === 0;
    find("next-page").disabled = first + size() >= shown.length;
    const unflagged = rows.length - rows.flagged;
    const listed = unflagged ? `${plural(rows.flagged, `flagged ${kind.one}`)} and the ${count(unflagged)} that rank next` : plural(rows.length, `flagged ${kind.one}`);
    find("count").textContent = shown.length === rows.length ? listed : `${count(shown.length)} of ${listed}`;
    find("bulk-open").disabled = shown.length === 0;
    find("bulk-open").firstChild.textContent = shown.length === 1 ? `Decide about this ${kind.one} … ` : `Decide about these ${count(shown.length)} … `;
  };

  const select = (i, scroll = true) => {
    selected = i;
    const place = shown.indexOf(i);
    if (place >= 0) first = place - (place % size());
    drawList();
    detail.draw(i);
    if (scroll && i >= 0) find(`pair-${i}`)?.scrollIntoView({ block: "nearest" });
  };
  const step = (by) => {
    const place = shown.indexOf(selected) + by;
    if (place >= 0 && place < shown.length) select(shown[place]);
  };
  const turn = (by) => {
    const next = first + by * size();
    if (next >= 0 && next < shown.length) select(shown[next]);
  };

  const decide = (action) => {
    if (selected < 0 || (action !== null && !kind.actions.includes(action))) return;
    decisions.decide([selected], action, find("note")?.value ?? "");
    if (action !== null && find("advance").checked) step(1);
  };
  const undo = () => {
    const { place, changed } = decisions.undo();
    if (changed > 1) decisions.note(`Undone: ${count(changed)} ${kind.several} are as they were.`);
    if (place >= 0 && shown.includes(place)) select(place);
  };

  // A link to one pair; filters that hide it are taken off.
  let linked = -1;
  const showLinked = () => {
    const wanted = /^#pair=([0-9a-f]{32})$/.exec(location.hash)?.[1];
    if (wanted === undefined) return;
    const place = rows.indexOf(wanted);
    if (place < 0) {
      decisions.tell(`This page lists no ${kind.one} ${wanted}.`, true);
      find("message").scrollIntoView({ block: "center" });
      return;
    }
    if (shown.includes(place)) select(place);
    else {
      linked = place;
      find("filters").reset();
    }
    find("browser").scrollIntoView();
    find("detail").focus({ preventScroll: true });
  };
  const open = (place) => {
    const hash = `#pair=${rows.id(place)}`;
    if (location.hash === hash) showLinked();
    else location.hash = hash;
  };

  const refresh = () => {
    for (const item of find("list").children) {
      item.children[2].replaceWith(chip(decisions.at(Number(item.id.slice(5)))?.action));
    }
    detail.drawDecision(selected);
  };

  let waiting = 0;
  find("filters").addEventListener("input", (event) => {
    clearTimeout(waiting);
    // Only typing waits for more to come: a key pressed right after a choice is about what was chosen.
    if (event.target === controls.query) waiting = setTimeout(() => filter(), 60);
    else filter();
  });
  find("filters").addEventListener("reset", () => {
    const wanted = linked;
    linked = -1;
    setTimeout(() => filter(wanted), 0);
  });
  addEventListener("hashchange", showLinked);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#pair=']");
    if (link && link.hash === location.hash) showLinked();
  });
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  find("previous-page").addEventListener("click", () => turn(-1));
  find("next-page").addEventListener("click", () => turn(1));
  find("list").addEventListener("keydown", (event) => {
    const moves = { ArrowDown: 1, ArrowUp: -1 };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    step(moves[event.key]);
  });

  const keys = {
    n: () => step(1),
    p: () => step(-1),
    "]": () => turn(1),
    "[": () => turn(-1),
    k: () => decide("keep"),
    f: () => decide("filter"),
    x: () => decide("flip"),
    c: () => decide(null),
    u: undo,
    b: () => bulk.open(),
    e: () => find("note")?.focus(),
    "/": () => controls.query.focus(),
    "?": () => find("keys").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    const target = event.target;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && target instanceof HTMLInputElement) {
      // Some browsers would clear a search field now, without the event that draws the list for it.
      event.preventDefault();
      target.blur();
    }
    if (!find("shortcuts").checked || event.ctrlKey || event.metaKey || event.altKey) return;
    const types = target instanceof HTMLInputElement && !["checkbox", "file"].includes(target.type);
    if (types || target instanceof HTMLSelectElement) return;
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  return { filter, select, decide, undo, refresh, open, showLinked, shown: () => shown, selected: () => selected };
})();
