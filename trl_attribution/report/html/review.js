"use strict";
// Progress, precision at k, export and import.
const review = (() => {
  if (!rows) return null;
  const { find, make, count, kind } = page;
  const z = 1.959963984540054;

  // The Wilson score interval: `confirmed` of `reviewed`.
  const wilson = (confirmed, reviewed) => {
    const share = confirmed / reviewed;
    const scale = 1 + (z * z) / reviewed;
    const middle = (share + (z * z) / (2 * reviewed)) / scale;
    const half = (z * Math.sqrt((share * (1 - share)) / reviewed + (z * z) / (4 * reviewed * reviewed))) / scale;
    return [confirmed === 0 ? 0 : middle - half, confirmed === reviewed ? 1 : middle + half];
  };

  const cuts = () => {
    const found = [];
    for (let ten = 10; ten < rows.flagged; ten *= 10) found.push(ten, 2 * ten, 5 * ten);
    return [...found.filter((k) => k < rows.flagged), ...(rows.flagged ? [rows.flagged] : [])];
  };

  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  const draw = () => {
    const counts = Object.fromEntries(kind.actions.map((action) => [action, 0]));
    const at = [];
    for (const [i, { action }] of decisions.listed()) {
      if (i >= rows.flagged) continue;
      counts[action] = (counts[action] ?? 0) + 1;
      at.push([i, action !== "keep"]);
    }
    const parts = Object.entries(counts).map(([action, number]) => `${count(number)} ${action}`);
    const read = decisions.listed().filter(([i]) => rows.first.has(i)).length;
    const outside = decisions.size - at.length;
    const others = outside ? `; ${count(outside)} on ${kind.several} that are not flagged here` : "";
    find("progress").textContent = `${count(at.length)} of ${count(rows.flagged)} flagged ${kind.several} reviewed (${parts.join(", ")}${others}); ${count(read)} of the ${count(rows.first.size)} to read first`;
    const lines = cuts().map((k) => {
      const within = at.filter(([i]) => i < k);
      const confirmed = within.filter(([, yes]) => yes).length;
      // The top of the list says nothing about its second half.
      const cells = within.some(([i]) => k <= 2 * i + 1)
        ? [percent(confirmed / within.length), wilson(confirmed, within.length).map(percent).join(" – ")]
        : ["–", "–"];
      const values = [count(k), count(within.length), count(confirmed), ...cells];
      return make("tr", {}, ...values.map((value, column) => make(column ? "td" : "th", { class: "n", scope: column ? null : "row" }, value)));
    });
    find("precision-rows").replaceChildren(...lines);
    find("export").disabled = decisions.size === 0;
  };

  const save = () => {
    const url = URL.createObjectURL(new Blob([decisions.exported()], { type: "application/jsonl" }));
    const name = decisions.reviewer.replace(/[^A-Za-z0-9_-]+/g, "-") || "review";
    const link = make("a", { href: url, download: `decisions.${name}.jsonl` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  };

  const start = () => {
    find("saving").textContent = decisions.served
      ? `Every decision is written to ${page.data.review.file} at once.`
      : "Decisions stay in this browser. Export them for trl-attribution apply and manifest merge.";
    const name = find("reviewer");
    name.value = decisions.reviewer;
    name.readOnly = decisions.served;
    name.addEventListener("input", () => (decisions.reviewer = name.value.trim()));
    find("export").addEventListener("click", save);
    find("help").addEventListener("click", () => find("keys").showModal());
    find("close-keys").addEventListener("click", () => find("keys").close());
    find("import").addEventListener("change", async (event) => {
      const [file] = event.target.files;
      if (!file) return;
      try {
        const { taken, left } = decisions.imported(await file.text());
        const rest = left ? ` ${count(left)} are about ${kind.several} that this page does not list, and were left out.` : "";
        decisions.note(`${page.plural(taken, "decision")} taken from ${file.name}.${rest}`);
      } catch (error) {
        decisions.tell(`${file.name}: ${error.message}`, true);
      }
      event.target.value = "";
    });
    for (const id of ["advance", "shortcuts"]) {
      find(id).checked = page.stored.get(id, "yes") === "yes";
      find(id).addEventListener("change", () => page.stored.set(id, find(id).checked ? "yes" : "no"));
    }
    decisions.onChange(() => {
      draw();
      browser.refresh();
    });
    draw();
  };

  return { start, wilson };
})();
