// Tables of few columns are read row by row on a phone: each cell below the one before it, with the
// heading of its column. Tables of numbers stay as they are and scroll in a box of their own.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("article table.docutils")) {
    const heads = [...table.querySelectorAll("thead th")].map(th => th.textContent.trim());
    if (heads.length < 2 || heads.length > 6 || table.querySelector("td.text-right")) continue;
    table.classList.add("stacked");
    for (const row of table.querySelectorAll("tbody tr"))
      [...row.cells].forEach((cell, place) => {
        if (place && heads[place] && cell.textContent.trim()) cell.dataset.label = heads[place];
        if (!cell.textContent.trim()) cell.classList.add("empty");
      });
  }
});
