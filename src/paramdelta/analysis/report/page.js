"use strict";
// Sorts and filters the tables; without it the page is complete, in the order of the model.
for (const table of document.querySelectorAll("table.sorted")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => {
        const cell = row.cells[column];
        const value = cell.dataset.value;
        return { row, number: value === undefined ? NaN : Number(value), text: cell.textContent };
      });
      const numbers = rows.some((each) => !Number.isNaN(each.number));
      rows.sort((one, two) => {
        if (!numbers) return sign * one.text.localeCompare(two.text, "en", { numeric: true });
        // What has no number stays at the end.
        if (Number.isNaN(one.number) || Number.isNaN(two.number)) {
          return Number.isNaN(one.number) - Number.isNaN(two.number);
        }
        return sign * (one.number - two.number);
      });
      body.append(...rows.map((each) => each.row));
    });
  });
}
for (const field of document.querySelectorAll("input[data-table]")) {
  const table = document.getElementById(field.dataset.table);
  const count = document.getElementById(field.dataset.count);
  const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
  const search = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      if (!row.hidden) found += 1;
    }
    count.textContent = `${found} of ${rows.length}`;
  };
  field.addEventListener("input", search);
  search();
}
