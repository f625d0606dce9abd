"use strict";
// The list first, since that is what people came for; charts a frame later.
(async () => {
  if (rows) {
    review.start();
    bulk.start();
    browser.filter();
    performance.mark("list-drawn");
  }
  requestAnimationFrame(() => {
    discovery.start();
    charts.start();
    performance.mark("charts-drawn");
  });
  if (rows) {
    browser.showLinked();
    await decisions.load();
    rows.prepare();
  }
})();
