// Sorts the table of an overview by the column whose header is clicked; again for the other direction.
(() => {
  "use strict";
  const body = document.querySelector("#videos tbody");
  for (const button of document.querySelectorAll("#videos th button")) {
    const header = button.closest("th");
    const column = header.cellIndex;
    button.addEventListener("click", () => {
      const isNumber = !["name", "label"].includes(button.dataset.key);
      const first = isNumber ? "descending" : "ascending";
      const order = header.getAttribute("aria-sort") === first ? (isNumber ? "ascending" : "descending") : first;
      for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order);
      const value = (row) => row.cells[column].dataset.value;
      const compare = isNumber
        ? (a, b) => value(a) - value(b)
        : (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
      const sign = order === "ascending" ? 1 : -1;
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
    });
  }
})();
