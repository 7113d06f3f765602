"use strict";
// The board's filters and its order. Without a script the page shows every row as listed.
(() => {
  const controls = document.getElementById("controls");
  const filters = [...controls.querySelectorAll("[data-filter]")];
  const search = document.getElementById("search"), sort = document.getElementById("sort");
  const order = document.getElementById("order"), count = document.getElementById("count");
  const body = document.querySelector(".board tbody");
  const rows = [...body.rows].map((row, place) => {
    const values = Object.fromEntries([...row.cells].map((cell) => [cell.dataset.column, cell.dataset.value]));
    return { row, place, values, text: row.textContent.toLowerCase() };
  });

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const each of rows) {
      const kept = filters.every((one) => !one.value || each.values[one.dataset.filter] === one.value)
        && words.every((word) => each.text.includes(word));
      each.row.hidden = !kept;
      left += kept;
    }
    count.textContent = `${left} of ${rows.length} shown`;
    document.getElementById("none").hidden = left > 0;
  }

  function arrange() {
    const column = sort.value, sign = order.getAttribute("aria-pressed") === "true" ? -1 : 1;
    const numeric = column === "success" || column === "n";
    const missing = (each) => column !== "" && each.values[column] === "";
    const key = (each) => (!column ? each.place : numeric ? Number(each.values[column]) : each.values[column]);
    rows.sort((a, b) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b); // what wasn't scored stands last, either way
      return sign * ((key(a) > key(b)) - (key(a) < key(b))) || a.place - b.place;
    });
    body.append(...rows.map((each) => each.row));
  }

  for (const one of filters) one.addEventListener("change", update);
  search.addEventListener("input", update);
  sort.addEventListener("change", arrange);
  order.addEventListener("click", () => {
    order.setAttribute("aria-pressed", order.getAttribute("aria-pressed") !== "true");
    arrange();
  });
  controls.hidden = false;
  update();
})();
