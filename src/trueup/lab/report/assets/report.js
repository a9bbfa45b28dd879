// Draws the figures in the page's colours, makes the ledger searchable and remembers the theme.
// Figures come as plotly's JSON in which a colour may be the name of a CSS variable, "var(--method)".
(() => {
  "use strict";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // -- colours ------------------------------------------------------------------------------------------------
  let colors = new Map();
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);

  function color(name) {
    if (!colors.has(name)) {
      probe.style.color = name;
      colors.set(name, getComputedStyle(probe).color);
    }
    return colors.get(name);
  }

  // A copy of the figure with every colour resolved; only keys that plotly reads as colours are touched.
  function painted(value, key = "") {
    if (Array.isArray(value)) return value.map((item) => painted(item, key));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v, k)]));
    return /color$/i.test(key) && /^var\(--[\w-]+\)$/.test(value) ? color(value) : value;
  }

  // -- figures ------------------------------------------------------------------------------------------------
  const plots = [...document.querySelectorAll(".plot")];
  const sources = new Map();
  const config = {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  };

  function layout(figure, width) {
    const axis = {
      gridcolor: color("var(--hairline)"), linecolor: color("var(--rule)"), tickcolor: color("var(--rule)"),
      ticks: "outside", ticklen: 4, showline: true, exponentformat: "power", automargin: true, tickangle: 0,
    };
    const own = painted(figure.layout);
    const styled = {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: color("var(--ink)") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 12, r: 16, t: 8, b: 46 },
      hoverlabel: { bgcolor: color("var(--raised)"), bordercolor: color("var(--rule)"), font: { color: color("var(--ink)") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("var(--soft)"), activecolor: color("var(--ink)") },
      // on a touch screen a drag must scroll the page, not zoom the figure
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      autosize: true, uirevision: "kept", ...own,
    };
    for (const name of ["xaxis", "yaxis"]) {
      styled[name] = { ...axis, ...own[name] };
      if (width < 480 && styled[name].type === "log" && !styled[name].tickvals) styled[name].nticks = 4;
      if (styled[name].title) styled[name].title = { standoff: 10, ...styled[name].title };
    }
    return styled;
  }

  function draw(plot) {
    if (!sources.has(plot)) {
      const script = plot.querySelector("script");
      sources.set(plot, JSON.parse(script.textContent));
      script.remove();
    }
    const figure = sources.get(plot);
    return Plotly.react(plot, painted(figure.data), layout(figure, plot.clientWidth), config).then(() => { plot.dataset.drawn = "yes"; });
  }

  // visible figures first, the others when the browser is idle
  function drawAll() {
    const near = plots.filter((plot) => plot.getBoundingClientRect().top < 1.5 * innerHeight);
    const rest = plots.filter((plot) => !near.includes(plot));
    near.forEach(draw);
    const idle = window.requestIdleCallback || ((work) => setTimeout(work, 1));
    const next = () => { const plot = rest.shift(); if (plot) { draw(plot); idle(next); } };
    idle(next);
  }

  function repaint() {
    colors = new Map();
    plots.filter((plot) => plot.dataset.drawn).forEach(draw);
  }

  // -- theme --------------------------------------------------------------------------------------------------
  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  }

  document.querySelector("[data-theme-toggle]").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("trueup-theme", root.dataset.theme); } catch { /* private window: not remembered */ }
    repaint();
  });
  dark.addEventListener("change", repaint);

  let before; // the theme before printing: figures are printed in light colours, with details opened
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    repaint();
    document.querySelectorAll("details:not([open])").forEach((d) => { d.open = true; d.dataset.printed = ""; });
  });
  addEventListener("afterprint", () => {
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    repaint();
    document.querySelectorAll("details[data-printed]").forEach((d) => { d.open = false; delete d.dataset.printed; });
  });

  // -- the ledger ---------------------------------------------------------------------------------------------
  function ledger(element) {
    const names = [...element.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    const filters = element.id === "papers" && document.querySelector(".filters");
    const table = new DataTable(element, {
      paging: false, autoWidth: false, order: [],
      columnDefs: [{ orderable: false, targets: names.flatMap((n, i) => (n.startsWith("primary") ? [i] : [])) }],
      layout: { topStart: filters ? ["search", () => filters.querySelector(".selects")] : "search", topEnd: "info", bottomStart: null, bottomEnd: null },
      language: {
        search: "", searchPlaceholder: "Search title, problem, claim, …", info: "_TOTAL_ shown",
        infoEmpty: "none shown", infoFiltered: "of _MAX_", zeroRecords: "Nothing matches. Clear the search or the filters.",
      },
    });
    const input = table.table().container().querySelector("input[type=search]");
    input.setAttribute("aria-label", "Search the ledger");
    if (!filters) return;
    filters.hidden = false;
    const exactly = (name, value) => {
      table.column(names.indexOf(name)).search(value ? (cell) => cell.trim() === value : "").draw();
    };
    document.querySelectorAll(".selects select").forEach((select) =>
      select.addEventListener("change", () => exactly(select.dataset.filter, select.value)));
    const buttons = [...filters.querySelectorAll("[data-verdict]")];
    buttons.forEach((button) => button.addEventListener("click", () => {
      buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
      exactly("verdict", button.dataset.verdict);
    }));
  }

  if (window.DataTable) document.querySelectorAll("[data-ledger]").forEach(ledger);
  if (window.Plotly) drawAll();
  else if (plots.length) // the ledger's table should not wait for plotly, as its figure is far below
    addEventListener("load", () => {
      const script = document.createElement("script");
      script.src = "assets/plotly-basic.min.js";
      script.addEventListener("load", drawAll);
      document.head.append(script);
    });
})();
