// The address after # says what is shown: #/ the list, #/run/ID/STEP a run, #/compare/ID,ID several, #/label/ID
// inputs that wait for a label.

import { el, fill, say, takeToken } from "./dom.js";
import { comparePage } from "./compare.js";
import { labelPage } from "./label.js";
import { listPage } from "./list.js";
import { runPage } from "./run.js";

let leave = () => {};
let shown = "";
let move = null;

async function route() {
  takeToken();
  const [, kind = "", ids = "", rest = ""] = location.hash.split("/");
  const page = `${kind}/${ids}`;
  if (page === shown) return move?.(rest); // only the step changed
  shown = page;
  move = null;
  leave();
  const controller = new AbortController();
  leave = () => controller.abort();
  const main = fill(document.getElementById("main"));
  say("");
  try {
    if (kind === "run") move = await runPage(main, ids, rest, controller.signal);
    else if (kind === "compare") await comparePage(main, ids.split(","), controller.signal);
    else if (kind === "label") await labelPage(main, ids, controller.signal);
    else await listPage(main, controller.signal);
  } catch (error) {
    if (controller.signal.aborted) return;
    document.title = "dln";
    fill(main, el("p", { class: "note problem", role: "alert" }, error.message));
  }
}

addEventListener("hashchange", route);
route();
