// Lists the videos of an overview, sorted by the column whose header is clicked; again for the other direction.
(() => {
  "use strict";
  const { labels, rows } = JSON.parse(document.getElementById("data").textContent);
  const body = document.querySelector("#videos tbody");
  const headers = [...document.querySelectorAll("#videos th")];
  const hasLost = headers.some((header) => header.querySelector("[data-key=lost]"));
  const make = (name, className, ...children) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.append(...children);
    return element;
  };
  const isolated = (element) => Object.assign(element, { dir: "auto" });
  function clock(seconds) {
    const tenths = Math.round(10 * seconds);
    const minutes = Math.floor(tenths / 600);
    const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
    return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
  }
  // A path for each colour.
  function drawTimeline(cells) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${cells.length} 1`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const paths = {};
    for (const run of cells.matchAll(/(\d)\1*/g))
      paths[run[1]] = `${paths[run[1]] ?? ""}M${run.index} 0h${run[0].length}v1h-${run[0].length}z`;
    for (const [colour, d] of Object.entries(paths)) {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", colourClass(colour));
      path.setAttribute("d", d);
      svg.append(path);
    }
    return svg;
  }
  const colourClass = (colour) => (colour < 8 ? `k${colour}` : "other");
  function drawRow(row) {
    const link = isolated(make("a", "", row.name));
    link.href = row.href;
    const label = isolated(make("span", "", labels[row.label]));
    const cells = [
      make("td", "", link),
      make("td", "", drawTimeline(row.cells)),
      make("td", "", make("span", `dot ${colourClass(row.colour)}`), label),
      make("td", "number", `${Math.round(100 * row.score)}\u00a0%`),
      make("td", "number", clock(row.seconds)),
    ];
    if (hasLost) cells.push(make("td", "number", String(row.lost)));
    return make("tr", "", ...cells);
  }
  const drawn = new Map(rows.map((row) => [row, drawRow(row)]));
  const place = () => body.replaceChildren(...rows.map((row) => drawn.get(row)));

  const collator = new Intl.Collator("en", { numeric: true });
  for (const header of headers) {
    const button = header.querySelector("button");
    button?.addEventListener("click", () => {
      const { key } = button.dataset;
      const isText = key === "name" || key === "label";
      const [first, second] = isText ? ["ascending", "descending"] : ["descending", "ascending"];
      const order = header.getAttribute("aria-sort") === first ? second : first;
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order);
      const value = (row) => (key === "label" ? labels[row.label] : row[key]);
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => sign * (isText ? collator.compare(value(a), value(b)) : value(a) - value(b)));
      place();
    });
  }
  place();
})();
