// A box that scrolls sideways must be reachable by keyboard. Which boxes scroll is known only
// once fonts and mathematics stand, and changes with the width of the window.
(() => {
  const boxes = ".bd-article :is(div.math mjx-container, span.math, .drawing, div.output, div.highlight, pre, " +
    "div.table-scroll, .cell_output, .pst-scrollable-table-container)";

  function reachable() {
    for (const box of document.querySelectorAll(boxes)) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 &&
        ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
      if (scrolls && !box.hasAttribute("tabindex")) {
        box.tabIndex = 0;
        box.dataset.scrolls = "";
      } else if (!scrolls && "scrolls" in box.dataset) {
        box.removeAttribute("tabindex");
        delete box.dataset.scrolls;
      }
    }
  }

  window.addEventListener("load", async () => {
    await document.fonts.ready;
    await window.MathJax?.startup?.promise;
    reachable();
    document.documentElement.dataset.ready = "";
    new ResizeObserver(reachable).observe(document.querySelector(".bd-article") ?? document.body);
  });
})();
