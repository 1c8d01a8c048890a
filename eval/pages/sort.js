// Tables with the attribute data-sortable: a button in every column head. Without scripts the
// table stays as it is.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const order = [...body.rows];
  const value = (row, column) => {
    const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    return text === "" ? NaN : isNaN(text) ? text : Number(text);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = { none: "descending", descending: "ascending", ascending: "none" }[now];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const compare = (one, two) => {
        const a = value(one, column), b = value(two, column);
        const empty = (x) => typeof x === "number" && isNaN(x);
        if (empty(a) || empty(b)) return empty(a) - empty(b);
        return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
      };
      body.append(...(next === "none" ? order : [...order].sort(compare)));
    });
  });
}
// On paper nothing can be opened.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((part) => (part.open = true));
});
addEventListener("afterprint", () => closed.forEach((part) => (part.open = false)));
