// Click a picture to enlarge it; left and right step through the models in the same place, up and down through tasks.
"use strict";
(() => {
  const dialog = document.getElementById("lightbox");
  if (!dialog || typeof dialog.showModal !== "function") return;
  const picture = dialog.querySelector("img");
  const caption = dialog.querySelector("figcaption");
  let rows = [];
  let row = 0;
  let column = 0;

  const show = () => {
    const source = rows[row][column].querySelector("img");
    picture.src = source.src;
    picture.alt = source.alt;
    picture.width = source.naturalWidth;
    picture.height = source.naturalHeight;
    picture.style.setProperty("--ratio", source.naturalWidth / source.naturalHeight);
    picture.classList.toggle("flat", source.classList.contains("flat"));
    caption.textContent = source.alt;
  };

  const step = (down, right) => {
    row = (row + down + rows.length) % rows.length;
    column = (column + right + rows[row].length) % rows[row].length;
    show();
  };

  for (const panel of document.querySelectorAll(".panel")) {
    const input = panel.querySelector(".panel-input button");
    const grid = [...panel.querySelectorAll(".panel-row")].map((line) => [input, ...line.querySelectorAll("button")]);
    for (const button of panel.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        rows = grid.length ? grid : [[input]];
        row = Math.max(rows.findIndex((line) => line.includes(button)), 0);
        column = rows[row].indexOf(button);
        show();
        dialog.showModal();
      });
    }
  }

  const keys = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  dialog.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    step(...keys[event.key]);
  });
  dialog.querySelector(".previous").addEventListener("click", () => step(0, -1));
  dialog.querySelector(".next").addEventListener("click", () => step(0, 1));
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
})();
