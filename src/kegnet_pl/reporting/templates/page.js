// Sorts tables by a column, and copies texts.
for (const table of document.querySelectorAll("table.sortable")) {
  const [head, ...rows] = table.rows;
  const value = (row, column) => row.cells[column].textContent.trim();
  const number = (text) => parseFloat(text.replaceAll(",", ""));
  const compare = (a, b) => {
    if (!a || !b) return 0;
    const difference = number(a) - number(b);
    return Number.isNaN(difference) ? a.localeCompare(b, undefined, { numeric: true }) : difference;
  };
  [...head.cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const sign = cell.ariaSort === "ascending" ? -1 : 1;
      for (const other of head.cells) other.ariaSort = null;
      cell.ariaSort = sign > 0 ? "ascending" : "descending";
      const empty = (row) => (value(row, column) ? 0 : 1);
      rows.sort((a, b) => empty(a) - empty(b) || sign * compare(value(a, column), value(b, column)));
      head.parentNode.append(...rows);
    });
  });
}
for (const text of document.querySelectorAll("pre.copy")) {
  const button = document.createElement("button");
  button.className = "copy";
  button.textContent = "Copy";
  text.before(button);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent.trim());
    } catch {
      getSelection().selectAllChildren(text);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
