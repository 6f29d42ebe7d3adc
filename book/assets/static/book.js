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

  // The theme's buttons that unfold a part of the contents have no name.
  function nameButtons() {
    for (const button of document.querySelectorAll(".bd-links details > summary")) {
      const title = button.closest("li")?.querySelector("a")?.textContent.trim();
      if (!button.textContent.trim()) button.setAttribute("aria-label", `Pages of ${title}`);
    }
  }

  window.addEventListener("load", async () => {
    nameButtons();
    await document.fonts.ready;
    await window.MathJax?.startup?.promise;
    reachable();
    document.documentElement.dataset.ready = "";
    new ResizeObserver(reachable).observe(document.querySelector(".bd-article") ?? document.body);
  });
})();

// Read from a disk, the search may not open other pages to quote from them.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
