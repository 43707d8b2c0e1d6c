// Starts the page. Where the network changes while it loads, browsers give up scripts for good: then it is loaded again.

const AGAIN_MS = 1000;
const TRIES = 10; // in a row; then something else is wrong

try {
  if (!window.uPlot) throw new Error("a script is missing");
  await import("./page.js");
  document.getElementById("starting").hidden = true;
  count(0);
} catch (error) {
  console.info(`the page did not start: ${error}`);
  const tries = count(1);
  if (tries < TRIES) setTimeout(() => location.reload(), AGAIN_MS);
}

/** Return how many times in a row the page did not start, with this one; too many where nothing may be stored. */
function count(more) {
  try {
    const tries = more && more + Number(sessionStorage.getItem("tries"));
    sessionStorage.setItem("tries", tries);
    return tries;
  } catch {
    return TRIES;
  }
}
