"use strict";
// The page is whole without this: it saves the data, and says what is under the pointer.
(function () {
  const text = document.getElementById("run").textContent;
  const save = document.getElementById("save");
  save.hidden = false;
  save.addEventListener("click", function () {
    const a = document.createElement("a");
    a.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    a.download = "run.json";
    a.click();
    URL.revokeObjectURL(a.href);
  });
  const tip = document.getElementById("tip");
  let run = null;
  const ms = function (ns) { return ns < 1e9 ? (ns / 1e6).toPrecision(3) + " ms" : (ns / 1e9).toFixed(2) + " s"; };
  document.querySelectorAll("svg.live").forEach(function (svg) {
    const guide = document.createElementNS("http://www.w3.org/2000/svg", "path");
    guide.setAttribute("class", "guide");
    svg.append(guide);
    const hide = function () { tip.hidden = true; guide.removeAttribute("d"); };
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", function (e) {
      run = run || JSON.parse(text);
      const all = run.series[svg.parentNode.dataset.series].samples || [];
      const rect = svg.getBoundingClientRect(), box = svg.viewBox.baseVal, d = svg.dataset;
      const at = ((e.clientX - rect.left) * box.width / rect.width - d.x0) / d.w * d.end;
      let low = 0, high = all.length;
      while (low < high) {
        const mid = (low + high) >> 1;
        if (all[mid].at < at) low = mid + 1; else high = mid;
      }
      if (low > 0 && (low === all.length || at - all[low - 1].at < all[low].at - at)) low--;
      const s = all[low];
      if (!s || at < 0 || at > d.end) return hide();
      guide.setAttribute("d", "M" + (+d.x0 + s.at / d.end * d.w) + " 20V" + (box.height - 26));
      tip.textContent = (s.at / 1e9).toFixed(2) + " s: " + (s.ok ? ms(s.took) : "failed after " + ms(s.took)) + (s.by ? ", " + s.by : "") + (s.note ? ", " + s.note.slice(0, 120) : "");
      tip.hidden = false;
      tip.style.left = Math.max(4, Math.min(e.clientX + 14, innerWidth - tip.offsetWidth - 4)) + "px";
      tip.style.top = Math.max(4, e.clientY - tip.offsetHeight - 12) + "px";
    });
  });
})();
