// Bars of the class filter: what the selector in data-filter finds (rows, list entries) is hidden unless
// its data-name, or its text, holds one of the words in the field, and its data-at is the choice of the
// select. Without scripts the bars stay hidden and everything is there.
for (const bar of document.querySelectorAll(".filter")) {
  const parts = [...document.querySelectorAll(bar.dataset.filter)];
  const search = bar.querySelector("input");
  const only = bar.querySelector("select");
  const told = bar.querySelector("output");
  const apply = () => {
    const words = search.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    const any = words.length === 0;
    let count = 0;
    for (const part of parts) {
      const name = (part.dataset.name ?? part.textContent).toLowerCase();
      const fits = any || words.some((word) => name.includes(word));
      part.hidden = !(fits && (!only || !only.value || part.dataset.at === only.value));
      count += !part.hidden;
    }
    told.textContent = count < parts.length ? `${count} of ${parts.length}` : "";
  };
  search.addEventListener("input", apply);
  only?.addEventListener("change", apply);
  bar.hidden = false;
  apply();
}
