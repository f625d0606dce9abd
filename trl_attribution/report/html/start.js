"use strict";
// The list first, since that is what people came for; charts a frame later.
(async () => {
  if (rows) {
    review.start();
    browser.filter();
    performance.mark("list-drawn");
  }
  requestAnimationFrame(() => {
    charts.start();
    performance.mark("charts-drawn");
  });
  if (rows) {
    await decisions.load();
    rows.prepare();
  }
})();
